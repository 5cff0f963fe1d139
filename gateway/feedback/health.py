"""Whether labels come in and meet their predictions: what the join counts. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.feedback.emitted import Emitted

AGE_BUCKETS_S = (1, 10, 60, 600, 3600, 21_600, 86_400, 604_800)
"""Upper bounds of label ages, from the prediction to the label's event time."""
MAX_GROUPS = 1000
"""Groups that are told apart; rows of more are counted as `OTHER` segments."""
OTHER = ("other",)


class Group(NamedTuple):
    """Rows that are counted together.

    Attributes:
        segments: Of the requests.
    """

    model: str
    version: int
    role: str
    segments: tuple[str, ...]


class Gauges(NamedTuple):
    """What a partition holds now.

    Attributes:
        pending: Requests whose labels may still come.
        held: Labels that wait for their predictions.
        oldest_ms: Unix time when the first of either is due; 0 for none.
    """

    pending: int
    held: int
    oldest_ms: int


class Health:
    """Sums over the partitions that are joined here; since this process began."""

    def __init__(self) -> None:
        self._rows: dict[Group, Counter[str]] = {}
        self._ages: defaultdict[str, list[int]] = defaultdict(
            lambda: [0] * (len(AGE_BUCKETS_S) + 1)
        )
        self._age_s: defaultdict[str, float] = defaultdict(float)
        self._counts: dict[int, Mapping[str, int]] = {}
        self._gauges: dict[int, Gauges] = {}
        self._lag: dict[int, int] = {}

    def rows(self, emitted: Emitted) -> None:
        """Count rows that were emitted, or taken back."""
        if not len(emitted):
            return
        names = ("model", "version", "role", "segments", "status", "sign")
        same = Counter(zip(*map(emitted.column, names), strict=True))
        for (*kind, status, sign), count in same.items():
            group = Group(*kind)
            counts = self._rows.get(group)
            if counts is None:
                if len(self._rows) >= MAX_GROUPS:
                    group = group._replace(segments=OTHER)
                counts = self._rows.setdefault(group, Counter())
            counts[status] += sign * count
        self._age(emitted)

    def _age(self, emitted: Emitted) -> None:
        names = ("model", "label_ms", "time_ms", "sign")
        for model, label_ms, time_ms, sign in zip(
            *map(emitted.column, names), strict=True
        ):
            if label_ms is not None and sign > 0:
                age_s = max(0, label_ms - time_ms) / 1000
                self._ages[model][bisect_left(AGE_BUCKETS_S, age_s)] += 1
                self._age_s[model] += age_s

    def counted(self, partition: int, counts: Mapping[str, int]) -> None:
        """Take what a shard has counted since the log's beginning."""
        self._counts[partition] = counts

    def holds(self, partition: int, gauges: Gauges) -> None:
        """Take what a partition holds now."""
        self._gauges[partition] = gauges

    def behind(self, lag: Mapping[int, int]) -> None:
        """Take how many events of each partition are not joined yet."""
        self._lag = dict(lag)

    def forget(self, partition: int) -> None:
        """Leave a partition to whoever joins it now."""
        self._gauges.pop(partition, None)
        self._counts.pop(partition, None)
        self._lag.pop(partition, None)

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        counts: Counter[str] = Counter()
        for each in self._counts.values():
            counts.update(each)
        gauges = self._gauges.values()
        return {
            "counts": dict(counts),
            "rows": [
                [*group[:3], "/".join(group.segments), status, count]
                for group, by_status in self._rows.items()
                for status, count in by_status.items()
            ],
            "ages": [
                [model, buckets, self._age_s[model]]
                for model, buckets in self._ages.items()
            ],
            "pending": sum(each.pending for each in gauges),
            "held": sum(each.held for each in gauges),
            "oldest_ms": min(filter(None, (g.oldest_ms for g in gauges)), default=0),
            "lag": {str(partition): lag for partition, lag in self._lag.items()},
        }

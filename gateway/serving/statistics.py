"""What a front counts: plain integers per version, added up by the supervisor.

Everything here only grows, and a snapshot is additive: the sum over processes of
any two snapshots is the statistics of the whole gateway.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gateway.serving.pending import Pending, Timing

DELAY_BUCKETS_S = tuple(
    mantissa * 10.0**exponent for exponent in range(-4, 1) for mantissa in (1, 2.5, 5)
)
"""Upper bounds of the queue-delay histogram, in seconds."""
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the batch-size histogram, in rows."""

_DELAY_BUCKETS_NS = tuple(int(bound * 1e9) for bound in DELAY_BUCKETS_S)


class Histogram:
    """Counts per bucket and a sum, in the unit of its bounds."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[int]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """Count one value in the bucket whose upper bound it does not exceed."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_all(self, values: list[int], total: int) -> None:
        """Count values whose sum is `total`; most of a batch fall into one bucket."""
        bounds, counts = self._bounds, self.counts
        low = bisect_left(bounds, min(values))
        if low == bisect_left(bounds, max(values)):
            counts[low] += len(values)
        else:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
        self.total += total


class VersionStatistics:
    """Counters of one version in one front, for statistics RPC and metrics alike.

    Attributes:
        changed: Something was counted since whoever reports them set this to false.
    """

    def __init__(self) -> None:
        self.changed = True
        self.last_inference_ms = 0
        self.rows = 0
        self.executions = 0
        self.success = [0, 0]
        self.fail = [0, 0]
        self.queue = [0, 0]
        self.compute_input = [0, 0]
        self.compute_infer = [0, 0]
        self.compute_output = [0, 0]
        self.batches: Counter[str] = Counter()
        self.runs: dict[int, list[int]] = {}
        self.outcomes: Counter[str] = Counter()
        self.dropped_rows: Counter[str] = Counter()
        self.queue_delay = Histogram(_DELAY_BUCKETS_NS)
        self.batch_rows = Histogram(ROW_BUCKETS)

    def sent(self, reason: str, rows: int) -> None:
        """Count a batch that left for a worker."""
        self.changed = True
        self.batches[reason] += 1
        self.batch_rows.observe(rows)

    def ran(self, executions: int, run_rows: int, timing: Timing) -> None:
        """Count a run of the model; merged batches bring no execution of their own."""
        self.changed = True
        self.last_inference_ms = time.time_ns() // 1_000_000
        if not executions:
            return
        self.executions += executions
        run = self.runs.get(run_rows)
        if run is None:
            run = self.runs[run_rows] = [0, 0, 0, 0]
        run[0] += executions
        run[1] += timing.input_ns
        run[2] += timing.infer_ns
        run[3] += timing.output_ns

    def answered(
        self, requests: Sequence[Pending], timing: Timing, now_ns: int
    ) -> None:
        """Count the requests of one batch that got their answers."""
        count = len(requests)
        if not count:
            return
        self.changed = True
        first = requests[0]
        waited = first.sent_ns - first.admitted_ns
        if count == 1:
            self.rows += first.rows
            self.queue_delay.observe(waited)
        else:
            waits = [pending.sent_ns - pending.admitted_ns for pending in requests]
            waited = sum(waits)
            self.rows += sum([pending.rows for pending in requests])
            self.queue_delay.observe_all(waits, waited)
        self.outcomes["ok"] += count
        success, queue = self.success, self.queue
        success[0] += count
        success[1] += waited + count * (now_ns - first.sent_ns)
        queue[0] += count
        queue[1] += waited
        before, infer, after = (
            self.compute_input,
            self.compute_infer,
            self.compute_output,
        )
        before[0] += count
        before[1] += count * timing.input_ns
        infer[0] += count
        infer[1] += count * timing.infer_ns
        after[0] += count
        after[1] += count * timing.output_ns

    def refused(self, label: str) -> None:
        """Count a request that was not admitted."""
        self.changed = True
        self.outcomes[label] += 1

    def failed(self, pending: Pending, label: str, now_ns: int) -> None:
        """Count an admitted request that got an error instead."""
        self.refused(label)
        self.fail[0] += 1
        self.fail[1] += now_ns - pending.admitted_ns

    def snapshot(self) -> dict[str, Any]:
        """Return all counters as JSON-ready values; see `add_up`."""
        return {
            "last_inference_ms": self.last_inference_ms,
            "rows": self.rows,
            "executions": self.executions,
            "success": self.success,
            "fail": self.fail,
            "queue": self.queue,
            "compute_input": self.compute_input,
            "compute_infer": self.compute_infer,
            "compute_output": self.compute_output,
            "batches": dict(self.batches),
            "runs": {str(rows): run for rows, run in self.runs.items()},
            "outcomes": dict(self.outcomes),
            "dropped_rows": dict(self.dropped_rows),
            "queue_delay": self.queue_delay.counts,
            "queue_delay_ns": self.queue_delay.total,
            "batch_rows": self.batch_rows.counts,
            "batch_rows_sum": self.batch_rows.total,
        }


def add_up(left: Any, right: Any, key: str = "") -> Any:  # noqa: ANN401
    """Return the sum of two snapshots, of whatever depth. Pure.

    Numbers add, lists add element by element, mappings by key; ``last_`` keys take
    the later one.
    """
    if isinstance(left, dict):
        both = dict(left)
        for name, value in right.items():
            both[name] = add_up(both[name], value, name) if name in both else value
        return both
    if isinstance(left, list):
        return [add_up(a, b) for a, b in zip(left, right, strict=True)]
    return max(left, right) if key.startswith("last_") else left + right

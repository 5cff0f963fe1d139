"""What is let in while very many requests are pending: a sample that halves. Pure.

The fuller a partition, the fewer: three quarters full it takes half of the requests,
seven eighths full a quarter, and so on; so it hardly fills, as often as it is looked
at. Which ones is decided by a hash of the id alone, among those made at the same time:
all answers to a request are let in or none, and labels of the others are known as
theirs. Rows of those let in weigh accordingly more. When a sample began depends on the
reader: what is thinned is the one thing that a replay need not repeat.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from math import floor, log2

MOST_HALVINGS = 20
_MOST_REGIMES = 4096
"""Changes that are remembered; then it no longer takes more again."""
_HYSTERESIS = 1.5
Regime = tuple[int, int]
"""Unix time (ms) of ids from which on it holds, and how often the sample is halved."""


class Thinning:
    """Which ids are let in, by when they were made.

    Args:
        regimes: In order of time.
    """

    def __init__(self, regimes: Sequence[Regime] = ()) -> None:
        self.regimes = [*regimes]
        self._starts = [start for start, _ in self.regimes]

    def __bool__(self) -> bool:
        """Whether there may be any that is not let in."""
        return bool(self.regimes)

    def share_of(self, key: bytes) -> float:
        """Return the share of requests let in, when an id (UUIDv7) was made."""
        at = bisect_right(self._starts, int.from_bytes(key[:6]))
        return 1.0 if at == 0 else 2.0 ** -self.regimes[at - 1][1]

    def lets_in(self, key: bytes) -> bool:
        """Tell whether the request of an id is let in; none is one, for aliases."""
        # `gateway.feedback.sample` decides by the high bits of the same hash.
        return zlib.crc32(key) % round(1 / self.share_of(key)) == 0

    def after(self, pending: int, most: int, from_ms: int, oldest_ms: int) -> Thinning:
        """Return what holds once so many are pending.

        Args:
            pending: Requests.
            most: As many as there may be, about.
            from_ms: Ids made from then on may be treated otherwise than before.
            oldest_ms: No id made before that is of interest any more.
        """
        now = self.regimes[-1][1] if self.regimes else 0
        room = 1 - pending / most
        then = max(_halvings(room), min(now, _halvings(room / _HYSTERESIS)))
        later = [start for start in self._starts if start > oldest_ms]
        kept = self.regimes[max(0, len(self.regimes) - len(later) - 1) :]
        if len(kept) == 1 and kept[0][1] == 0:
            kept = []  # as if there never had been any
        if then > now or (then < now and len(kept) < _MOST_REGIMES):
            kept.append((from_ms, then))
        return Thinning(kept)


def _halvings(room: float) -> int:
    """Return how often to halve with a share of room left."""
    if room <= 0:
        return MOST_HALVINGS
    return min(MOST_HALVINGS, max(0, floor(-log2(2 * room))))

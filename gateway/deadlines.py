"""A timer wheel for deadlines: one loop timer however many requests wait. Pure."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

TICK_NS = 5_000_000
"""Width of a bucket: an item expires at most this long after its instant."""
_HEAP_SLACK = 64
"""Ticks of emptied buckets that the heap may hold beside those of full ones."""


class Expires(Protocol):
    """Whatever has an instant to end at: the wheel notes it in `expires_ns`."""

    expires_ns: int


_T = TypeVar("_T", bound=Expires)


class DeadlineWheel(Generic[_T]):
    """Things by the tick they expire in; adding and removing cost a set each.

    Holds exactly those that were added and neither removed nor expired, so
    its size is bounded by admission.
    """

    __slots__ = ("_buckets", "_heap", "_tick_ns")

    def __init__(self, tick_ns: int = TICK_NS) -> None:
        self._tick_ns = tick_ns
        self._buckets: dict[int, set[_T]] = {}
        self._heap: list[int] = []

    def add(self, item: _T, expires_ns: int) -> None:
        """Register an item to expire at `expires_ns`, rounded up to a tick."""
        item.expires_ns = expires_ns
        tick = -(-expires_ns // self._tick_ns)
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {item}
            heapq.heappush(self._heap, tick)
        else:
            bucket.add(item)

    def remove(self, item: _T) -> None:
        """Forget an item, wherever it is; one not here is no error."""
        tick = -(-item.expires_ns // self._tick_ns)
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._buckets[tick]
                if len(self._heap) > 2 * len(self._buckets) + _HEAP_SLACK:
                    self._heap = list(self._buckets)
                    heapq.heapify(self._heap)

    def next_ns(self) -> int | None:
        """Return when the earliest bucket that holds anything is due, or ``None``."""
        heap = self._heap
        while heap and heap[0] not in self._buckets:
            heapq.heappop(heap)  # emptied since
        return heap[0] * self._tick_ns if heap else None

    def expire(self, now_ns: int) -> list[_T]:
        """Remove and return everything whose instant has passed."""
        expired: list[_T] = []
        heap = self._heap
        while heap and heap[0] * self._tick_ns <= now_ns:
            expired.extend(self._buckets.pop(heapq.heappop(heap), ()))
        return expired

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

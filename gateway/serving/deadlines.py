"""A timer wheel for deadlines: one loop timer however many requests wait. Pure."""

from __future__ import annotations

import heapq

from gateway.serving.pending import Pending

TICK_NS = 5_000_000
"""Width of a bucket: a request expires at most this long after its instant."""
_HEAP_SLACK = 64
"""Ticks of emptied buckets that the heap may hold beside those of full ones."""


class DeadlineWheel:
    """Requests by the tick they expire in; adding and removing cost a set each.

    Holds exactly the requests that were added and neither removed nor expired, so
    its size is bounded by admission.
    """

    __slots__ = ("_buckets", "_heap", "_tick_ns")

    def __init__(self, tick_ns: int = TICK_NS) -> None:
        self._tick_ns = tick_ns
        self._buckets: dict[int, set[Pending]] = {}
        self._heap: list[int] = []

    def add(self, pending: Pending, expires_ns: int) -> None:
        """Register a request to expire at `expires_ns`, rounded up to a tick."""
        pending.expires_ns = expires_ns
        tick = -(-expires_ns // self._tick_ns)
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {pending}
            heapq.heappush(self._heap, tick)
        else:
            bucket.add(pending)

    def remove(self, pending: Pending) -> None:
        """Forget a request, wherever it is; a request not here is no error."""
        tick = -(-pending.expires_ns // self._tick_ns)
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket.discard(pending)
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

    def expire(self, now_ns: int) -> list[Pending]:
        """Remove and return every request whose instant has passed."""
        expired: list[Pending] = []
        heap = self._heap
        while heap and heap[0] * self._tick_ns <= now_ns:
            expired.extend(self._buckets.pop(heapq.heappop(heap), ()))
        return expired

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

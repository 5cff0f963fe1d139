"""Deadlines of everything a front has in flight, with one timer. Loop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from gateway.errors import DeadlineExceeded, GatewayError, QueueTimeout
from gateway.serving.batching import Batch
from gateway.serving.pending import Pending, Phase
from gateway.serving.queues import VersionQueue

_TICK_NS = 4_000_000
"""Expired requests are looked for at most this often."""
_TIMER_NS = 1_000_000
"""A timer may fire this much early: uvloop counts in whole milliseconds."""


class Expiry:
    """Finds what has waited too long.

    A request costs a comparison when it comes and nothing when it goes: the timer of
    one that was answered in time finds what is the next.

    Args:
        loop: For the timer.
        now_ns: Monotonic clock in nanoseconds, the loop's own.
        active: Queues in which something may wait.
        running: Batches at workers.
        fail: Gives a request its error.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        active: Collection[VersionQueue],
        running: Mapping[Batch, VersionQueue],
        fail: Callable[[VersionQueue, Pending, GatewayError], None],
    ) -> None:
        self._loop = loop
        self._now = now_ns
        self._active = active
        self._running = running
        self._fail = fail
        self._timer: asyncio.TimerHandle | None = None
        self.due_ns = 0
        """When the timer looks; 0 for never."""

    def arm(self, due_ns: int) -> None:
        """Look at `due_ns`; 0 for never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.due_ns = due_ns
        if due_ns:
            self._timer = self._loop.call_at((due_ns + _TIMER_NS) / 1e9, self._look)

    def _look(self) -> None:
        now = self._now()
        try:
            self._expire(now)
        finally:  # whatever a callback did: deadlines go on
            earliest = self._earliest_ns()
            self.arm(max(earliest, now + _TICK_NS) if earliest else 0)

    def _expire(self, now: int) -> None:
        for queue in tuple(self._active):
            for pending in queue.expired(now):
                self._expire_one(queue, pending, now)
        for batch, queue in tuple(self._running.items()):
            for pending in batch.requests:
                if pending.phase is Phase.RUNNING and pending.deadline_ns <= now:
                    self._expire_one(queue, pending, now)

    def _expire_one(self, queue: VersionQueue, pending: Pending, now: int) -> None:
        if pending.phase is Phase.DONE:
            return  # cancelled just now: its stream ended with another's error
        queue.statistics.dropped_rows["expired"] += pending.rows
        if pending.deadline_ns <= now:
            text = "Deadline exceeded before an answer was there"
            self._fail(queue, pending, DeadlineExceeded(text))
        else:
            text = f"Request timeout expired in the queue of '{queue.model}'"
            self._fail(queue, pending, QueueTimeout(text))

    def _earliest_ns(self) -> int:
        """Return a bound below which nothing in flight expires; 0: nothing is."""
        found = [queue.earliest_ns() for queue in self._active]
        found += [
            pending.deadline_ns
            for batch in self._running
            for pending in batch.requests
            if pending.phase is Phase.RUNNING
        ]
        return min((instant for instant in found if instant), default=0)

"""Calls that start when they are due, whatever the server does. Loop thread only."""

from __future__ import annotations

import time
from collections.abc import Iterator

from loadtest import arrivals
from loadtest.drivers import Driver
from loadtest.http2 import Connection
from loadtest.load import Load
from loadtest.record import OVERFLOW, Record
from loadtest.requests import Request
from loadtest.timer import Timer

GRAIN_NS = 20_000
"""Calls due within so short a time are sent together: waking up costs as much."""


class OpenLoop(Driver):
    """Calls start when they are due, whatever became of those before.

    Times count from when a call was *due*, not from when it was sent: a server that
    stalls is charged for all calls that were to be made meanwhile ("coordinated
    omission": G. Tene, How NOT to Measure Latency, 2013).
    """

    waits = True

    def __init__(self, load: Load, request: Request, record: Record) -> None:
        super().__init__(load, request, record)
        schedule = [arrivals.Stretch(*stretch) for stretch in load.schedule]
        self._times = arrivals.times(schedule, poisson=load.poisson, seed=load.seed)
        self._due: Iterator[int] = iter(())
        self._next_ns: int | None = None
        self._started_ns = 0
        self._turn = 0
        self._timer = Timer(self._fire)

    async def run(self) -> None:
        """Send by the schedule."""
        self._started_ns = time.monotonic_ns()
        self._advance()
        self._arm()
        try:
            await super().run()
        finally:
            self._timer.close()

    def _advance(self) -> None:
        """Find out when the next call is due."""
        offset_ns = next(self._due, None)
        if offset_ns is None:
            chunk = next(self._times, None)
            self._due = iter(()) if chunk is None else iter(chunk.tolist())
            offset_ns = next(self._due, None)
        self._next_ns = None if offset_ns is None else self._started_ns + offset_ns

    def _arm(self) -> None:
        if self._next_ns is not None:
            self._timer.set(self._next_ns + GRAIN_NS)

    def _fire(self) -> None:
        now_ns = time.monotonic_ns()
        record, touched = self._record, set()
        left = self._load.max_inflight - sum(len(c.open) for c in self.connections)
        while self._next_ns is not None and self._next_ns <= now_ns:
            record.offered += 1
            connection = self._free() if left > 0 else None
            if connection is None:
                record.fail(OVERFLOW)
            else:
                left -= 1
                record.lags.append(now_ns - self._next_ns)
                self.call(connection, self._next_ns)
                touched.add(connection)
            self._advance()
        for connection in touched:
            connection.flush()
        self._arm()

    def _free(self) -> Connection | None:
        """Return a connection that may make a call, each in turn."""
        count = len(self.connections)
        for _ in range(count):
            self._turn = (self._turn + 1) % count
            connection = self.connections[self._turn]
            if not connection.retiring and len(connection.open) < connection.max_calls:
                return connection
        return None

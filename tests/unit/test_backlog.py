"""A backlog longer than a request's patience: refused early, and not for ever."""

from __future__ import annotations

import pytest

from gateway.errors import QueueFull
from gateway.serving.queues import VersionQueue
from gateway.serving.statistics import VersionStatistics
from tests.unit.fakes import make_entry, make_pending
from tests.unit.simulation import MS


class Worker:
    """A queue and the one worker it drains to, four rows at a time."""

    def __init__(self) -> None:
        self.queue = VersionQueue("m", make_entry(1), VersionStatistics())
        self.now = 1_000 * MS

    def submit(self, count: int) -> None:
        for _ in range(count):
            self.queue.inflight_rows += 1
            self.queue.add(make_pending(admitted_ns=self.now))

    def run(self, run_ms: int) -> None:
        batch, _ = self.queue.take(self.now)
        assert batch is not None
        self.now += run_ms * MS
        self.queue.inflight_rows -= batch.rows
        self.queue.drained(batch.rows, self.now)

    def check(self, patience_ms: int) -> None:
        if self.queue.pace_ns:  # as admission does
            self.queue.check_wait(self.now, self.now + patience_ms * MS)


def test_a_backlog_that_drains_too_slowly_is_not_joined() -> None:
    worker = Worker()
    worker.submit(100)
    worker.check(1)  # nobody knows yet
    for _ in range(2):
        worker.run(40)
    assert worker.queue.pace_ns == 10 * MS  # four rows at a time
    left_ms = 92 * 10 + 1  # those before it, and the run of its own batch
    worker.check(left_ms)
    with pytest.raises(QueueFull, match="921 ms behind") as refused:
        worker.check(left_ms - 30)
    assert refused.value.pushback_ms == 30


def test_a_slow_spell_is_forgotten_with_its_backlog() -> None:
    """Else a version without a backlog would refuse for ever all but one request."""
    worker = Worker()
    worker.submit(12)
    for _ in range(3):
        worker.run(4000)
    for _ in range(20):  # one at a time is all that a long memory would let in
        worker.submit(1)
        worker.run(1)
    worker.submit(1)
    worker.check(100)

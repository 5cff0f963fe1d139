"""The batch window against what it promises: limits, order, patience, memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from gateway.catalogue import BatchPolicy
from gateway.serving.batching import Batch, BatchWindow, CloseReason
from gateway.serving.pending import Pending, Phase
from tests.unit.fakes import FAR_NS, make_pending

LEVELS = 3
SLACK = 64

policies = st.builds(
    BatchPolicy,
    max_rows=st.integers(1, 6),
    max_bytes=st.integers(1, 60),
    max_delay_ns=st.sampled_from([0, 0, 50, 1000]),
    target_rows=st.integers(0, 8),
    across_requests=st.sampled_from([True, True, False]),
)


def stored(window: BatchWindow) -> int:
    """Return how many requests the window holds on to, done ones included."""
    return sum(len(level) for level in window._levels)


class WindowMachine(RuleBasedStateMachine):
    """Adds, abandons and takes at random, beside a list per level."""

    @initialize(policy=policies)
    def begin(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.window = BatchWindow(policy, LEVELS)
        self.levels: list[list[Pending]] = [[] for _ in range(LEVELS)]
        self.gone: set[Pending] = set()
        self.now = 10_000

    @property
    def waiting(self) -> list[Pending]:
        return [pending for level in self.levels for pending in level]

    @rule(
        rows=st.integers(1, 6),
        nbytes=st.integers(0, 80),
        level=st.integers(0, LEVELS - 1),
        deadline=st.sampled_from([30, 200, 5000, FAR_NS]),
    )
    def add(self, rows: int, nbytes: int, level: int, deadline: int) -> None:
        pending = make_pending(
            rows=min(rows, self.policy.max_rows),
            nbytes=nbytes,
            level=level,
            admitted_ns=self.now,
            deadline_ns=self.now + deadline,
        )
        self.window.add(pending)
        self.levels[level].append(pending)

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def abandon(self, data: st.DataObject) -> None:
        pending = data.draw(st.sampled_from(self.waiting))
        self.levels[pending.level].remove(pending)
        self.window.abandoned(pending)
        pending.phase = Phase.DONE
        self.gone.add(pending)

    @rule(by=st.sampled_from([1, 20, 49, 50, 1000]))
    def pass_time(self, by: int) -> None:
        self.now += by

    @rule(run_ns=st.sampled_from([0, 10, 500]))
    @precondition(lambda self: self.waiting)
    def ask(self, run_ns: int) -> None:
        until = self.window.wait_until_ns(self.now, run_ns)
        patience = min(
            min(p.admitted_ns + self.policy.max_delay_ns, p.deadline_ns - run_ns)
            for p in self.waiting
        )
        if self.policy.max_delay_ns == 0 or self._full() or patience <= self.now:
            assert until == 0
        else:
            assert until == patience > self.now

    @rule(run_ns=st.sampled_from([0, 10, 500]))
    def take(self, run_ns: int) -> None:
        before, was_full = self.waiting, self._full()
        batch = self.window.take(self.now, run_ns)
        if not before:
            assert batch is None
            return
        assert batch is not None
        count = len(batch.requests)
        assert batch.requests == before[:count], "out of order"
        for pending in batch.requests:
            self.levels[pending.level].remove(pending)
            pending.phase = Phase.RUNNING
            assert pending not in self.gone
            self.gone.add(pending)
        self._within_limits(batch, before[count:])
        self._reason_holds(batch, before, run_ns, was_full=was_full)

    def _full(self) -> bool:
        if not self.policy.across_requests:
            return bool(self.waiting)
        target = self.policy.target_rows or self.policy.max_rows
        if sum(p.nbytes for p in self.waiting) >= self.policy.max_bytes:
            return True
        return sum(p.rows for p in self.waiting) >= target

    def _within_limits(self, batch: Batch, left: list[Pending]) -> None:
        policy = self.policy
        rows = sum(p.rows for p in batch.requests)
        nbytes = sum(p.nbytes for p in batch.requests)
        assert batch.rows == rows <= policy.max_rows
        if len(batch.requests) > 1:
            assert policy.across_requests
            assert nbytes <= policy.max_bytes
        if left and policy.across_requests:
            more = left[0]
            assert (
                rows + more.rows > policy.max_rows
                or nbytes + more.nbytes > policy.max_bytes
            ), "left somebody behind who fitted"

    def _reason_holds(
        self, batch: Batch, before: list[Pending], run_ns: int, *, was_full: bool
    ) -> None:
        delay = self.policy.max_delay_ns
        waited = [self.now - p.admitted_ns >= delay for p in before]
        pressed = [p.deadline_ns - run_ns <= self.now for p in before]
        if len(batch.requests) < len(before):
            assert batch.reason is CloseReason.FULL
        match batch.reason:
            case CloseReason.FULL:
                assert was_full or len(batch.requests) < len(before)
            case CloseReason.DELAY:
                assert delay
                assert any(waited)
            case CloseReason.DEADLINE:
                assert delay
                assert any(pressed)
            case reason:
                assert reason is CloseReason.WORKER_FREE
                assert delay == 0 or not any(waited + pressed)

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "window"):
            return
        assert len(self.window) == len(self.waiting)
        assert self.window.rows == sum(p.rows for p in self.waiting)
        assert self.window.full() == self._full()
        assert stored(self.window) >= len(self.waiting)


TestWindowMachine = WindowMachine.TestCase


class TestPatience:
    @pytest.mark.parametrize("rows", [1, 3, 9])
    def test_without_a_delay_nothing_ever_waits(self, rows: int) -> None:
        window = BatchWindow(BatchPolicy(max_rows=10, max_bytes=1000))
        window.add(make_pending(rows=rows, admitted_ns=100))
        assert window.wait_until_ns(100, 0) == 0
        batch = window.take(100, 0)
        assert batch is not None
        assert batch.reason is CloseReason.WORKER_FREE

    def test_the_target_ends_the_wait_before_the_batch_is_full(self) -> None:
        policy = BatchPolicy(10, 1000, max_delay_ns=50, target_rows=2)
        window = BatchWindow(policy)
        window.add(make_pending(admitted_ns=100))
        assert window.wait_until_ns(100, 0) == 150
        window.add(make_pending(admitted_ns=110))
        assert window.wait_until_ns(110, 0) == 0
        batch = window.take(110, 0)
        assert batch is not None
        assert (batch.rows, batch.reason) == (2, CloseReason.FULL)

    def test_a_deadline_shortens_the_wait_by_the_time_of_a_run(self) -> None:
        window = BatchWindow(BatchPolicy(10, 1000, max_delay_ns=1000))
        window.add(make_pending(admitted_ns=100, deadline_ns=600))
        assert window.wait_until_ns(100, run_ns=200) == 400
        assert window.wait_until_ns(400, run_ns=200) == 0
        batch = window.take(400, run_ns=200)
        assert batch is not None
        assert batch.reason is CloseReason.DEADLINE

    def test_the_delay_of_the_oldest_counts_whatever_its_level(self) -> None:
        window = BatchWindow(BatchPolicy(10, 1000, max_delay_ns=1000), levels=2)
        window.add(make_pending(admitted_ns=100, level=1))
        window.add(make_pending(admitted_ns=900, level=0))
        assert window.wait_until_ns(900, 0) == 1100
        batch = window.take(1100, 0)
        assert batch is not None
        assert batch.reason is CloseReason.DELAY

    def test_an_abandoned_request_does_not_hurry_the_others(self) -> None:
        window = BatchWindow(BatchPolicy(10, 1000, max_delay_ns=1000))
        first = make_pending(admitted_ns=100)
        window.add(first)
        window.add(make_pending(admitted_ns=500))
        window.abandoned(first)
        first.phase = Phase.DONE
        assert window.wait_until_ns(1100, 0) == 1500

    def test_a_version_without_batches_sends_one_request_at_a_time(self) -> None:
        policy = BatchPolicy(0, 1000, max_delay_ns=1000, across_requests=False)
        window = BatchWindow(policy)
        for _ in range(3):
            window.add(make_pending())
        for left in (2, 1, 0):
            assert window.wait_until_ns(0, 0) == 0
            batch = window.take(0, 0)
            assert batch is not None
            assert len(batch.requests) == 1
            assert len(window) == left
        assert window.take(0, 0) is None

    def test_one_request_above_the_bytes_limit_runs_alone(self) -> None:
        window = BatchWindow(BatchPolicy(10, 100))
        for nbytes in (10, 1000, 10):
            window.add(make_pending(nbytes=nbytes))
        sizes = []
        while (batch := window.take(0, 0)) is not None:
            sizes.append([p.nbytes for p in batch.requests])
        assert sizes == [[10], [1000], [10]]


class TestMemory:
    @given(st.integers(0, 400), st.randoms(use_true_random=False))
    def test_the_done_never_outnumber_the_living_by_more_than_the_slack(
        self, count: int, random: object
    ) -> None:
        window = BatchWindow(BatchPolicy(4, 1000), LEVELS)
        waiting = [make_pending(level=n % LEVELS) for n in range(count)]
        for pending in waiting:
            window.add(pending)
        random.shuffle(waiting)  # type: ignore[attr-defined]
        while waiting:
            pending = waiting.pop()
            window.abandoned(pending)
            pending.phase = Phase.DONE
            # The one just abandoned may still be there: its phase changes after.
            assert stored(window) <= 2 * len(waiting) + SLACK + 1

    def test_who_left_in_the_sweep_is_not_taken(self) -> None:
        window = BatchWindow(BatchPolicy(SLACK * 4, SLACK * 1000))
        stays = make_pending()
        window.add(stays)
        for _ in range(SLACK + 2):  # the last one makes the dead too many
            pending = make_pending()
            window.add(pending)
            window.abandoned(pending)
            pending.phase = Phase.DONE
        assert stored(window) < SLACK
        batch = window.take(0, 0)
        assert batch is not None
        assert batch.requests == [stays]
        assert len(window) == 0

    def test_a_client_that_comes_and_goes_leaves_nothing_behind(self) -> None:
        window = BatchWindow(BatchPolicy(4, 1000))
        window.add(make_pending())
        for _ in range(10_000):
            pending = make_pending()
            window.add(pending)
            window.abandoned(pending)
            pending.phase = Phase.DONE
        assert stored(window) <= SLACK + 4
        assert len(window) == 1


@given(st.lists(st.integers(1, 5), min_size=2, max_size=20))
def test_a_split_keeps_every_request_once_and_in_order(rows: list[int]) -> None:
    requests = [make_pending(rows=count) for count in rows]
    batch = Batch(requests, sum(rows), CloseReason.FULL)
    parts = batch.split()
    assert [p for part in parts for p in part.requests] == requests
    for part in parts:
        assert part.requests
        assert part.rows == sum(p.rows for p in part.requests)
        assert part.reason is CloseReason.RETRY
    assert all(len(left.requests) <= len(right.requests) for left, right in [parts])


def test_levels_are_served_in_order_of_urgency() -> None:
    window = BatchWindow(BatchPolicy(100, 10_000), levels=3)
    added = [make_pending(level=level) for level in (2, 0, 1, 0, 2, 1)]
    for pending in added:
        window.add(pending)
    batch = window.take(0, 0)
    assert batch is not None
    assert all(a.level <= b.level for a, b in pairwise(batch.requests))
    for level in range(3):
        expected = [p for p in added if p.level == level]
        assert [p for p in batch.requests if p.level == level] == expected

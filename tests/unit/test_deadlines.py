"""The deadline wheel beside the naive list it stands for."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from gateway.deadlines import TICK_NS, DeadlineWheel
from gateway.serving.pending import Pending
from tests.unit.fakes import make_pending


class WheelMachine(RuleBasedStateMachine):
    """Adds, removes and expires at random, beside a dictionary."""

    @initialize(tick=st.sampled_from([1, 7, 100]), start=st.integers(0, 1000))
    def begin(self, tick: int, start: int) -> None:
        self.tick = tick
        self.wheel = DeadlineWheel(tick)
        self.naive: dict[Pending, int] = {}
        self.past: list[Pending] = []
        self.now = start

    @rule(after=st.integers(-300, 300))
    def add(self, after: int) -> None:
        pending = make_pending()
        expires = max(1, self.now + after)
        self.wheel.add(pending, expires)
        self.naive[pending] = expires

    @rule(data=st.data())
    @precondition(lambda self: self.naive)
    def remove(self, data: st.DataObject) -> None:
        pending = data.draw(st.sampled_from(list(self.naive)))
        self.wheel.remove(pending)
        del self.naive[pending]
        self.past.append(pending)

    @rule(data=st.data())
    @precondition(lambda self: self.past)
    def remove_again(self, data: st.DataObject) -> None:
        self.wheel.remove(data.draw(st.sampled_from(self.past)))

    @rule(data=st.data(), after=st.integers(1, 300))
    @precondition(lambda self: self.past)
    def add_again(self, data: st.DataObject, after: int) -> None:
        pending = data.draw(st.sampled_from(self.past))
        self.past.remove(pending)
        self.wheel.add(pending, self.now + after)
        self.naive[pending] = self.now + after

    @rule(by=st.integers(0, 250))
    def expire(self, by: int) -> None:
        self.now += by
        expired = self.wheel.expire(self.now)
        assert len(expired) == len(set(expired)), "expired twice"
        for pending in expired:
            assert self.naive.pop(pending) <= self.now, "expired too early"
            self.past.append(pending)
        late = [p for p, at in self.naive.items() if at <= self.now - self.tick]
        assert not late, "more than a tick late"

    @invariant()
    def holds_what_was_added(self) -> None:
        if not hasattr(self, "wheel"):
            return
        assert len(self.wheel) == len(self.naive)
        due = self.wheel.next_ns()
        if not self.naive:
            assert due is None
            return
        first = min(self.naive.values())
        assert due is not None
        assert first <= due < first + self.tick


TestWheelMachine = WheelMachine.TestCase


def test_everything_due_at_the_announced_instant_expires_then() -> None:
    wheel = DeadlineWheel()
    for at in (1, TICK_NS, TICK_NS + 1, 3 * TICK_NS):
        wheel.add(make_pending(deadline_ns=at), at)
    seen = []
    while (due := wheel.next_ns()) is not None:
        assert wheel.expire(due - 1) == []
        seen.append(sorted(p.deadline_ns for p in wheel.expire(due)))
    assert seen == [[1, TICK_NS], [TICK_NS + 1], [3 * TICK_NS]]


def test_buckets_that_were_emptied_are_let_go() -> None:
    wheel = DeadlineWheel(tick_ns=1)
    for at in range(1, 1000):
        pending = make_pending()
        wheel.add(pending, at)
        wheel.remove(pending)
    assert wheel.next_ns() is None
    assert len(wheel) == 0
    assert not wheel._heap
    assert not wheel._buckets

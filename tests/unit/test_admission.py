"""Permits: what is taken is within limits, what is given back is free again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from gateway.errors import GatewayError, QueueFull, TooLarge
from gateway.serving.admission import Admission

PUSHBACK_MS = 7


class AdmissionMachine(RuleBasedStateMachine):
    """Takes and gives back at random, beside a list of what is held."""

    @initialize(max_bytes=st.integers(1, 60))
    def begin(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.admission = Admission(max_bytes, PUSHBACK_MS)
        self.held: list[tuple[str, int]] = []

    @rule(
        model=st.sampled_from("abc"),
        nbytes=st.integers(0, 40),
        limit=st.integers(1, 3),
    )
    def acquire(self, model: str, nbytes: int, limit: int) -> None:
        mine = sum(name == model for name, _ in self.held)
        expected: type[GatewayError] | None = None
        if mine >= limit:
            expected = QueueFull
        elif sum(size for _, size in self.held) + nbytes > self.max_bytes:
            expected = TooLarge
        if expected is None:
            self.admission.acquire(model, nbytes, limit)
            self.held.append((model, nbytes))
            return
        with pytest.raises(expected) as refused:
            self.admission.acquire(model, nbytes, limit)
        hopeless = expected is TooLarge and nbytes > self.max_bytes
        assert refused.value.pushback_ms == (None if hopeless else PUSHBACK_MS)

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def release(self, data: st.DataObject) -> None:
        model, nbytes = data.draw(st.sampled_from(self.held))
        self.held.remove((model, nbytes))
        self.admission.release(model, nbytes)

    @invariant()
    def counts_what_is_held(self) -> None:
        if not hasattr(self, "admission"):
            return
        assert self.admission.inflight_requests == len(self.held)
        assert self.admission.inflight_bytes == sum(size for _, size in self.held)
        assert self.admission.inflight_bytes <= self.max_bytes
        assert self.admission.by_model() == Counter(model for model, _ in self.held)


TestAdmissionMachine = AdmissionMachine.TestCase


def test_one_full_model_does_not_refuse_another() -> None:
    admission = Admission(1000, PUSHBACK_MS)
    admission.acquire("a", 1, 1)
    with pytest.raises(QueueFull):
        admission.acquire("a", 1, 1)
    admission.acquire("b", 1, 1)

"""Errors: each has a code the protocol knows and a label of its own."""

from __future__ import annotations

import inspect

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.errors import Code, GatewayError
from gateway.supervision.children import next_backoff_s

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, GatewayError)
]


def test_codes_are_those_of_grpc() -> None:
    assert {code.name: code.value for code in Code} == {
        status.name: status.value[0] for status in grpc.StatusCode
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_has_an_error_code_and_a_message(kind: type[GatewayError]) -> None:
    error = kind("what happened", pushback_ms=3)
    assert isinstance(error.code, Code)
    assert error.code is not Code.OK
    assert (error.message, str(error), error.pushback_ms) == (
        "what happened",
        "what happened",
        3,
    )
    assert kind("x").pushback_ms is None


def test_labels_are_distinct() -> None:
    labels = [kind.label for kind in KINDS]
    assert len(set(labels)) == len(labels)
    assert not {"ok", "cancelled"} & set(labels)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidRequest, Code.INVALID_ARGUMENT),
        (errors.UnknownModel, Code.NOT_FOUND),
        (errors.NotReady, Code.UNAVAILABLE),
        (errors.QueueFull, Code.UNAVAILABLE),
        (errors.QueueTimeout, Code.UNAVAILABLE),
        (errors.TooLarge, Code.RESOURCE_EXHAUSTED),
        (errors.DeadlineExceeded, Code.DEADLINE_EXCEEDED),
        (errors.WorkerLost, Code.UNAVAILABLE),
        (errors.Draining, Code.UNAVAILABLE),
        (errors.ModelFailed, Code.INTERNAL),
        (errors.Unsupported, Code.UNIMPLEMENTED),
        (errors.LoadFailed, Code.FAILED_PRECONDITION),
    ],
)
def test_clients_can_tell_by_the_code(kind: type[GatewayError], code: Code) -> None:
    assert kind.code is code


seconds = st.floats(0, 100)


@given(seconds, seconds, st.lists(st.floats(0, 59), min_size=1, max_size=12))
def test_pauses_double_up_to_their_bound(
    first: float, most: float, lives: list[float]
) -> None:
    pause = 0.0
    for lived in lives:
        after = next_backoff_s(pause, lived, first, most)
        assert 0 <= after <= most
        if pause:
            assert after == min(2 * pause, most)
        else:
            assert after == min(first, most)
        pause = after


@given(seconds, st.floats(60, 1e9), seconds, seconds)
def test_a_quiet_minute_forgives(
    pause: float, lived: float, first: float, most: float
) -> None:
    assert next_backoff_s(pause, lived, first, most) == min(first, most)

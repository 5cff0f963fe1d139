"""Two of ``baton serve`` over one repository answer the same, whichever transport."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.protocol import inference_pb2 as pb
from tests.gateway_process import SERVICE, GatewayProcess
from tests.protocol.mutations import Mutator, valid_requests
from tests.protocol.served import floats, infer_request, slow_request

Gateways = tuple[GatewayProcess, GatewayProcess]
TIMEOUT_S = 30.0
MUTATED = 1500
"""Mutated requests sent as unary calls, and again as messages of one stream."""
TEXT = pb.ModelInferRequest(model_name="größe ∞ 100%")

UNARY: dict[str, tuple[str, bytes]] = {
    "live": ("ServerLive", b""),
    "ready": ("ServerReady", b""),
    "server": ("ServerMetadata", b""),
    "index": ("RepositoryIndex", b""),
    "index of what is ready": ("RepositoryIndex", b"\x10\x01"),
    "load nothing": ("RepositoryModelLoad", b""),
    "load what is not there": ("RepositoryModelLoad", b"\x12\4nope"),
    "load what is broken": ("RepositoryModelLoad", b"\x12\6broken"),
    "unload what is not there": ("RepositoryModelUnload", b"\x12\4nope"),
    "no shared memory": ("SystemSharedMemoryRegister", b""),
    "unregister": ("SystemSharedMemoryUnregister", b""),
    "unregister CUDA": ("CudaSharedMemoryUnregister", b""),
    "no such method": ("ModelGuess", b""),
    "UTF-8 in an error": ("ModelInfer", TEXT.SerializeToString()),
    "too large a message": ("ModelInfer", bytes((32 << 20) + 1)),
}
for _method in ("ModelReady", "ModelMetadata", "ModelConfig"):
    for _model in ("numbers", "texts", "pair", "broken", "nope", ""):
        for _version in ("", "1", "2", "9", "one"):
            _request = pb.ModelReadyRequest(name=_model, version=_version)
            _case = f"{_method} {_model!r} {_version!r}"
            UNARY[_case] = (_method, _request.SerializeToString())
for _method in ("ServerLive", "ModelReady", "ModelInfer", "RepositoryModelLoad"):
    UNARY[f"{_method} of no protobuf"] = (_method, b"\xff\xff")
UNARY |= {
    f"valid {number}": ("ModelInfer", request.SerializeToString())
    for number, request in enumerate(valid_requests())
}
_BY_ZERO = np.array([1]), np.array([0])
UNARY["a model that fails"] = (
    "ModelInfer",
    infer_request(
        "divides", {k: ("INT64", v) for k, v in zip("ab", _BY_ZERO, strict=True)}
    ).SerializeToString(),
)


def unordered(text: str) -> str:
    """Return an error without the name of the first wrong parameter.

    A map has no order: of several wrong ones, each process sees another first.
    """
    return re.sub("parameter '.*", "a parameter is wrong", text, flags=re.DOTALL)


class Answers:
    """What one call got, without what is another each time."""

    def __init__(self, method: str) -> None:
        answer = method.removeprefix("Repository") + "Response"
        names = (f"Repository{answer}", f"{method}Response")
        kinds = [getattr(pb, name) for name in names if hasattr(pb, name)]
        self._kind = pb.ModelStreamInferResponse if "Stream" in method else None
        self._kind = self._kind or (kinds[0] if kinds else None)
        self.messages: list[Any] = []

    def add(self, raw: bytes) -> None:
        if self._kind is None:
            self.messages.append(raw)
            return
        message = self._kind.FromString(raw)
        inner = getattr(message, "infer_response", message)
        if isinstance(inner, pb.ModelInferResponse) and inner.parameters:
            inner.parameters.pop("prediction_id", None)
        if getattr(message, "error_message", ""):
            message.error_message = unordered(message.error_message)
        self.messages.append(MessageToDict(message))


def outcome(
    running: GatewayProcess, method: str, sent: Sequence[bytes], **how: Any
) -> tuple[list[Any], str, str, set[Any]]:
    """Return messages, status and trailers of a call."""
    answers = Answers(method)
    path = SERVICE + method
    how.setdefault("timeout", TIMEOUT_S)
    if method == "ModelStreamInfer":
        call = running.channel.stream_stream(path)(iter(sent), **how)
        try:
            for raw in call:
                answers.add(raw)
        except grpc.RpcError:
            pass
    else:
        (message,) = sent
        call = running.channel.unary_unary(path).future(message, **how)
        if call.exception() is None:
            answers.add(call.result())
    text = re.sub("incident [0-9a-f]{12}", "incident #", call.details() or "")
    text = text.removeprefix("SERVER: ")  # grpcio's wording
    text = re.sub("^Method not found(!|: .*)$", "Method not found", text)
    trailers = set(call.trailing_metadata() or ())
    trailers = {pair for pair in trailers if pair[0] != "grpc-accept-encoding"}
    return answers.messages, call.code().name, unordered(text), trailers


def both(gateways: Gateways, method: str, sent: Sequence[bytes], **how: Any) -> Any:
    """Make a call at both, and get the same."""
    own, other = (outcome(running, method, sent, **how) for running in gateways)
    assert own == other
    return own


@pytest.mark.parametrize("case", UNARY)
def test_unary_calls(gateways: Gateways, case: str) -> None:
    method, message = UNARY[case]
    messages, code, text, _ = both(gateways, method, [message])
    assert messages if code == "OK" else text


def test_statistics_count_alike(gateways: Gateways) -> None:
    name = "weighted"
    request = floats(name, [1, 2, 3]).SerializeToString()
    counts = []
    for running in gateways:
        (before,) = running.statistics(name)
        outcome(running, "ModelInfer", [request])
        outcome(running, "ModelStreamInfer", [request, b"\xff", request])
        (after,) = running.statistics(name)
        counts.append(after.inference_count - before.inference_count)
    assert counts == [3, 3]


def test_unloading_and_loading(gateways: Gateways) -> None:
    named = pb.RepositoryModelUnloadRequest(model_name="fixed").SerializeToString()
    ask = floats("fixed", np.ones((3, 4))).SerializeToString()
    for method in ("RepositoryModelUnload", "RepositoryModelLoad"):
        _, code, *_ = both(gateways, method, [named])
        assert code == "OK"
        both(gateways, "ModelInfer", [ask])
        both(gateways, "ModelStreamInfer", [ask])


@pytest.mark.parametrize("service", ["", "numbers", "broken", "nope", "ü"])
def test_health(gateways: Gateways, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    found = []
    for running in gateways:
        call = running.channel.unary_unary("/grpc.health.v1.Health/Check")
        future = call.future(request, timeout=TIMEOUT_S)
        found.append((future.code(), future.details()))
        if future.exception() is None:
            found[-1] += (future.result(),)
    assert found[0] == found[1]


GOOD = floats("numbers", [[1, 2]], id="good").SerializeToString()
BAD = floats("numbers", [[1, 2, 3]], id="bad").SerializeToString()
LOST = floats("nope", [[1]], id="lost").SerializeToString()
STREAMS = {
    "none": [],
    "good": [GOOD] * 5,
    "bad in the middle": [GOOD, BAD, GOOD, LOST, GOOD],
    "bad at the end": [GOOD, BAD],
    "bad alone": [BAD],
    "no protobuf": [GOOD, b"\xff\xff", GOOD],
    "empty": [b"", GOOD],
    "a slow one before fast ones": [slow_request(3000).SerializeToString(), GOOD, BAD],
}


@pytest.mark.parametrize("case", STREAMS)
def test_streams(gateways: Gateways, case: str) -> None:
    messages, code, *_ = both(gateways, "ModelStreamInfer", STREAMS[case])
    assert (code, len(messages)) == ("OK", len(STREAMS[case]))


@pytest.mark.parametrize("case", STREAMS)
def test_streams_that_end_with_their_first_error(gateways: Gateways, case: str) -> None:
    """What is answered before the error races with it, and grpcio's client drops it."""
    how: dict[str, Any] = {"metadata": (("triton_grpc_error", "true"),)}
    sent = STREAMS[case]
    own, other = (outcome(g, "ModelStreamInfer", sent, **how) for g in gateways)
    assert own[1:] == other[1:]
    good = all(message not in (BAD, LOST, b"", b"\xff\xff") for message in sent)
    assert (own[1] == "OK") == good


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_deadlines(gateways: Gateways, method: str) -> None:
    request = slow_request(1_000_000).SerializeToString()
    for running in gateways:
        started = time.monotonic()
        _, code, *_ = outcome(running, method, [request], timeout=0.05)
        assert (code, time.monotonic() - started < 10) == ("DEADLINE_EXCEEDED", True)


small = st.floats(-1e6, 1e6, width=32)


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(st.tuples(small, small), min_size=1, max_size=70),
    version=st.sampled_from(["", "1", "2", "3"]),
    id=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    outputs=st.lists(st.sampled_from(["y", "z", ""]), max_size=2),
)
def test_requests_of_any_rows(
    gateways: Gateways,
    rows: list[tuple[float, float]],
    version: str,
    id: str,
    outputs: list[str],
) -> None:
    request = floats("numbers", rows, version=version, id=id, outputs=outputs)
    both(gateways, "ModelInfer", [request.SerializeToString()])


def mutated(seed: int) -> list[bytes]:
    """Return requests gone wrong; none with a queue timeout, which may pass or not."""
    mutator = Mutator(seed)
    made = (mutator.next() for _ in range(MUTATED))
    return [message for message in made if b"timeout" not in message]


def test_mutated_unary_requests(gateways: Gateways) -> None:
    different, codes = [], set()
    for message in mutated(11):
        own, other = (outcome(g, "ModelInfer", [message]) for g in gateways)
        codes.add(own[1])
        if own != other:
            different.append((message, own, other))
    assert different == []
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= codes


def test_mutated_messages_of_a_stream(gateways: Gateways) -> None:
    sent = mutated(12)
    messages, code, *_ = both(gateways, "ModelStreamInfer", sent)
    assert (code, len(messages)) == ("OK", len(sent))

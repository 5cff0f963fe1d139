"""Mutated requests over real gRPC: refused with their own code, and nothing breaks."""

from __future__ import annotations

import asyncio
import builtins
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import DecodeError

from gateway.protocol import inference_pb2 as pb
from tests import onnx_models
from tests.gateway_process import SERVICE, GatewayProcess, gateway
from tests.protocol.mutations import MODELS, Mutator, valid_requests
from tests.protocol.served import (
    ALL,
    FREE,
    WEIGHTED,
    add_model,
    arrays,
    floats,
    metric,
    negation,
)

Code = grpc.StatusCode
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "100000"))
SEED = int(os.environ.get("FUZZ_SEED", "20260607"))
STREAM_MESSAGES = max(1, REQUESTS // 25)
CONCURRENCY = 48
MAX_GROWTH_BYTES = 20 << 20
"""A front's heap takes steps of some 10 MB and levels off: 74 MB after 10^4 requests,
93 after 10^5, 96 after 3 * 10^5. A worker's does not move. A leak of 250 bytes a
request is seen."""
PYTHON_WORDS = [
    "Traceback",
    "DecodeError",
    "EncodingError",
    *(name for name in dir(builtins) if name.endswith(("Error", "Exception"))),
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    root = tmp_path_factory.mktemp("fuzz-models")
    identity = onnx_models.identity
    add_model(root, "numbers", {1: identity("FP32"), 2: negation(2)}, ALL)
    add_model(root, "texts", identity("BYTES", ("N", "length")))
    add_model(root, "small", identity("INT8"))
    add_model(root, "pair", onnx_models.two_by_two())
    add_model(root, "free", identity("FP32", ("A", "B")), FREE)
    add_model(root, "fixed", onnx_models.no_batch_axis())
    add_model(root, "weighted", onnx_models.with_default(), WEIGHTED)
    with gateway(root) as running:
        yield running


def parsed(message: bytes) -> pb.ModelInferRequest | None:
    try:
        return pb.ModelInferRequest.FromString(message)
    except DecodeError:
        return None


def fault(message: bytes, code: Code, details: str) -> str:
    """Return what is wrong with an error status for a message, or nothing."""
    leaked = [word for word in PYTHON_WORDS if word in details]
    if leaked or not details:
        return f"details leak {leaked} or are empty"
    if code in (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED):
        return ""
    request = parsed(message)
    if request is None:
        return "a message that does not parse is INVALID_ARGUMENT"
    version = request.model_version
    versions = MODELS.get(request.model_name)
    if code == Code.NOT_FOUND:
        known = versions is not None and (not version or int(version) in versions)
        return "the model is there" if known else ""
    if code == Code.UNAVAILABLE:
        return "" if "timeout" in request.parameters else "no timeout was asked for"
    return "this code is for none of these"


def answer_fault(message: bytes, response: pb.ModelInferResponse) -> str:
    """Return what is wrong with an answer to a message, or nothing."""
    request = parsed(message)
    if request is None:
        return "a message that does not parse was answered"
    if (response.id, response.model_name) != (request.id, request.model_name):
        return "the answer is for another request"
    if int(response.model_version) not in MODELS[request.model_name]:
        return "an unknown version answered"
    asked = [output.name for output in request.outputs]
    if asked and [output.name for output in response.outputs] != asked:
        return "other outputs than asked for"
    arrays(response)  # raw contents fit names, types and shapes
    return ""


def resident_bytes(running: GatewayProcess) -> dict[int, int]:
    pids = running.pids("front") + running.pids("workers")
    return {pid: psutil.Process(pid).memory_info().rss for pid in pids}


def check_valid_requests(running: GatewayProcess) -> None:
    for request in valid_requests():
        assert answer_fault(request.SerializeToString(), running.infer(request)) == ""
    found = arrays(running.infer(floats("numbers", [[1, 2]])))["y"]
    np.testing.assert_array_equal(found, [[-1, -2]])


async def send(
    running: GatewayProcess, mutator: Mutator, count: int, codes: Counter[str]
) -> list[str]:
    """Send mutated requests, a bounded number at a time; return what went wrong."""
    faults: list[str] = []
    left = iter(range(count))

    async def client(rpc: grpc.aio.UnaryUnaryMultiCallable) -> None:
        for _ in left:
            message = mutator.next()
            try:
                raw = await rpc(message)
            except grpc.aio.AioRpcError as error:
                code = error.code()
                wrong = fault(message, code, error.details() or "")
                text = f"{code} {error.details()!r}"
            else:
                code, text = Code.OK, "OK"
                wrong = answer_fault(message, pb.ModelInferResponse.FromString(raw))
            codes[code.name] += 1
            if wrong and len(faults) < 20:
                faults.append(f"{wrong}: {text} for {message[:400].hex()}")

    async with grpc.aio.insecure_channel(running.address) as channel:
        rpc = channel.unary_unary(SERVICE + "ModelInfer")
        await asyncio.gather(*(client(rpc) for _ in range(CONCURRENCY)))
    return faults


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_mutated_requests_are_refused_and_nothing_breaks(
    fuzzed: GatewayProcess,
) -> None:
    mutator = Mutator(SEED)
    codes: Counter[str] = Counter()
    check_valid_requests(fuzzed)
    warm_up = REQUESTS // 10
    faults = await send(fuzzed, mutator, warm_up, codes)
    before = resident_bytes(fuzzed)
    faults += await send(fuzzed, mutator, REQUESTS - warm_up, codes)
    after = resident_bytes(fuzzed)
    print(dict(codes), before, after)  # noqa: T201 - shown when the test fails
    assert faults == []
    assert codes["OK"] > 0 < codes["INVALID_ARGUMENT"]
    assert after.keys() == before.keys()  # the same processes
    assert metric(fuzzed, "baton_process_deaths_total") == 0
    for pid, size in after.items():
        assert size - before[pid] < MAX_GROWTH_BYTES
    check_valid_requests(fuzzed)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_mutated_stream_messages_keep_the_stream_alive(
    fuzzed: GatewayProcess,
) -> None:
    mutator = Mutator(SEED + 1)
    sent: list[bytes] = []

    async def messages() -> AsyncIterator[bytes]:
        for number in range(STREAM_MESSAGES):
            valid = floats("numbers", [[number, 2]], id=f"valid {number}")
            for message in (mutator.next(), valid.SerializeToString()):
                sent.append(message)
                yield message

    received = 0
    async with grpc.aio.insecure_channel(fuzzed.address) as channel:
        rpc = channel.stream_stream(SERVICE + "ModelStreamInfer")
        call = rpc(messages())
        async for raw in call:
            response = pb.ModelStreamInferResponse.FromString(raw)
            inner = response.infer_response
            message = sent[received]
            request = parsed(message)
            assert inner.id == (request.id if request else ""), message.hex()
            assert inner.parameters["triton_final_response"].bool_param
            if response.error_message:
                assert not any(word in response.error_message for word in PYTHON_WORDS)
                assert not inner.outputs
            else:
                assert answer_fault(message, inner) == "", message.hex()
            if received % 2:  # a valid one
                number = received // 2
                assert arrays(inner)["y"].tolist() == [[-number, -2]]
            received += 1
        assert await call.code() == Code.OK
    assert received == len(sent) == 2 * STREAM_MESSAGES
    assert metric(fuzzed, "baton_process_deaths_total") == 0

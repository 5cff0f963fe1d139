"""The hand-written server over real gRPC, and the demo's checks against it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from gateway.protocol import inference_pb2 as pb
from loadtest import naive_server
from loadtest.compare.verify import WrongAnswer, verify
from loadtest.dialects import GRPC, STREAM, Dialect
from loadtest.models import INPUT, model_file, write_model, write_models
from loadtest.traffic import Tally, reference, send_load
from loadtest.training import train_breast_cancer, train_digits
from loadtest.wire import SERVICE, channel, infer_request


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    write_models(tmp_path, ("M1", "M2"))
    server, bound = await naive_server.start(tmp_path, 0)
    yield bound
    await server.stop(None)


@pytest.mark.parametrize("dialect", [GRPC, STREAM])
@pytest.mark.parametrize("model", ["M1", "M2"])
async def test_answers_are_those_of_onnx_runtime(
    port: int, tmp_path: Path, model: str, dialect: Dialect
) -> None:
    path = model_file(tmp_path, model)
    message, reply_bytes = await asyncio.to_thread(verify, port, dialect, path, rows=3)
    assert pb.ModelInferRequest.FromString(message).model_name == model
    assert reply_bytes > 8


async def test_a_wrong_answer_is_found(port: int, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_models(other, ("M1",), seed=1)
    with pytest.raises(WrongAnswer):
        await asyncio.to_thread(verify, port, GRPC, model_file(other, "M1"))


async def test_an_unknown_model_is_refused(port: int) -> None:
    request = infer_request("M9", INPUT, np.zeros((1, 30), np.float32), request_id="1")
    async with channel(port) as connection:
        infer = connection.unary_unary(
            f"{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_the_demo_load_agrees_with_a_server_that_is_right(tmp_path: Path) -> None:
    work = []
    for model in (train_digits(), train_breast_cancer()):
        path = write_model(tmp_path, model.name, model.payload)
        work.append((reference(model, path), Tally()))
    server, port = await naive_server.start(tmp_path, 0)
    await send_load(port, work, until=time.monotonic() + 0.5)
    await server.stop(None)
    for source, tally in work:
        assert tally.examples == []
        assert tally.requests == tally.agreed == tally.latency.total > 0
        assert tally.accuracy == pytest.approx(source.accuracy, abs=0.1)


async def test_the_demo_load_sees_wrong_answers(tmp_path: Path) -> None:
    honest, other = train_breast_cancer(), train_breast_cancer(seed=1)
    source = reference(honest, write_model(tmp_path / "a", "honest", honest.payload))
    write_model(tmp_path / "b", honest.name, other.payload)
    server, port = await naive_server.start(tmp_path / "b", 0)
    tally = Tally()
    await send_load(port, [(source, tally)], until=time.monotonic() + 0.2)
    await server.stop(None)
    assert tally.disagreements > tally.requests / 2 > 0  # some are 0 or 1 to both
    assert tally.examples


async def test_the_demo_load_counts_refusals(port: int, tmp_path: Path) -> None:
    model = train_breast_cancer()
    source = reference(model, write_model(tmp_path / "a", model.name, model.payload))
    tally = Tally()
    await send_load(port, [(source, tally)], until=time.monotonic() + 0.2)
    assert tally.requests == 0
    assert tally.failures > 0

"""Overload: what cannot be taken on is refused at once, with a hint when to return."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from gateway.client_config import channel_options
from gateway.protocol import inference_pb2 as pb
from tests.adversity.harness import (
    LATE_S,
    SEED,
    Canary,
    Load,
    identity_request,
    infer_method,
    nothing_in_flight,
    put_model,
    serving_workers,
    show,
    slow_identity,
    total,
    until,
)
from tests.gateway_process import gateway
from tests.onnx_models import identity

OPTIONS = channel_options(service_config=False)


async def _refusal(
    method: object, request: bytes
) -> tuple[grpc.aio.AioRpcError, float]:
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request, timeout=20)  # type: ignore[operator]
    return caught.value, time.monotonic() - started


async def test_a_full_queue_refuses_at_once_with_pushback(tmp_path: Path) -> None:
    """The worker stands still: what is beyond the limit must not wait for it."""
    put_model(tmp_path, "slow", slow_identity(1000))
    with gateway(
        tmp_path,
        workers={"hang_timeout_ms": 60_000},
        admission={"max_queue_requests": 10, "pushback_ms": 70},
    ) as running:
        worker = (await serving_workers(running, 1))[0]
        os.kill(worker, signal.SIGSTOP)
        try:
            async with (
                Canary() as canary,
                grpc.aio.insecure_channel(running.address, options=OPTIONS) as channel,
            ):
                method = infer_method(channel)
                requests = [identity_request("slow", 1) for _ in range(10)]
                waiting = [method(request, timeout=30) for request, _ in requests]
                await until(lambda: total(running, "baton_inflight_requests") == 10)
                for _ in range(20):
                    extra, _ = identity_request("slow", 1)
                    started = time.monotonic()
                    error, took_s = await _refusal(method, extra)
                    slack_s = canary.slack_s(started, started + took_s)
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    trailers = dict(error.trailing_metadata())
                    assert trailers["grpc-retry-pushback-ms"] == "70"
                    assert took_s - slack_s < LATE_S
                os.kill(worker, signal.SIGCONT)
                for call, (_, right) in zip(waiting, requests, strict=True):
                    assert (await call).raw_output_contents[0] == right
        finally:
            os.kill(worker, signal.SIGCONT)
        await nothing_in_flight(running)
        refused = total(running, "baton_requests_total", outcome="queue_full")
        assert refused == 20


async def test_too_many_bytes_in_flight_are_refused_with_pushback(
    tmp_path: Path,
) -> None:
    """The cap is over all models; it is free again when the requests are answered."""
    put_model(tmp_path, "large", identity("FP32", ("N", 25_000)))  # 100 kB a row
    put_model(tmp_path, "small", slow_identity(10))
    with gateway(
        tmp_path,
        workers={"hang_timeout_ms": 60_000},
        admission={"max_inflight_bytes": 350_000},
    ) as running:
        request = pb.ModelInferRequest(model_name="large")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 25_000])
        raw = np.arange(25_000, dtype=np.float32).tobytes()
        request.raw_input_contents.append(raw)
        message = request.SerializeToString()
        worker = (await serving_workers(running, 1))[0]
        os.kill(worker, signal.SIGSTOP)
        try:
            async with grpc.aio.insecure_channel(
                running.address, options=OPTIONS
            ) as channel:
                method = infer_method(channel)
                waiting = [method(message, timeout=30) for _ in range(3)]
                await until(lambda: total(running, "baton_inflight_requests") == 3)
                error, _ = await _refusal(method, message)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                trailers = dict(error.trailing_metadata())
                assert trailers["grpc-retry-pushback-ms"] == "25"
                small, right = identity_request("small", 2)
                fits = method(small, timeout=30)  # 32 bytes
                os.kill(worker, signal.SIGCONT)
                for call in waiting:
                    assert (await call).raw_output_contents[0] == raw
                assert (await fits).raw_output_contents[0] == right
                again = await method(message, timeout=30)
                assert again.raw_output_contents[0] == raw
        finally:
            os.kill(worker, signal.SIGCONT)
        await nothing_in_flight(running)


async def test_in_overload_what_is_accepted_is_answered_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More askers than the queue takes: the accepted wait for a queue, not for all."""
    put_model(tmp_path, "slow", slow_identity(10_000))
    with gateway(
        tmp_path,
        batching={"max_batch_rows": 4},
        admission={"max_queue_requests": 8, "default_timeout_ms": 1000},
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=40,
            timeout_s=None,
            rng=random.Random(SEED),
            pause_s=0.02,
            service_config=False,
            channels=4,
        )
        async with Canary() as canary, load:
            await load.answered(100)
        with capsys.disabled():
            show(f"overload: {dict(load.codes())}")
        assert load.wrong == []
        assert set(load.codes()) <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
        assert load.codes()["UNAVAILABLE"] > 0
        assert load.codes()["DEADLINE_EXCEEDED"] == 0
        assert canary.worst_lateness_s(load, 1.0) <= LATE_S
        await nothing_in_flight(running)
        await asyncio.to_thread(running.ready)

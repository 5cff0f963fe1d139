"""Clients that leave: what they had is let go of, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import grpc
import numpy as np
import pytest

from gateway.client_config import channel_options
from gateway.protocol import inference_pb2 as pb
from tests.adversity.harness import (
    REPEAT,
    SEED,
    Load,
    identity_request,
    infer_method,
    nothing_in_flight,
    own_bytes,
    put_model,
    serving_workers,
    show,
    slow_identity,
    total,
    until,
)
from tests.gateway_process import SERVICE, GatewayProcess, gateway
from tests.onnx_models import identity

OPTIONS = [
    *channel_options(service_config=False),
    ("grpc.use_local_subchannel_pool", 1),
]


async def _abort_storm(
    running: GatewayProcess, rng: random.Random, clients: int
) -> int:
    """Clients that cancel some calls and then cut the connection under the others."""
    sent = 0

    async def client() -> None:
        nonlocal sent
        channel = grpc.aio.insecure_channel(running.address, options=OPTIONS)
        method = infer_method(channel)
        calls = []
        for _ in range(rng.randint(1, 20)):
            request, _ = identity_request(rng.choice(("slow", "large")), 1)
            if rng.random() < 0.5:
                request = _large_request()
            calls.append(method(request, timeout=20))
            sent += 1
        for call in calls:
            if rng.random() < 0.5:
                asyncio.get_running_loop().call_later(0.1 * rng.random(), call.cancel)
        done = asyncio.gather(*calls, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(done), 0.1 * rng.random())
        await channel.close()  # without grace: calls in flight are cut
        await done

    slots = asyncio.Semaphore(10)

    async def in_turn() -> None:
        async with slots:
            await client()

    await asyncio.gather(*(in_turn() for _ in range(clients)))
    return sent


def _large_request() -> bytes:
    request = pb.ModelInferRequest(model_name="large")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1 << 16])
    request.raw_input_contents.append(np.zeros(1 << 16, np.float32).tobytes())
    return request.SerializeToString()


async def test_an_abort_storm_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F22: cancels at random times and cut connections, small and 256 KiB requests.

    Afterwards nothing is in flight and memory stays where a first storm left it;
    a well-behaved client is answered throughout.
    """
    rng = random.Random(SEED)
    put_model(tmp_path, "slow", slow_identity(3000))
    put_model(tmp_path, "large", identity("FP32", ("N", 1 << 16)))
    with gateway(tmp_path, grpc={"fronts": 2}, workers={"count": 2}) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=3,
            timeout_s=15.0,
            rng=random.Random(SEED),
            pause_s=0.02,
            service_config=False,
        )
        fronts, workers = running.pids("front"), running.pids("workers")
        async with load:
            await load.answered(5)
            await _abort_storm(running, rng, 60)
            await nothing_before_next(running, load)
            before = own_bytes([*fronts, *workers])
            sent = 0
            for _ in range(REPEAT):
                sent += await _abort_storm(running, rng, 300)
            await nothing_before_next(running, load)
            grown = own_bytes([*fronts, *workers]) - before
            await load.answered(20)
        await nothing_in_flight(running)
        cancelled = total(running, "baton_requests_total", outcome="cancelled")
        with capsys.disabled():
            show(
                f"F22: {sent} calls, {cancelled:.0f} cancelled on the server, "
                f"others failed {len(load.failures())}/{load.sent}, grew "
                f"{grown / (1 << 20):.1f} MiB"
            )
        assert load.failures() == []
        assert cancelled > 50
        assert grown < 60 << 20
        assert running.pids("front") == fronts
        assert running.pids("workers") == workers


async def test_a_front_killed_with_large_answers_on_their_way_costs_no_worker(
    tmp_path: Path,
) -> None:
    """Answers in shared memory and merged runs whose front is no more."""
    put_model(tmp_path, "large", identity("FP32", ("N", 1 << 16)))
    put_model(tmp_path, "slow", slow_identity(20_000))
    with gateway(tmp_path, grpc={"fronts": 2}, workers={"count": 1}) as running:
        workers = running.pids("workers")
        for _ in range(2 * REPEAT):
            channels = [
                grpc.aio.insecure_channel(running.address, options=OPTIONS)
                for _ in range(8)
            ]
            calls = []
            for channel in channels:
                method = infer_method(channel)
                slow, _ = identity_request("slow", 1)
                calls.append(method(slow, timeout=20))
                calls += [method(_large_request(), timeout=20) for _ in range(20)]
            await asyncio.wait([asyncio.ensure_future(c) for c in calls[:1]])
            front = running.pids("front")[0]
            os.kill(front, signal.SIGKILL)
            await asyncio.gather(*calls, return_exceptions=True)
            for channel in channels:
                await channel.close()
            await until(
                lambda front=front: (
                    front not in (now := running.pids("front")) and len(now) == 2
                )
            )
            message, right = identity_request("slow", 2)
            request = pb.ModelInferRequest.FromString(message)
            response = await until(lambda request=request: _try_infer(running, request))
            assert response.raw_output_contents[0] == right
        assert running.pids("workers") == workers
        assert "Traceback" not in running.log_text()
        await nothing_in_flight(running)


def _try_infer(
    running: GatewayProcess, request: pb.ModelInferRequest
) -> pb.ModelInferResponse | None:
    try:
        return running.infer(request)
    except grpc.RpcError:
        return None


async def nothing_before_next(running: GatewayProcess, load: Load) -> None:
    """Wait until only the well-behaved client's few requests are in flight."""

    def few() -> bool:
        held = total(running, "baton_inflight_requests")
        return held <= load.concurrency

    await until(lambda: asyncio.to_thread(few))


async def test_an_error_that_ends_a_stream_frees_its_other_requests_once(
    tmp_path: Path,
) -> None:
    """Requests of one stream expire together while the stream asks for gRPC errors.

    The first error ends the stream, which cancels the others in the same moment:
    each must leave exactly once, or permits are given back twice.
    """
    put_model(tmp_path, "slow", slow_identity(200))
    with gateway(tmp_path, workers={"hang_timeout_ms": 60_000}) as running:
        worker = (await serving_workers(running, 1))[0]
        method = "ModelStreamInfer"
        os.kill(worker, signal.SIGSTOP)  # so that all wait, and expire in the queue
        try:
            async with grpc.aio.insecure_channel(
                running.address, options=OPTIONS
            ) as channel:
                stream = channel.stream_stream(
                    SERVICE + method,
                    response_deserializer=pb.ModelStreamInferResponse.FromString,
                )(metadata=(("triton_grpc_error", "true"),), timeout=20)
                for _ in range(30):
                    message, _ = identity_request("slow", 1)
                    request = pb.ModelInferRequest.FromString(message)
                    request.parameters["timeout"].int64_param = 300_000
                    await stream.write(request.SerializeToString())
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stream.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            os.kill(worker, signal.SIGCONT)
        await nothing_in_flight(running)  # and never below
        message, right = identity_request("slow", 2)
        response = running.infer(pb.ModelInferRequest.FromString(message))
        assert response.raw_output_contents[0] == right
        await until(lambda: total(running, "baton_requests_total", model="slow") == 31)

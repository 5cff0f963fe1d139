"""Workers that die, stop and hang: nothing that can be retried is lost."""

from __future__ import annotations

import asyncio
import os
import random
import re
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
    REPEAT,
    SEED,
    Canary,
    Load,
    infer_method,
    nothing_in_flight,
    put_model,
    serving_workers,
    show,
    slow_identity,
    total,
    until,
    workers_in_use,
)
from tests.gateway_process import GatewayProcess, gateway, wait_for
from tests.onnx_models import loops

SLOW_STEPS = 20_000  # some 20 ms


async def _kill_one(running: GatewayProcess, rng: random.Random) -> int:
    """SIGKILL a worker that fronts use."""
    pids = await until(lambda: workers_in_use(running))
    pid = rng.choice(pids)
    os.kill(pid, signal.SIGKILL)
    return int(pid)


@pytest.mark.parametrize(("workers", "kills"), [(2, 4), (1, 2)])
async def test_killing_a_worker_every_second_fails_no_request(
    tmp_path: Path, workers: int, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """F1: kill -9 mid-batch; rows are retried within their deadline of 5 s.

    The client has no retries: what is lost here the gateway lost. With one worker
    every request waits for the next one.
    """
    rng = random.Random(SEED)
    put_model(tmp_path, "slow", slow_identity(SLOW_STEPS))
    with gateway(
        tmp_path,
        grpc={"fronts": 2},
        workers={"count": workers, "max_attempts": 3},
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=8,
            timeout_s=5.0,
            rng=rng,
            pause_s=0.01,
            service_config=False,
            channels=4,
        )
        async with load:
            await load.answered(10)
            for _ in range(kills * REPEAT):
                pid = await _kill_one(running, rng)
                killed = time.monotonic()
                if workers == 1:  # the next kill needs somebody to kill
                    await load.answered(8)
                else:
                    await load.for_s(killed + 1 - time.monotonic())
                assert pid not in running.pids("workers")
            await load.answered(20)
            await serving_workers(running, workers)
        longest = max(o.ended_s - o.started_s for o in load.outcomes)
        retried = total(running, "baton_batches_total", reason="retry")
        with capsys.disabled():
            show(
                f"F1 workers={workers}: failed {len(load.failures())}/{load.sent}, "
                f"longest {longest:.2f} s, batches retried {retried:.0f}"
            )
        assert load.failures() == []
        assert retried > 0  # the kills did hit batches
        await nothing_in_flight(running)
        # Every request had one outcome, on the server's side too.
        # Counters come once a second: the last of them may still be on their way.
        wait_for(
            lambda: total(running, "baton_requests_total", model="slow") == load.sent
        )


async def test_outcomes_come_by_the_deadline_whatever_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R1: the client sets no deadline; the server must keep its own of 400 ms.

    Overload, kills and stopped workers: whatever the outcome, it comes in time.
    """
    rng = random.Random(SEED + 1)
    deadline_s = 0.4
    put_model(tmp_path, "slow", slow_identity(SLOW_STEPS))
    with gateway(
        tmp_path,
        grpc={"fronts": 2},
        workers={"count": 2, "hang_timeout_ms": 300},
        admission={"default_timeout_ms": int(deadline_s * 1000)},
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=24,
            timeout_s=None,
            rng=rng,
            pause_s=0.05,
            service_config=False,
            channels=4,
        )
        async with Canary() as canary, load:
            await load.answered(10)
            for turn in range(4 * REPEAT):
                # A worker that is stopped before it reports in is nobody's to watch.
                pids = await serving_workers(running, 2)
                for pid in pids if turn % 2 else pids[:1]:
                    os.kill(pid, signal.SIGSTOP if turn % 2 else signal.SIGKILL)
                await load.for_s(1.0)
            await load.answered(20)
        late_s = canary.worst_lateness_s(load, deadline_s)
        with capsys.disabled():
            show(
                f"R1: {dict(load.codes())}, worst lateness {late_s * 1000:.0f} ms, "
                f"client slack {canary.slack_s(0, 1e9) * 1000:.0f} ms"
            )
        assert load.wrong == []
        assert set(load.codes()) <= {"OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
        assert load.codes()["DEADLINE_EXCEEDED"] > 0  # there was need for one
        assert late_s <= LATE_S
        await nothing_in_flight(running)
        # Counters come once a second: the last of them may still be on their way.
        wait_for(
            lambda: total(running, "baton_requests_total", model="slow") == load.sent
        )


async def test_a_stopped_worker_is_found_killed_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F2: SIGSTOP; the watchdog finds it, its batches go elsewhere, none fails."""
    rng = random.Random(SEED)
    put_model(tmp_path, "slow", slow_identity(5000))
    with gateway(
        tmp_path,
        grpc={"fronts": 2},
        workers={"count": 2, "hang_timeout_ms": 400},
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=8,
            timeout_s=5.0,
            rng=rng,
            pause_s=0.005,
            service_config=False,
            channels=4,
        )
        detected = []
        async with load:
            await load.answered(10)
            for _ in range(2 * REPEAT):
                pid = rng.choice(await serving_workers(running, 2))
                os.kill(pid, signal.SIGSTOP)
                stopped = time.monotonic()
                await until(lambda pid=pid: pid not in running.pids("workers"))
                detected.append(time.monotonic() - stopped)
                await serving_workers(running, 2)
                await load.answered(20)
        with capsys.disabled():
            show(
                f"F2 SIGSTOP: failed {len(load.failures())}/{load.sent}, detected "
                f"after {[f'{1000 * s:.0f} ms' for s in detected]}"
            )
        assert load.failures() == []
        assert max(detected) < 3.0
        await nothing_in_flight(running)


def _endless() -> bytes:
    request = pb.ModelInferRequest(model_name="endless")
    request.inputs.add(name="steps", datatype="INT64", shape=[])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.int64(1 << 60).tobytes())
    request.raw_input_contents.append(np.float32(1).tobytes())
    return request.SerializeToString()


async def test_an_endless_request_fails_alone_and_kills_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F2: a Loop without end costs at most `max_attempts` workers, and no one else.

    Requests of the other model have 10 s: two workers are lost one after the other
    and started again meanwhile.
    """
    rng = random.Random(SEED)
    put_model(tmp_path, "endless", loops())
    put_model(tmp_path, "good", slow_identity(2000))
    with gateway(
        tmp_path,
        grpc={"fronts": 2},
        workers={"count": 2, "hang_timeout_ms": 400, "max_attempts": 2},
    ) as running:
        load = Load(
            [running.address],
            ["good"],
            concurrency=8,
            timeout_s=10.0,
            rng=rng,
            pause_s=0.01,
            service_config=False,
            channels=4,
        )
        options = channel_options(service_config=False)
        async with (
            load,
            grpc.aio.insecure_channel(running.address, options=options) as channel,
        ):
            await load.answered(10)
            sent = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer_method(channel)(_endless(), timeout=20)
            took = time.monotonic() - sent
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            # One whose client gives up first costs one worker and is not retried.
            await serving_workers(running, 2)
            await load.answered(100)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer_method(channel)(_endless(), timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: total(running, "baton_process_deaths_total") >= 3)
            await serving_workers(running, 2)
            await load.answered(100)
        deaths = total(running, "baton_process_deaths_total")
        with capsys.disabled():
            show(
                f"F2 endless: others failed {len(load.failures())}/{load.sent}, "
                f"failed after {took:.2f} s, workers lost {deaths:.0f}"
            )
        assert load.failures() == []
        assert deaths == 3
        await nothing_in_flight(running)


async def test_a_stopped_front_kills_no_healthy_worker(tmp_path: Path) -> None:
    """A front that was itself held up must read its answers before it judges."""
    put_model(tmp_path, "slow", slow_identity(SLOW_STEPS))
    with gateway(tmp_path, workers={"hang_timeout_ms": 200}) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=4,
            timeout_s=20.0,
            rng=random.Random(SEED),
            service_config=False,
        )
        front = running.pids("front")[0]
        async with load:
            for _ in range(3):
                await load.answered(5)
                os.kill(front, signal.SIGSTOP)
                await load.for_s(0.6)
                os.kill(front, signal.SIGCONT)
            await load.answered(5)
        assert load.failures() == []
        assert total(running, "baton_process_deaths_total") == 0


async def test_a_flapping_worker_backs_off_while_the_gateway_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F4: killed as soon as it serves, a worker comes back ever later, up to a cap."""
    put_model(tmp_path, "slow", slow_identity(2000))
    with gateway(
        tmp_path,
        workers={
            "count": 1,
            "restart_backoff_ms": 50,
            "max_restart_backoff_ms": 400,
            "max_attempts": 10,
        },
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=4,
            timeout_s=20.0,
            rng=random.Random(SEED),
            pause_s=0.01,
            service_config=False,
        )
        async with load:
            for _ in range(5):
                await load.answered(5)
                os.kill((await serving_workers(running, 1))[0], signal.SIGKILL)
            await load.answered(5)
        pauses = [
            float(pause)
            for pause in re.findall(
                r"child_ended .*again_in=([\d.]+)", running.log_text()
            )
        ]
        with capsys.disabled():
            show(f"F4: pauses {pauses}, failed {len(load.failures())}/{load.sent}")
        assert pauses == [0.05, 0.1, 0.2, 0.4, 0.4]
        assert load.failures() == []
        assert running.process.poll() is None


async def test_a_reload_while_the_only_worker_dies_loses_nothing(
    tmp_path: Path,
) -> None:
    """What waits for a load that no worker will ever have again is served anew.

    The queue of the old load is full when its worker dies, and the new worker
    loads only what is published: the new load.
    """
    put_model(tmp_path, "slow", slow_identity(100_000))  # some 100 ms
    with gateway(
        tmp_path,
        workers={"count": 1, "max_attempts": 5},
        batching={"max_batch_rows": 4},
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=40,
            timeout_s=15.0,
            rng=random.Random(SEED),
            service_config=False,
            channels=2,
        )
        async with load:
            for steps in (100_001, 100_002):
                await load.answered(5)
                put_model(tmp_path, "slow", slow_identity(steps))
                request = pb.RepositoryModelLoadRequest(model_name="slow")
                await asyncio.to_thread(
                    running.call,
                    "RepositoryModelLoad",
                    request,
                    pb.RepositoryModelLoadResponse,
                )
                os.kill((await serving_workers(running, 1))[0], signal.SIGKILL)
            await load.answered(40)
        assert load.failures() == []
        await nothing_in_flight(running)

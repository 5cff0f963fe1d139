"""Rolling restarts with the recommended client: no request fails (R6)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.adversity.harness import (
    REPEAT,
    SEED,
    Load,
    put_model,
    quiet_port,
    show,
    slow_identity,
    until,
)
from tests.gateway_process import GatewayProcess, gateway

DRAIN = {"pre_drain_ms": 700, "timeout_s": 10}


@pytest.mark.parametrize(
    ("kind", "concurrency", "pause_s"), [("half", 4, 0.02), ("saturating", 40, 0.0)]
)
async def test_a_rolling_restart_of_two_gateways_fails_no_request(
    tmp_path: Path,
    kind: str,
    concurrency: int,
    pause_s: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """F11: each in turn gets SIGTERM and is started again on its port, under load."""
    rng = random.Random(SEED)
    put_model(tmp_path, "slow", slow_identity(5000))
    drains: list[float] = []
    with ExitStack() as stack:
        pair: list[GatewayProcess] = [
            stack.enter_context(
                gateway(tmp_path, grpc={"port": quiet_port(rng)}, drain=DRAIN)
            )
            for _ in range(2)
        ]
        load = Load(
            [running.address for running in pair],
            ["slow"],
            concurrency=concurrency,
            timeout_s=20.0,
            rng=rng,
            pause_s=pause_s,
            channels=6,
        )
        async with load:
            await load.answered(50)
            for _ in range(REPEAT):
                for running in pair:
                    started = time.monotonic()
                    code = await asyncio.to_thread(running.terminate)
                    drains.append(time.monotonic() - started)
                    assert code == 0, running.log_text()
                    await load.answered(20)
                    await asyncio.to_thread(running.restart)
                    await load.answered(20)
        with capsys.disabled():
            show(
                f"F11 {kind}: failed {len(load.failures())}/{load.sent} in "
                f"{load.outcomes[-1].ended_s - load.outcomes[0].started_s:.0f} s, "
                f"drains {[f'{s:.2f} s' for s in drains]}"
            )
        assert load.failures() == []


async def test_one_front_of_two_can_be_restarted_under_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """port_mode each: clients see one front drain and use the other meanwhile."""
    rng = random.Random(SEED)
    put_model(tmp_path, "slow", slow_identity(5000))
    port = quiet_port(rng, 2)
    with gateway(
        tmp_path, grpc={"port": port, "port_mode": "each", "fronts": 2}, drain=DRAIN
    ) as running:
        load = Load(
            [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"],
            ["slow"],
            concurrency=12,
            timeout_s=20.0,
            rng=rng,
            pause_s=0.005,
            channels=4,
        )
        async with load:
            await load.answered(30)
            for _ in range(REPEAT):
                for front in running.pids("front"):
                    os.kill(front, signal.SIGTERM)
                    await until(lambda front=front: front not in running.pids("front"))
                    await until(lambda: len(running.pids("front")) == 2)
                    await load.answered(50)
        with capsys.disabled():
            show(f"F11 one front: failed {len(load.failures())}/{load.sent}")
        assert load.failures() == []

"""The supervisor dies, is told to stop, or finds itself not alone."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.protocol import inference_pb2 as pb
from tests.adversity.harness import (
    SEED,
    Load,
    identity_request,
    load_model,
    put_model,
    show,
    slow_identity,
    tree,
    until,
)
from tests.gateway_process import GatewayProcess, free_port, gateway


async def test_nothing_outlives_a_killed_supervisor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F13: kill -9 while requests run and a canary loads a model."""
    put_model(tmp_path, "slow", slow_identity(50_000))
    with gateway(tmp_path, grpc={"fronts": 2}, workers={"count": 2}) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=8,
            timeout_s=5.0,
            rng=random.Random(SEED),
            service_config=False,
            channels=4,
        )
        async with load:
            await load.answered(5)
            put_model(tmp_path, "slow", slow_identity(50_001))
            loading = asyncio.create_task(load_model(running, "slow"))
            await until(lambda: _has_canary(running))
            processes = tree(running.process.pid)
            os.kill(running.process.pid, signal.SIGKILL)
            killed = time.monotonic()
            running.process.wait()
            await until(lambda: not any(map(_lives, processes)), 5.0)
            took_s = time.monotonic() - killed
            load.stop()
            await loading
        with capsys.disabled():
            show(
                f"F13: {len(processes)} processes, no orphans, gone after "
                f"{took_s * 1000:.0f} ms"
            )
        # Another one takes the port and the state folder at once.
        await asyncio.to_thread(running.restart)
        request, right = identity_request("slow", 1)
        message = pb.ModelInferRequest.FromString(request)
        response = await asyncio.to_thread(running.infer, message)
        assert response.raw_output_contents[0] == right


def _lives(process: psutil.Process) -> bool:
    """Return whether it runs; a zombie only waits for whoever adopted it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_canary(running: GatewayProcess) -> bool:
    for process in psutil.Process(running.process.pid).children():
        try:
            if "workers.check" in process.cmdline():
                return True
        except psutil.NoSuchProcess:
            continue
    return False


async def test_sigterm_to_every_process_at_once_drains_cleanly(tmp_path: Path) -> None:
    """As a service manager or a terminal does it: what was in flight is answered."""
    put_model(tmp_path, "slow", slow_identity(100_000))  # some 100 ms
    with gateway(
        tmp_path,
        grpc={"fronts": 2},
        workers={"count": 2},
        drain={"pre_drain_ms": 300, "timeout_s": 10},
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=16,
            timeout_s=10.0,
            rng=random.Random(SEED),
            service_config=False,
            channels=4,
        )
        async with load:
            await load.answered(20)
            # The supervisor last: the others must not mistake it for a crash.
            for process in reversed(tree(running.process.pid)):
                process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            load.stop()
        code = await asyncio.to_thread(running.process.wait, 20)
        assert code == 0, running.log_text()
        before = [o for o in load.outcomes if o.started_s < told]
        assert [o for o in before if o.code.name != "OK"] == []
        assert load.wrong == []
        log = running.log_text()
        assert "drain_overran" not in log
        assert "Traceback" not in log


@pytest.mark.parametrize("shared", ["port", "state_dir", "metrics"])
def test_a_second_gateway_in_the_same_place_is_refused(
    tmp_path: Path, shared: str
) -> None:
    """Two on one port would share its traffic in silence."""
    put_model(tmp_path / "models", "slow", slow_identity(10))
    with gateway(tmp_path / "models") as running:
        first = running.config
        config: dict[str, Any] = {
            **first,
            "grpc": {"port": free_port()},
            "metrics": {"port": free_port()},
            "state_dir": str(tmp_path / "state"),
        }
        section = {"port": "grpc"}.get(shared, shared)
        config[section] = first[section]
        path = tmp_path / "second.yaml"
        path.write_text(json.dumps(config))
        ended = subprocess.run(
            [sys.executable, "-m", "gateway", "serve", str(path)],
            capture_output=True,
            timeout=30,
            text=True,
            check=False,
        )
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        reason = {
            "port": f"cannot listen on 127.0.0.1:{running.port}",
            "metrics": "cannot serve metrics on",
            "state_dir": "in use by another gateway",
        }[shared]
        assert reason in ended.stderr
        flag = {
            "port": "--port",
            "metrics": "--metrics-port",
            "state_dir": "--state-dir",
        }
        assert flag[shared] in ended.stderr  # the way out
        assert running.ready()

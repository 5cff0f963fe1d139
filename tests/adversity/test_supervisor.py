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

import grpc
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
from tests.gateway_process import GatewayProcess, free_port, gateway, wait_for


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


async def test_a_drain_that_cuts_calls_exits_with_1(tmp_path: Path) -> None:
    """Queued runs of 100 ms, one at a time, last longer than the drain may."""
    put_model(tmp_path, "slow", slow_identity(30_000), config="max_batch_size: 1")
    with gateway(
        tmp_path, workers={"count": 1}, drain={"pre_drain_ms": 0, "timeout_s": 1}
    ) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=64,
            timeout_s=20.0,
            rng=random.Random(SEED),
            max_rows=1,
            service_config=False,
        )
        async with load:
            await load.answered(5)
            load.stop()
            code = await asyncio.to_thread(running.terminate)
        log = running.log_text()
        assert code == 1, log
        assert "drain_cut" in log
        assert [line for line in log.splitlines() if "child=front-0" in line][-1].count(
            "drain_overran"
        )
        assert "Traceback" not in log
        assert load.wrong == []
        assert any(outcome.code.name != "OK" for outcome in load.outcomes)


def test_ports_beyond_the_last_one_are_refused(tmp_path: Path) -> None:
    """port_mode each counts up from grpc.port."""
    path = tmp_path / "baton.yaml"
    config = {
        "model_repository": str(tmp_path),
        "state_dir": str(tmp_path / "state"),
        "grpc": {"port": 65_535, "port_mode": "each", "fronts": 2},
        "metrics": {"port": free_port()},
    }
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
    assert "port 65536, above 65535" in ended.stderr


def test_copies_of_models_that_nobody_serves_are_removed(tmp_path: Path) -> None:
    """After a failed load, and at start those of earlier runs."""
    models = tmp_path / "models"
    put_model(models, "slow", slow_identity(10))
    with gateway(models) as running:
        store = Path(running.config["state_dir"]) / "artefacts" / "sha256"

        def copies() -> int:
            return len(list(store.iterdir()))

        wait_for(lambda: copies() == 1)
        put_model(models, "slow", slow_identity(11), config="max_batch_size: 1")
        config = '{"input": [{"name": "absent", "data_type": "TYPE_INT64"}]}'
        request = pb.RepositoryModelLoadRequest(model_name="slow")
        request.parameters["config"].string_param = config
        with pytest.raises(grpc.RpcError):
            running.call("RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)
        assert copies() == 1
        assert running.terminate() == 0
        (store / ("0" * 64)).mkdir()
        running.restart()
        wait_for(lambda: not (store / ("0" * 64)).exists())
        assert copies() == 1  # of the changed file


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

"""Server processes are awaited, judged by how they go, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.models import write_models
from loadtest.processes import (
    TETHER,
    ServerFailed,
    clean_environment,
    free_ports,
    running,
)
from tests.gateway_process import wait_for

FORGETFUL = (
    "import subprocess, sys, signal, time;"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0));"
    "child = subprocess.Popen(['sleep', '60']);"
    "print(child.pid, flush=True);"
    "time.sleep(60)"
)


def wait_for_text(path: Path) -> str:
    return str(wait_for(lambda: path.exists() and path.read_text()))


def wait_gone(pid: int) -> None:
    def gone() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_for(gone)


def test_a_server_is_awaited_and_stopped(tmp_path: Path) -> None:
    write_models(tmp_path / "models", ("M1",))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtest", "naive", str(tmp_path / "models")]
    command += ["--port", str(port)]
    with running(command, port=port, log=tmp_path / "log", core=None) as server:
        server.wait_ready(60)
        assert server.family()
        assert server.stop(20) == []


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with (
        running(command, port=1, log=tmp_path / "log") as server,
        pytest.raises(ServerFailed, match=r"code 3:\nno such model"),
    ):
        server.wait_ready(20)


def test_a_server_that_is_never_ready_is_reported(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with (
        running(["sleep", "60"], port=port, log=tmp_path / "log") as server,
        pytest.raises(ServerFailed, match="not ready within"),
    ):
        server.wait_ready(0.3)


def test_a_forgotten_child_is_reported_and_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running([sys.executable, "-c", FORGETFUL], port=1, log=log) as server:
        child = int(wait_for_text(log))
        assert server.stop(20) == ["the server left 1 processes behind"]
    wait_gone(child)


def test_nothing_is_left_when_the_block_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pids: list[int] = []

    def fail_inside() -> None:
        with running([sys.executable, "-c", FORGETFUL], port=1, log=log) as server:
            child = int(wait_for_text(log))
            pids.extend(process.pid for process in server.family())
            assert child in pids
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    for pid in pids:
        wait_gone(pid)


def test_a_tethered_process_ends_with_its_killed_parent(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    code = (
        "import os, subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, {str(TETHER)!r}, str(os.getpid()),"
        " 'any', 'sleep', '60']);"
        f"open({str(out)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    child = int(wait_for_text(out))
    wait_for(lambda: psutil.Process(child).name() == "sleep")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_gone(child)


def test_settings_in_the_environment_do_not_reach_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATON_GRPC__PORT", "1")
    assert "BATON_GRPC__PORT" not in clean_environment()

"""A real gateway in processes of its own, for tests."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil

from gateway.protocol import inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
START_TIMEOUT_S = 60.0
_MODULES = {
    "front": "gateway.front",
    "workers": "workers",
    "controller": "gateway.controller",
}


_PORTS = 22_000, 26_000
"""Where the ports of each process of tests begin: below those that clients get."""


def free_port() -> int:
    """Return a TCP port nobody listens on, and that no test beside this is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        port = _PORTS[worker % len(_PORTS)] + random.SystemRandom().randrange(4000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return the first truthy value of `condition`, asked again and again.

    Raises:
        AssertionError: It never was within `timeout_s`.
    """
    give_up = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < give_up, f"never came true: {condition}"
        time.sleep(0.02)


class GatewayProcess:
    """A running ``baton serve``: its ports, its processes, and a sync client."""

    def __init__(
        self,
        spawn: Callable[[], subprocess.Popen[bytes]],
        config: dict[str, Any],
        log: Path,
    ) -> None:
        self._spawn = spawn
        self.process = spawn()
        self.config = config
        self.log = log
        self.port: int = config["grpc"]["port"]
        self.address = f"127.0.0.1:{self.port}"
        self.metrics_url = f"http://127.0.0.1:{config['metrics']['port']}/metrics"
        self.channel = grpc.insecure_channel(
            self.address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # gRPC's own first pause is a second, on each start and restart.
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )

    def call(
        self, method: str, request: Any, response: Any, timeout_s: float = 30.0
    ) -> Any:
        """Make one unary call of the inference service."""
        rpc = self.channel.unary_unary(
            SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return rpc(request, timeout=timeout_s)

    def infer(
        self, request: pb.ModelInferRequest, timeout_s: float = 30.0
    ) -> pb.ModelInferResponse:
        """Call ModelInfer."""
        response: pb.ModelInferResponse = self.call(
            "ModelInfer", request, pb.ModelInferResponse, timeout_s
        )
        return response

    def ready(self) -> bool:
        """Return what ServerReady says; false where nobody answers."""
        try:
            response = self.call(
                "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, 2.0
            )
        except grpc.RpcError:
            return False
        return bool(response.ready)

    def statistics(self, model: str = "") -> list[pb.ModelStatistics]:
        """Return ModelStatistics."""
        request = pb.ModelStatisticsRequest(name=model)
        response = self.call("ModelStatistics", request, pb.ModelStatisticsResponse)
        return list(response.model_stats)

    def pids(self, role: str) -> list[int]:
        """Return the pids of the children whose command line names `role`.

        `role` is ``front``, ``workers``, ``shadows`` or ``controller``.
        """
        module = "workers" if role == "shadows" else _MODULES[role]
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                line, zombie = child.cmdline(), child.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                continue
            if (
                module in line
                and not zombie
                and ("--idle" in line) == (role == "shadows")
            ):
                found.append(child.pid)
        return found

    def log_text(self) -> str:
        """Return what the gateway logged so far."""
        return self.log.read_text(errors="replace")

    def stop(self, timeout_s: float = 40.0) -> int:
        """Send SIGTERM to the supervisor and return the exit code."""
        self.channel.close()
        return self.terminate(timeout_s)

    def terminate(self, timeout_s: float = 40.0) -> int:
        """Send SIGTERM to the supervisor and return the exit code; see `restart`."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def restart(self) -> None:
        """Start it again where it was, after it has ended; return when it is ready."""
        assert self.process.poll() is not None
        self.process = self._spawn()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until ServerReady says so.

        Raises:
            AssertionError: It ended or was not ready in time; with its log.
        """
        give_up = time.monotonic() + START_TIMEOUT_S
        while not self.ready():
            assert self.process.poll() is None, self.log_text()
            assert time.monotonic() < give_up, self.log_text()
            time.sleep(0.05)


@contextmanager
def gateway(repository: Path, **settings: Any) -> Iterator[GatewayProcess]:
    """Run a gateway over a model repository until the block ends.

    Args:
        repository: Folder of models.
        settings: Configuration sections to override, such as
            ``workers={"count": 2}``.
    """
    with tempfile.TemporaryDirectory(prefix="baton-test-") as folder:
        config: dict[str, Any] = {
            "model_repository": str(repository),
            "state_dir": f"{folder}/state",
            "grpc": {"port": free_port()},
            "metrics": {"port": free_port()},
            "drain": {"pre_drain_ms": 0, "timeout_s": 10},
        }
        for section, values in settings.items():
            if isinstance(values, dict):
                config[section] = {**config.get(section, {}), **values}
            else:
                config[section] = values
        path = Path(folder) / "baton.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        log = Path(folder) / "log"
        # Packages by the names of ours, where somebody happens to start a gateway:
        # nothing of them may run.
        here = Path(folder) / "here"
        for name in ("gateway", "workers", "featurizer", "numpy"):
            (here / name).mkdir(parents=True)
            (here / name / "__init__.py").write_text("raise ImportError(__file__)")

        def spawn() -> subprocess.Popen[bytes]:
            with log.open("ab") as stderr:
                return subprocess.Popen(
                    [sys.executable, "-P", "-m", "gateway", "serve", str(path)],
                    stderr=stderr,
                    cwd=here,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )

        running = GatewayProcess(spawn, config, log)
        try:
            running.wait_until_ready()
            yield running
        finally:
            running.channel.close()
            process = running.process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

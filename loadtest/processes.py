"""Server processes: started, awaited, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil

from gateway.protocol import inference_pb2 as pb
from loadtest.wire import CHANNEL_OPTIONS, SERVICE

ROOT = Path(__file__).resolve().parent.parent
TETHER = Path(__file__).with_name("tether.py")
LOG_LINES = 20
ORPHAN_GRACE_S = 2.0
POLITE_S = 5.0


class ServerFailed(Exception):
    """A server did not become ready; the message ends with its last log lines."""


def free_ports(count: int) -> list[int]:
    """Return different TCP ports of 127.0.0.1 that were free just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def tethered(command: Sequence[str], core: int | None) -> list[str]:
    """Return a command line that ends with this process and keeps to one core."""
    place = "any" if core is None else str(core)
    return [sys.executable, str(TETHER), str(os.getpid()), place, *command]


def clean_environment() -> dict[str, str]:
    """Return the environment without ``BATON_``: it would win over our files."""
    return {k: v for k, v in os.environ.items() if not k.startswith("BATON_")}


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Return user and system time of processes and of children they waited for."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
            total += times.children_user + times.children_system
    return total


def server_ready(port: int) -> bool:
    """Ask ``ServerReady``; a server that does not answer is not ready."""
    address = f"127.0.0.1:{port}"
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        method = channel.unary_unary(
            f"{SERVICE}/ServerReady",
            request_serializer=pb.ServerReadyRequest.SerializeToString,
            response_deserializer=pb.ServerReadyResponse.FromString,
        )
        with suppress(grpc.RpcError):
            return bool(method(pb.ServerReadyRequest(), timeout=1).ready)
    return False


class Server:
    """One running server with all processes it started."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.port = port
        self._process = process
        self._log = log

    def family(self) -> list[psutil.Process]:
        """Return the server, its descendants, and what is left of its group."""
        found: set[psutil.Process] = set()
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._process.pid)
            found.update((server, *server.children(recursive=True)))
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.pid) == self._process.pid:
                    found.add(process)
        return sorted(found, key=lambda process: process.pid)

    def log_tail(self) -> str:
        """Return the last lines the server wrote."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def wait_ready(
        self, timeout_s: float, ready: Callable[[int], bool] = server_ready
    ) -> None:
        """Wait until a server says so.

        Args:
            timeout_s: Longest wait.
            ready: Asks the server on a port once.

        Raises:
            ServerFailed: If the server ended, or the time is over.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            code = self._process.poll()
            if code is not None:
                raise ServerFailed(
                    f"the server ended with code {code}:\n{self.log_tail()}"
                )
            if ready(self.port):
                return
            time.sleep(0.1)
        raise ServerFailed(
            f"the server was not ready within {timeout_s:g} s:\n{self.log_tail()}"
        )

    def stop(self, timeout_s: float) -> list[str]:
        """Ask the server to go (SIGTERM) and say what was wrong with how it went."""
        family = self.family()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return [f"the server did not exit within {timeout_s:g} s of SIGTERM"]
        problems = [f"the server exited with code {code}"] if code else []
        left = [p for p in family if p.pid != self._process.pid]
        _, alive = psutil.wait_procs(left, timeout=ORPHAN_GRACE_S)
        orphans = [p for p in {*alive, *self.family()} if _runs(p)]
        if orphans:
            problems.append(f"the server left {len(orphans)} processes behind")
        return problems

    def end(self) -> None:
        """Leave nothing behind: ask first, then kill what is left."""
        family = self.family()
        try:
            if self._process.poll() is None:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(POLITE_S)
        finally:
            for process in {*family, *self.family()}:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def running(
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run a server for the length of a ``with`` block.

    Args:
        command: Program and arguments; runs in the root of the checkout.
        port: gRPC port the server was told to listen on.
        log: File for what it writes.
        core: The only core of all its processes; ``None`` for any.
        environment: Variables on top of ours.

    Yields:
        The server, started but not yet ready.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            tethered(command, core),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=clean_environment() | dict(environment or {}),
            cwd=ROOT,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        yield server
    finally:
        server.end()

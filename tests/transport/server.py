"""A server process to attack, on our own transport; and what a test asks of it.

Usage: ``python -m tests.transport.server --config '{...}'``; prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psutil
import uvloop

from gateway.clock import now_ns
from gateway.config import GrpcConfig
from gateway.rpc import Call, Methods, StreamCall
from gateway.transport.listener import Listener
from tests.gateway_process import free_port
from tests.transport import peer

PAGE = bytes(64 << 10)
HIGH_BYTES = 1 << 20
"""Answers of one stream that wait: above it no more are made."""


class Echo:
    """Answers each message with itself; reads no more while much waits."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream

    def on_message(self, message: bytes) -> None:
        self._stream.send(message)

    def on_half_close(self) -> None:
        self._stream.finish()

    def on_cancel(self) -> None:
        pass

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        if queued_bytes > HIGH_BYTES:
            self._stream.pause()
        else:
            self._stream.resume()


class Download(Echo):
    """Sends pages for as long as the client takes them."""

    def on_message(self, message: bytes) -> None:
        self._stream.send(PAGE)

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        if queued_bytes < HIGH_BYTES:
            self._stream.send(PAGE)


class Paused(Echo):
    """Reads nothing."""

    def __init__(self, stream: StreamCall) -> None:
        super().__init__(stream)
        stream.pause()

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        pass


def echo(call: Call, message: bytes) -> None:
    call.reply(message)


def never(call: Call, message: bytes) -> None:
    """Leave the call to its deadline, or to the client."""


def large(call: Call, message: bytes) -> None:
    call.reply(PAGE)


async def serve(config: GrpcConfig) -> None:
    """Serve until SIGTERM."""

    def statistics(call: Call, message: bytes) -> None:
        found = listener.server.statistics
        call.reply(
            json.dumps(
                {
                    "limits": found.limits,
                    "open": found.open,
                    "calls": found.calls,
                    "buffered_bytes": found.buffered_bytes,
                }
            ).encode()
        )

    unary = {"Echo": echo, "Never": never, "Large": large, "Statistics": statistics}
    streams = {"Stream": Echo, "Download": Download, "Paused": Paused}
    methods = Methods(
        unary={f"/test.S/{name}": handler for name, handler in unary.items()},
        streams={f"/test.S/{name}": handler for name, handler in streams.items()},
    )
    listener = Listener(methods, config, now_ns)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    port = free_port()
    await listener.start(f"127.0.0.1:{port}")
    print(port, flush=True)  # noqa: T201 - whoever started it waits for this
    await stopped.wait()
    await listener.stop(0)


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.transport.server")
    parser.add_argument("--config", default="{}", help="the grpc section, as JSON")
    config = GrpcConfig.model_validate_json(parser.parse_args().config)
    uvloop.run(serve(config))


# -- the other side -----------------------------------------------------------------


class Wire:
    """A client's socket: sends whatever it is given, and reads unless told not to."""

    def __init__(self, port: int, opening: bytes = peer.OPENING) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(0)
        self.received = b""
        self.closed = False
        self.kept = 1 << 20
        if opening:
            self.send(opening)

    def send(self, sent: bytes, *, read: bool = True, limit_s: float = 20) -> int:
        """Send as much as the server takes; return how much that was."""
        view, give_up = memoryview(sent), time.monotonic() + limit_s
        while view and not self.closed and time.monotonic() < give_up:
            if read:
                self.read()
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                wait_ready(self.socket, read=read, write=True, timeout_s=0.2)
            except OSError:
                self.read()
                self.closed = True
        return len(sent) - len(view)

    def read(self) -> None:
        """Take what has come."""
        while not self.closed:
            try:
                more = self.socket.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                more = b""
            self.closed = not more
            self.received = (self.received + more)[-self.kept :]

    def wait(self, what: bytes = b"", limit_s: float = 20) -> bytes:
        """Read until something has come, or the connection has ended."""
        give_up = time.monotonic() + limit_s
        while not self.closed and not (what and what in self.received):
            assert time.monotonic() < give_up, f"waited in vain for {what!r}"
            wait_ready(self.socket, read=True, write=False, timeout_s=0.2)
            self.read()
        if what not in self.received:
            ends = [f.code for f in self.frames() if f.kind == peer.GOAWAY]
            raise AssertionError(f"ended (GOAWAY {ends}) before {what!r} came")
        return self.received

    def frames(self) -> list[peer.Frame]:
        """Return the whole frames that came, of connections that got little."""
        return peer.parse(self.received)[0]

    def goaway(self) -> int:
        """Wait for the end, and return the error code the server gave."""
        self.wait()
        codes = [f.code for f in self.frames() if f.kind == peer.GOAWAY]
        return codes[-1] if codes else -1

    def close(self) -> None:
        self.socket.close()


def wait_ready(
    sock: socket.socket, *, read: bool, write: bool, timeout_s: float
) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN * read | select.POLLOUT * write)
    poll.poll(timeout_s * 1000)


class Victim:
    """A running server, and what it has used."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.process = psutil.Process(pid)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.wires: list[Wire] = []

    def call(self, method: str, message: bytes = b"", timeout_s: float = 10) -> bytes:
        answer: bytes = self.channel.unary_unary(f"/test.S/{method}")(
            message, timeout=timeout_s, wait_for_ready=True
        )
        return answer

    def connect(self, opening: bytes = peer.OPENING) -> Wire:
        wire = Wire(self.port, opening)
        self.wires.append(wire)
        return wire

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("Statistics"))
        return found

    def enforced(self, limit: str) -> int:
        return int(self.statistics()["limits"].get(limit, 0))

    def cpu_s(self) -> float:
        used = self.process.cpu_times()
        return float(used.user + used.system)

    def rss(self) -> int:
        return int(self.process.memory_info().rss)

    @contextmanager
    def bounded(self, cpu_s: float, rss_mb: float) -> Iterator[None]:
        """Demand that what happens meanwhile costs no more than this.

        And that another client is served all the time: each of its calls is answered
        within two seconds, on machines as slow as a shared one.
        """
        self.call("Echo", b"there")
        cpu, rss, slowest, peak = self.cpu_s(), self.rss(), [0.0], [0]
        failures: list[grpc.RpcError] = []
        done = threading.Event()

        def bystander() -> None:
            while not done.wait(0.02):
                start = time.monotonic()
                try:
                    assert self.call("Echo", b"still there", 10) == b"still there"
                except grpc.RpcError as error:
                    failures.append(error)
                slowest[0] = max(slowest[0], time.monotonic() - start)
                peak[0] = max(peak[0], self.rss())

        thread = threading.Thread(target=bystander)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            for wire in self.wires:
                wire.close()
            self.wires.clear()
        used, grown = self.cpu_s() - cpu, (peak[0] - rss) / (1 << 20)
        assert failures == []
        assert slowest[0] < 2
        assert used < cpu_s, "CPU time"
        assert grown < rss_mb, "memory"
        assert self.call("Echo", b"and after") == b"and after"


@contextmanager
def victim(**config: Any) -> Iterator[Victim]:
    """Start a server with a ``grpc`` section of its own."""
    command = [sys.executable, "-m", "tests.transport.server", "--config"]
    process = subprocess.Popen(
        [*command, json.dumps(config)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        running = Victim(int(process.stdout.readline()), process.pid)
        try:
            yield running
        finally:
            running.channel.close()
            for wire in running.wires:
                wire.close()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()  # so busy that it hears no signal
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


if __name__ == "__main__":
    main()

"""The hop to a worker and back: socket against shared memory, by batch size.

``python -m loadtest hop``. A real `WorkerLoop` in a process of its own, with a
"model" that answers one row per batch, so that the way there is what is measured. It
decides ``workers.shared_memory_min_bytes``.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from workers import wire
from workers.arena import Arena
from workers.execute import Array
from workers.loop import WorkerLoop, listen
from workers.spec import (
    LOAD_ORDER,
    LoadOrder,
    LoadReport,
    ModelSpec,
    TensorSpec,
)
from workers.wire import FrameReader, Kind, Run, WireTensor

SIZES = tuple(1 << power for power in range(12, 25, 2))
"""Batch sizes in bytes."""
ROUND_TRIPS = 200
ROUNDS = 5


class FirstBytes:
    """A version that reads its whole input and answers with 16 bytes."""

    spec = ModelSpec(
        (TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "INT64", (2,)),), 1
    )
    report = LoadReport(1, spec=spec)

    def run(self, arrays: list[Array | None], rows: int) -> list[Array]:
        """Sum the input, as a model would at least look at it."""
        array = arrays[0]
        assert array is not None
        total = int(array.reshape(-1).view(np.uint8).max(initial=0))
        return [np.full((rows, 2), total, dtype=np.int64)]

    def quick(self) -> None:
        """There is no short way: the hop is what is measured."""

    def close(self) -> None:
        """Hold nothing."""


def _worker(path: str, control: socket.socket) -> None:
    WorkerLoop(listen(path), control, lambda order: FirstBytes()).run()


@dataclass(frozen=True)
class Hop:
    """Microseconds of one round trip: median of the rounds' medians, and spread."""

    nbytes: int
    socket_us: float
    arena_us: float
    socket_spread: tuple[float, float]
    arena_spread: tuple[float, float]


class _Client:
    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                self.sock.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                continue
        arena = Arena.create(SIZES[-1])
        assert arena is not None
        self.arena = arena
        hello = wire.encode_frame(Kind.HELLO, 0)
        socket.send_fds(self.sock, [hello], [arena.fd])
        self.reader = FrameReader()

    def round_trip_us(self, data: bytes, *, through_arena: bool) -> float:
        """Time one batch there and its answer back."""
        slot = self.arena.requests[0] if through_arena else None
        started = time.perf_counter_ns()
        tensor = WireTensor(0, (1, len(data)), (data,))
        for buffer in wire.encode_run(Run(1, 1, 1, 0, [tensor]), slot):
            self.sock.sendall(buffer)
        while not list(self.reader.feed(self.sock.recv(1 << 16))):
            pass
        return (time.perf_counter_ns() - started) / 1e3


def measure() -> list[Hop]:
    """Measure every size, socket and arena alternating."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="baton-hop-") as folder:
        path = str(Path(folder) / "worker.sock")
        process = context.Process(target=_worker, args=(path, theirs), daemon=True)
        process.start()
        client = _Client(path)
        order = LOAD_ORDER.dump_python(LoadOrder(1, "m", 1, ""))
        command = json.dumps({"op": "load", "order": order}).encode()
        ours.sendall(wire.encode_frame(Kind.CONTROL, 1, command))
        ours.recv(1 << 16)
        client.sock.recv(1 << 16)  # PAUSE and RESUME
        hops = [_measure_size(client, size) for size in SIZES]
        ours.close()
        client.sock.close()
        process.join(10)
    return hops


def _measure_size(client: _Client, size: int) -> Hop:
    data = bytes(size)
    medians: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for through_arena in (False, True):
            times = [
                client.round_trip_us(data, through_arena=through_arena)
                for _ in range(ROUND_TRIPS)
            ]
            medians[through_arena].append(statistics.median(times))
    plain, shared = medians[False], medians[True]
    return Hop(
        size,
        statistics.median(plain),
        statistics.median(shared),
        (min(plain), max(plain)),
        (min(shared), max(shared)),
    )


def report(hops: list[Hop], *, as_json: bool) -> None:
    """Print the measurements."""
    if as_json:
        print(json.dumps([hop.__dict__ for hop in hops]))
        return
    table = Table(title="One batch to a worker and back, microseconds (min..max)")
    for name in ("bytes", "socket", "shared memory", "socket / shared"):
        table.add_column(name, justify="right")
    for hop in hops:
        table.add_row(
            f"{hop.nbytes}",
            "{:.0f} ({:.0f}..{:.0f})".format(hop.socket_us, *hop.socket_spread),
            "{:.0f} ({:.0f}..{:.0f})".format(hop.arena_us, *hop.arena_spread),
            f"{hop.socket_us / hop.arena_us:.2f}",
        )
    Console().print(table)

"""A worker's loop in a process of its own, with a model that is a few lines."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers import wire
from workers.arena import Arena
from workers.spec import LOAD_ORDER, LoadOrder
from workers.wire import Failure, Frame, FrameReader, Kind, Run, WireTensor

WORKER = """
import sys
import numpy as np
from workers.execute import RunError
from workers.loop import WorkerLoop, connect_control, listen
from workers.plain import QuickRun
from workers.signature import LoadRefused
from workers.spec import LoadReport, ModelSpec, TensorSpec

class SumsAllRows:  # a model that mixes rows: each gets the sum over the batch
    def __init__(self, handle):
        x, y = TensorSpec("x", "INT64", ()), TensorSpec("y", "INT64", ())
        self.spec = ModelSpec((x,), (y,), 8)
        self.report = LoadReport(handle, spec=self.spec)

    def run(self, arrays, rows):
        if (arrays[0] < 0).any():
            raise RunError("negative")
        if (arrays[0] > 999).any():
            raise ZeroDivisionError
        return [np.full(rows, arrays[0].sum(), "<i8")]

    def quick(self):
        if sys.argv[3] == "long":
            return None
        return QuickRun(lambda array: self.run([array], len(array))[0], self.spec)

    def close(self):
        pass

def load(order):
    if order.model == "broken":
        raise LoadRefused("it is broken")
    if order.model == "buggy":
        raise ValueError("words of Python")
    return SumsAllRows(order.handle)

listener = listen(sys.argv[1])
control = connect_control(sys.argv[2], {"pid": 1})
WorkerLoop(listener, control, load).run()
"""


class Link:
    """One connection to the worker, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        sock.settimeout(20)

    def read(self) -> Frame:
        while not self._frames:
            data = self.sock.recv(1 << 16)
            assert data, "the worker went away"
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def sums(self, count: int) -> dict[int, list[int]]:
        """Read results; return the rows of each by id."""
        results = [wire.decode_result(self.read()) for _ in range(count)]
        return {
            result.id: np.frombuffer(result.tensors[0].data[0], "<i8").tolist()
            for result in results
        }


class Worker:
    """The worker, from the supervisor's side of its control connection."""

    def __init__(self, control: Link, path: Path) -> None:
        self.control = control
        self.path = path
        self.links: list[Link] = []

    def connect(self) -> Link:
        sock = socket.socket(socket.AF_UNIX)
        self.links.append(Link(sock))
        sock.connect(str(self.path))
        return self.links[-1]

    def command(self, message: dict[str, Any]) -> dict[str, Any]:
        frame = wire.encode_frame(Kind.CONTROL, 5, json.dumps(message).encode())
        self.control.sock.sendall(frame)
        answer = self.control.read()
        assert (answer.id, answer.flags) == (5, wire.REPLY)
        reply: dict[str, Any] = json.loads(bytes(answer.body))
        return reply

    def load(
        self, handle: int, model: str = "m", *, across_requests: bool = True
    ) -> dict[str, Any]:
        order = LoadOrder(handle, model, 1, "", across_requests=across_requests)
        return self.command(
            {"op": "load", "order": LOAD_ORDER.dump_python(order, mode="json")}
        )


@pytest.fixture(params=["long", "quick"])
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """Start a worker; whether its version has a short way is not to be seen."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control"))
    listener.listen()
    listener.settimeout(20)
    paths = [str(tmp_path / name) for name in ("w", "control")]
    process = subprocess.Popen([sys.executable, "-c", WORKER, *paths, request.param])
    control = Link(listener.accept()[0])
    try:
        assert control.read().kind == Kind.HELLO
        worker = Worker(control, tmp_path / "w")
        yield worker
        for link in worker.links:
            link.sock.close()
    finally:
        control.sock.close()
        listener.close()
        assert process.wait(20) == 0


def run_of(id_: int, values: list[int], handle: int = 1) -> bytes:
    raw = np.array(values, "<i8").tobytes()
    run = Run(id_, handle, len(values), 0, [WireTensor(0, (len(values),), (raw,))])
    return b"".join(wire.encode_run(run))


def test_runs_that_wait_together_share_an_execution(worker: Worker) -> None:
    worker.load(1)
    link = worker.connect()
    link.sock.sendall(run_of(1, [1, 2]) + run_of(2, [4]))
    results = [wire.decode_result(link.read()) for _ in range(2)]
    assert [result.id for result in results] == [1, 2]
    assert [result.executions for result in results] == [1, 0]
    assert {result.batch_rows for result in results} == {3}


def test_requests_never_meet_where_the_version_is_not_to_batch_them(
    worker: Worker,
) -> None:
    worker.load(1, across_requests=False)
    link = worker.connect()
    link.sock.sendall(run_of(1, [1, 2]) + run_of(2, [4]) + run_of(3, [8]))
    assert link.sums(3) == {1: [3, 3], 2: [4], 3: [8]}


def test_runs_that_do_not_fit_together_run_one_after_the_other(worker: Worker) -> None:
    worker.load(1)
    link = worker.connect()
    link.sock.sendall(run_of(1, [1] * 5) + run_of(2, [1] * 5))
    assert link.sums(2) == {1: [5] * 5, 2: [5] * 5}


@pytest.mark.parametrize(
    ("bad", "reason"), [(-1, "negative"), (1000, "internal error")]
)
def test_a_failing_run_fails_alone(worker: Worker, bad: int, reason: str) -> None:
    worker.load(1)
    link = worker.connect()
    link.sock.sendall(run_of(1, [1]) + run_of(2, [bad]) + run_of(3, [3]))
    frames = {frame.id: frame for frame in (link.read(), link.read(), link.read())}
    failed = frames.pop(2)
    assert (failed.kind, failed.flags) == (Kind.FAILURE, Failure.MODEL_FAILED)
    assert bytes(failed.body).decode() == reason
    assert {frame.kind for frame in frames.values()} == {Kind.RESULT}


def test_an_unknown_load_is_named_as_that(worker: Worker) -> None:
    worker.load(1)
    worker.command({"op": "unload", "handle": 1})
    link = worker.connect()
    link.sock.sendall(run_of(9, [1]))
    frame = link.read()
    assert (frame.kind, frame.flags) == (Kind.FAILURE, Failure.UNKNOWN_HANDLE)
    assert frame.id == 9


def test_fronts_hear_of_a_load_before_and_after_also_of_one_that_fails(
    worker: Worker,
) -> None:
    link = worker.connect()
    link.sock.sendall(run_of(1, [1]))
    assert link.read().kind == Kind.FAILURE
    assert worker.load(1)["error"] == ""
    assert worker.load(2, "broken")["error"] == "it is broken"
    assert "words of Python" not in worker.load(3, "buggy")["error"]
    kinds = [link.read().kind for _ in range(6)]
    assert kinds == [Kind.PAUSE, Kind.RESUME] * 3
    link.sock.sendall(run_of(3, [6]))
    assert link.sums(1) == {3: [6]}


def test_a_front_that_breaks_or_leaves_harms_no_other(worker: Worker) -> None:
    worker.load(1, across_requests=False)
    good = worker.connect()
    for damage in (
        run_of(1, [1])[:-1],
        wire.PREFIX.pack(3, Kind.RUN, 0, 1, 1) + b"abc",
        run_of(1, [1] * 3),
        bytes(16),
    ):
        bad = worker.connect()
        bad.sock.sendall(damage)
        bad.sock.close()
        good.sock.sendall(run_of(2, [5]))
        assert good.sums(1) == {2: [5]}


def test_a_starved_socket_gives_the_same_result(worker: Worker) -> None:
    worker.load(1)
    link = worker.connect()
    for byte in run_of(4, [2, 3]):
        link.sock.sendall(bytes([byte]))
    assert link.sums(1) == {4: [5, 5]}


def test_large_batches_travel_through_the_arena(worker: Worker) -> None:
    worker.load(1)
    link = worker.connect()
    arena = Arena.create(1 << 20)
    assert arena is not None
    socket.send_fds(link.sock, [wire.encode_frame(Kind.HELLO, 0)], [arena.fd])
    raw = np.arange(8, dtype="<i8").tobytes()
    run = Run(1, 1, 8, 1, [WireTensor(0, (8,), (raw,))])
    link.sock.sendall(b"".join(wire.encode_run(run, arena.requests[1])))
    assert link.sums(1) == {1: [28] * 8}
    arena.close()

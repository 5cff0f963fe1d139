"""Microseconds per request, stage by stage, without clients and switches.

Drives the very objects of a front and a worker with the bytes they would get,
so that a change of the request path shows here first.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from featurizer.datatypes import DATATYPES
from gateway.catalogue import (
    BatchPolicy,
    Catalogue,
    ModelEntry,
    QueuePolicy,
    State,
    VersionEntry,
    WorkerEntry,
)
from gateway.clock import now_ns
from gateway.config import GrpcConfig
from gateway.rpc import Methods
from gateway.serving.admission import Admission
from gateway.serving.dispatch import Dispatcher
from gateway.serving.infer import InferService
from gateway.serving.link import LinkSettings, WorkerLink
from gateway.serving.shadow import Shadows
from gateway.serving.sink import MemorySink
from gateway.serving.state import FrontState
from gateway.transport import frames
from gateway.transport.hpack import encode_literal
from gateway.transport.listener import Listener, ServerConnection
from loadtest.models import (
    CLASSES,
    FEATURES,
    INPUT,
    OUTPUT,
    model_file,
    write_models,
)
from loadtest.processes import ROOT
from loadtest.wire import SERVICE, infer_request
from workers import wire
from workers.loop import WorkerLoop
from workers.session import open_version
from workers.spec import LOAD_ORDER, LoadOrder, ModelSpec, TensorSpec

BATCH = 24
"""Requests of one read: what concurrency 64 comes to (`baton_batch_rows`)."""
STAGES = {
    "receive": "bytes to an admitted request: HTTP/2, gRPC, plan, window",
    "dispatch": "its part of the batch's frame to the worker",
    "worker": "its part of the run: frame, ONNX Runtime (M1), frame",
    "answer": "its rows out of the worker's frame, reply, HTTP/2 frames",
    "write": "its part of the bytes for the connection",
}
_BEGIN, _END = "<!-- stages -->", "<!-- end of stages -->"
PAGE = ROOT / "ARCHITECTURE.md"
_FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", f"{SERVICE}/ModelInfer".encode()),
    (b":authority", b"127.0.0.1:8001"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


class _Sink:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writelines(self, data: list[bytes]) -> None:
        self.written.append(b"".join(data))

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing ever waits."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Nobody is there."""

    close = pause_reading = resume_reading = abort


class Bench:
    """A front's request path with both ends in hand. Needs a running loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        tensors = (TensorSpec(INPUT, "FP32", (FEATURES,)),)
        outputs = (TensorSpec(OUTPUT, "FP32", (CLASSES,)),)
        version = VersionEntry(
            version=1,
            state=State.READY,
            handle=1,
            spec=ModelSpec(tensors, outputs, 64),
            batching=BatchPolicy(max_rows=64, max_bytes=16 << 20),
            queue=QueuePolicy(max_requests=4096),
        )
        state = FrontState()
        model = ModelEntry("M1", {1: version})
        state.swap(Catalogue(revision=1, ready=True, models={"M1": model}))
        admission = Admission(512 << 20, 25)
        self.dispatcher = Dispatcher(
            loop, now_ns, admission, max_attempts=2, pushback_ms=25
        )
        infer = InferService(
            state,
            self.dispatcher,
            admission,
            now_ns=now_ns,
            default_timeout_ns=30_000_000_000,
            max_stream_inflight=256,
            max_stream_bytes=4 << 20,
            sink=MemorySink(1),
            shadows=Shadows(
                loop,
                self.dispatcher,
                admission,
                MemorySink(1),
                now_ns=now_ns,
                max_bytes=1 << 30,
            ),
        )
        path = f"{SERVICE}/ModelInfer"
        table = Methods({path: infer.model_infer}, {}, frozenset({path}))
        self.listener = Listener(table, GrpcConfig(), now_ns)
        self.client = _Sink()
        self.connection = ServerConnection(self.listener, GrpcConfig())
        self.connection.connection_made(cast(asyncio.Transport, self.client))
        self.worker = _Sink()
        worker = WorkerEntry(0, 1, "", frozenset({1}))
        self.link = WorkerLink(
            worker,
            self.dispatcher,
            LinkSettings(0, 0, 2_000_000_000, 1),
            now_ns=now_ns,
            on_lost=lambda _: None,
            on_hang=lambda _: None,
        )
        self.link.connection_made(cast(asyncio.Transport, self.worker))
        self.connection.data_received(
            frames.PREFACE + frames.settings({}) + frames.window_update(0, 1 << 30)
        )
        rows = np.zeros((1, FEATURES), np.float32)
        request = infer_request("M1", INPUT, rows, request_id="request")
        message = request.SerializeToString()
        self._body = b"\0" + len(message).to_bytes(4, "big") + message
        self._next = 1
        size = DATATYPES["FP32"].size * CLASSES
        self._row = bytes(size)

    def requests(self, timeout: Callable[[int], bytes] | None = None) -> bytes:
        """Return the next read: `BATCH` requests."""
        out = []
        block = b"".join(encode_literal(*field) for field in _FIELDS)
        for _ in range(BATCH):
            head = block
            if timeout is not None:
                head += encode_literal(b"grpc-timeout", timeout(self._next))
            flags = frames.END_HEADERS
            out.append(frames.frame(frames.HEADERS, flags, self._next, head))
            flags = frames.END_STREAM
            out.append(frames.frame(frames.DATA, flags, self._next, self._body))
            self._next += 2
        return b"".join(out)

    def sent(self) -> bytes:
        """Return the frame of the one batch the worker has."""
        return b"".join(self.worker.written)

    def answer(self) -> bytes:
        """Return the worker's answer to the one batch it has."""
        (frame,) = wire.FrameReader().feed(self.sent())
        run = wire.decode_run(frame)
        tensor = wire.WireTensor(0, (run.rows, CLASSES), (self._row * run.rows,))
        result = wire.Result(run.id, 1, 1, 1, 1, run.rows, [tensor])
        self.worker.written.clear()
        return b"".join(wire.encode_result(result))

    def round(self, worker: Worker) -> tuple[int, ...]:
        """Serve one read; return the nanoseconds of every stage."""
        data = self.requests()
        started = perf_counter_ns()
        self.connection.data_received(data)
        received = perf_counter_ns()
        self.dispatcher.pump()
        sent = perf_counter_ns()
        ran = worker.run(self.sent())
        answer = self.answer()
        back = perf_counter_ns()
        self.link.data_received(answer)
        answered = perf_counter_ns()
        self.listener.flush()
        written = perf_counter_ns()
        self.client.written.clear()
        return (
            received - started,
            sent - received,
            ran,
            answered - back,
            written - answered,
        )


class Worker:
    """A worker's loop with M1 loaded and one front, in this process.

    Args:
        folder: For the model.
    """

    def __init__(self, folder: Path) -> None:
        write_models(folder, ("M1",))
        model = model_file(folder, "M1")
        order = LoadOrder(handle=1, model="M1", version=1, path=str(model))
        report = open_version(order)
        control, self._supervisor = socket.socketpair()
        self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / "worker.sock"))
        listener.listen()
        self._loop = WorkerLoop(listener, control, lambda _: report)
        self._loop.prepare()
        self._front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._front.connect(str(folder / "worker.sock"))
        self._loop.poll(0)
        command = {"op": "load", "order": LOAD_ORDER.dump_python(order, mode="json")}
        body = json.dumps(command).encode()
        self._supervisor.sendall(wire.encode_frame(wire.Kind.CONTROL, 1, body))
        self._loop.poll(0)
        self._front.recv(1 << 16)  # PAUSE and RESUME

    def close(self) -> None:
        """Let the loop find that everybody has left."""
        self._front.close()
        self._supervisor.close()
        self._loop.poll(0)
        self._listener.close()

    def run(self, frame: bytes) -> int:
        """Have it answer one RUN frame; return the nanoseconds that took."""
        self._front.sendall(frame)
        started = perf_counter_ns()
        self._loop.poll(0)
        took = perf_counter_ns() - started
        assert len(self._front.recv(1 << 20)) > wire.PREFIX.size
        return took


async def measure(rounds: int = 4000) -> dict[str, float]:
    """Return microseconds per request of each stage, and their sum.

    Of all rounds the first decile: what the code takes when the machine does nothing
    else, which is what a change of the code should be judged by.
    """
    bench = Bench()
    with tempfile.TemporaryDirectory(prefix="baton-stages-") as folder:
        worker = Worker(Path(folder))
        for _ in range(rounds // 4):
            bench.round(worker)
        await asyncio.sleep(0)
        taken = []
        for number in range(rounds):
            taken.append(bench.round(worker))
            if number % 100 == 0:
                await asyncio.sleep(0)
        worker.close()
    columns: list[Any] = list(zip(*taken, strict=True))
    found = {
        stage: statistics.quantiles(column, n=10)[0] / BATCH / 1000
        for stage, column in zip(STAGES, columns, strict=True)
    }
    return {**found, "total": sum(found.values())}


def table(found: dict[str, float]) -> str:
    """Return the stages as a Markdown table."""
    lines = ["| stage | µs | what |", "|---|---|---|"]
    for stage, what in STAGES.items():
        lines.append(f"| {stage} | {found[stage]:.2f} | {what} |")
    lines.append(f"| total | {found['total']:.2f} | |")
    return "\n".join(lines)


def on_page(page: Path = PAGE) -> dict[str, float]:
    """Return the figures that stand in ARCHITECTURE.md."""
    rows = re.findall(r"^\| (\w+) \| ([0-9.]+) \|", _split(page)[1], re.MULTILINE)
    return {stage: float(us) for stage, us in rows}


def write_page(found: dict[str, float], page: Path = PAGE) -> None:
    """Put the figures into ARCHITECTURE.md."""
    before, _, after = _split(page)
    page.write_text(f"{before}{_BEGIN}\n{table(found)}\n{_END}{after}")


def _split(page: Path) -> tuple[str, str, str]:
    before, _, rest = page.read_text().partition(_BEGIN)
    inside, _, after = rest.partition(_END)
    return before, inside, after


def run(*, as_json: bool, write: bool) -> int:
    """Measure and print; with `write` into ARCHITECTURE.md as well."""
    found = asyncio.run(measure())
    if write:
        write_page(found)
    if as_json:
        print(json.dumps({stage: round(us, 3) for stage, us in found.items()}))
        return 0
    shown = Table(title=f"us per request without sockets, reads of {BATCH}", width=78)
    for name in ("stage", "us", "what"):
        shown.add_column(name, justify="right" if name == "us" else "left")
    for stage, us in found.items():
        shown.add_row(stage, f"{us:.2f}", STAGES.get(stage, ""))
    Console().print(shown)
    return 0

"""Microseconds per request in a front, stage by stage, without sockets.

Drives the very objects of a front with bytes as a client and a worker would send
them, so that a change of the request path shows here first.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable
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
from gateway.serving.state import FrontState
from gateway.transport import frames
from gateway.transport.hpack import encode_literal
from gateway.transport.listener import Listener, ServerConnection
from loadtest.models import CLASSES, FEATURES, INPUT, OUTPUT
from loadtest.wire import SERVICE, infer_request
from workers import wire
from workers.spec import ModelSpec, TensorSpec

BATCH = 24
"""Requests of one read: what concurrency 64 comes to (`baton_batch_rows`)."""
STAGES = ("receive", "dispatch", "answer", "write")
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

    def answer(self) -> bytes:
        """Return the worker's answer to the one batch it has."""
        (frame,) = wire.FrameReader().feed(b"".join(self.worker.written))
        run = wire.decode_run(frame)
        tensor = wire.WireTensor(0, (run.rows, CLASSES), (self._row * run.rows,))
        result = wire.Result(run.id, 1, 1, 1, 1, run.rows, [tensor])
        self.worker.written.clear()
        return b"".join(wire.encode_result(result))

    def round(self) -> tuple[int, ...]:
        """Serve one read; return the nanoseconds of every stage."""
        data = self.requests()
        started = perf_counter_ns()
        self.connection.data_received(data)
        received = perf_counter_ns()
        self.dispatcher.pump()
        sent = perf_counter_ns()
        answer = self.answer()
        back = perf_counter_ns()
        self.link.data_received(answer)
        answered = perf_counter_ns()
        self.listener.flush()
        written = perf_counter_ns()
        self.client.written.clear()
        return received - started, sent - received, answered - back, written - answered


async def measure(rounds: int = 4000) -> dict[str, float]:
    """Return microseconds per request of each stage, and their sum.

    Of all rounds the first decile: what the code takes when the machine does nothing
    else, which is what a change of the code should be judged by.
    """
    bench = Bench()
    for _ in range(rounds // 4):
        bench.round()
    await asyncio.sleep(0)
    taken = []
    for number in range(rounds):
        taken.append(bench.round())
        if number % 100 == 0:
            await asyncio.sleep(0)
    columns: list[Any] = list(zip(*taken, strict=True))
    found = {
        stage: statistics.quantiles(column, n=10)[0] / BATCH / 1000
        for stage, column in zip(STAGES, columns, strict=True)
    }
    return {**found, "total": sum(found.values())}


def run(*, as_json: bool) -> int:
    """Measure and print."""
    found = asyncio.run(measure())
    if as_json:
        print(json.dumps({stage: round(us, 3) for stage, us in found.items()}))
        return 0
    table = Table(title=f"us per request in a front, reads of {BATCH}")
    table.add_column("stage")
    table.add_column("us", justify="right")
    for stage, us in found.items():
        table.add_row(stage, f"{us:.2f}")
    Console().print(table)
    return 0

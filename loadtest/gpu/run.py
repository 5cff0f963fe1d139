"""Rows per second of the gateway on a GPU, beside bare ONNX Runtime on the same.

Bare ONNX Runtime keeps inputs and outputs on the device (IOBinding), so that it copies
nothing; the gateway gets single rows over gRPC and batches them itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from gateway.protocol import inference_pb2 as pb
from loadtest import baton
from loadtest.dialects import GRPC
from loadtest.gpu.graphs import FULL, KINDS, OUTPUT, TINY, TYPES, Array, Sizes
from loadtest.load import Load, LoadFailed, builtin
from loadtest.machine import machine
from loadtest.measure import Spread, ratio, spread
from loadtest.models import write_model
from loadtest.processes import Server, ServerFailed
from loadtest.wire import BadAnswer, tensors
from workers.cuda import WAY_OUT
from workers.session import require_cuda
from workers.signature import LoadRefused
from workers.spec import Device, SessionSettings

GOAL = 0.95
"""Share of bare ONNX Runtime's rows per second that the gateway is to reach."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
MAX_BATCH = BATCHES[-1]
SMOKE_BATCHES = (1, 4)
MAX_BATCH_BYTES = 256 << 20
READY_S, WARM_RUNS, CHECKED = 300.0, 3, 8
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2}
"""Absolute, of probabilities: batches of other sizes run other kernels."""
DATATYPES = {"float32": "FP32", "int64": "INT64"}
PLAIN_WIDTH = 120


class WrongAnswer(Exception):
    """The gateway does not answer what ONNX Runtime says."""


@dataclass(frozen=True, slots=True)
class Line:
    """One model in one precision.

    Attributes:
        model: Name of the graph.
        precision: fp32 or fp16.
        bare: Rows per second of bare ONNX Runtime at its best batch size.
        batch: That batch size, in the first round.
        gateway: Rows per second of the gateway.
        p99_ms: Of its calls.
        share: Of bare ONNX Runtime's rate that the gateway reaches, by medians.
    """

    model: str
    precision: str
    bare: Spread
    batch: int
    gateway: Spread
    p99_ms: Spread
    share: float


def open_session(file: Path, device: Device) -> ort.InferenceSession:
    """Return a session on a device, and on no other."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    name = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    return ort.InferenceSession(file, options, providers=[name])


def bare_rates(
    session: ort.InferenceSession, rows: Array, *, device: Device, seconds: float
) -> dict[int, float]:
    """Return rows per second by batch size, inputs and outputs on the device.

    Args:
        session: To run.
        rows: Of which batches are taken; as many as the largest batch.
        device: Where the session runs.
        seconds: For all batch sizes together.
    """
    sizes = [batch for batch in BATCHES if batch <= len(rows)]
    name, rates = session.get_inputs()[0].name, {}
    for batch in sizes:
        binding = session.io_binding()
        taken = ort.OrtValue.ortvalue_from_numpy(rows[:batch], device, 0)
        binding.bind_ortvalue_input(name, taken)
        binding.bind_output(OUTPUT, device)
        for _ in range(WARM_RUNS):
            session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        runs, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / len(sizes):
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            runs += 1
        rates[batch] = runs * batch / elapsed
    return rates


def request(model: str, name: str, rows: Array) -> bytes:
    """Return a request for rows, serialised."""
    message = pb.ModelInferRequest(model_name=model, id="request")
    datatype = DATATYPES[str(rows.dtype)]
    message.inputs.add(name=name, datatype=datatype, shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    body: bytes = message.SerializeToString()
    return body


@dataclass(frozen=True, slots=True)
class Job:
    """How the gateway is measured.

    Attributes:
        device: Of both.
        sizes: Of the graphs.
        seconds: Length of one measurement.
        rounds: Of both in turns.
        cuda_graphs: Let the gateway capture CUDA graphs.
    """

    device: Device
    sizes: Sizes
    seconds: float
    rounds: int
    cuda_graphs: bool

    @property
    def max_batch(self) -> int:
        """Largest batch of both."""
        return MAX_BATCH if self.device == "cuda" else SMOKE_BATCHES[-1]

    def measure(self, folder: Path, kind: str, precision: str) -> Line:
        """Measure one graph in one precision.

        Raises:
            ServerFailed: If the gateway does not start.
            WrongAnswer: If it answers wrong.
            LoadFailed: If the load client gives no numbers.
        """
        graph, name = KINDS[kind], f"{kind}-{precision}"
        place = folder / name
        file = write_model(place / "models", name, graph.build(self.sizes, precision))
        rows = graph.rows(self.sizes, self.max_batch)
        session = open_session(file, self.device)
        with baton.serving(place, settings=self._settings()) as server:
            server.wait_ready(READY_S)
            load = self._load(server, place, name, rows, session)
            bare, gateway, p99 = [], [], []
            batch = 0
            for _ in range(self.rounds):
                rates = bare_rates(
                    session, rows, device=self.device, seconds=self.seconds
                )
                batch = batch or max(rates, key=rates.__getitem__)
                bare.append(max(rates.values()))
                sample = builtin(load, None)
                gateway.append(sample.requests_per_s)
                p99.append(sample.p99_ms)
            if problems := server.stop(baton.EXIT_S):
                raise ServerFailed("; ".join(problems))
        found, ceiling = spread(gateway), spread(bare)
        share = ratio(found.median, ceiling.median)
        return Line(kind, precision, ceiling, batch, found, spread(p99), share)

    def _settings(self) -> dict[str, dict[str, object]]:
        return {
            "workers": {
                "device": self.device,
                "cuda_graphs": self.cuda_graphs,
                "intra_op_threads": 1,
                "hang_timeout_ms": 20_000,
            },
            "batching": {
                "max_batch_rows": self.max_batch,
                "max_batch_bytes": MAX_BATCH_BYTES,
            },
        }

    def _load(
        self,
        server: Server,
        folder: Path,
        name: str,
        rows: Array,
        session: ort.InferenceSession,
    ) -> Load:
        """Compare answers with ONNX Runtime's and return the load."""
        key = session.get_inputs()[0].name
        expected = session.run([OUTPUT], {key: rows})[0]
        count = min(CHECKED, len(rows))
        requests = [request(name, key, rows[i : i + 1]) for i in range(count)]
        try:
            answers = GRPC.ask(server.port, requests, timeout_s=READY_S)
        except BadAnswer as error:
            raise WrongAnswer(str(error)) from error
        tolerance = TOLERANCES[name.rpartition("-")[2]]
        for answer, row in zip(answers, expected, strict=False):
            found = tensors(pb.ModelInferResponse.FromString(answer))[OUTPUT][0]
            if not np.allclose(found, row, rtol=0, atol=tolerance):
                raise WrongAnswer(f"{name}: {found} instead of {row}")
        message = folder / "message"
        message.write_bytes(requests[0])
        return Load(
            port=server.port,
            path=GRPC.path,
            message=str(message),
            messages=1,
            reply_bytes=len(answers[0]),
            connections=4,
            calls=max(1, self.max_batch // 2),  # two batches in all
            seconds=self.seconds,
        )


def measured(job: Job, folder: Path, kinds: Sequence[str]) -> Iterator[Line]:
    """Measure graphs in each precision, one after the other."""
    for kind in kinds:
        for precision in TYPES:
            yield job.measure(folder, kind, precision)


def run(
    *, cpu_smoke: bool, seconds: float, rounds: int, cuda_graphs: bool, as_json: bool
) -> int:
    """Measure and report.

    Args:
        cpu_smoke: Run tiny graphs on the CPU: everything but the device.
        seconds: Length of one measurement.
        rounds: Of gateway and bare ONNX Runtime in turns.
        cuda_graphs: Let the gateway capture CUDA graphs.
        as_json: Print everything as one JSON object in the last line.

    Returns:
        0 if all was measured and, on a GPU, the goal is reached; 1 if not; 2 where
        there is no GPU to use.
    """
    device: Device = "cpu" if cpu_smoke else "cuda"
    if not cpu_smoke:
        try:
            require_cuda(SessionSettings(device="cuda"))
        except LoadRefused as error:
            text = str(error).replace(WAY_OUT, "or try --cpu-smoke, tiny graphs")
            print(text, file=sys.stderr)
            return 2
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    job = Job(device, TINY if cpu_smoke else FULL, seconds, rounds, cuda_graphs)
    lines, problem = [], ""
    with tempfile.TemporaryDirectory(prefix="baton-gpu-") as folder:
        try:
            for line in measured(job, Path(folder), tuple(KINDS)):
                lines.append(line)
                console.print(f"{line.model} {line.precision}: {line.share:.1%}")
        except (ServerFailed, WrongAnswer, LoadFailed) as error:
            problem = str(error)
            console.print(f"PROBLEM {problem}", markup=False, highlight=False)
    console.print(table(lines, device))
    reached = all(line.share >= GOAL for line in lines) or cpu_smoke
    if as_json:
        found = {
            "ok": reached and not problem,
            "problem": problem,
            "device": device,
            "goal": GOAL,
            "machine": machine(),
            "lines": [asdict(line) for line in lines],
        }
        print(json.dumps(found), flush=True)
    return 0 if reached and not problem else 1


def table(lines: Sequence[Line], device: Device) -> Table:
    """Return the lines as a table."""
    result = Table(title=f"Rows per second on {device}")
    for name in ("model", "", "bare", "at batch", "gateway", "p99 ms", "share"):
        result.add_column(name, justify="right")
    for line in lines:
        result.add_row(
            line.model,
            line.precision,
            f"{line.bare.median:,.0f}",
            str(line.batch),
            f"{line.gateway.median:,.0f}",
            f"{line.p99_ms.median:.1f}",
            f"{line.share:.1%}",
        )
    return result

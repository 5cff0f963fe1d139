"""The benchmark behind ``make bench``: Baton against a hand-written server.

All processes of a server keep to one core and the load to another, so that rates
are per core. All servers run for the whole time and take turns, in another order
every round, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from gateway.protocol import inference_pb2 as pb
from loadtest import baton, models, report
from loadtest.load import (
    Generator,
    Load,
    LoadFailed,
    Sample,
    builtin,
    h2load,
    h2load_version,
)
from loadtest.processes import Server, ServerFailed, cpu_seconds, free_ports, running
from loadtest.sessions import open_session
from loadtest.wire import SERVICE, channel, infer_request, tensors

OURS = "baton"
SERVERS = (OURS, "naive-uvloop", "naive-asyncio")
READY_S = 60.0
WARM_S = 0.5
PLAIN_WIDTH = 120
SAMPLE = 64
"""Answers compared with ONNX Runtime before anything is measured."""
RELATIVE = 1e-5
ABSOLUTE = 1e-6
SHAPES = {1: (1, 1), 16: (4, 4), 64: (4, 16), 256: (8, 32)}
"""Open calls to connections and calls on each."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: a model, and how many one-row messages a call carries."""

    name: str
    model: str
    messages: int
    concurrencies: tuple[int, ...]

    @property
    def path(self) -> str:
        """Full name of the method."""
        return f"{SERVICE}/{'ModelInfer' if self.messages == 1 else 'ModelStreamInfer'}"


REQUIRED = (Case("M1 unary", "M1", 1, (1, 64, 256)),)
FULL = (
    *REQUIRED,
    Case("M5 unary", "M5", 1, (1, 64, 256)),
    Case("M1 streams of 64", "M1", 64, (1, 16)),
)


class WrongAnswer(Exception):
    """A server does not answer what ONNX Runtime says."""


def choose_cores(available: Sequence[int]) -> tuple[int | None, int | None]:
    """Return a core for the servers and one for the load, if there are two.

    Two threads of one physical core are no two cores: they slow each other.
    """
    server = available[0]
    path = Path(f"/sys/devices/system/cpu/cpu{server}/topology/thread_siblings_list")
    siblings: set[int] = {server}
    if path.exists():
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            siblings.update(range(int(first), int(last or first) + 1))
    others = [core for core in available if core not in siblings]
    return (server, others[0]) if others else (None, None)


def naive(folder: Path, name: str, core: int | None) -> AbstractContextManager[Server]:
    """Return the hand-written server, on uvloop or on asyncio by its name."""
    (port,) = free_ports(1)
    loop = "--uvloop" if name == "naive-uvloop" else "--no-uvloop"
    command = [sys.executable, "-m", "loadtest", "naive", str(folder / "models")]
    command += ["--port", str(port), loop]
    return running(command, port=port, log=folder / f"{name}.log", core=core)


def start(folder: Path, name: str, core: int | None) -> AbstractContextManager[Server]:
    """Return a server by its name."""
    if name == OURS:
        return baton.serving(folder, core=core)
    return naive(folder, name, core)


async def verify(port: int, case: Case, path: Path) -> tuple[bytes, int]:
    """Compare a sample of answers, asked for at once, with ONNX Runtime.

    Returns:
        One request, and the length of its answer.

    Raises:
        WrongAnswer: If an answer differs.
    """
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((SAMPLE, models.FEATURES)).astype(np.float32)
    expected = open_session(path).run([models.OUTPUT], {models.INPUT: rows})[0]
    requests = [
        infer_request(case.model, models.INPUT, row[np.newaxis], request_id="request")
        for row in rows
    ]
    messages = [request.SerializeToString() for request in requests]
    async with channel(port) as connection:
        if case.messages == 1:
            unary = connection.unary_unary(case.path)
            answers = await asyncio.gather(
                *(unary(each, timeout=30) for each in messages)
            )
            parsed = [pb.ModelInferResponse.FromString(each) for each in answers]
        else:
            call = connection.stream_stream(case.path)(iter(messages), timeout=30)
            answers = [answer async for answer in call]
            parsed = [
                pb.ModelStreamInferResponse.FromString(each).infer_response
                for each in answers
            ]
    _compare(parsed, expected)
    return messages[0], len(answers[0])


def _compare(
    answers: Sequence[pb.ModelInferResponse], expected: NDArray[np.float32]
) -> None:
    if len(answers) != len(expected):
        raise WrongAnswer(f"{len(answers)} answers to {len(expected)} requests")
    for answer, row in zip(answers, expected, strict=True):
        found = tensors(answer).get(models.OUTPUT)
        if (
            found is None
            or found.shape != (1, models.CLASSES)
            or not np.allclose(found[0], row, rtol=RELATIVE, atol=ABSOLUTE)
        ):
            raise WrongAnswer(f"{found} instead of {row}")


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmark.

    Attributes:
        folder: For models, logs and the generator's files.
        runs: Rounds over all servers.
        seconds: Length of one measurement.
        generate: Sends the load.
        server_core: The only core of each server; ``None`` for any.
        load_core: The only core of the generator; ``None`` for any.
    """

    folder: Path
    runs: int
    seconds: float
    generate: Generator
    server_core: int | None
    load_core: int | None

    def run(
        self, cases: Sequence[Case], names: Sequence[str], console: Console
    ) -> tuple[list[report.Round], list[str]]:
        """Start all servers, measure all cases, stop the servers.

        Returns:
            The rounds, and what was wrong with how the servers went.

        Raises:
            ServerFailed: If a server does not start.
            WrongAnswer: If a server answers wrong.
            LoadFailed: If the generator gives no numbers.
        """
        needed = tuple(dict.fromkeys(case.model for case in cases))
        models.write_models(self.folder / "models", needed)
        rounds: list[report.Round] = []
        with ExitStack() as stack:
            servers = {
                name: stack.enter_context(start(self.folder, name, self.server_core))
                for name in names
            }
            for server in servers.values():
                server.wait_ready(READY_S)
            for case in cases:
                console.print(f"{case.name}: {SAMPLE} answers compared, then measured")
                for each in self._rounds(case, servers):
                    rounds.append(each)
                    console.print(
                        f"round {each.number + 1} c={each.concurrency:<3}"
                        f" {each.server:<13} {each.sample.requests_per_s:>9,.0f} req/s",
                        highlight=False,
                    )
            problems = [
                f"{name}: {problem}"
                for name, server in servers.items()
                for problem in server.stop(baton.EXIT_S)
            ]
        return rounds, problems

    def _rounds(self, case: Case, servers: dict[str, Server]) -> Iterator[report.Round]:
        loads = {
            name: self._load(case, name, server) for name, server in servers.items()
        }
        names = list(servers)
        for number in range(self.runs):
            turn = number % len(names)
            for concurrency in case.concurrencies:
                connections, calls = SHAPES[concurrency]
                for name in names[turn:] + names[:turn]:
                    load = replace(loads[name], connections=connections, calls=calls)
                    sample, cpu_us = self._measure(servers[name], load)
                    yield report.Round(
                        case.name, name, concurrency, number, sample, cpu_us
                    )

    def _load(self, case: Case, name: str, server: Server) -> Load:
        """Verify a server and return its load, with one call open at a time."""
        model = models.model_file(self.folder / "models", case.model)
        message, reply_bytes = asyncio.run(verify(server.port, case, model))
        file = self.folder / f"{name}-{case.model}-{case.messages}"
        file.write_bytes(message)
        return Load(
            port=server.port,
            path=case.path,
            message=str(file),
            messages=case.messages,
            reply_bytes=reply_bytes,
            connections=1,
            calls=1,
            seconds=self.seconds,
        )

    def _measure(self, server: Server, load: Load) -> tuple[Sample, float]:
        """Return what the generator saw, and the server's CPU us per request."""
        self.generate(replace(load, seconds=WARM_S), self.load_core)
        family = server.family()
        before = cpu_seconds(family)
        sample = self.generate(load, self.load_core)
        used = cpu_seconds(family) - before
        return sample, used / sample.requests * 1e6


def run(
    *,
    seconds: float,
    runs: int,
    full: bool,
    names: Sequence[str],
    builtin_client: bool,
    as_json: bool,
) -> int:
    """Run the benchmark.

    Args:
        seconds: Length of one measurement.
        runs: Rounds over all servers.
        full: Also measure M5 and streams.
        names: Servers to measure.
        builtin_client: Use the built-in client although h2load is installed.
        as_json: Print everything as one JSON object in the last line.

    Returns:
        0 if all servers answered right and went as they should; else 1.
    """
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    version = None if builtin_client else h2load_version()
    generator = version or "built-in grpc.aio client"
    server_core, load_core = choose_cores(sorted(os.sched_getaffinity(0)))
    pinned = server_core is not None
    where = f"servers on core {server_core}, load on core {load_core}"
    if not pinned:
        where = "one core for servers and load: THESE RATES ARE NOT PER CORE"
    console.print(f"Load: {generator}; {where}")
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        bench = Bench(
            folder=Path(folder),
            runs=runs,
            seconds=seconds,
            generate=h2load if version else builtin,
            server_core=server_core,
            load_core=load_core,
        )
        try:
            rounds, problems = bench.run(FULL if full else REQUIRED, names, console)
        except (ServerFailed, WrongAnswer, LoadFailed) as error:
            rounds, problems = [], [str(error)]
    lines = report.lines(rounds)
    problems += report.bad_calls(rounds)
    warnings = report.client_bound(lines)
    if lines:
        console.print(report.table(lines, OURS, where))
    for text in warnings:
        console.print(f"WARNING {text}", markup=False, highlight=False)
    for text in problems:
        console.print(f"PROBLEM {text}", markup=False, highlight=False)
    if as_json:
        found = {
            "ok": not problems,
            "load": generator,
            "pinned": pinned,
            "seconds": seconds,
            "runs": runs,
            "machine": report.machine(),
            "warnings": warnings,
            "problems": problems,
            **report.as_json(rounds, lines, OURS),
        }
        print(json.dumps(found), flush=True)
    return 1 if problems else 0

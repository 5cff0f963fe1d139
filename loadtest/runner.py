"""Runs a scenario: server, phases, looks at the server, results in a folder."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.protocol import inference_pb2 as pb
from loadtest import baton, models, results
from loadtest.load import Load, LoadFailed, Sample, builtin
from loadtest.machine import choose_cores
from loadtest.monitor import Usage, growth_mb_per_hour, look
from loadtest.processes import Server, ServerFailed
from loadtest.scenario import Phase, Scenario, Step, Traffic
from loadtest.sessions import open_session
from loadtest.wire import ABSOLUTE, RELATIVE, SERVICE, infer_request, tensors

READY_S = 60.0
LOOK_S = 1.0
ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the load goes.

    Attributes:
        host: Of the server.
        port: Of the server.
        server: Its processes, if it was started here.
        core: The client's only core; ``None`` for any.
        folder: For messages; holds the models of a started server.
    """

    host: str
    port: int
    server: Server | None
    core: int | None
    folder: Path


@contextmanager
def served(scenario: Scenario) -> Iterator[Place]:
    """Start the server of a scenario, if it is not running anyway.

    Raises:
        ServerFailed: If it does not start.
    """
    target = scenario.target
    with TemporaryDirectory(prefix="baton-load-") as name:
        folder = Path(name)
        if target.address != "baton":
            host, _, port = target.address.rpartition(":")
            yield Place(host, int(port), None, None, folder)
            return
        models.write_models(folder / "models", scenario.models)
        cores = choose_cores(sorted(os.sched_getaffinity(0)))
        server_core, core = cores if target.pinned else (None, None)
        with baton.serving(
            folder,
            fronts=target.fronts,
            settings={"workers": {"count": target.workers}, "grpc": target.grpc},
            core=server_core,
        ) as server:
            server.wait_ready(READY_S)
            yield Place("127.0.0.1", server.port, server, core, folder)


class Runner:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario, place: Place, out: Path) -> None:
        self._scenario = scenario
        self._place = place
        self._out = out
        self._rates: dict[str, float] = {}

    def run(self, seconds: float | None, progress: Progress) -> list[results.Result]:
        """Run all phases.

        Args:
            seconds: Length of the whole run in place of the scenario's; all phases
                shrink or grow alike.
            progress: Shows how far it is.

        Raises:
            LoadFailed: If a load cannot be sent.
        """
        total = sum(phase.seconds for phase in self._scenario.phases)
        factor = (seconds or total) / total
        found = []
        with (self._out / results.RAW).open("w", encoding="utf-8") as raw:
            for phase in self._scenario.phases:
                result = self._phase(phase, factor, progress)
                self._rates[phase.name] = result.sample.requests_per_s
                if not phase.warm:
                    found.append(result)
                    raw.writelines(f"{line}\n" for line in results.raw_lines(result))
        return found

    def _phase(self, phase: Phase, factor: float, progress: Progress) -> results.Result:
        load = replace(self.load(phase, phase, factor), idle=phase.idle)
        loads = [load]
        if phase.background is not None:
            loads.append(self.load(phase, phase.background, factor))
        bar = progress.add_task(phase.name, total=load.seconds, rate="")

        def show(at_s: float, rate: str) -> None:
            progress.update(bar, completed=min(at_s, load.seconds), rate=rate)

        with ThreadPoolExecutor(len(loads)) as pool:
            futures = [pool.submit(builtin, each, self._place.core) for each in loads]
            usages = self._watch(futures, Path(load.lines), show)
        sample = futures[0].result()
        background = futures[1].result() if len(futures) > 1 else None
        show(load.seconds, "")
        return results.Result(
            phase=phase.name,
            loop=phase.loop,
            rows=phase.rows,
            seconds=load.seconds,
            deadline_ms=phase.deadline_ms,
            sample=sample,
            background=background,
            usages=usages,
            growth_mb_per_hour=growth_mb_per_hour(usages),
            lines=results.read_lines(Path(load.lines)),
        )

    def _watch(
        self,
        futures: list[Future[Sample]],
        lines: Path,
        show: Callable[[float, str], None],
    ) -> list[Usage]:
        """Look at the server once per second until the load has ended.

        Its processes are looked for again only when one is gone: that reads the
        whole process table, which would disturb the load.
        """
        family = self._family()
        started = time.monotonic()
        usages: list[Usage] = []
        waiting: set[Future[Sample]] = set(futures)
        while waiting:
            at_s = time.monotonic() - started
            if not all(process.is_running() for process in family):
                family = self._family()
            usages.append(look(family, at_s))
            show(at_s, results.last_rate(lines))
            waiting = wait(waiting, LOOK_S, FIRST_EXCEPTION).not_done
        return usages

    def _family(self) -> list[psutil.Process]:
        return self._place.server.family() if self._place.server else []

    def load(self, phase: Phase, traffic: Traffic, factor: float) -> Load:
        """Return the load of a phase, with the length of a right answer in it."""
        stem = self._place.folder / f"{phase.name}-{'a' if traffic is phase else 'b'}"
        message, reply = asyncio.run(self._ask(traffic))
        stem.with_suffix(".message").write_bytes(message)
        stem.with_suffix(".reply").write_bytes(reply)
        base = self._rates[traffic.share_of] if traffic.share_of else 1.0
        seconds = phase.seconds * factor
        steps = traffic.steps
        if traffic.rate is not None:
            steps = [Step(seconds=phase.seconds, rate=traffic.rate)]
        return Load(
            host=self._place.host,
            port=self._place.port,
            path=_path(traffic),
            message=str(stem.with_suffix(".message")),
            messages=1,
            reply_bytes=len(reply),
            connections=traffic.connections,
            calls=traffic.calls,
            seconds=seconds,
            outstanding=traffic.outstanding if traffic.loop == "streams" else 0,
            schedule=tuple(
                (
                    step.seconds * factor,
                    step.rate * base,
                    (step.rate if step.to is None else step.to) * base,
                )
                for step in steps
            ),
            poisson=traffic.arrivals == "poisson",
            max_inflight=traffic.max_inflight,
            deadline_ms=traffic.deadline_ms,
            vary_timeout=traffic.vary_timeout,
            check_every=traffic.check_every,
            expected_reply=str(stem.with_suffix(".reply")),
            cancel_share=traffic.cancel_share,
            drop_share=traffic.drop_share,
            cancel_within_ms=traffic.cancel_within_ms,
            seed=traffic.seed,
            lines=str(stem.with_suffix(".jsonl")),
        )

    async def _ask(self, traffic: Traffic) -> tuple[bytes, bytes]:
        """Ask once, compare with ONNX Runtime where the model is at hand.

        Raises:
            LoadFailed: If the server does not answer, or wrong.
        """
        shape = (traffic.rows, *models.row_shape(traffic.model))
        rows = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        request = infer_request(traffic.model, models.INPUT, rows, request_id="request")
        message = request.SerializeToString()
        address = f"{self._place.host}:{self._place.port}"
        try:
            async with grpc.aio.insecure_channel(address) as connection:
                if traffic.loop == "streams":
                    stream = connection.stream_stream(_path(traffic))
                    call = stream(iter((message,)), timeout=ANSWER_S)
                    reply = b"".join([each async for each in call])
                    streamed = pb.ModelStreamInferResponse.FromString(reply)
                    answer = streamed.infer_response
                else:
                    unary = connection.unary_unary(_path(traffic))
                    reply = await unary(message, timeout=ANSWER_S)
                    answer = pb.ModelInferResponse.FromString(reply)
        except grpc.aio.AioRpcError as error:
            raise LoadFailed(
                f"{address} does not answer for model {traffic.model}:"
                f" {error.code().name}: {error.details()}"
            ) from error
        if self._place.server is not None:
            path = models.model_file(self._place.folder / "models", traffic.model)
            right = open_session(path).run([models.OUTPUT], {models.INPUT: rows})[0]
            found = tensors(answer).get(models.OUTPUT)
            if found is None or not np.allclose(found, right, RELATIVE, ABSOLUTE):
                raise LoadFailed(f"{traffic.model} answers {found}, not {right}")
        return message, reply


def _path(traffic: Traffic) -> str:
    method = "ModelStreamInfer" if traffic.loop == "streams" else "ModelInfer"
    return f"{SERVICE}/{method}"


def run(
    file: Path,
    scenario: Scenario,
    *,
    out: Path | None,
    seconds: float | None,
    as_json: bool,
) -> tuple[int, Path]:
    """Run a scenario, print a table, write results into a folder.

    Returns:
        0 if the load could be sent and the server went as it should, else 1; and
        the folder.
    """
    console = Console(width=None if sys.stdout.isatty() else results.PLAIN_WIDTH)
    now = datetime.now(UTC)
    folder = out or Path("load-results") / f"{file.stem}-{now:%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    found: list[results.Result] = []
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    try:
        with served(scenario) as place:
            with Progress(*columns, console=console) as progress:
                found = Runner(scenario, place, folder).run(seconds, progress)
            if place.server is not None:
                problems += place.server.stop(baton.EXIT_S)
    except (LoadFailed, ServerFailed) as error:
        problems.append(str(error))
    summary = results.summary(file.stem, scenario, found, problems, now)
    (folder / results.SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    if found:
        console.print(results.table(scenario.title, found))
    for text in problems:
        console.print(f"PROBLEM {text}", markup=False, highlight=False)
    console.print(f"Results: {folder}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(summary), flush=True)
    return (1 if problems else 0), folder

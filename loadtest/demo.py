"""The demo: train, serve with a real Baton, stream held-out records, check it all."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import uvloop
from rich.console import Console

from loadtest import baton
from loadtest.measure import Histogram
from loadtest.models import write_model
from loadtest.processes import Server, ServerFailed
from loadtest.traffic import Reference, Tally, mean_batches, reference, send_load
from loadtest.training import TrainedModel, train_breast_cancer, train_digits
from loadtest.view import View, Work
from loadtest.wire import channel

READY_S = 60.0
MIN_REQUESTS = 50
"""Answers per model below which a run proves nothing."""
MANY_CORES = 4

Json = dict[str, object]


@dataclass(slots=True)
class Outcome:
    """What a run of the demo came to.

    Attributes:
        elapsed_s: Time under load.
        client_share: CPU time of this process per second of it. Near 1 the Python
            client is what limits the rate, and most of a latency is its own.
        batches: Mean rows per run of each model.
        problems: Why the demo failed; empty if it did not.
    """

    elapsed_s: float = 0.0
    client_share: float = 0.0
    batches: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


async def drive(port: int, work: Work, *, seconds: float, console: Console) -> Outcome:
    """Send load and show it; return how long it took and what the server counted."""
    outcome = Outcome()
    started, cpu = time.monotonic(), time.process_time()
    load = asyncio.create_task(send_load(port, work, until=started + seconds))
    try:
        async with channel(port) as connection:
            await View(console, work).show(connection, load)
            await load
            outcome.elapsed_s = time.monotonic() - started
            outcome.client_share = (time.process_time() - cpu) / outcome.elapsed_s
            outcome.batches = await mean_batches(connection)
    except grpc.aio.AioRpcError as error:
        outcome.problems.append(f"ModelStatistics: {error.code().name}")
    finally:
        load.cancel()
        await asyncio.wait((load,))
    return outcome


def tally_problems(source: Reference, tally: Tally) -> list[str]:
    """Return what is wrong with the answers about one model."""
    name, problems = source.model.name, []
    if tally.disagreements:
        problems.append(f"{name}: {tally.disagreements} answers disagreed")
    if tally.failures:
        problems.append(f"{name}: {tally.failures} calls failed")
    if tally.requests < MIN_REQUESTS:
        problems.append(
            f"{name}: {tally.requests} answers are fewer than {MIN_REQUESTS}"
        )
    return problems + tally.examples


def summary(work: Work, outcome: Outcome) -> Json:
    """Return the whole run as one JSON object."""
    elapsed = outcome.elapsed_s or 1.0
    latency = Histogram()
    models: dict[str, Json] = {}
    for source, tally in work:
        latency.merge(tally.latency)
        models[source.model.name] = {
            "requests": tally.requests,
            "rows": tally.rows,
            "requests_per_s": round(tally.requests / elapsed, 1),
            "p50_ms": round(tally.latency.percentile_ms(50), 3),
            "p99_ms": round(tally.latency.percentile_ms(99), 3),
            "mean_batch_rows": round(outcome.batches.get(source.model.name, 0), 2),
            "accuracy": round(tally.accuracy, 5),
            "offline_accuracy": round(source.accuracy, 5),
            "agreed": tally.agreed,
            "disagreements": tally.disagreements,
            "failures": tally.failures,
        }
    requests = sum(tally.requests for _, tally in work)
    return {
        "ok": not outcome.problems,
        "seconds": round(outcome.elapsed_s, 2),
        "client_cpu_share": round(outcome.client_share, 2),
        "requests": requests,
        "requests_per_s": round(requests / elapsed, 1),
        "p50_ms": round(latency.percentile_ms(50), 3),
        "p99_ms": round(latency.percentile_ms(99), 3),
        "agreed": sum(tally.agreed for _, tally in work),
        "models": models,
        "problems": outcome.problems,
    }


def _serve_and_drive(
    server: Server, work: Work, *, seconds: float, console: Console
) -> Outcome:
    server.wait_ready(READY_S)
    console.print(f"Baton is ready on port {server.port}; {seconds:g} s of load")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(drive(server.port, work, seconds=seconds, console=console))
    for source, tally in work:
        outcome.problems += tally_problems(source, tally)
    outcome.problems += server.stop(baton.EXIT_S)
    if outcome.problems:
        console.print("The server's last words:")
        console.print(server.log_tail(), markup=False, soft_wrap=True)
    return outcome


def _train(folder: Path, console: Console) -> list[tuple[Reference, Tally]]:
    started = time.monotonic()
    models: Sequence[TrainedModel] = (train_digits(), train_breast_cancer())
    work = []
    for model in models:
        path = write_model(folder / "models", model.name, model.payload)
        work.append((reference(model, path), Tally()))
    accuracies = ", ".join(
        f"{source.model.name} {source.accuracy:.2%} of {len(source.labels)}"
        for source, _ in work
    )
    took = time.monotonic() - started
    console.print(
        f"Trained in {took:.1f} s; right on held-out records: {accuracies}",
        soft_wrap=True,
    )
    return work


def _print_summary(console: Console, work: Work, outcome: Outcome) -> None:
    found = summary(work, outcome)
    console.print(
        f"{found['requests']:,} requests in {found['seconds']} s:"
        f" {found['requests_per_s']:,} req/s,"
        f" p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms"
        f" (this client used {outcome.client_share:.0%} of a core)",
        soft_wrap=True,
    )
    for source, tally in work:
        console.print(
            f"{source.model.name}: accuracy {tally.accuracy:.2%}"
            f" (offline {source.accuracy:.2%}),"
            f" mean batch {outcome.batches.get(source.model.name, 0):.1f} rows,"
            f" {tally.agreed:,} of {tally.requests:,} answers agree"
            " with ONNX Runtime",
            soft_wrap=True,
        )


def run(*, seconds: float, as_json: bool) -> int:
    """Run the demo.

    Args:
        seconds: Time under load.
        as_json: Print the summary as one JSON object in the last line.

    Returns:
        0 if every answer agreed, no call failed, each model answered enough and
        the server went as it should; else 1.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="baton-demo-") as name:
        folder = Path(name)
        work = _train(folder, console)
        fronts = 2 if len(os.sched_getaffinity(0)) >= MANY_CORES else 1
        try:
            with baton.serving(folder, fronts=fronts) as server:
                outcome = _serve_and_drive(
                    server, work, seconds=seconds, console=console
                )
        except ServerFailed as error:
            outcome = Outcome(problems=[str(error)])
    if outcome.elapsed_s:
        _print_summary(console, work, outcome)
    for problem in outcome.problems:
        console.print(f"PROBLEM {problem}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(summary(work, outcome)), flush=True)
    return 1 if outcome.problems else 0

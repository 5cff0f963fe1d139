"""The demo: train, serve with a real Baton, let it find the better model, check all."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop
from rich.console import Console

from gateway.admin_client import AdminClient
from gateway.client_rpc import ClientError
from loadtest import baton
from loadtest.experiment import (
    ADMIN_S,
    CHALLENGER,
    CHAMPION,
    SHADOW,
    Experiment,
    Findings,
)
from loadtest.machine import machine
from loadtest.measure import Histogram
from loadtest.models import write_model
from loadtest.processes import Server, ServerFailed
from loadtest.story import tell
from loadtest.traffic import Tally, Versions, mean_batches, reference, send_load
from loadtest.training import (
    train_breast_cancer,
    train_digits,
    train_digits_linear,
    train_digits_tree,
)
from loadtest.view import View, Work
from loadtest.wire import channel

READY_S = 60.0
MIN_REQUESTS = 50
"""Answers per model below which a run proves nothing."""
MANY_CORES = 4
LATE_S = 20.0
"""How long after the load the experiment may still take."""

Json = dict[str, Any]
Files = dict[int, Path]


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


async def drive(
    port: int,
    work: Work,
    experiment: Experiment,
    *,
    seconds: float,
    commit: str,
    console: Console,
) -> Outcome:
    """Send load, change who answers, and show both.

    Returns:
        How long it took, what the server counted, and what went wrong.
    """
    outcome = Outcome()
    started, cpu = time.monotonic(), time.process_time()
    load = asyncio.create_task(send_load(port, work, until=started + seconds))
    changes = asyncio.create_task(experiment.conduct(seconds, commit))
    try:
        async with channel(port) as connection:
            await View(console, work, experiment).show(connection, load)
            await load
            outcome.elapsed_s = time.monotonic() - started
            outcome.client_share = (time.process_time() - cpu) / outcome.elapsed_s
            await asyncio.wait_for(changes, LATE_S)
            outcome.batches = await mean_batches(connection)
    except grpc.aio.AioRpcError as error:
        outcome.problems.append(f"ModelStatistics: {error.code().name}")
    except ClientError as error:
        outcome.problems.append(f"admin plane: {error}")
    except TimeoutError:
        outcome.problems.append(f"the experiment was not done {LATE_S:g} s after")
    finally:
        load.cancel()
        changes.cancel()
        await asyncio.wait((load, changes))
    return outcome


def tally_problems(source: Versions, tally: Tally) -> list[str]:
    """Return what is wrong with the answers about one model."""
    name, problems = source.model.name, []
    for version, one in source.by_number.items():
        if not one.as_trained:
            problems.append(f"{name} {version}: differs from scikit-learn's model")
    if tally.disagreements:
        problems.append(f"{name}: {tally.disagreements} answers disagreed")
    if tally.failures:
        problems.append(f"{name}: {tally.failures} calls failed")
    if tally.requests < MIN_REQUESTS:
        problems.append(
            f"{name}: {tally.requests} answers are fewer than {MIN_REQUESTS}"
        )
    return problems + tally.examples


def experiment_problems(found: Findings) -> list[str]:
    """Return what is wrong with how the traffic went."""
    problems = []
    if not found.audit.get("ok"):
        problems.append(f"audit log: {found.audit.get('fault') or 'not verified'}")
    if not found.shadow.get("rows"):
        problems.append("no answer of the shadow was compared")
    if found.shadow.get("failed"):
        problems.append(f"the shadow failed {found.shadow['failed']} times")
    if not found.rewards:
        problems.append("no reward reached the bandit")
    for step, answers in found.answers.items():
        if answers.get(SHADOW):
            problems.append(f"{step}: the shadow answered clients")
    return problems


def summary(work: Work, outcome: Outcome, found: Findings) -> Json:
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
            "offline_accuracy": {
                version: round(one.accuracy, 5)
                for version, one in source.by_number.items()
            },
            "answers": dict(sorted(tally.versions.items())),
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
        "traffic": found.as_json(),
        "problems": outcome.problems,
    }


def _serve_and_drive(
    server: Server,
    work: Work,
    experiment: Experiment,
    *,
    seconds: float,
    console: Console,
) -> Outcome:
    server.wait_ready(READY_S)
    try:
        commit = str(machine()["commit"])
        experiment.import_version(CHAMPION, commit)
        console.print(f"Baton is ready on port {server.port}; {seconds:g} s of load")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome = runner.run(
                drive(
                    server.port,
                    work,
                    experiment,
                    seconds=seconds,
                    commit=commit,
                    console=console,
                )
            )
    except ClientError as error:
        outcome = Outcome(problems=[f"import: {error}"])
    for source, tally in work:
        outcome.problems += tally_problems(source, tally)
    outcome.problems += experiment_problems(experiment.findings)
    outcome.problems += server.stop(baton.EXIT_S)
    if outcome.problems:
        console.print("The server's last words:")
        console.print(server.log_tail(), markup=False, soft_wrap=True)
    return outcome


def _train(
    folder: Path, console: Console
) -> tuple[Files, list[tuple[Versions, Tally]]]:
    """Train everything; return the digits' files by version, and what to check."""
    started = time.monotonic()
    digits = {
        CHAMPION: train_digits_tree(),
        SHADOW: train_digits_linear(),
        CHALLENGER: train_digits(),
    }
    files = {
        version: write_model(folder / "trained", f"digits-{version}", model.payload)
        for version, model in digits.items()
    }
    cancer = train_breast_cancer()
    served = write_model(folder / "models", cancer.name, cancer.payload)
    work = [
        (Versions({v: reference(m, files[v]) for v, m in digits.items()}), Tally()),
        (Versions({1: reference(cancer, served)}), Tally()),
    ]
    accuracies = ", ".join(
        f"{source.model.name} {one.model.kind} {one.accuracy:.2%}"
        for source, _ in work
        for one in source.by_number.values()
    )
    took = time.monotonic() - started
    console.print(
        f"Trained in {took:.1f} s; right on held-out records: {accuracies}",
        soft_wrap=True,
    )
    return files, work


def run(*, seconds: float, as_json: bool) -> int:
    """Run the demo.

    Args:
        seconds: Time under load.
        as_json: Print the summary as one JSON object in the last line.

    Returns:
        0 if every answer agreed, no call failed, each model answered enough, the
        traffic went as decided and the server as it should; else 1.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="baton-demo-") as name:
        folder = Path(name)
        files, work = _train(folder, console)
        digits, tally = work[0]
        fronts = 2 if len(os.sched_getaffinity(0)) >= MANY_CORES else 1
        state = folder / "state"
        with AdminClient(f"unix:{state / 'admin.sock'}", timeout_s=ADMIN_S) as admin:
            experiment = Experiment(
                admin, state, digits.by_number, files, tally=tally, console=console
            )
            try:
                with baton.serving(folder, fronts=fronts) as server:
                    outcome = _serve_and_drive(
                        server, work, experiment, seconds=seconds, console=console
                    )
            except ServerFailed as error:
                outcome = Outcome(problems=[str(error)])
    found = experiment.findings
    figures = summary(work, outcome, found)
    if outcome.elapsed_s:
        tell(console, figures, digits)
    for problem in outcome.problems:
        console.print(f"PROBLEM {problem}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(figures), flush=True)
    return 1 if outcome.problems else 0

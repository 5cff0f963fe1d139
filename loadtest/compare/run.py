"""Starts the servers of each case, measures them in turns and reports.

All processes of a server keep to one core and the load to another, so that rates
are per core. The servers of a case run all the time and take turns, in another order
every round, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from loadtest import models
from loadtest.compare.cases import ORT, Case
from loadtest.compare.contestants import BATONS, Contestant, Place, contestant
from loadtest.compare.probes import PROBES, Tools
from loadtest.compare.report import Results, Skip
from loadtest.compare.targets import METRICS, Values
from loadtest.compare.verify import WrongAnswer
from loadtest.load import Load, LoadFailed, h2load_version
from loadtest.machine import choose_cores, machine
from loadtest.peers.install import NotInstalled
from loadtest.processes import ServerFailed

PLAIN_WIDTH = 120
REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run.

    Attributes:
        tools: What measures.
        rounds: Over all servers of a case.
        console: Takes progress.
        results: Takes measurements.
    """

    tools: Tools
    rounds: int
    console: Console
    results: Results

    def run(self, cases: Sequence[Case]) -> None:
        """Measure cases; those of one setup share their servers."""
        for setup, group in itertools.groupby(cases, key=lambda case: case.setup):
            same = list(group)
            if len(self.tools.all_cores) < setup.needs_cores:
                for case in same:
                    self._skip(case.name, "all", f"needs {setup.needs_cores} cores")
                continue
            self._write(setup.models)
            with ExitStack() as stack:
                names = dict.fromkeys(name for case in same for name in case.servers)
                running = self._start(stack, same[0], names)
                for case in same:
                    self._measure(case, running)
                for each in running.values():
                    each.stands_still(False)
                    self.results.problems += each.goes_well()

    def _write(self, names: Sequence[str]) -> None:
        folder = self.tools.place.folder / "models"
        missing = [n for n in names if not models.model_file(folder, n).exists()]
        models.write_models(folder, tuple(missing))

    def _start(
        self, stack: ExitStack, case: Case, names: Iterable[str]
    ) -> dict[str, Contestant]:
        running = {}
        for name in names:
            if name == ORT:
                continue
            try:
                running[name] = stack.enter_context(
                    contestant(name, case.setup, self.tools.place)
                )
            except ServerFailed as error:
                self._skip(case.name, name, str(error))
        return running

    def _skip(self, case: str, server: str, reason: str) -> None:
        """Say that a case, or some rounds of it, went without a server."""
        line = " ".join(reason.split())[-REASON_CHARACTERS:]
        self.results.skips.append(Skip(case, server, line))
        if server in BATONS:
            self.results.problems.append(f"{case} {server}: {line}")
        self.console.print(f"SKIPPED {case} {server}: {line}", markup=False)

    def _measure(self, case: Case, running: dict[str, Contestant]) -> None:
        loads: dict[str, Load] = {}
        for name in case.servers:
            if name in running:
                running[name].stands_still(False)
                try:
                    loads[name] = self.tools.prepare(case, running[name])
                except WrongAnswer as error:
                    self._skip(case.name, name, str(error))
        for each in running.values():
            each.stands_still(True)
        names = [name for name in case.servers if name in loads or name == ORT]
        failures: dict[str, str] = {}
        # Memory that was taken once is taken again without growth: one round tells.
        rounds = 1 if case.kind == "idle" else self.rounds
        for number in range(rounds):
            turn = number % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                try:
                    values = self._values(case, running.get(name), loads.get(name))
                except (LoadFailed, NotInstalled) as error:
                    failures[name] = str(error)
                    continue
                self.results.add(case.name, name, values)
                self.console.print(
                    f"{case.name} round {number + 1} {name:<9} {_short(values)}",
                    highlight=False,
                )
        for name, reason in failures.items():
            self._skip(case.name, name, reason)

    def _values(
        self, case: Case, server: Contestant | None, load: Load | None
    ) -> Values:
        """Measure one server once; ``None`` is bare ONNX Runtime."""
        if server is None or load is None:
            return self.tools.ceiling(case)
        server.stands_still(False)
        try:
            return PROBES[case.kind](self.tools, case, server, load)
        finally:
            server.stands_still(True)


def _short(values: Values) -> str:
    return "  ".join(
        f"{value:,.0f} {METRICS[name].unit}"
        if value >= 1000
        else f"{value:.3g} {METRICS[name].unit}"
        for name, value in values.items()
        if name not in ("bad", "client_share")
    )


def run(
    cases: Sequence[Case],
    *,
    seconds: float,
    rounds: int,
    transport: str,
    floors: bool,
    as_json: bool,
) -> int:
    """Compare Baton with its peers.

    Args:
        cases: What is measured.
        seconds: Length of one measurement.
        rounds: Over all servers of a case.
        transport: Of Baton; empty for its default.
        floors: Fail where Baton falls below a floor.
        as_json: Print everything as one JSON object in the last line.

    Returns:
        0 if Baton answered right, went as it should and, if asked, kept the floors;
        else 1.
    """
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    available = sorted(os.sched_getaffinity(0))
    server_core, load_core = choose_cores(available)
    generator = h2load_version() or "own client"
    where = f"servers on core {server_core}, load on core {load_core}"
    if server_core is None:
        where = "one core for servers and load: THESE RATES ARE NOT PER CORE"
    console.print(f"Load: {generator}; {where}")
    results = Results()
    with tempfile.TemporaryDirectory(prefix="baton-compare-") as folder:
        place = Place(Path(folder), server_core, transport)
        tools = Tools(place, seconds, load_core, tuple(available))
        Comparison(tools, rounds, console, results).run(cases)
    for case in results.rounds:
        console.print(results.table(case))
    verdicts = results.verdicts(cases)
    results.problems += [
        each for each in results.bad() if each.split()[1].rstrip(":") in BATONS
    ]
    for text in results.lower_bounds() + results.bad():
        console.print(f"WARNING {text}", markup=False, highlight=False)
    for verdict in verdicts:
        console.print(verdict.words, markup=False, highlight=False)
    if floors:
        results.problems += [each.words for each in verdicts if each.broken]
    for text in results.problems:
        console.print(f"PROBLEM {text}", markup=False, highlight=False)
    ok = not results.problems
    if as_json:
        found = {
            "ok": ok,
            "load": generator,
            "pinned": server_core is not None,
            "seconds": seconds,
            "rounds_asked": rounds,
            "machine": machine(),
            "warnings": results.lower_bounds(),
            "problems": results.problems,
            **results.as_json(cases),
        }
        print(json.dumps(found), flush=True)
    return 0 if ok else 1

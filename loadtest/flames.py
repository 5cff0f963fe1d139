"""Where the time goes: py-spy on a front and a worker of a Baton under load."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from loadtest.load import LoadFailed, builtin
from loadtest.processes import Server, ServerFailed
from loadtest.results import PLAIN_WIDTH
from loadtest.runner import Runner, served
from loadtest.scenario import Phase, Scenario

ROLES = {"front": "gateway.front", "worker": "workers"}
"""Module that each kind of process was started with."""
RATE = 250
"""Looks per second."""
SPARE_S = 30.0
WARM_S = 1.0
TOP = 25
_PERMISSION = re.compile(r"permission denied|operation not permitted|ptrace", re.I)


class NotAllowed(Exception):
    """py-spy cannot look into the processes; the text says why and the way out."""


def spy() -> str:
    """Return where py-spy is.

    Raises:
        NotAllowed: If it is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise NotAllowed("py-spy is not installed: it is in the dependency group load")
    return found


def record(pid: int, file: Path, kind: str, seconds: float, *, native: bool) -> None:
    """Record the stacks of a process into a file.

    Args:
        pid: The process.
        file: Takes the result.
        kind: ``flamegraph`` (SVG) or ``raw`` (a line per stack).
        seconds: How long.
        native: Frames of extension modules too; slower.

    Raises:
        NotAllowed: If the system does not let us; the text has the way out.
    """
    command = [spy(), "record", "--pid", str(pid), "--output", str(file)]
    command += ["--format", kind, "--duration", str(max(1, round(seconds)))]
    command += ["--rate", str(RATE), *(["--native"] if native else [])]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds + SPARE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotAllowed(f"py-spy did not end within {error.timeout:g} s") from error
    if done.returncode == 0 and file.exists():
        return
    if _PERMISSION.search(done.stderr):
        raise NotAllowed(
            "this system does not let py-spy read other processes (ptrace). Ways out:"
            " run as root, set kernel.yama.ptrace_scope to 0, or give the container"
            " the capability SYS_PTRACE"
        )
    raise NotAllowed(f"py-spy failed: {done.stderr[-500:]}")


def top(stacks: str, count: int = TOP) -> list[tuple[str, float, float]]:
    """Return the functions that took the most time.

    Args:
        stacks: Lines of frames, outermost first, with ``;`` between, and a count.
        count: How many functions.

    Returns:
        Function, share of samples in it, share in it or what it called; sorted by
        the first share.
    """
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in stacks.splitlines():
        text, _, number = line.rpartition(" ")
        if not number.isdigit():
            continue
        frames = [re.sub(r":\d+\)$", ")", each) for each in text.split(";")]
        own[frames[-1]] += int(number)
        for each in set(frames):
            total[each] += int(number)
    samples = sum(own.values())
    return [
        (name, hits / samples, total[name] / samples)
        for name, hits in own.most_common(count)
    ]


def table(title: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """Return the functions as text."""
    lines = [title, "   own   total  function"]
    lines += [f"{own:6.1%}  {total:6.1%}  {name}" for name, own, total in rows]
    return "\n".join(lines)


def _pid(server: Server, role: str) -> int:
    for process in server.family():
        if ROLES[role] in process.cmdline():
            return process.pid
    raise ServerFailed(f"the server has no {role} process:\n{server.log_tail()}")


def run(phase: Phase, *, seconds: float, native: bool, out: Path) -> int:
    """Profile Baton under a load; write flame graphs and tables.

    Args:
        phase: The load.
        seconds: Length of each of the four recordings.
        native: Frames of extension modules too.
        out: Folder for the results.

    Returns:
        0, or 1 if something went wrong, which is printed.
    """
    console = Console(width=PLAIN_WIDTH)
    out.mkdir(parents=True, exist_ok=True)
    scenario = Scenario(title="profile", phases=[phase])
    length = 4 * (seconds + 2) + WARM_S
    try:
        spy()
        with served(scenario) as place, ThreadPoolExecutor(1) as pool:
            assert place.server is not None
            load = replace(Runner(scenario, place, out).load(phase, phase, 1), idle=0)
            load = replace(load, seconds=length, schedule=())
            future = pool.submit(builtin, load, place.core)
            try:
                for role in ROLES:
                    pid = _pid(place.server, role)
                    _profile(role, pid, seconds, native=native, out=out)
            finally:
                if not future.done():
                    console.print("waiting for the load to end")
            sample = future.result()
    except (NotAllowed, LoadFailed, ServerFailed) as error:
        console.print(f"PROBLEM {error}", markup=False, highlight=False)
        return 1
    for role in ROLES:
        console.print((out / f"{role}.txt").read_text(), markup=False, highlight=False)
    console.print(f"{sample.requests_per_s:,.0f} answers/s meanwhile; results: {out}")
    return 0


def _profile(role: str, pid: int, seconds: float, *, native: bool, out: Path) -> None:
    record(pid, out / f"{role}.svg", "flamegraph", seconds, native=native)
    raw = out / f"{role}.stacks"
    record(pid, raw, "raw", seconds, native=native)
    rows = top(raw.read_text())
    (out / f"{role}.txt").write_text(table(f"{role} (pid {pid})", rows) + "\n")

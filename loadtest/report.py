"""What the benchmark prints: medians with spread, ratios, and the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from loadtest.load import Sample
from loadtest.measure import Spread, ratio, spread
from loadtest.processes import ROOT

PACKAGES = ("grpcio", "numpy", "onnxruntime-gpu", "onnxruntime", "protobuf", "uvloop")
CLIENT_LIMIT = 0.85
"""Share of its core above which the generator may be what limits a rate."""

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement of one server.

    Attributes:
        case: Name of the case.
        server: Name of the server.
        concurrency: Calls open at a time.
        number: Of the round, from 0.
        sample: What the generator saw.
        cpu_us: CPU time of all server processes per request, in microseconds.
    """

    case: str
    server: str
    concurrency: int
    number: int
    sample: Sample
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Line:
    """All rounds of one server at one concurrency."""

    case: str
    server: str
    concurrency: int
    requests_per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    cpu_us: Spread
    client_share: Spread


def lines(rounds: Sequence[Round]) -> list[Line]:
    """Return one line per case, concurrency and server, in order of appearance."""
    groups: dict[tuple[str, int, str], list[Round]] = {}
    for each in rounds:
        key = (each.case, each.concurrency, each.server)
        groups.setdefault(key, []).append(each)
    return [
        Line(
            case,
            server,
            concurrency,
            spread([each.sample.requests_per_s for each in group]),
            spread([each.sample.p50_ms for each in group]),
            spread([each.sample.p99_ms for each in group]),
            spread([each.cpu_us for each in group]),
            spread([each.sample.client_share for each in group]),
        )
        for (case, concurrency, server), group in groups.items()
    ]


def ratios(found: Sequence[Line], ours: str) -> list[Json]:
    """Return rate and CPU of one server against every other, case by case.

    ``rate`` above 1 means that `ours` answers more; ``cpu`` above 1 that it needs
    less CPU time per request.
    """
    mine = {
        (line.case, line.concurrency): line for line in found if line.server == ours
    }
    result: list[Json] = []
    for line in found:
        own = mine.get((line.case, line.concurrency))
        if own is None or line.server == ours:
            continue
        rate = ratio(own.requests_per_s.median, line.requests_per_s.median)
        result.append(
            {
                "case": line.case,
                "concurrency": line.concurrency,
                "against": line.server,
                "rate": round(rate, 2),
                "cpu": round(ratio(line.cpu_us.median, own.cpu_us.median), 2),
            }
        )
    return result


def client_bound(found: Sequence[Line]) -> list[str]:
    """Return a warning for every rate that the generator may have limited."""
    return [
        f"{line.case} c={line.concurrency} {line.server}: the load client used"
        f" {line.client_share.median:.0%} of its core; the rate is a lower bound"
        for line in found
        if line.client_share.median > CLIENT_LIMIT
    ]


def bad_calls(rounds: Sequence[Round]) -> list[str]:
    """Return the rounds in which a call failed or brought too little."""
    return [
        f"{each.case} c={each.concurrency} {each.server}: {each.sample.bad} bad calls"
        for each in rounds
        if each.sample.bad
    ]


def table(found: Sequence[Line], ours: str, title: str) -> Table:
    """Return the lines as a table; the last column says what `ours` reaches."""
    against = {
        (each["case"], each["concurrency"], each["against"]): each["rate"]
        for each in ratios(found, ours)
    }
    result = Table(title=title)
    for name in ("case", "calls", "server"):
        result.add_column(name, no_wrap=True)
    for name in ("req/s", "low - high", "p50 ms", "p99 ms", "CPU us", f"{ours} is"):
        result.add_column(name, justify="right", no_wrap=True)
    for line in found:
        times = against.get((line.case, line.concurrency, line.server))
        rate = line.requests_per_s
        result.add_row(
            line.case,
            str(line.concurrency),
            line.server,
            f"{rate.median:,.0f}",
            f"{rate.low:,.0f} - {rate.high:,.0f}",
            f"{line.p50_ms.median:.2f}",
            f"{line.p99_ms.median:.2f}",
            f"{line.cpu_us.median:.1f}",
            f"{times}x" if times is not None else "",
        )
    return result


def machine() -> Json:
    """Return what the numbers were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": _commit(),
        "command": " ".join(["python", "-m", "loadtest", *sys.argv[1:]]),
    }


def as_json(rounds: Sequence[Round], found: Sequence[Line], ours: str) -> Json:
    """Return lines, ratios and raw rounds as plain JSON values, three digits each."""
    text = json.dumps(
        {
            "lines": [asdict(line) for line in found],
            "ratios": ratios(found, ours),
            "rounds": [asdict(each) for each in rounds],
        }
    )
    values: Json = json.loads(text, parse_float=lambda number: round(float(number), 3))
    return values


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # either of the onnxruntime distributions
    return found


def _commit() -> str:
    """Return the commit, with ``+changes`` where the checkout differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()

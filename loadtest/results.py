"""Results of a scenario: records, files, the printed table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rich.table import Table

from loadtest.load import Sample
from loadtest.machine import machine
from loadtest.monitor import Usage
from loadtest.scenario import Scenario

RAW = "raw.jsonl"
SUMMARY = "summary.json"
PLAIN_WIDTH = 130
LONG_S = 30.0
"""From this length on a phase says how memory grew."""

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one phase.

    Attributes:
        phase: Its name.
        loop: closed, open or streams.
        rows: Rows of a message.
        seconds: Its length.
        deadline_ms: Time limit of its calls; 0 for none.
        sample: What the client saw.
        background: The same of the calls beside it.
        usages: Looks at the server, one per second.
        growth_mb_per_hour: Of the server's memory in the second half.
        lines: What the client wrote each second.
    """

    phase: str
    loop: str
    rows: int
    seconds: float
    deadline_ms: float
    sample: Sample
    background: Sample | None
    usages: list[Usage]
    growth_mb_per_hour: float
    lines: list[Json]

    @property
    def good_per_s(self) -> float:
        """Answers within the deadline per second."""
        return self.sample.good / self.seconds

    @property
    def offered_per_s(self) -> float:
        """Calls due per second; of a closed loop, calls made."""
        return self.sample.offered / self.seconds


def read_lines(path: Path) -> list[Json]:
    """Return what a client wrote, line by line; nothing if it wrote nothing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_rate(path: Path) -> str:
    """Return what to show of the last whole line a client has written."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16)))
        whole = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    try:
        line = json.loads(whole)
    except ValueError:  # the tail began within a line, or there is none yet
        return ""
    return f"{line['answers'] / line['seconds']:,.0f}/s"


def raw_lines(result: Result) -> Iterator[str]:
    """Return the raw data of a phase as JSON: of the client, then of the server."""
    for line in result.lines:
        yield json.dumps({"phase": result.phase, "of": "client", **line})
    for usage in result.usages:
        yield json.dumps({"phase": result.phase, "of": "server", **asdict(usage)})


def summary(
    name: str,
    scenario: Scenario,
    found: Sequence[Result],
    problems: Sequence[str],
    now: datetime,
) -> Json:
    """Return everything but the raw data as JSON."""
    phases = []
    for result in found:
        phase = asdict(result)
        del phase["usages"], phase["lines"]
        phase["good_per_s"] = round(result.good_per_s, 1)
        phase["offered_per_s"] = round(result.offered_per_s, 1)
        phases.append(phase)
    return {
        "ok": not problems,
        "scenario": name,
        "title": scenario.title,
        "target": scenario.target.model_dump(),
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "problems": list(problems),
        "phases": phases,
    }


def table(title: str, found: Sequence[Result]) -> Table:
    """Return the table that is printed at the end."""
    result = Table(title=title, title_justify="left")
    result.add_column("phase")
    columns = ("offered/s", "answers/s", "good/s", "p50 ms", "p99 ms", "p99.9 ms")
    for name in (*columns, "max ms", "bad", "client"):
        result.add_column(name, justify="right")
    result.add_column("ends without a right answer; notes")
    for each in found:
        result.add_row(each.phase, *_cells(each, each.sample), _notes(each))
        if each.background is not None:
            cells = _cells(each, each.background)
            result.add_row("  beside it", *cells, ends(each.background))
    return result


def _cells(result: Result, sample: Sample) -> tuple[str, ...]:
    return (
        f"{sample.offered / result.seconds:,.0f}" if sample.offered else "-",
        f"{sample.requests_per_s:,.0f}",
        f"{sample.good / result.seconds:,.0f}",
        f"{sample.p50_ms:.3f}",
        f"{sample.p99_ms:.3f}",
        f"{sample.p999_ms:.3f}",
        f"{sample.max_ms:.1f}",
        f"{sample.bad:,}",
        f"{sample.client_share:.0%}",
    )


def ends(sample: Sample) -> str:
    """Return how calls ended that brought no right answer."""
    items = sorted(sample.statuses.items(), key=lambda item: -item[1])
    return ", ".join(f"{status} {count:,}" for status, count in items)


def _notes(result: Result) -> str:
    sample = result.sample
    notes = [ends(sample)] if sample.statuses else []
    if result.rows > 1:
        notes.append(f"{sample.requests_per_s * result.rows:,.0f} rows/s")
    if result.loop == "open":
        notes.append(f"sent late by {sample.lag_p99_ms:.3f} ms (p99)")
    if sample.reconnects:
        notes.append(f"{sample.reconnects} reconnects")
    if sample.idle_lost:
        notes.append(f"{sample.idle_lost} idle connections lost")
    if result.usages and result.usages[-1].processes:
        notes.append(f"RSS {result.usages[-1].rss_bytes / 1e6:,.0f} MB")
        if result.seconds >= LONG_S:
            notes.append(f"{result.growth_mb_per_hour:+,.1f} MB/h")
    return "; ".join(notes)

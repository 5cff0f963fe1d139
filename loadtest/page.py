"""The results page of a run: Markdown, and plots as PNG and SVG."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.measure import Histogram
from loadtest.results import LONG_S, RAW, SUMMARY

PAGE = "README.md"
SHOWN = (50, 90, 99, 99.9, 100)
KINDS = ("png", "svg")
SIZE = (8.0, 4.5)

Json = Mapping[str, Any]


class NoResults(Exception):
    """The folder has no results of a run; the text says what is missing."""


def render(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        folder: Has what ``loadtest run`` wrote.
        out: Folder for the page; ``None`` for the same.

    Returns:
        The page.

    Raises:
        NoResults: If the run left no results.
    """
    out = out or folder
    try:
        summary: Json = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        raw = (folder / RAW).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise NoResults(
            f"{error.filename}: {error.strerror}: make it with"
            " python -m loadtest run SCENARIO --out FOLDER"
        ) from error
    lines: list[Json] = [json.loads(line) for line in raw]
    if not summary["phases"]:
        raise NoResults(f"{folder / SUMMARY}: no phase was completed")
    out.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Axes, Json, Sequence[Json]], None]] = {
        "Latency by percentile": _percentiles,
        "Latency over time": _latency,
        "Goodput and offered load": _goodput,
        "Memory of the server": _memory,
    }
    names = {
        title: _draw(out, title, plot, summary, lines) for title, plot in plots.items()
    }
    page = out / PAGE
    page.write_text(_text(summary, names), encoding="utf-8")
    return page


def _draw(
    out: Path,
    title: str,
    plot: Callable[[Axes, Json, Sequence[Json]], None],
    summary: Json,
    lines: Sequence[Json],
) -> str:
    """Draw one plot and return its file name without the kind."""
    with mpl.rc_context({"svg.hashsalt": "baton", "axes.grid": True}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(f"{title}: {summary['scenario']}")
        plot(axes, summary, lines)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        name = title.lower().replace(" ", "-")
        for kind in KINDS:
            figure.savefig(
                out / f"{name}.{kind}",
                metadata={"Date": None} if kind == "svg" else None,
            )
    return name


def _of(lines: Sequence[Json], phase: Json, source: str) -> list[Json]:
    name = phase["phase"]
    return [each for each in lines if (each["phase"], each["of"]) == (name, source)]


def _percentiles(axes: Axes, summary: Json, _: Sequence[Json]) -> None:
    """Draw times by nines: each step to the right is ten times rarer."""
    for phase in summary["phases"]:
        histogram = Histogram(phase["sample"]["histogram"])
        where = np.geomspace(1, max(histogram.total, 1), 300)  # one in so many
        times = histogram.percentiles_ms((100 * (1 - 1 / where)).tolist())
        axes.plot(where, times, label=phase["phase"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = (0, 50, 90, 99, 99.9, 99.99)
    axes.set_xticks([1 / (1 - p / 100) for p in ticks], [f"{p:g}" for p in ticks])
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms")


def _latency(axes: Axes, summary: Json, lines: Sequence[Json]) -> None:
    start_s = 0.0
    for phase in summary["phases"]:
        mine = _of(lines, phase, "client")
        at_s = [start_s + each["at_s"] for each in mine]
        found = np.array(
            [Histogram(each["histogram"]).percentiles_ms((50, 99)) for each in mine]
        ).reshape(-1, 2)
        (line,) = axes.plot(at_s, found[:, 0], label=f"{phase['phase']} p50")
        color = line.get_color()
        axes.plot(at_s, found[:, 1], "--", color=color, label=f"{phase['phase']} p99")
        start_s += phase["seconds"]
    axes.set_yscale("log")
    axes.set_xlabel("s")
    axes.set_ylabel("ms")


def _goodput(axes: Axes, summary: Json, lines: Sequence[Json]) -> None:
    """Draw each second as a point: answers in time over calls due."""
    most = 0.0
    for phase in summary["phases"]:
        mine = _of(lines, phase, "client")
        due = [each["offered"] / each["seconds"] for each in mine if each["seconds"]]
        good = [each["good"] / each["seconds"] for each in mine if each["seconds"]]
        axes.plot(due, good, ".", label=phase["phase"])
        most = max([most, *good])
    axes.plot([0, most], [0, most], ":", color="grey", label="all answered in time")
    axes.set_xlabel("calls due per second")
    axes.set_ylabel("answers in time per second")


def _memory(axes: Axes, summary: Json, lines: Sequence[Json]) -> None:
    start_s = 0.0
    for phase in summary["phases"]:
        mine = [each for each in _of(lines, phase, "server") if each["processes"]]
        at_s = [start_s + each["at_s"] for each in mine]
        axes.plot(at_s, [e["rss_bytes"] / 1e6 for e in mine], label=phase["phase"])
        start_s += phase["seconds"]
    axes.set_xlabel("s")
    axes.set_ylabel("MB, all processes")


def _text(summary: Json, plots: Mapping[str, str]) -> str:
    machine = summary["machine"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    parts = [
        f"# {summary['title']}",
        f"`{machine['command']}`, {summary['date']}, commit {machine['commit']}.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']};"
        f" Python {machine['python']}, {packages}.",
        _table(summary["phases"]),
        *(f"PROBLEM: {problem}" for problem in summary["problems"]),
    ]
    for title, name in plots.items():
        parts.append(f"## {title}\n\n![{title}]({name}.png) ([SVG]({name}.svg))")
    parts.append(
        f"Raw data: `{RAW}` has one line per second and phase, of the client (its"
        " histogram in HdrHistogram's compressed format, microseconds) and of the"
        f" server; `{SUMMARY}` has the rest."
    )
    return "\n\n".join(parts) + "\n"


def _table(phases: Sequence[Json]) -> str:
    head = "| phase | due/s | answers/s | in time/s |"
    head += "".join(f" p{p:g} ms |" for p in SHOWN).replace("p100", "max")
    rows = [head + " bad | ends without a right answer | memory MB/h |"]
    rows.append("|---|" + "---:|" * (4 + len(SHOWN)) + "---|---:|")
    for phase in phases:
        sample = phase["sample"]
        times = Histogram(sample["histogram"]).percentiles_ms(SHOWN)
        growth = phase["growth_mb_per_hour"]
        ends = ", ".join(f"{k} {v:,}" for k, v in sample["statuses"].items())
        cells = [
            phase["phase"],
            f"{phase['offered_per_s']:,.0f}" if phase["offered_per_s"] else "-",
            f"{sample['requests_per_s']:,.0f}",
            f"{phase['good_per_s']:,.0f}",
            *(f"{each:.3f}" for each in times),
            f"{sample['bad']:,}",
            ends or "-",
            f"{growth:+.1f}" if phase["seconds"] >= LONG_S else "-",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)

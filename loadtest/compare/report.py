"""What a comparison prints: medians with spread, ratios, targets. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from rich.table import Table

from loadtest.compare.cases import Case
from loadtest.compare.targets import (
    OURS,
    Values,
    Verdict,
    judge,
    times_better,
)
from loadtest.measure import Spread, spread

CLIENT_LIMIT = 0.85
"""Share of its core above which the client may be what limits a rate."""
RATIOS = ("rate", "cpu_us")

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Skip:
    """A server that a case, or some rounds of it, went without, and why."""

    case: str
    server: str
    reason: str


@dataclass(slots=True)
class Results:
    """All measurements.

    Attributes:
        rounds: Case to server to the values of each round.
        skips: What was not measured.
        problems: What went wrong.
    """

    rounds: dict[str, dict[str, list[Values]]] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, case: str, server: str, values: Values) -> None:
        """Take the values of one round."""
        self.rounds.setdefault(case, {}).setdefault(server, []).append(values)

    def found(self, case: str) -> dict[str, dict[str, Spread]]:
        """Return the spread of each metric of each server of a case."""
        return {
            server: {
                metric: spread([each[metric] for each in rounds])
                for metric in rounds[0]
            }
            for server, rounds in self.rounds.get(case, {}).items()
        }

    def verdicts(self, cases: Iterable[Case]) -> list[Verdict]:
        """Return all targets of cases that were measured."""
        return [
            verdict
            for case in cases
            for verdict in judge(case.name, case.targets, self.found(case.name))
        ]

    def ratios(self, case: str) -> dict[str, dict[str, float]]:
        """Return how many times better Baton is than each other server."""
        found = self.found(case)
        ours = found.get(OURS)
        if ours is None:
            return {}
        return {
            server: {
                metric: round(
                    times_better(metric, ours[metric].median, values[metric].median), 3
                )
                for metric in RATIOS
                if metric in ours and metric in values
            }
            for server, values in found.items()
            if server != OURS
        }

    def lower_bounds(self) -> list[str]:
        """Return a warning for every rate that the client may have limited."""
        return [
            f"{case} {server}: the load client used"
            f" {values['client_share'].median:.0%} of its core; the rate is a lower"
            " bound"
            for case in self.rounds
            for server, values in self.found(case).items()
            if "client_share" in values and values["client_share"].median > CLIENT_LIMIT
        ]

    def bad(self) -> list[str]:
        """Return who failed calls, and how many in all rounds."""
        return [
            f"{case} {server}: {count:.0f} bad calls"
            for case, servers in self.rounds.items()
            for server, rounds in servers.items()
            if (count := sum(each.get("bad", 0) for each in rounds))
        ]

    def as_json(self, cases: Sequence[Case]) -> Json:
        """Return everything as plain JSON values, four digits each."""
        text = json.dumps(
            {
                "cases": {
                    case: {
                        "servers": {
                            server: {name: asdict(each) for name, each in found.items()}
                            for server, found in self.found(case).items()
                        },
                        "ratios": self.ratios(case),
                    }
                    for case in self.rounds
                },
                "targets": [
                    {
                        "case": each.case,
                        **asdict(each.target),
                        "value": each.value,
                        "reached": each.reached,
                        "floor_broken": each.broken,
                    }
                    for each in self.verdicts(cases)
                ],
                "skipped": [asdict(each) for each in self.skips],
                "rounds": self.rounds,
            }
        )
        values: Json = json.loads(
            text, parse_float=lambda digits: round(float(digits), 4)
        )
        return values

    def table(self, case: str) -> Table:
        """Return one case as a table; the last column says what Baton reaches."""
        result = Table(title=case)
        result.add_column("server", no_wrap=True)
        for name in ("rows/s", "low - high", "p50 ms", "p99 ms", "CPU us", "also"):
            result.add_column(name, justify="right", no_wrap=True)
        result.add_column(f"{OURS} is", justify="right", no_wrap=True)
        ratios = self.ratios(case)
        for server, values in self.found(case).items():
            rate = values.get("rate")
            times = ratios.get(server, {}).get("rate")
            result.add_row(
                server,
                f"{rate.median:,.0f}" if rate else "",
                f"{rate.low:,.0f} - {rate.high:,.0f}" if rate else "",
                _number(values, "p50_ms"),
                _number(values, "p99_ms"),
                _number(values, "cpu_us", 1),
                " ".join(
                    f"{metric} {values[metric].median:.3g}"
                    for metric in ("memory_mb", "goodput_share", "p99_rise")
                    if metric in values
                ),
                f"{times:.3g}x" if times else "",
            )
        return result


def _number(values: dict[str, Spread], metric: str, digits: int = 2) -> str:
    return f"{values[metric].median:.{digits}f}" if metric in values else ""

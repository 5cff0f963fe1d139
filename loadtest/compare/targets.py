"""What Baton is to reach, and what it must not fall below. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.measure import Spread, ratio

OURS = "baton"

Values = dict[str, float]
"""What one measurement gives: metric to value."""
Found = Mapping[str, Mapping[str, Spread]]
"""What all measurements of a case give: server to metric to spread."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that is measured.

    Attributes:
        unit: As printed.
        more_is_better: Else less is.
    """

    unit: str
    more_is_better: bool


METRICS: Mapping[str, Metric] = {
    "rate": Metric("rows/s", more_is_better=True),
    "p50_ms": Metric("ms p50", more_is_better=False),
    "p99_ms": Metric("ms p99", more_is_better=False),
    "cpu_us": Metric("us CPU a call", more_is_better=False),
    "client_share": Metric("of the client's core", more_is_better=False),
    "memory_mb": Metric("MB", more_is_better=False),
    "goodput_share": Metric("of its peak", more_is_better=True),
    "p99_rise": Metric("of p99 more", more_is_better=False),
    "bad": Metric("bad calls", more_is_better=False),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of one metric of Baton, absolute or against another server.

    Against another server the bound is how many times better Baton is to be: its
    rate divided by the other's, or the other's time divided by its own.

    Attributes:
        metric: A key of `METRICS`.
        goal: What Baton is to reach.
        floor: What it must not fall below (for times: rise above) in CI.
        against: The other server; ``None`` for an absolute bound.
    """

    metric: str
    goal: float
    floor: float | None = None
    against: str | None = None

    @property
    def more_is_better(self) -> bool:
        """Tell the direction of the bound."""
        return self.against is not None or METRICS[self.metric].more_is_better

    def value(self, found: Found) -> float | None:
        """Return what Baton reaches, from medians; ``None`` if not measured."""
        ours = found.get(OURS, {}).get(self.metric)
        if ours is None:
            return None
        if self.against is None:
            return ours.median
        theirs = found.get(self.against, {}).get(self.metric)
        if theirs is None:
            return None
        return times_better(self.metric, ours.median, theirs.median)

    def holds(self, value: float, bound: float) -> bool:
        """Tell whether a value is within a bound."""
        return value >= bound if self.more_is_better else value <= bound


def times_better(metric: str, ours: float, theirs: float) -> float:
    """Return how many times better the first of two values of a metric is."""
    if METRICS[metric].more_is_better:
        return ratio(ours, theirs)
    return ratio(theirs, ours)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target beside what was measured.

    Attributes:
        case: Name of the case.
        target: The bound.
        value: What Baton reached.
    """

    case: str
    target: Target
    value: float

    @property
    def reached(self) -> bool:
        """Tell whether the goal is reached."""
        return self.target.holds(self.value, self.target.goal)

    @property
    def broken(self) -> bool:
        """Tell whether the value is on the wrong side of the floor."""
        floor = self.target.floor
        return floor is not None and not self.target.holds(self.value, floor)

    @property
    def words(self) -> str:
        """Say it in a line."""
        target = self.target
        sign = ">=" if target.more_is_better else "<="
        if target.against is None:
            what = f"{{:,.3g}} {METRICS[target.metric].unit}"
            if target.goal >= 1000:
                what = f"{{:,.0f}} {METRICS[target.metric].unit}"
        else:
            what = f"{{:.3g}}x {target.against} ({target.metric})"
        state = "reached" if self.reached else "gap"
        if self.broken:
            state = f"WORSE THAN THE FLOOR {target.floor:g}"
        return (
            f"{self.case}: {what.format(self.value)},"
            f" target {sign} {target.goal:,g}: {state}"
        )


def judge(case: str, targets: Sequence[Target], found: Found) -> list[Verdict]:
    """Return a verdict for each target of a case that was measured."""
    verdicts = []
    for target in targets:
        value = target.value(found)
        if value is not None:
            verdicts.append(Verdict(case, target, value))
    return verdicts

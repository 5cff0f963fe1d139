"""Latency histograms, medians and spreads. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

FIRST_NS = 1_000
GROWTH = 1.02
BUCKETS = 1_000
"""From 1 us in steps of 2 % up to 400 s: percentiles within 1 %, memory fixed."""

_LOG_GROWTH = math.log(GROWTH)


@dataclass(slots=True)
class Histogram:
    """Durations in buckets that grow by 2 %."""

    counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    total: int = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        steps = math.log(max(duration_ns, FIRST_NS) / FIRST_NS) / _LOG_GROWTH
        self.counts[min(int(steps), BUCKETS - 1)] += 1
        self.total += 1

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile (0 to 100) in milliseconds; 0 without durations."""
        rank = max(1, math.ceil(self.total * percent / 100))
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return float(FIRST_NS * GROWTH ** (index + 0.5) / 1e6)
        return 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements with the smallest and the largest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return median, minimum and maximum of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(value: float, base: float) -> float:
    """Return how many times `base` the value is; 0 where there is no base."""
    return value / base if base else 0.0

"""Latency histograms, medians and spreads. Pure."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

UNIT_NS = 1_000
LONGEST = 1 << 28
"""Units of the longest duration kept apart: four minutes and a half."""
DIGITS = 3
_HALF_BITS = 10
"""HdrHistogram keeps 2^10 values of each power of two for three digits."""


class Histogram:
    """Durations in an HdrHistogram: microseconds, three digits, fixed memory."""

    def __init__(self, encoded: str = "") -> None:
        self._hdr = (
            HdrHistogram.decode(encoded)
            if encoded
            else HdrHistogram(1, LONGEST - 1, DIGITS)
        )

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return int(self._hdr.total_count)

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self._hdr.record_value(min(max(duration_ns // UNIT_NS, 1), LONGEST - 1))

    def add_all(self, durations_ns: array[int]) -> None:
        """Count many durations at once, at some 20 ns each.

        The index of a value v with n bits is (n - 11) 2^10 + (v >> (n - 11)), n at
        least 11. Source: `counts_index_for` of HdrHistogram.
        """
        if not durations_ns:
            return
        taken = np.frombuffer(durations_ns, np.int64) // UNIT_NS
        values = np.clip(taken, 1, LONGEST - 1)
        bits = np.frexp(values.astype(np.float64))[1].astype(np.int64)
        shift = np.maximum(bits - _HALF_BITS - 1, 0)
        index = (shift << _HALF_BITS) + (values >> shift)
        hdr = self._hdr
        counts: NDArray[np.uint64] = np.frombuffer(hdr.counts, np.uint64)
        found = np.bincount(index)
        counts[: len(found)] += found.astype(np.uint64)
        hdr.total_count += len(values)
        hdr.min_value = min(hdr.min_value, int(values.min()))
        hdr.max_value = max(hdr.max_value, int(values.max()))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self._hdr.add(other._hdr)

    def percentiles_ms(self, percents: Sequence[float]) -> list[float]:
        """Return percentiles (0 to 100) in milliseconds; 0 without durations.

        Each is the smallest duration that so many per cent do not exceed, to three
        digits.
        """
        if not self.total:
            return [0.0 for _ in percents]
        counts = np.frombuffer(self._hdr.counts, np.uint64)
        seen = np.cumsum(counts)
        ranks = np.ceil(np.array(percents, np.float64) / 100 * self.total)
        where = np.searchsorted(seen, np.maximum(ranks, 1).astype(np.uint64))
        bucket = np.maximum((where >> _HALF_BITS) - 1, 0)
        low = (where - (bucket << _HALF_BITS)) << bucket
        middle = low + ((1 << bucket) >> 1)
        return [float(value) * UNIT_NS / 1e6 for value in middle]

    def percentile_ms(self, percent: float) -> float:
        """Return one percentile (0 to 100) in milliseconds; 0 without durations."""
        return self.percentiles_ms((percent,))[0]

    def encode(self) -> str:
        """Return the histogram as text: HdrHistogram's V2 compressed format."""
        encoded: bytes = self._hdr.encode()
        return encoded.decode()


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


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the line through points by least squares.

    0 with fewer than two different times.
    """
    if len(set(times)) < 2:
        return 0.0
    return float(np.polyfit(np.array(times) - times[0], values, 1)[0])

"""Histograms, spreads and ratios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure import Histogram, Spread, ratio, spread

DURATIONS = st.lists(st.integers(1_000, 100_000_000_000), min_size=1, max_size=200)


def filled(durations: list[int]) -> Histogram:
    histogram = Histogram()
    for each in durations:
        histogram.add(each)
    return histogram


@given(DURATIONS, st.sampled_from([1, 50, 90, 99, 100]))
def test_percentiles_are_within_one_bucket_of_the_exact_ones(
    durations: list[int], percent: int
) -> None:
    exact = np.percentile(durations, percent, method="inverted_cdf") / 1e6
    assert filled(durations).percentile_ms(percent) == pytest.approx(exact, rel=0.001, abs=0.001)


@given(DURATIONS, DURATIONS)
def test_merging_is_counting_both(first: list[int], second: list[int]) -> None:
    merged = filled(first)
    merged.merge(filled(second))
    assert merged.encode() == filled(first + second).encode()


def test_durations_outside_the_range_count_at_its_ends() -> None:
    histogram = filled([0, 1, 10**15])
    assert histogram.total == 3
    assert histogram.percentile_ms(50) == 0.001
    assert histogram.percentile_ms(100) > 100_000


def test_no_durations_have_no_percentile() -> None:
    assert Histogram().percentile_ms(99) == 0


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)


def test_ratio_without_a_base_is_nought() -> None:
    assert ratio(6, 3) == 2
    assert ratio(6, 0) == 0

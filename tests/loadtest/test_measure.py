"""Histograms, spreads and ratios."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure import Histogram, Spread, ratio, slope, spread

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
    assert filled(durations).percentile_ms(percent) == pytest.approx(
        exact, rel=0.001, abs=0.001
    )


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


@given(DURATIONS)
def test_many_at_once_are_counted_as_one_by_one(durations: list[int]) -> None:
    histogram = Histogram()
    histogram.add_all(array("q", durations))
    assert histogram.encode() == filled(durations).encode()


@pytest.mark.parametrize("percent", [1, 50, 90, 99, 99.9, 100])
def test_percentiles_agree_with_numpy_on_many_durations(percent: float) -> None:
    durations = np.exp(np.random.default_rng(1).normal(14, 1.5, 200_000))
    histogram = Histogram()
    histogram.add_all(array("q", durations.astype(np.int64).tolist()))
    exact = np.percentile(durations, percent, method="inverted_cdf") / 1e6
    assert histogram.percentile_ms(percent) == pytest.approx(exact, rel=0.001, abs=2e-3)


def test_a_histogram_survives_its_encoding() -> None:
    histogram = filled([1_000, 2_000_000, 3_000_000_000])
    again = Histogram(histogram.encode())
    assert again.total == 3
    percents = (10, 50, 100)
    assert again.percentiles_ms(percents) == histogram.percentiles_ms(percents)


def test_the_slope_is_that_of_the_line() -> None:
    assert slope([10, 11, 12, 13], [5, 7, 9, 11]) == pytest.approx(2)
    assert slope([1, 2, 3, 4], [1, -1, -1, 1]) == pytest.approx(0)
    assert slope([1], [5]) == slope([], []) == 0


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)


def test_ratio_without_a_base_is_nought() -> None:
    assert ratio(6, 3) == 2
    assert ratio(6, 0) == 0

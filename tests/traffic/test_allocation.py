"""Propensities are what the draws do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from gateway.traffic.allocation import Allocation

WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("weights", "able"),
    [
        ((0.5, 0.3, 0.2), (0, 1, 2)),
        ((0.97, 0.02, 0.01), (0, 1, 2)),
        ((0.0, 0.3, 0.0, 0.7, 0.0), (0, 1, 2, 3, 4)),
        ((0.5, 0.3, 0.2), (1, 2)),
        ((0.9, 0.0, 0.06, 0.04), (1, 2, 3)),
        ((0.1,) * 10, tuple(range(7))),
    ],
)
def test_propensities_are_the_frequencies_of_a_million_draws(
    weights: tuple[float, ...], able: tuple[int, ...]
) -> None:
    allocation = Allocation.among([weights[arm] for arm in able])
    draws = np.random.default_rng(1).random(1_000_000)
    drawn = np.searchsorted(allocation.ends, draws, side="right")
    counts = np.bincount(drawn, minlength=len(able))
    expected = np.array(allocation.propensities) * len(draws)
    assert not counts[expected == 0].any()
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-4
    for number in draws[:1000]:  # the scalar draw is the same draw
        arm, propensity = allocation.draw(number)
        assert arm == np.searchsorted(allocation.ends, number, side="right")
        assert propensity == allocation.propensities[arm]


@given(WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_an_arm_without_weight_is_never_drawn(
    weights: list[float], number: float
) -> None:
    allocation = Allocation.among(weights)
    if not sum(weights):
        assert allocation == Allocation()
        return
    assert math.isclose(math.fsum(allocation.propensities), 1, abs_tol=1e-12)
    for at in (number, 0.0, math.nextafter(1, 0), *allocation.ends):
        if at < 1:
            arm, propensity = allocation.draw(at)
            assert weights[arm] > 0
            assert propensity == pytest.approx(weights[arm] / sum(weights))

"""The price of splitting is near what a simulated worker pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.errors import InvalidRequest
from gateway.traffic.batch_cost import expected_cost

RUN_US = {1: 101.0, 8: 108.0, 64: 164.0}
"""100 us and 1 us a row."""


def simulated(rows_per_s: float, shares: list[float]) -> tuple[list[float], float]:
    """One worker, Poisson arrivals; the arm that has waited longest goes next."""
    rng = np.random.default_rng(3)
    count = 60_000
    times = rng.exponential(1e6 / rows_per_s, count).cumsum()
    arms = rng.choice(len(shares), count, p=shares)
    waiting = [list(times[arms == arm][::-1]) for arm in range(len(shares))]
    batches, rows = np.zeros(len(shares)), np.zeros(len(shares))
    now = busy = 0.0
    while any(waiting):
        first = min((own[-1], arm) for arm, own in enumerate(waiting) if own)
        now, arm = max(now, first[0]), first[1]
        size = 0
        while waiting[arm] and waiting[arm][-1] <= now and size < 64:
            waiting[arm].pop()
            size += 1
        run = float(np.interp(size, list(RUN_US), list(RUN_US.values())))
        now, busy = now + run, busy + run
        batches[arm] += 1
        rows[arm] += size
    return (rows / batches).tolist(), busy / now


@pytest.mark.parametrize(
    ("rows_per_s", "shares"),
    [
        (1_000, [0.5, 0.5]),
        (100_000, [1.0]),
        (100_000, [0.5, 0.5]),
        (150_000, [0.8, 0.1, 0.1]),
        (200_000, [0.25] * 4),
    ],
)
def test_batches_are_about_as_large_as_simulated(
    rows_per_s: float, shares: list[float]
) -> None:
    rows, busy = simulated(rows_per_s, shares)
    cost = expected_cost(rows_per_s, shares, RUN_US)
    assert [arm.rows for arm in cost.arms] == pytest.approx(rows, rel=0.35)
    assert cost.utilisation == pytest.approx(busy, abs=0.1)


def test_splitting_makes_rows_dearer() -> None:
    whole = expected_cost(100_000, [1.0], RUN_US)
    half = expected_cost(100_000, [0.9, 0.1], RUN_US)
    assert half.arms[1].rows < half.arms[0].rows
    assert half.arms[1].row_us > half.arms[0].row_us
    assert half.arms[1].row_us > whole.arms[0].row_us


def test_by_hand() -> None:
    """C = 100 + rows for one arm and rows = C / 20 us: rows = 100 / 19."""
    cost = expected_cost(50_000, [1.0], RUN_US)
    assert cost.arms[0].rows == pytest.approx(100 / 19)
    assert cost.arms[0].row_us == pytest.approx(20)
    assert cost.utilisation == pytest.approx(1)
    two = expected_cost(50_000, [1.0], RUN_US, workers=2)
    assert two.arms[0].rows == pytest.approx(100 / 39)


def test_near_saturation_batches_are_solved_for_as_well() -> None:
    """rows = 100 / (1e6 / rate - 1), at 98 % of what rows alone take."""
    run_us = {1: 101.0, 10_000: 10_100.0}
    cost = expected_cost(980_000, [1.0], run_us)
    assert cost.arms[0].rows == pytest.approx(100 / (1 / 0.98 - 1), rel=1e-6)


def test_more_than_the_workers_can_do_is_said() -> None:
    cost = expected_cost(1_000_000, [0.5, 0.5], RUN_US)
    assert [arm.rows for arm in cost.arms] == [64, 64]
    assert cost.utilisation == pytest.approx(164 / 64)


@pytest.mark.parametrize(
    "wrong",
    [
        (0, [1.0], RUN_US),
        (1, [0.5], RUN_US),
        (1, [1.5, -0.5], RUN_US),
        (1, [], RUN_US),
        (1, [1.0], {}),
        (1, [1.0], {0: 1.0}),
        (1, [1.0], {1: 0.0}),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest):
        expected_cost(*wrong)

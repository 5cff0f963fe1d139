"""Estimates from a log are exact where the truth can be counted, else refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from gateway.errors import InvalidRequest
from gateway.traffic.allocation import Allocation
from gateway.traffic.offline import (
    Decisions,
    Estimate,
    Estimator,
    Unanswerable,
    estimate,
)
from gateway.traffic.policies import refresh
from tests.traffic.tables import table, taught

BEHAVIOUR = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
MEANS = np.array([[0.5, 0.8, 0.1], [0.2, 0.4, 0.3]])
TARGET = np.array([[0.1, 0.7, 0.2], [0.3, 0.6, 0.1]])
SEGMENTS = np.array([0.75, 0.25])
TRUTH = float((SEGMENTS * (TARGET * MEANS).sum(1)).sum())


def balanced() -> Decisions:
    """Every decision there can be, as often as its probability says."""
    rows = []
    for segment, arm, reward in product(range(2), range(3), range(2)):
        mean = MEANS[segment, arm]
        chance = SEGMENTS[segment] * BEHAVIOUR[segment, arm]
        times = chance * (mean if reward else 1 - mean) * 20_000
        assert times == pytest.approx(round(times))
        rows += [(arm, BEHAVIOUR[segment, arm], reward, segment)] * round(times)
    return Decisions.of(*map(np.array, zip(*rows, strict=True)))


def logged(rng: np.random.Generator, count: int) -> Decisions:
    segment = (rng.random(count) < SEGMENTS[1]).astype(int)
    ends = BEHAVIOUR.cumsum(1)[segment]
    arm = np.minimum((rng.random(count)[:, None] > ends).sum(1), 2)
    reward = (rng.random(count) < MEANS[segment, arm]).astype(float)
    return Decisions.of(arm, BEHAVIOUR[segment, arm], reward, segment)


@pytest.mark.parametrize("estimator", Estimator)
def test_exact_where_every_case_is_counted(estimator: Estimator) -> None:
    got = estimate(balanced(), TARGET, estimator)
    assert got.value == pytest.approx(TRUTH, abs=1e-12)
    assert got.mean_weight == pytest.approx(1, abs=1e-12)
    assert got.max_weight == pytest.approx(6)
    weights = (SEGMENTS[:, None] * TARGET**2 / BEHAVIOUR).sum()
    assert got.effective == pytest.approx(20_000 / weights)
    assert got.low < got.value < got.high
    assert got.decisions == 20_000


def test_ips_has_the_variance_of_its_formula() -> None:
    got = estimate(balanced(), TARGET, Estimator.IPS)
    second = (SEGMENTS[:, None] * TARGET**2 / BEHAVIOUR * MEANS).sum()
    assert got.standard_error == pytest.approx(
        np.sqrt((second - TRUTH**2) / 20_000), rel=1e-4
    )


def test_dr_is_exact_with_any_model_and_steadier_with_a_good_one() -> None:
    log = balanced()
    wrong = estimate(log, TARGET, Estimator.DR, model=1 - MEANS)
    right = estimate(log, TARGET, Estimator.DR, model=MEANS)
    none = estimate(log, TARGET, Estimator.DR, model=np.zeros_like(MEANS))
    assert wrong.value == pytest.approx(TRUTH, abs=1e-12)
    assert right.value == pytest.approx(TRUTH, abs=1e-12)
    assert right.standard_error < wrong.standard_error
    ips = estimate(log, TARGET, Estimator.IPS)
    assert none.value == pytest.approx(ips.value)
    assert none.standard_error == pytest.approx(ips.standard_error)


def test_the_logging_policy_itself_earns_what_it_earned() -> None:
    log = balanced()
    for estimator in Estimator:
        got = estimate(log, BEHAVIOUR, estimator)
        assert got.value == pytest.approx(log.reward.mean())
        assert got.effective == pytest.approx(20_000)


@pytest.mark.parametrize("estimator", Estimator)
def test_intervals_hold_the_truth_as_often_as_they_say(estimator: Estimator) -> None:
    rng = np.random.default_rng(11)
    found: list[Estimate] = [
        estimate(logged(rng, 1500), TARGET, estimator) for _ in range(400)
    ]
    values = np.array([got.value for got in found])
    held = np.mean([got.low <= TRUTH <= got.high for got in found])
    assert held == pytest.approx(0.95, abs=0.035)
    assert values.mean() == pytest.approx(TRUTH, abs=4 * values.std() / 20)
    errors = np.mean([got.standard_error for got in found])
    assert errors == pytest.approx(values.std(), rel=0.12)


def test_a_log_that_a_bandit_made_answers_for_other_policies() -> None:
    rng = np.random.default_rng(2)
    means = [0.4, 0.6, 0.2]
    traffic = table(0.4, 0.3, 0.3, floor=0.05)
    learnt, weights = taught(traffic), None
    rows = []
    for _ in range(100):
        weights = refresh(traffic, learnt, weights)
        allocation = Allocation.among(weights.weights)
        for number in rng.random(100):
            arm, propensity = allocation.draw(number)
            reward = float(rng.random() < means[arm])
            learnt.observe(arm + 1, reward, traffic.policy)
            rows.append((arm, propensity, reward))
    log = Decisions.of(*map(np.array, zip(*rows, strict=True)))
    for estimator in Estimator:
        got = estimate(log, [1 / 3, 1 / 3, 1 / 3], estimator, confidence=0.999)
        assert got.low < 0.4 < got.high
        assert got.standard_error < 0.05


ONES = np.ones(1000)
HALVES = np.tile([0, 1], 500)


@pytest.mark.parametrize(
    ("log", "target", "message"),
    [
        ((ONES * 0, ONES, ONES), [0.5, 0.5], "arm 1 has no rewards here, so"),
        (
            (HALVES, ONES / 2, ONES, HALVES),
            [0.5, 0.5],
            "arm 1 has no rewards here in segment 0",
        ),
        (
            (np.arange(1000) < 3, np.where(np.arange(1000) < 3, 0.003, 0.997), ONES),
            [0.0, 1.0],
            "say as much as 3.0 of the target's own",
        ),
        ((HALVES, ONES / 4, ONES), [0.5, 0.5], "mean weight is 2.000 and should be 1"),
        ((HALVES, ONES, ONES), [0.5, 0.5], "mean weight is 0.500 and should be 1"),
    ],
)
def test_a_log_that_cannot_answer_is_refused(
    log: Any, target: Any, message: str
) -> None:
    with pytest.raises(Unanswerable, match=message):
        estimate(Decisions.of(*log), target)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ((HALVES, ONES * 0, ONES), "decision 0 has no propensity"),
        ((HALVES, np.r_[ONES[1:], 1.01], ONES), "decision 999 has no propensity"),
        ((HALVES, ONES * np.nan, ONES), "decision 0 has no propensity"),
        ((HALVES, ONES, np.r_[1, np.nan, ONES[2:]]), "decision 1 has no reward"),
        ((HALVES - 1, ONES, ONES), "decision 0 has a negative arm"),
        ((HALVES, ONES, ONES, HALVES - 1), "decision 0 has a negative segment"),
        ((HALVES, ONES[1:], ONES), "one length"),
    ],
)
def test_what_cannot_be_a_decision_is_refused(log: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Decisions.of(*log)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ([1.0], {}, "every arm of the log"),
        ([0.5, 0.6], {}, "sum to 1"),
        ([1.5, -0.5], {}, "not negative"),
        ([[0.5, 0.5], [0.5, np.nan]], {}, "sum to 1"),
        ([[[0.5, 0.5]]], {}, "one distribution"),
        ([0.5, 0.5], {"confidence": 1.0}, "confidence"),
        ([0.5, 0.5], {"model": [0.5]}, "model"),
        ([0.5, 0.5], {"model": [0.5, np.inf]}, "model"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    target: Any, options: Any, message: str
) -> None:
    log = Decisions.of(HALVES, ONES / 2, ONES)
    with pytest.raises(InvalidRequest, match=message):
        estimate(log, target, Estimator.DR, **options)


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not empty"):
        estimate(Decisions.of([], [], []), [0.5, 0.5])

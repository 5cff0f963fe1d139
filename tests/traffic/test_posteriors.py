"""The probability of being best is what drawing from the posteriors gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mabwiser.mab import MAB, LearningPolicy
from river import bandit, proba
from scipy.integrate import quad
from scipy.stats import beta as beta_distribution

from gateway.traffic.posteriors import (
    Sums,
    beta_parameters,
    certainty,
    normal_parameters,
    probability_best,
)
from tests.traffic.tables import sums

DRAWS = 200_000
CASES = {
    "equal": ([10, 10], [0.5, 0.5]),
    "nothing known": ([0, 0, 0], [0, 0, 0]),
    "two well known beside one unknown": ([1e6, 1e6, 0], [0.5, 0.501, 0]),
    "rare": ([1000, 1000, 20, 5], [0.02, 0.021, 0.05, 0]),
    "very rare": ([1e5, 1e5, 1e5], [1e-4, 1.2e-4, 0.9e-4]),
    "close and sharp": ([1e7, 1e7], [0.5, 0.5001]),
    "at the edge": ([300, 3], [0.9, 1.0]),
    "two above many": ([1000] * 64, [0.1] * 62 + [0.5, 0.51]),
    "many": ([1000] * 64, np.linspace(0.1, 0.12, 64)),
}


def frequencies(draws: Any) -> Any:
    return np.bincount(draws.argmax(1), minlength=draws.shape[1]) / len(draws)


def within_monte_carlo(probability: Any, seen: Any, draws: int = DRAWS) -> None:
    error = np.sqrt(np.maximum(probability * (1 - probability), 1 / draws) / draws)
    assert (np.abs(probability - seen) < 4.5 * error + 2e-4).all()


@pytest.mark.parametrize("case", CASES)
def test_beta_arms(case: str) -> None:
    known = sums(*CASES[case])
    alpha, beta = beta_parameters(known)
    draws = np.random.default_rng(7).beta(alpha, beta, (DRAWS, len(alpha)))
    within_monte_carlo(probability_best(known, "beta"), frequencies(draws))


@pytest.mark.parametrize("case", CASES)
def test_gaussian_arms(case: str) -> None:
    known = sums(*CASES[case], 0.2)
    mean, deviation = normal_parameters(known)
    draws = np.random.default_rng(7).normal(mean, deviation, (DRAWS, len(mean)))
    within_monte_carlo(probability_best(known, "gaussian"), frequencies(draws))


@pytest.mark.parametrize("case", CASES)
def test_the_normal_is_near_the_student_t_it_stands_for(case: str) -> None:
    known = sums(*CASES[case], 0.2)
    mean, deviation = normal_parameters(known)
    freedom = 4 + known.count  # twice a
    scale = deviation * np.sqrt((freedom - 2) / freedom)
    t = np.random.default_rng(7).standard_t(freedom, (DRAWS, len(mean)))
    seen = frequencies(mean + scale * t)
    assert np.abs(seen - probability_best(known, "gaussian")).max() < 0.015


def test_two_beta_arms_by_an_independent_integral() -> None:
    known = sums([40, 25], [0.3, 0.4])
    one, other = (
        beta_distribution(a, b) for a, b in zip(*beta_parameters(known), strict=True)
    )
    exact, _ = quad(lambda x: one.pdf(x) * other.cdf(x), 0, 1)
    assert probability_best(known, "beta")[0] == pytest.approx(exact, abs=2e-4)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0, 1), st.floats(0, 0.5)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["beta", "gaussian"]),
    st.data(),
)
def test_a_distribution_whatever_is_known_and_in_whatever_order(
    arms: list[tuple[float, float, float]], posterior: str, data: st.DataObject
) -> None:
    count, mean, deviation = np.array(arms).T
    known = sums(count, mean, deviation if posterior == "gaussian" else None)
    best = probability_best(known, posterior)
    assert best.shape == count.shape
    assert (best >= 0).all()
    assert best.sum() == pytest.approx(1, abs=1e-12)
    order = data.draw(st.permutations(range(len(arms))))
    moved = probability_best(Sums(known.values[:, order]), posterior)
    assert moved == pytest.approx(best[order], abs=1e-9)


def test_contexts_at_once_are_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(3)
    count, mean = rng.uniform(0, 100, (6, 4)), rng.uniform(0, 1, (6, 4))
    at_once = probability_best(sums(count, mean), "beta")
    for row in range(6):
        alone = probability_best(sums(count[row], mean[row]), "beta")
        assert at_once[row] == pytest.approx(alone, abs=1e-12)


def test_two_equal_rewards_do_not_end_exploration() -> None:
    best = probability_best(sums([2, 2], [0.6, 0.5], 0.0), "gaussian")
    assert 0.5 < best[0] < 0.75


def test_outstanding_pulls_widen_an_arm_in_proportion() -> None:
    known = sums([400.0, 400.0, 0.0], [0.5, 0.5, 0.0], 0.25)
    part = certainty(known, np.array([0.0, 1200.0, 50.0]))
    assert part == pytest.approx([1, 0.25, 0])
    _, before = normal_parameters(known)
    _, after = normal_parameters(known.scaled(part))
    assert after[0] == before[0]
    assert (after[1] / before[1]) ** 2 == pytest.approx(1 + 1200 / 400, rel=0.02)


REWARDS = {1: (30, 12), 2: (20, 10), 3: (8, 2)}
"""Rewards and successes of three arms."""


def test_mabwiser_draws_as_often() -> None:
    decisions = [arm for arm, (n, _) in REWARDS.items() for _ in range(n)]
    rewards = [int(i < s) for n, s in REWARDS.values() for i in range(n)]
    mab = MAB(list(REWARDS), LearningPolicy.ThompsonSampling(), seed=5)
    mab.fit(decisions, rewards)
    pulls = 20_000
    seen = np.bincount([mab.predict() for _ in range(pulls)], minlength=4)[1:] / pulls
    count, good = np.array(list(REWARDS.values()), float).T
    within_monte_carlo(probability_best(sums(count, good / count), "beta"), seen, pulls)


def test_river_draws_as_often() -> None:
    policy = bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=5)
    for arm, (count, good) in REWARDS.items():
        for number in range(count):
            policy.update(arm, number < good)
    pulls = 20_000
    drawn = [policy.pull(list(REWARDS)) for _ in range(pulls)]
    seen = np.bincount(drawn, minlength=4)[1:] / pulls
    count, good = np.array(list(REWARDS.values()), float).T
    within_monte_carlo(probability_best(sums(count, good / count), "beta"), seen, pulls)

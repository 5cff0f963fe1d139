"""The best arm changes abruptly, and discounted Thompson sampling follows.

Three arms earn .5, .3 and .4; from request 3000 to 4999 of 10,000 the third earns .9.
The set-up is that of Garivier and Moulines, "On Upper-Confidence Bound Policies for
Switching Bandit Problems" (2011), whose discount is 1 - 1 / (4 sqrt(10,000)) = .9975.
Regret is what always choosing the best arm would have earned on top.

``TRAFFIC_RUNS=200`` runs the slow ones 200 times as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from mabwiser.mab import MAB, LearningPolicy

from gateway.traffic.allocation import Allocation
from gateway.traffic.policies import refresh
from gateway.traffic.posteriors import Sums, beta_parameters, certainty
from gateway.traffic.table import PolicyKind, Weights
from tests.traffic.tables import table, taught

T, ARMS, RUNS = 10_000, 3, 200
SLOW_RUNS = int(os.environ.get("TRAFFIC_RUNS", "6"))
MEANS = np.tile([0.5, 0.3, 0.4], (T, 1))
MEANS[3000:5000, 2] = 0.9
GAPS = MEANS.max(1, keepdims=True) - MEANS

Choose = Callable[[np.random.Generator, Sums, Any], Any]


def thompson(rng: np.random.Generator, known: Sums, pending: Any) -> Any:
    """One draw per arm: what probability_best is the expectation of."""
    return rng.beta(*beta_parameters(known)).argmax(1)


def cautious(rng: np.random.Generator, known: Sums, pending: Any) -> Any:
    """Thompson sampling with the correction for rewards that are still to come."""
    return thompson(rng, known.scaled(certainty(known, pending)), pending)


def ucb1(rng: np.random.Generator, known: Sums, pending: Any) -> Any:
    """Auer, Cesa-Bianchi and Fischer (2002), with the paper's xi = 1/2."""
    count = np.maximum(known.count, 1e-9)
    bonus = np.sqrt(0.5 * np.log(np.maximum(known.count.sum(1)[:, None], 1)) / count)
    return (known.total / count + bonus).argmax(1)


@cache
def regret(choose: Choose, discount: float = 1.0, delay: int = 0) -> float:
    """Return the mean regret of 200 runs; rewards come `delay` requests later."""
    rng = np.random.default_rng(0)
    known = Sums(np.zeros((3, RUNS, ARMS)))
    pending = np.zeros((RUNS, ARMS))
    chosen = np.zeros((T, RUNS), int)
    rewards = np.zeros((T, RUNS))
    every = np.arange(RUNS)
    for now in range(T):
        arms = choose(rng, known, pending)
        chosen[now] = arms
        rewards[now] = rng.random(RUNS) < MEANS[now, arms]
        pending[every, arms] += 1
        if now >= delay:
            arms, reward = chosen[now - delay], rewards[now - delay]
            known.values[:] *= discount
            known.values[:, every, arms] += np.stack([reward * 0 + 1, reward, reward])
            pending[every, arms] -= 1
    return float(GAPS[np.arange(T)[:, None], chosen].sum(0).mean())


def served(seed: int, *, every: int, discount: float, floor: float) -> float:
    """Return the regret of one run of the real thing, with weights from `refresh`."""
    rng = np.random.default_rng(seed)
    traffic = table(0.4, 0.3, 0.3, discount=discount, floor=floor)
    learnt, weights = taught(traffic), None
    draws, luck = rng.random(T).tolist(), rng.random(T).tolist()
    total = 0.0
    allocation = Allocation()
    for now in range(T):
        if now % every == 0:
            weights = refresh(traffic, learnt, weights)
            allocation = Allocation.among(weights.weights)
        arm, _ = allocation.draw(draws[now])
        total += GAPS[now, arm]
        learnt.observe(arm + 1, float(luck[now] < MEANS[now, arm]), traffic.policy)
    assert isinstance(weights, Weights)
    assert weights.snapshot == T // every
    return total


def test_ucb1_of_this_comparison_is_that_of_mabwiser() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        count = rng.integers(1, 30, ARMS)
        good = rng.integers(0, count + 1)
        mab = MAB(list(range(ARMS)), LearningPolicy.UCB1(alpha=0.5), seed=1)
        mab.fit(
            np.repeat(range(ARMS), count),
            [int(i < g) for n, g in zip(count, good, strict=True) for i in range(n)],
        )
        known = Sums(np.stack([count, good, good])[:, None].astype(float))
        assert ucb1(rng, known, None)[0] == mab.predict()


@pytest.mark.slow
def test_discounting_halves_the_regret() -> None:
    discounted = regret(thompson, 0.9975)
    assert discounted <= 0.5 * regret(ucb1)
    assert discounted <= 0.45 * regret(thompson)
    assert discounted == pytest.approx(269, abs=12)
    assert regret(thompson, 0.999) <= 0.5 * regret(ucb1)


@pytest.mark.slow
def test_with_labels_500_requests_late_discounting_still_helps() -> None:
    late = regret(thompson, 0.999, 500)
    assert late == pytest.approx(635, abs=30)
    assert late < regret(thompson) < regret(thompson, 1.0, 500)
    # Caution about what is outstanding is not free: it explores while it waits.
    assert late < regret(cautious, 0.999, 500) < regret(thompson)


@pytest.mark.slow
def test_weights_refreshed_every_ten_requests_do_as_well_as_draws() -> None:
    runs = [
        served(seed, every=10, discount=0.9975, floor=0.0) for seed in range(SLOW_RUNS)
    ]
    error = np.std(runs) / np.sqrt(len(runs))
    assert np.mean(runs) <= 0.5 * regret(ucb1)
    assert np.mean(runs) <= 0.45 * regret(thompson)
    assert np.mean(runs) == pytest.approx(regret(thompson, 0.9975), abs=15 + 4 * error)


@pytest.mark.slow
def test_snapshots_every_hundred_requests_with_a_floor_cost_what_is_known() -> None:
    runs = [
        served(seed, every=100, discount=0.999, floor=0.02)
        for seed in range(max(18, SLOW_RUNS))
    ]
    error = np.std(runs) / np.sqrt(len(runs))
    assert np.mean(runs) == pytest.approx(416, abs=10 + 4 * error)
    assert np.mean(runs) < 0.6 * regret(thompson)


def test_epsilon_greedy_follows_as_well() -> None:
    rng = np.random.default_rng(5)
    kind = PolicyKind.EPSILON_GREEDY
    traffic = table(0.4, 0.3, 0.3, kind=kind, discount=0.99, epsilon=0.1)
    learnt, weights = taught(traffic), None
    for means, best in (([0.5, 0.3, 0.4], 0), ([0.5, 0.3, 0.9], 2)):
        for _ in range(150):
            weights = refresh(traffic, learnt, weights)
            allocation = Allocation.among(weights.weights)
            for number in rng.random(20):
                arm, _ = allocation.draw(number)
                reward = float(rng.random() < means[arm])
                learnt.observe(arm + 1, reward, traffic.policy)
        assert weights is not None
        assert weights.weights[best] == pytest.approx(0.9 + 0.1 / 3)

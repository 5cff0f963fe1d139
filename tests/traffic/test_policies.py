"""Weights follow the rewards, within the limits, and can be told why."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mabwiser.mab import MAB, LearningPolicy
from river import bandit, stats

from gateway.errors import InvalidRequest
from gateway.traffic.policies import (
    LEARNT,
    MAX_CONTEXTS,
    Learnt,
    drawn_together,
    refresh,
    wished,
)
from gateway.traffic.posteriors import probability_best
from gateway.traffic.table import (
    WEIGHTS,
    ModelTraffic,
    Policy,
    PolicyKind,
    Weights,
)
from tests.traffic.tables import sums, table, taught

EVENT = st.tuples(
    st.integers(1, 3), st.floats(0, 1), st.sampled_from(["", "eu", "us", "asia"])
)


def teach(
    traffic: ModelTraffic, learnt: Learnt, means: dict[int, float], rounds: int
) -> None:
    """Give every arm rewards with about this mean, in turns."""
    for number in range(rounds):
        for version, mean in means.items():
            reward = float(math.floor((number + 1) * mean) - math.floor(number * mean))
            learnt.observe(version, reward, traffic.policy)


def settled(
    traffic: ModelTraffic, learnt: Learnt, pending: dict[int, float] | None = None
) -> Weights:
    """Refresh until the weights stay."""
    weights = refresh(traffic, learnt, None, pending)
    for _ in range(60):
        weights = refresh(traffic, learnt, weights, pending)
    return weights


@pytest.mark.parametrize("kind", [PolicyKind.FIXED, PolicyKind.STICKY])
def test_a_policy_that_does_not_learn_has_the_shares(kind: PolicyKind) -> None:
    traffic = table(0.7, 0.2, 0.1, kind=kind)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.1, 2: 0.9}, 50)
    assert refresh(traffic, learnt, Weights(4, (1.0, 0, 0))) == Weights(
        0, (0.7, 0.2, 0.1)
    )


@pytest.mark.parametrize("kind", [PolicyKind.THOMPSON, PolicyKind.EPSILON_GREEDY])
def test_until_the_first_reward_the_shares_are_kept(kind: PolicyKind) -> None:
    traffic = table(0.7, 0.2, 0.1, kind=kind)
    weights = refresh(traffic, taught(traffic), None)
    assert weights.weights == pytest.approx((0.7, 0.2, 0.1))
    assert weights.snapshot == 1


def test_a_frozen_policy_keeps_its_weights() -> None:
    traffic = replace(table(0.5, 0.5), frozen=True)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.1, 2: 0.9}, 50)
    in_force = Weights(9, (0.25, 0.75))
    assert refresh(traffic, learnt, in_force) is in_force


def test_thompson_is_floor_and_the_probability_of_being_best() -> None:
    traffic = table(0.4, 0.3, 0.3, floor=0.02, discount=1.0)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.5, 2: 0.6, 3: 0.3}, 40)
    known = sums([40, 40, 40], [0.5, 0.6, 0.3])
    expected = 0.02 + 0.94 * probability_best(known, "beta")
    assert refresh(traffic, learnt, None).weights == pytest.approx(expected)


def test_epsilon_greedy_has_epsilon_for_all_and_the_rest_for_the_best() -> None:
    traffic = table(
        0.4, 0.3, 0.3, kind=PolicyKind.EPSILON_GREEDY, epsilon=0.3, floor=0.0
    )
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.5, 2: 0.6, 3: 0.3}, 40)
    got = refresh(traffic, learnt, None).weights
    assert got == pytest.approx((0.1, 0.8, 0.1))
    tied = wished(traffic.policy, sums([4, 4, 4], [0.5, 0.5, 0.25]))
    assert tied == pytest.approx([0.45, 0.45, 0.1])


def test_river_and_mabwiser_explore_as_much_with_epsilon() -> None:
    rewards = {1: [1, 0, 1, 1] * 5, 2: [0, 1, 0, 0] * 5, 3: [0, 0, 1, 1] * 5}
    policy = Policy(kind=PolicyKind.EPSILON_GREEDY, epsilon=0.3)
    ours = wished(
        policy, sums([20] * 3, [sum(values) / 20 for values in rewards.values()])
    )
    theirs = bandit.EpsilonGreedy(epsilon=0.3, reward_obj=stats.Mean(), seed=2)
    mab = MAB([1, 2, 3], LearningPolicy.EpsilonGreedy(epsilon=0.3), seed=2)
    mab.fit(
        [arm for arm, values in rewards.items() for _ in values],
        [value for values in rewards.values() for value in values],
    )
    for arm, values in rewards.items():
        for value in values:
            theirs.update(arm, value)
    pulls = 20_000
    for drawn in (
        [theirs.pull([1, 2, 3]) for _ in range(pulls)],
        [mab.predict() for _ in range(pulls)],
    ):
        seen = np.bincount(drawn, minlength=4)[1:] / pulls
        assert seen == pytest.approx(ours, abs=0.015)


def test_fractional_rewards_count_as_fractions() -> None:
    traffic = table(0.5, 0.5, discount=1.0)
    learnt = taught(traffic)
    for _ in range(10):
        learnt.observe(1, 0.25, traffic.policy)
    known = learnt.sums([1, 2], 1.0)
    assert known.count.tolist() == [10, 0]
    assert known.total.tolist() == [2.5, 0]
    assert known.squares.tolist() == [0.625, 0]


@pytest.mark.parametrize("reward", [-0.01, 1.01, math.nan, math.inf])
def test_a_reward_that_is_none_is_refused_and_changes_nothing(reward: float) -> None:
    traffic = table(0.5, 0.5)
    learnt = taught(traffic)
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        learnt.observe(1, reward, traffic.policy)
    assert learnt == taught(traffic)


def test_rewards_of_an_arm_that_left_do_not_count() -> None:
    traffic = table(0.5, 0.5)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.5, 2: 0.5}, 10)
    learnt.keep([1, 3])
    assert not learnt.observe(2, 1.0, traffic.policy)
    assert learnt.events == 20
    assert learnt.rewards == {1: 10, 3: 0}
    assert learnt.sums([1, 3], 1.0).count[1] == 0


def test_a_version_that_comes_back_begins_with_nothing_in_every_context() -> None:
    traffic = table(0.5, 0.5, contextual=True, discount=1.0)
    learnt = taught(traffic)
    for version in (1, 2, 2):
        learnt.observe(version, 1.0, traffic.policy, "eu")
    learnt.keep([1])
    learnt.keep([1, 2])
    assert learnt.sums([1, 2], 1.0).count.tolist() == [1, 0]
    assert learnt.context_sums([1, 2], 1.0).count.tolist() == [[1, 0]]


@given(st.lists(EVENT, max_size=60), st.floats(0.5, 1))
def test_what_was_learnt_fades_with_every_reward_of_the_model(
    events: list[tuple[int, float, str]], discount: float
) -> None:
    """The lazy form is the plain one: discount all arms, then add to one."""
    traffic = table(0.4, 0.3, 0.3, discount=discount, contextual=True)
    learnt = taught(traffic)
    expected = np.zeros((3, 3))
    for version, reward, region in events:
        learnt.observe(version, reward, traffic.policy, region)
        expected *= discount
        expected[:, version - 1] += 1, reward, reward * reward
    known = learnt.sums([1, 2, 3], discount).values
    assert known == pytest.approx(expected, abs=1e-9)
    apart = learnt.context_sums([1, 2, 3], discount).values.sum(1)
    assert (apart <= known + 1e-9).all()


@given(st.lists(EVENT, max_size=60), st.integers(0, 60))
def test_state_survives_json_to_the_bit(
    events: list[tuple[int, float, str]], cut: int
) -> None:
    traffic = table(0.4, 0.3, 0.3, contextual=True)
    straight, stopped = taught(traffic), taught(traffic)
    weights: Weights | None = None
    for number, (version, reward, region) in enumerate(events):
        straight.observe(version, reward, traffic.policy, region)
        stopped.observe(version, reward, traffic.policy, region)
        if number == cut:  # reading changes nothing, a restart changes nothing
            weights = refresh(traffic, stopped, weights)
            assert WEIGHTS.validate_json(WEIGHTS.dump_json(weights)) == weights
            stopped = LEARNT.validate_json(LEARNT.dump_json(stopped))
    assert stopped == straight
    assert LEARNT.dump_json(stopped) == LEARNT.dump_json(straight)
    assert refresh(traffic, stopped, weights) == refresh(traffic, straight, weights)


def test_an_arm_not_heard_of_for_long_is_uncertain_again() -> None:
    traffic = table(0.5, 0.5, floor=0.0, discount=0.99)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.6, 2: 0.4}, 300)
    assert settled(traffic, learnt).weights[1] < 0.05
    teach(traffic, learnt, {1: 0.6}, 600)
    assert settled(traffic, learnt).weights[1] > 0.3


def test_a_new_arm_keeps_its_share_until_it_has_had_its_rewards() -> None:
    traffic = table(0.9, 0.1, min_rewards=50, champion_min=0.5, cap=0.95)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.2, 2: 0.9}, 49)
    assert settled(traffic, learnt).weights == pytest.approx((0.9, 0.1))
    teach(traffic, learnt, {2: 1.0}, 1)
    assert settled(traffic, learnt).weights == pytest.approx((0.1, 0.9), abs=0.06)


def test_a_challenger_stays_below_its_ceiling_and_moves_in_steps() -> None:
    traffic = table(0.95, 0.05, challenger_ceiling=0.3, max_step=0.1)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.2, 2: 0.9}, 100)
    weights: Weights | None = None
    seen = []
    for _ in range(4):
        weights = refresh(traffic, learnt, weights)
        seen.append(weights.weights[1])
    assert seen == pytest.approx([0.15, 0.25, 0.3, 0.3])


def test_outstanding_pulls_keep_the_weights_spread() -> None:
    traffic = table(0.5, 0.5, floor=0.0, discount=1.0)
    learnt = taught(traffic)
    teach(traffic, learnt, {1: 0.4, 2: 0.5}, 200)
    sure = settled(traffic, learnt).weights[1]
    spread = settled(traffic, learnt, {1: 2000, 2: 2000}).weights[1]
    assert 0.5 < spread < sure - 0.05


def test_contexts_differ_where_they_have_rewards_and_agree_where_not() -> None:
    traffic = table(0.5, 0.5, contextual=True, shrinkage=20, discount=1.0, floor=0.02)
    learnt = taught(traffic)
    rng = np.random.default_rng(4)
    for _ in range(1500):
        region, version = str(rng.choice(["eu", "us"])), int(rng.integers(1, 3))
        best = {"eu": 1, "us": 2}[region]
        reward = float(rng.random() < (0.7 if version == best else 0.4))
        learnt.observe(version, reward, traffic.policy, region)
    learnt.observe(1, 1.0, traffic.policy, "new")
    weights = settled(traffic, learnt)
    assert weights.segments["eu"][0] > 0.9
    assert weights.segments["us"][1] > 0.9
    # One reward changes little: elsewhere, both are as good.
    assert weights.segments["new"][0] < 0.9
    assert all(sum(those) == pytest.approx(1) for those in weights.segments.values())


def test_shrinkage_goes_from_a_context_alone_to_all_alike() -> None:
    everything = sums([500.0, 400.0], [0.5, 0.6])
    apart = sums([[10.0, 0.0], [300.0, 5.0]], [[0.9, 0.0], [0.5, 0.2]])
    alone = drawn_together(apart, everything, 0.0)
    assert (alone.values == apart.values).all()
    alike = drawn_together(apart, everything, 1e9)
    assert alike.values == pytest.approx(
        np.broadcast_to(everything.values[:, None], apart.values.shape)
    )
    some = drawn_together(apart, everything, 50.0)
    assert some.count == pytest.approx(apart.count + 50)
    elsewhere = (500 * 0.5 - 9) / 490
    assert some.total[0, 0] == pytest.approx(9 + 50 * elsewhere)


def test_contexts_are_bounded_and_those_in_use_keep_or_get_a_place() -> None:
    traffic = table(0.5, 0.5, contextual=True, discount=0.999)
    learnt = taught(traffic)
    for number in range(12_000):  # a key that is different every time, and two regions
        region = ("eu", f"user-{number}", "late" if number > 2000 else "eu")[number % 3]
        learnt.observe(1 + number % 2, 0.5, traffic.policy, region)
        assert len(learnt.contexts) <= MAX_CONTEXTS
    assert "eu" in learnt.contexts
    assert "late" in learnt.contexts
    assert len(refresh(traffic, learnt, None).segments) <= MAX_CONTEXTS
    assert learnt.events == 12_000

"""No limit of a policy is ever exceeded, and each is met as soon as may be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.traffic.shaping import Limits, limits, project, shape
from gateway.traffic.table import ModelTraffic
from tests.traffic.tables import table

NEAR = 1e-9


@st.composite
def distributions(draw: st.DrawFn, arms: int) -> Any:
    weights = np.array([draw(st.floats(0, 1)) for _ in range(arms)])
    weights[draw(st.integers(0, arms - 1))] += 0.01
    return weights / weights.sum()


@st.composite
def tables(draw: st.DrawFn) -> ModelTraffic:
    """Any table that would be accepted."""
    arms = draw(st.integers(1, 6))
    shares = draw(distributions(arms))
    made = table(
        *shares,
        floor=draw(st.floats(0, 1 / arms)),
        cap=draw(st.floats(1 / arms, 1)),
        max_step=draw(st.floats(0.02, 1)),
        challenger_ceiling=draw(st.floats(0.05, 1)),
        champion_min=draw(st.floats(0, 1)),
        min_rewards=draw(st.sampled_from([0, 10])),
    )
    try:
        made.check()
    except InvalidRequest:
        assume(False)
    return made


@st.composite
def rewards(draw: st.DrawFn, arms: int) -> dict[int, int]:
    return {v: draw(st.sampled_from([0, 5, 10, 99])) for v in range(1, arms + 1)}


@given(tables(), st.data())
def test_limits_leave_room_and_say_what_the_policy_says(
    traffic: ModelTraffic, data: st.DataObject
) -> None:
    policy, arms = traffic.policy, traffic.arms
    had = data.draw(rewards(len(arms)))
    within = limits(traffic, had)
    assert (within.low <= within.high).all()
    assert within.low.sum() <= 1 + NEAR <= within.high.sum() + 2 * NEAR
    assert (within.low >= policy.floor).all()
    for place, arm in list(enumerate(arms))[1:]:
        most = min(policy.cap, policy.challenger_ceiling)
        if had[arm.version] < policy.min_rewards:
            most = max(policy.floor, min(most, arm.share))
        assert within.high[place] <= most + NEAR
    if any(had[arm.version] < policy.min_rewards for arm in arms[1:]):
        assert within.low[0] >= policy.champion_min
    # The champion exceeds its cap only for what nobody else may take.
    if within.high[0] > max(policy.cap, within.low[0]) + NEAR:
        assert within.high.sum() == pytest.approx(1)


@given(tables(), st.data())
def test_random_histories_never_break_a_limit_or_a_step(
    traffic: ModelTraffic, data: st.DataObject
) -> None:
    arms, step = len(traffic.arms), traffic.policy.max_step
    weights: Any = data.draw(distributions(arms))
    for _ in range(data.draw(st.integers(1, 5))):
        within = limits(traffic, data.draw(rewards(arms)))
        inside, before = within.hold(weights), weights
        weights = shape(data.draw(distributions(arms)), within, before, step)
        assert math.fsum(weights) == pytest.approx(1, abs=NEAR)
        assert min(weights) >= 0
        assert np.abs(np.subtract(weights, before)).max() <= step + NEAR
        assert within.hold(weights) or not inside


@given(tables(), st.data())
def test_weights_outside_new_limits_are_inside_after_as_few_steps_as_possible(
    traffic: ModelTraffic, data: st.DataObject
) -> None:
    arms, step = len(traffic.arms), traffic.policy.max_step
    within = limits(traffic, data.draw(rewards(arms)))
    weights: Any = data.draw(distributions(arms))
    way = np.abs(project(np.array(weights), within) - weights).max()
    steps = math.ceil(way / step - NEAR)
    for _ in range(max(steps, 1)):
        weights = shape(data.draw(distributions(arms)), within, weights, step)
    assert within.hold(weights)


@given(tables(), st.data())
def test_a_projection_is_the_nearest_point_allowed(
    traffic: ModelTraffic, data: st.DataObject
) -> None:
    arms = len(traffic.arms)
    within = limits(traffic, data.draw(rewards(arms)))
    wish = np.maximum(data.draw(distributions(arms)), NEAR)
    found = project(wish, within)
    assert within.hold(found)
    assert found.sum() == pytest.approx(1, abs=NEAR)
    other = project(data.draw(distributions(arms)), within)
    assert divergence(found, wish) <= divergence(other, wish) + 1e-7


def divergence(weights: Any, wish: Any) -> float:
    some = weights > 0
    return float((weights[some] * np.log(weights[some] / wish[some])).sum())


def test_what_a_capped_arm_gives_up_goes_to_the_next_best() -> None:
    within = Limits(np.full(3, 0.02), np.array([0.6, 1, 1]))
    got = project(np.array([0.9, 0.08, 0.02]), within)
    assert got == pytest.approx([0.6, 0.32, 0.08])


def test_a_new_floor_is_reached_in_straight_steps() -> None:
    traffic = table(1.0, 0.0, 0.0, floor=0.1, max_step=0.05)
    within = limits(traffic, {})
    weights: tuple[float, ...] = (1.0, 0.0, 0.0)
    seen = []
    for _ in range(5):
        weights = shape(np.array([1.0, 0, 0]), within, weights, 0.05)
        seen.append(weights)
    assert seen[0] == pytest.approx((0.95, 0.025, 0.025))
    assert seen[3] == pytest.approx((0.8, 0.1, 0.1))
    assert seen[4] == pytest.approx((0.8, 0.1, 0.1))


def test_a_floor_that_leaves_the_champion_too_little_is_refused() -> None:
    traffic = table(0.8, 0.1, 0.1, floor=0.1, champion_min=0.9)
    with pytest.raises(InvalidRequest, match="champion_min"):
        traffic.check()
    replace(traffic, policy=replace(traffic.policy, champion_min=0.8)).check()

"""What the controller learns from rewards, and what it refuses to learn from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from gateway.controller.learning import Learner, Reward
from gateway.errors import InvalidRequest
from gateway.traffic.offline import Unanswerable
from gateway.traffic.table import (
    Arm,
    ModelTraffic,
    Policy,
    PolicyKind,
    Role,
    Source,
)

TABLE = ModelTraffic(
    1,
    (Arm(2, Role.CHAMPION, 0.5), Arm(7, Role.CHALLENGER, 0.5)),
    Policy(PolicyKind.THOMPSON, contextual=True),
    segments=(Source("parameter", "country"),),
)


def reward(**changes: Any) -> Reward:
    return dataclasses.replace(Reward(7, 1.0, 0.5, 1.7e9, ("se",)), **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reward": 1.5}, "reward"),
        ({"reward": math.nan}, "reward"),
        ({"propensity": 0.0}, "propensity"),
        ({"propensity": 1e-12}, "propensity"),
        ({"propensity": math.nan}, "propensity"),
        ({"time": -5.0}, "time"),
        ({"time": math.nan}, "time"),
        ({"time": 1.7e12}, "time"),
        ({"segments": ("x" * 300,)}, "segments"),
        ({"segments": ("x",) * 9}, "segments"),
    ],
)
def test_what_cannot_have_come_of_a_decision_is_refused(
    changes: dict[str, Any], named: str
) -> None:
    learner = Learner(TABLE)
    before = learner.describe()
    with pytest.raises(InvalidRequest, match=f"item 1: {named}"):
        learner.reward([reward(), reward(**changes)])
    assert learner.describe() == before


def test_what_a_rule_chose_teaches_nothing() -> None:
    """Its propensity is 1 whatever the policy would have done: no such log is fair."""
    learner = Learner(TABLE)
    assert not learner.reward([reward(policy="rule", propensity=1.0)])
    with pytest.raises(Unanswerable, match="no rewards"):
        learner.estimate({7: 1.0})
    assert learner.describe()["arms"][1]["rewards"] == 0
    assert learner.reward([reward(policy="thompson")]) == 1
    assert learner.describe()["arms"][1]["rewards"] == 1


def test_a_version_that_is_no_arm_teaches_nothing() -> None:
    assert not Learner(TABLE).reward([reward(version=9)])


def test_segments_of_an_older_table_teach_of_the_arm_alone() -> None:
    learner = Learner(TABLE)
    assert learner.reward([reward(segments=("se", "web"))])
    assert not learner.state.learnt.contexts
    assert learner.reward([reward(segments=("se",))])
    assert learner.state.learnt.contexts


def test_an_arm_that_was_not_tried_goes_by_its_version() -> None:
    learner = Learner(TABLE)
    learner.reward([reward()] * 200)
    with pytest.raises(Unanswerable, match="version 2 was never chosen, so"):
        learner.estimate({2: 1.0})

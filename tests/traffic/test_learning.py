"""What the controller learns from rewards, and what it refuses to learn from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from gateway.controller.learning import (
    MAX_EARLIER,
    STATE,
    Learner,
    Reward,
    state_from,
)
from gateway.controller.learnt_files import LearntFiles
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


def test_an_arm_is_described_by_what_its_rewards_count_for() -> None:
    learner = Learner(TABLE)
    first, second = learner.describe()["arms"]
    assert (first["effective"], first["mean_reward"], first["best"]) == (0, None, None)
    versions = first["version"], second["version"]
    for _ in range(100):
        learner.reward([reward(version=versions[0], reward=0.5)])
        learner.reward([reward(version=versions[1], reward=1.0)])
    first, second = learner.describe()["arms"]
    discount = TABLE.policy.discount
    count = sum(discount ** (2 * age) for age in range(100))
    assert (first["rewards"], second["rewards"]) == (100, 100)
    assert second["effective"] == pytest.approx(count)
    assert first["effective"] == pytest.approx(count * discount)
    assert first["mean_reward"] == pytest.approx(0.5)
    assert second["mean_reward"] == pytest.approx(1.0)
    assert first["best"] + second["best"] == pytest.approx(1)
    assert second["best"] > 0.999  # Beta(49, 49) against Beta(96, 1), about


@pytest.mark.parametrize("policy", ["rule", "shadow"])
def test_what_was_not_drawn_teaches_nothing(policy: str) -> None:
    """Its propensity is 1 whatever the policy would have done: no such log is fair."""
    learner = Learner(TABLE)
    assert not learner.reward([reward(policy=policy, propensity=1.0)])
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
    with pytest.raises(Unanswerable, match="version 2 has no rewards here, so"):
        learner.estimate({2: 1.0})


def _shares(learner: Learner) -> list[float]:
    return [arm["weight"] for arm in learner.describe()["arms"]]


def _decide(*versions: int, frozen: bool = False) -> ModelTraffic:
    first, *others = versions
    arms = [
        Arm(first, Role.CHAMPION, 1.0),
        *(Arm(v, Role.CHALLENGER, 0) for v in others),
    ]
    policy = Policy(PolicyKind.THOMPSON, floor=0.05)
    return ModelTraffic(arms=tuple(arms), policy=policy, frozen=frozen)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_rollback_brings_back_what_was_learnt(frozen: bool, restarted: bool) -> None:
    learner = Learner(_decide(1, 2), None, 5)
    learner.reward([reward(version=2, segments=())] * 50)
    learner.reward([reward(version=1, reward=0.0, segments=())] * 50)
    learner.refresh(0.0)
    before, arms = _shares(learner), learner.describe()["arms"]
    assert before[1] > 0.9
    learner.adopt(_decide(3), 6)
    assert _shares(learner) == [1.0]
    if restarted:
        state = state_from(STATE.dump_json(learner.state))
        learner = Learner(_decide(3), state, 6)
    learner.adopt(_decide(1, 2, frozen=frozen), 5)
    assert _shares(learner) == before
    assert learner.describe()["arms"] == arms
    learner.reward([reward(version=2, reward=0.0, segments=())] * 50)
    learner.refresh(10.0)
    assert (_shares(learner) == before) == frozen, "it goes on from there"


@pytest.mark.parametrize("keep_segments", [False, True])
def test_a_rollback_brings_back_what_was_learnt_of_contexts(
    keep_segments: bool,
) -> None:
    learner = Learner(TABLE, None, 5)
    for country, good in (("se", 7), ("no", 2)):
        for version in (2, 7):
            item = reward(
                version=version, reward=float(version == good), segments=(country,)
            )
            learner.reward([item] * 400)
    learner.refresh(0.0)
    before = learner.weights
    assert before is not None
    assert before.segments["se"][1] > 0.9
    assert before.segments["no"][1] < 0.1
    assert learner.describe()["segments"] == [
        {"values": ["no"], "weights": list(before.segments["no"])},
        {"values": ["se"], "weights": list(before.segments["se"])},
    ]
    segments = TABLE.segments if keep_segments else ()
    policy = Policy(PolicyKind.THOMPSON)
    alone = (Arm(2, Role.CHAMPION, 1.0),)
    learner.adopt(
        dataclasses.replace(TABLE, arms=alone, policy=policy, segments=segments), 6
    )
    learner.refresh(10.0)
    learner = Learner(learner.traffic, state_from(STATE.dump_json(learner.state)), 6)
    learner.adopt(TABLE, 5)
    assert learner.weights == before
    learner.reward([reward(version=7, segments=("se",))])
    learner.refresh(20.0)
    assert learner.weights is not None
    assert learner.weights.segments["se"][1] > 0.9
    assert learner.weights.segments["no"][1] < 0.1


def test_the_same_arms_decided_on_anew_begin_anew() -> None:
    learner = Learner(_decide(1, 2), None, 5)
    learner.reward([reward(version=2, segments=())] * 50)
    learner.refresh(0.0)
    learner.adopt(_decide(3), 6)
    learner.adopt(_decide(1, 2), 7)
    assert _shares(learner) == [1.0 - 0.05, 0.05]
    assert [arm["rewards"] for arm in learner.describe()["arms"]] == [0, 0]


def test_other_shares_are_where_weights_begin_anew() -> None:
    """What was learnt stays, and moves them from there; limits alone move nothing."""
    learner = Learner(_decide(1, 2), None, 5)
    learner.reward([reward(version=2, segments=())] * 50)
    learner.reward([reward(version=1, reward=0.0, segments=())] * 50)
    learner.refresh(0.0)
    before = _shares(learner)
    assert before[1] > 0.9
    policy = Policy(PolicyKind.THOMPSON, floor=0.05, max_step=0.1)
    learner.adopt(dataclasses.replace(_decide(1, 2), policy=policy), 6)
    assert _shares(learner) == before
    arms = (Arm(1, Role.CHAMPION, 0.7), Arm(2, Role.CHALLENGER, 0.3))
    learner.adopt(ModelTraffic(arms=arms, policy=policy), 7)
    assert _shares(learner) == [0.7, 0.3]
    assert learner.describe()["arms"][1]["rewards"] == 50
    learner.refresh(10.0)
    assert _shares(learner) == pytest.approx([0.6, 0.4])


def test_of_earlier_decisions_only_the_last_are_known() -> None:
    learner = Learner(_decide(1, 2), None, 1)
    for decision in range(2, 100):
        learner.adopt(_decide(1, 2 + decision), decision)
    assert [*learner.state.earlier] == [*range(99 - MAX_EARLIER, 99)]


def test_weights_that_are_none_are_refused() -> None:
    learner = Learner(_decide(1, 2), None, 1)
    learner.adopt(_decide(1, 3), 2)
    learner.adopt(_decide(1, 4), 3)
    for weights in (learner.state.weights, learner.state.earlier[2].weights):
        assert weights is not None
        body = STATE.dump_json(learner.state)
        spoilt = body.replace(b"0.95", b"0.96", 1)
        assert spoilt != body
        with pytest.raises(ValueError, match="weights"):
            state_from(spoilt)
        learner.state.weights = None  # then those of an earlier one are the first


def test_other_segments_begin_anew() -> None:
    """The same values of another key are other contexts."""
    learner = Learner(TABLE)
    learner.reward([reward(version=2)] * 50)
    learner.refresh(0.0)
    assert learner.state.weights is not None
    assert learner.state.weights.segments
    language = (Source("parameter", "language"),)
    learner.adopt(dataclasses.replace(TABLE, segments=language), 2)
    assert not learner.state.learnt.contexts
    assert not learner.state.weights.segments
    assert learner.describe()["arms"][0]["rewards"] == 50
    learner.adopt(dataclasses.replace(TABLE, segments=language, frozen=True), 3)


def test_requests_without_rewards_are_remembered_for_a_while_only() -> None:
    policy = Policy(PolicyKind.THOMPSON, label_delay_s=1000.0, refresh_s=0.05)
    learner = Learner(dataclasses.replace(TABLE, policy=policy))
    notes = 0
    for tick in range(40_000):
        now_s = tick * 0.05
        if learner.wants_assigned(now_s):
            notes += 1
            learner.note_assigned(now_s, {2: tick, 7: 2 * tick})
            assert len(learner._assigned) <= 502
    assert 900 < notes < 1100
    # As much as came in the last 1000 s, to a step of theirs.
    assert learner.pending()[2] == pytest.approx(20_000, rel=0.01)
    assert learner.pending()[7] == pytest.approx(40_000, rel=0.01)
    assert not Learner(TABLE).wants_assigned(0.0), "rewards are there at once"


@pytest.mark.parametrize("model", ["m", "a/b c", "模" * 85, "x" * 255])
def test_what_is_kept_comes_back_whatever_the_model_is_called(
    tmp_path: Path, model: str
) -> None:
    files = LearntFiles(tmp_path / "learnt")
    assert files.read(model) is None
    learner = Learner(_decide(1, 2), None, 5)
    learner.reward([reward(version=2, segments=())] * 50)
    learner.refresh(0.0)
    files.write(model, STATE.dump_json(learner.state))
    assert files.read(model) == learner.state
    assert files.read(f"{model[:-1]}y") is None
    (file,) = (tmp_path / "learnt").iterdir()
    file.write_bytes(b"{")
    assert files.read(model) is None
    assert [one.suffix for one in (tmp_path / "learnt").iterdir()] == [".broken"]

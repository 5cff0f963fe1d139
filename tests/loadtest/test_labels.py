"""Rewards find their decisions, once each, and old ones make room."""

from __future__ import annotations

from loadtest.labels import CAPACITY, Labels


def decision(
    prediction: str, version: int = 1, role: str = "champion"
) -> dict[str, object]:
    return {
        "prediction_id": prediction,
        "version": version,
        "role": role,
        "policy": "thompson",
        "propensity": 0.25,
        "time": 5.0,
        "segments": ["eu"],
    }


def test_a_reward_goes_out_once_with_its_decision() -> None:
    labels = Labels()
    labels.note("a", 1.0)
    labels.note("b", 0.5)
    shadow = decision("a", 9, "shadow")
    listed = [decision("unknown"), decision("b", 2), shadow, decision("a")]
    found = labels.join(listed)
    assert [(i.version, i.reward, i.propensity) for i in found] == [
        (1, 1.0, 0.25),
        (2, 0.5, 0.25),
    ]
    assert [(i.time, list(i.segments)) for i in found] == [(5.0, ["eu"])] * 2
    assert labels.join(listed) == []
    assert labels.told == {1: 1, 2: 1}
    assert labels.earned == {1: 1.0, 2: 0.5}


def test_what_came_before_is_forgotten() -> None:
    labels = Labels()
    labels.note("a", 1.0)
    labels.forget()
    assert labels.join([decision("a")]) == []


def test_old_predictions_make_room() -> None:
    labels = Labels()
    for number in range(CAPACITY + 1):
        labels.note(str(number), 1.0)
    assert labels.join([decision("0")]) == []
    assert len(labels.join([decision("1"), decision(str(CAPACITY))])) == 2

"""The join: each of its rules, and random histories against their definition."""

from __future__ import annotations

import os
import random
import struct

import pytest
from pydantic import ValidationError

from gateway.feedback.pending import Effects
from gateway.feedback.types import Label, LabelKind, Reason, Status, Tensor
from gateway.feedback_config import JoinConfig
from tests.feedback.histories import (
    T0,
    Memory,
    config_of,
    history,
    interleaved,
    label,
    prediction,
)
from tests.feedback.oracle import Net, expected

HISTORIES = int(os.environ.get("JOIN_HISTORIES", "500"))


def net_of(effects: Effects) -> Net:
    """Return the rows that are left once all corrections are taken."""
    net: Net = {}
    for row in effects.outcomes:
        key = (row.id, row.version, row.role, row.row)
        value = dict(row.labels).get("label")
        said = (value, str(row.status), row.weight)
        if row.sign < 0:
            assert net.pop(key) == said
        else:
            assert key not in net
            net[key] = said  # type: ignore[assignment]
    return net


def test_random_histories_come_to_what_their_definition_says() -> None:
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        config, inputs = history(rng)
        memory = Memory(config)
        seen = {"predictions": 0, "labels": 0}
        for each in interleaved(rng, inputs):
            memory.feed([each])
            seen[each[0].topic] = each[0].arrived_ms - T0
            if rng.random() < 0.3:
                memory.advance(min(seen.values()))
        memory.advance(1_000_000)
        dead = {f"{d.stored.offset}:{d.reason}" for d in memory.effects.dead}
        assert (net_of(memory.effects), dead) == expected(config, inputs), seed
        assert not memory.state.pending, seed
        assert not memory.state.dangling, seed
        assert memory.state.held == 0, seed


def values(memory: Memory) -> list[tuple[int, object]]:
    return [(o.sign, dict(o.labels).get("label")) for o in memory.effects.outcomes]


def test_1_one_id_has_a_row_for_every_version() -> None:
    memory = Memory(config_of()).predict(prediction())
    memory.predict(prediction(version=2, role="shadow")).label(label(5.0))
    memory.advance(10_001)
    assert [(o.version, o.role) for o in memory.effects.outcomes] == [
        (1, "champion"),
        (2, "shadow"),
    ]
    assert values(memory) == [(1, 5.0), (1, 5.0)]


def test_2_a_row_carries_what_was_known_when_it_was_predicted() -> None:
    made = prediction(rows=2)._replace(propensity=0.25, snapshot=7, segments=("eu",))
    memory = Memory(config_of()).predict(made).advance(10_001)
    second = memory.effects.outcomes[1]
    assert (second.propensity, second.snapshot, second.segments) == (0.25, 7, ("eu",))
    assert second.output[0].data == made.outputs[0].data[4:]
    assert second.output[0].shape == (1,)


@pytest.mark.parametrize("conflict", ["first", "last", "sum", "max", "reject"])
def test_3_an_event_that_comes_twice_counts_once(conflict: str) -> None:
    memory = Memory(config_of(conflict=conflict)).predict(prediction())
    memory.predict(prediction()).label(label(2.0)).label(label(2.0)).advance(10_001)
    assert values(memory) == [(1, 2.0)]
    assert memory.effects.counts["duplicate"] == 1
    assert memory.effects.counts["predictions_again"] == 1


def test_4_a_label_waits_for_its_prediction() -> None:
    memory = Memory(config_of()).label(label(3.0, at=0))
    assert memory.state.held == 1
    memory.predict(prediction(), at=1000).advance(10_001)
    assert values(memory) == [(1, 3.0)]
    assert memory.state.held == 0


def test_1_a_label_names_its_prediction() -> None:
    made, at = label()
    memory = Memory(config_of()).label((made._replace(prediction_id=b""), at))
    assert [d.reason for d in memory.effects.dead] == [Reason.INVALID]


def test_2_a_row_of_text_is_cut_out_whole() -> None:
    data = b"".join(struct.pack("<I", len(t)) + t for t in (b"one", b"three"))
    made = prediction(rows=2)._replace(outputs=(Tensor("y", "BYTES", (2,), data),))
    memory = Memory(config_of()).predict(made).advance(10_001)
    said = [o.output[0].data for o in memory.effects.outcomes]
    assert said == [data[:7], data[7:]]


@pytest.mark.parametrize("order", [(1.0, 2.0), (2.0, 1.0)])
def test_5_last_does_not_depend_on_the_order(order: tuple[float, float]) -> None:
    memory = Memory(config_of()).predict(prediction())
    for value in order:
        memory.label(label(value, event=str(value)))
    assert values(memory.advance(10_001)) == [(1, 2.0)]


def test_16_classes_are_closed() -> None:
    config = config_of(labels={"label": {"type": "class", "classes": ["cat"]}})
    memory = Memory(config).predict(prediction())
    memory.label(label("dog")).label(label("cat"))  # type: ignore[arg-type]
    assert [d.reason for d in memory.effects.dead] == [Reason.INVALID]
    assert values(memory.advance(10_001)) == [(1, "cat")]


def test_5_a_sum_has_only_so_many_parts() -> None:
    memory = Memory(config_of(conflict="sum")).predict(prediction())
    for event in range(300):
        memory.label(label(1.0, event=str(event)))
    assert values(memory.advance(10_001)) == [(1, 256.0)]
    assert [d.reason for d in memory.effects.dead] == [Reason.OVERFLOW] * 44


@pytest.mark.parametrize("label_first", [True, False])
def test_4_a_label_waits_only_so_long(*, label_first: bool) -> None:
    early, memory = label(at=-100_000), Memory(config_of())
    if label_first:
        memory.label(early).predict(prediction(), at=20_001)
    else:
        memory.predict(prediction(), at=20_001).label(early)
    assert [d.reason for d in memory.effects.dead] == [Reason.ORPHAN]
    assert values(memory.advance(30_001)) == [(1, None)]


@pytest.mark.parametrize(
    ("conflict", "value"),
    [("first", 2.0), ("last", 1.0), ("sum", 6.0), ("max", 3.0), ("reject", 2.0)],
)
def test_5_different_values_are_settled_as_configured(
    conflict: str, value: float
) -> None:
    memory = Memory(config_of(conflict=conflict)).predict(prediction())
    for at, each in enumerate((2.0, 3.0, 1.0)):
        memory.label(label(each, event=str(at), time_ms=T0 + at))
    memory.advance(10_001)
    assert values(memory) == [(1, value)]
    conflicts = [d.reason for d in memory.effects.dead]
    assert conflicts == ([Reason.CONFLICT] * 2 if conflict == "reject" else [])


def test_5_sums_are_for_numbers() -> None:
    with pytest.raises(ValidationError, match="sum is for labels of type number"):
        JoinConfig(conflict="sum")


def test_6_a_correction_takes_the_old_row_back_in_its_cohort() -> None:
    memory = Memory(config_of()).predict(prediction()).label(label(1.0))
    memory.advance(10_001).label(label(2.0, seq=1, at=11_000))
    memory.label(label(None, seq=1, kind=LabelKind.RETRACTED, at=12_000))
    assert values(memory) == [(1, 1.0), (-1, 1.0), (1, 2.0), (-1, 2.0), (1, None)]
    assert len({o.cohort_ms for o in memory.effects.outcomes}) == 1
    assert [o.revision_of_row for o in memory.effects.outcomes] == [0, 0, 1, 1, 2]


def tombstone(at: int, event: str = "t") -> tuple[Label, int]:
    return label(None, kind=LabelKind.WITHDRAWN, event=event, at=at)


def test_6_a_tombstone_takes_back_all_that_came_before_it() -> None:
    config = config_of(labels={"label": {"type": "number"}, "two": {"type": "number"}})
    memory = Memory(config).predict(prediction(rows=2))
    for row in range(2):
        memory.label(label(1.0, row=row, seq=7)).label(label(2.0, row=row, name="two"))
    memory.label(tombstone(2000)).label(label(3.0, row=1, at=3000)).advance(10_001)
    assert [row.labels for row in memory.effects.outcomes] == [(), (("label", 3.0),)]
    memory.label(tombstone(11_000))
    assert [(row.sign, row.labels) for row in memory.effects.outcomes[2:]] == [
        (-1, (("label", 3.0),)),
        (1, ()),
    ]
    assert memory.effects.counts["applied"] == 7
    memory.label(tombstone(12_000)).label(tombstone(30_001))
    assert memory.effects.counts["duplicate"] == 1
    assert [d.reason for d in memory.effects.dead] == [Reason.LATE]


def test_6_a_tombstone_before_its_prediction_leaves_what_follows_it() -> None:
    memory = Memory(config_of()).label(label(1.0, at=0)).label(tombstone(1))
    memory.label(label(2.0, event="f", at=2)).predict(prediction(), at=1000)
    assert values(memory.advance(10_001)) == [(1, 2.0)]


def test_6_a_tombstone_leaves_what_was_acted_upon() -> None:
    memory = Memory(config_of(needs_activation=True)).predict(prediction())
    memory.label(label(None, kind=LabelKind.ACTIVATION)).label(tombstone(2000))
    assert values(memory.advance(10_001)) == [(1, None)]


def copy(made: tuple[Label, int], arrived: int, offset: int) -> tuple[Label, int]:
    """Return a label as forwarded."""
    return made[0]._replace(forwarded=(T0 + arrived, offset)), made[1]


def test_6_copies_of_what_a_tombstone_took_back_stay_taken_back() -> None:
    memory = Memory(config_of()).predict(prediction())
    before, after = label(1.0, at=1000), label(2.0, event="f", at=4000)
    gone = tombstone(2000)
    for made in (copy(before, 900, 4), copy(gone, 900, 5), copy(before, 900, 4)):
        memory.label(made)
    memory.label(copy(after, 900, 6)).label(copy(gone, 900, 5))
    memory.label(copy(before, 900, 4))
    assert memory.effects.counts == {"applied": 3, "superseded": 2, "duplicate": 1}
    assert values(memory.advance(10_001)) == [(1, 2.0)]
    # One that names the prediction itself stands where it lies.
    memory = Memory(config_of()).predict(prediction())
    memory.label(tombstone(1000)).label(copy(label(1.0), 1000, 4))
    assert values(memory.label(after).advance(10_001)) == [(1, 2.0)]


def test_7_a_label_after_the_window_corrects_and_later_is_a_dead_letter() -> None:
    memory = Memory(config_of()).predict(prediction())
    memory.label(label(1.0, at=10_001)).label(label(2.0, seq=1, at=30_001))
    assert values(memory) == [(1, None), (-1, None), (1, 1.0)]
    assert [d.reason for d in memory.effects.dead] == [Reason.LATE]


def test_7_a_label_of_a_forgotten_prediction_is_late() -> None:
    memory = Memory(config_of()).predict(prediction()).advance(30_001)
    assert not memory.state.pending
    memory.label(label(at=30_002)).advance(30_002 + 120_001)
    assert [d.reason for d in memory.effects.dead] == [Reason.LATE]


@pytest.mark.parametrize(
    ("default", "status"), [(None, Status.MISSING), (0.0, Status.DEFAULT)]
)
def test_8_a_label_that_never_came(default: float | None, status: Status) -> None:
    memory = Memory(config_of(default=default)).predict(prediction()).advance(10_001)
    assert [o.status for o in memory.effects.outcomes] == [status]
    assert values(memory) == [(1, default)]


def test_8_what_nobody_acted_upon_emits_nothing() -> None:
    memory = Memory(config_of(needs_activation=True))
    memory.predict(prediction(1)).predict(prediction(2))
    memory.label(label(None, 2, kind=LabelKind.ACTIVATION)).advance(10_001)
    assert [o.id for o in memory.effects.outcomes] == [prediction(2).id]


def test_9_no_row_comes_before_its_window_closes() -> None:
    memory = Memory(config_of()).predict(prediction()).label(label())
    assert not memory.advance(10_000).effects.outcomes
    assert memory.advance(10_001).effects.outcomes


def test_10_a_cohort_is_of_the_time_of_the_prediction() -> None:
    memory = Memory(config_of(cohort_s=7)).predict(prediction())
    memory.label(label(time_ms=T0 + 9000)).advance(10_001)
    (row,) = memory.effects.outcomes
    assert (row.cohort_ms, row.label_ms) == (T0 - T0 % 7000, T0 + 9000)


def test_14_a_clock_that_is_far_ahead_holds_no_window_open() -> None:
    memory = Memory(config_of())
    ahead = prediction(time_ms=T0 + 3_600_000)
    memory.predict(ahead).advance(10_001)
    (row,) = memory.effects.outcomes
    assert (row.id, row.time_ms) == (ahead.id, T0)
    assert memory.effects.counts["predictions_ahead"] == 1
    near = prediction(2, T0 + 5000)
    memory.predict(near).advance(15_001)
    assert memory.effects.outcomes[-1].time_ms == T0 + 5000


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (label(float("nan")), Reason.INVALID),
        (label("cat"), Reason.INVALID),  # type: ignore[arg-type]
        (label(name="other"), Reason.UNKNOWN_LABEL),
        (label(row=1), Reason.NO_SUCH_ROW),
    ],
)
def test_16_what_does_not_fit_is_a_dead_letter(
    made: tuple[Label, int], reason: Reason
) -> None:
    memory = Memory(config_of()).predict(prediction()).label(made).advance(10_001)
    assert [d.reason for d in memory.effects.dead] == [reason]
    assert values(memory) == [(1, None)]


def test_16_labels_that_wait_are_bounded() -> None:
    config = config_of().model_copy(update={"max_dangling": 1})
    memory = Memory(config).label(label(number=1)).label(label(number=2))
    assert [d.reason for d in memory.effects.dead] == [Reason.OVERFLOW]


def test_18_a_share_of_the_champion_is_joined_with_the_others_weight() -> None:
    memory = Memory(config_of(sample=0.25))
    for number in range(400):
        memory.predict(prediction(number)).label(label(1.0, number))
        memory.predict(prediction(number, version=2, role="shadow"))
    memory.advance(10_001)
    champions = [o for o in memory.effects.outcomes if o.role == "champion"]
    shadows = [o for o in memory.effects.outcomes if o.role == "shadow"]
    assert len(shadows) == 400
    assert 60 < len(champions) < 140
    assert {o.weight for o in champions} == {4.0}
    assert not memory.effects.dead


@pytest.mark.parametrize(("propensity", "joined"), [(0.49, 400), (0.5, None)])
def test_18_what_was_unlikely_to_be_chosen_is_always_joined(
    propensity: float, joined: int | None
) -> None:
    memory = Memory(config_of(sample=0.25))
    for number in range(400):
        memory.predict(prediction(number)._replace(propensity=propensity))
    rows = memory.advance(10_001).effects.outcomes
    if joined is None:
        assert 60 < len(rows) < 140
    else:
        assert len(rows) == joined
    assert {row.weight for row in rows} == {4.0 if joined is None else 1.0}


def test_19_a_label_without_a_prediction_is_an_orphan_in_the_end() -> None:
    memory = Memory(config_of()).label(label(at=0)).advance(120_000)
    assert not memory.effects.dead
    memory.advance(120_001)
    assert [d.reason for d in memory.effects.dead] == [Reason.ORPHAN]

"""Plain requests, kept as blocks, come to what a table of requests comes to."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.plain import Plain
from gateway.feedback.shard import Shard
from gateway.feedback.types import Label, LabelKind, Outcome, Prediction
from gateway.feedback_config import FeedbackConfig, JoinConfig, LabelConfig
from tests.feedback import histories
from tests.feedback.histories import T0, config_of
from tests.feedback.test_shard import END, Event, read

HISTORIES = int(os.environ.get("JOIN_HISTORIES", "500")) // 10
NUMBER = LabelConfig(type="number")
MANY = {
    "label": NUMBER,
    "z": NUMBER,
    "c": LabelConfig(type="class", classes=("x", "y")),
}


def settings(rng: random.Random) -> JoinConfig:
    conflict = rng.choice(["first", "last", "sum", "max", "reject"])
    alone = conflict in {"sum", "max"} or rng.random() < 0.5
    return JoinConfig.model_validate(
        {
            "labels": {"label": NUMBER} if alone else MANY,
            "window_s": rng.choice([5, 10, 60]),
            "lateness_s": rng.choice([0, 20]),
            "conflict": conflict,
            "default": rng.choice([None, 0.0]) if alone else None,
            "needs_activation": rng.random() < 0.2,
            "sample": rng.choice([1.0, 0.5]),
            "dangling_ttl_s": 120,
            "cohort_s": rng.choice([7, 3600]),
        }
    )


def prediction(rng: random.Random, number: int, time_ms: int) -> Prediction:
    shadow = rng.random() < 0.25
    one = histories.prediction(
        number,
        time_ms,
        rows=2 if number % 5 == 0 else 1,
        version=2 if shadow else 1,
        role="shadow" if shadow else "champion",
    )
    return one._replace(
        model="mnk"[number % 3],
        propensity=1.0 if number % 7 else 0.3,
        segments=("ab"[number % 2],),
        unit=str(number),
        bucket=number,
    )


def label(rng: random.Random, number: int, born_ms: int) -> Label:
    kind = rng.choices(list(LabelKind), [16, 2, 2, 1])[0]
    name = rng.choice(["label", "label", "z", "c"])
    made, _ = histories.label(
        None, number, born_ms=born_ms, kind=kind, name=name, seq=rng.randrange(2),
        event=str(rng.randrange(20)), time_ms=T0 + rng.randrange(4),
        row=0 if rng.random() < 0.9 else 1,
    )  # fmt: skip
    value: object = None
    if kind is LabelKind.VALUE:
        value = rng.choice("xy") if name == "c" else float(rng.randrange(3))
    weight = rng.choice([1.0, 2.0])
    return made._replace(value=value, weight=weight)  # type: ignore[arg-type]


def events_of(rng: random.Random) -> list[Event]:
    """Return what comes in, in order: of requests that are up to 12 s apart."""
    born = [T0 + rng.randrange(12_000) * rng.randrange(2) for _ in range(12)]
    made: list[Event] = []
    at, offsets = T0, Counter[str]()
    for _ in range(60):
        at += rng.choice([0, 1, 100, 1500])
        topic = PREDICTIONS if rng.random() < 0.35 else LABELS
        stored = histories.stored(topic, offsets[topic], at)
        offsets[topic] += 1
        if topic == LABELS:
            number = rng.randrange(12)
            made.append((stored, label(rng, number, born[number])))
        else:
            some = rng.sample(range(12), rng.randint(1, 5))
            made.append((stored, [prediction(rng, n, born[n]) for n in some]))
    return made


def net(rows: Iterable[Outcome]) -> dict[object, Counter[object]]:
    """Return the rows that are left once all corrections are taken."""
    left: dict[object, Counter[object]] = {}
    for row in rows:
        plain = row._replace(sign=1, revision_of_row=0, weight=round(row.weight, 9))
        left.setdefault((row.id, row.version, row.row), Counter())[plain] += row.sign
    return {key: +counts for key, counts in left.items()}


def joined(
    path: Path, config: FeedbackConfig, events: list[Event], rng: random.Random
) -> object:
    shard, at = Shard(path, 0, config), 0
    while at < len(events):
        size = rng.randint(1, 9)
        shard.apply(read(events[at : at + size]))
        at += size
        if rng.random() < 0.15:
            shard.close()
            shard = Shard(path, 0, config)
    shard.apply([], caught_up_ms=END)
    letters = [one.letter for one in shard.outbox()]  # type: ignore[union-attr]
    dead = sorted((one.stored.offset, str(one.reason)) for one in letters)
    counts = {name: n for name, n in shard.counts.items() if name != "corrected"}
    rows = net(row for _, row in shard.outcomes(most=100_000))
    found = rows, dead, counts, shard.gauges().pending
    shard.close()
    return found


def test_blocks_and_the_table_come_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models with windows and labels of their own, shadows, samples, clocks ahead."""
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        config = FeedbackConfig(
            models={"m": settings(rng), "n": settings(rng)}, default=settings(rng)
        )
        events = events_of(rng)
        plain = joined(tmp_path / f"{seed}.p", config, events, random.Random(seed))
        with monkeypatch.context() as patched:
            patched.setattr(
                Plain, "_is_plain", lambda _, __, block: np.zeros(block.count, bool)
            )
            table = joined(tmp_path / f"{seed}.t", config, events, random.Random(seed))
        assert plain == table, seed


def test_a_label_of_what_is_forgotten_is_nobody_elses(tmp_path: Path) -> None:
    """Notes of a slot outlive parts of it; numbers of parts are not used again."""
    config = FeedbackConfig(
        models={"n": JoinConfig(labels={"label": NUMBER}, window_s=10, lateness_s=0)},
        default=JoinConfig(labels={"label": NUMBER}, window_s=1000),
    )
    slow, quick, late = (histories.prediction(n) for n in range(3))
    said, _ = histories.label(7.0, 1)
    path = tmp_path / "0.db"
    shard = Shard(path, 0, config)
    events: list[Event] = [
        (histories.stored(PREDICTIONS, 0, T0), [slow]),
        (histories.stored(PREDICTIONS, 1, T0), [quick._replace(model="n")]),
        (histories.stored(LABELS, 0, T0 + 1000), said),
    ]
    shard.apply(read(events))
    shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 20_000))
    shard.close()
    shard = Shard(path, 0, config)
    shard.apply(read([(histories.stored(PREDICTIONS, 2, T0 + 20_000), [late])]))
    shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 1_001_000))
    rows = {row.id: row.labels for _, row in shard.outcomes()}
    assert rows == {slow.id: (), quick.id: (("label", 7.0),), late.id: ()}
    shard.close()


def test_ids_that_nobody_knows_take_no_memory(tmp_path: Path) -> None:
    shard, rng = Shard(tmp_path / "0.db", 0, config_of()), random.Random(5)
    for batch in range(5):
        labels: list[Event] = []
        for n in range(200):
            born = T0 - rng.randrange(10**9)
            said, _ = histories.label(1.0, rng.getrandbits(60), born_ms=born)
            labels.append((histories.stored(LABELS, batch * 200 + n, T0), said))
        shard.apply(read(labels))
    assert not shard._plain._slots._slots
    shard.close()


def test_slots_in_memory_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.feedback.shard.MOST_CACHED", 4000)
    shard = Shard(tmp_path / "0.db", 0, config_of(window_s=10_000))
    for step in range(50):
        at = T0 + 10_000 * step
        made = [histories.prediction(n, at) for n in range(20)]
        shard.apply(read([(histories.stored(PREDICTIONS, step, at), made)]))
        slots = shard._plain._slots
        held = sum(len(slot) + 64 for slot in slots._slots.values())
        assert slots._held == held <= 1000 + 84
    shard.close()

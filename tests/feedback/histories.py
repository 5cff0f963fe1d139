"""Predictions and labels to join, by hand and at random."""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Sequence

from gateway.feedback.block_writer import encode
from gateway.feedback.blocks import Answer, TensorLayout
from gateway.feedback.columns import Block
from gateway.feedback.join import Join
from gateway.feedback.pending import Effects, WorkingSet
from gateway.feedback.types import Event, Label, LabelKind, Prediction, Stored, Tensor
from gateway.feedback_config import FeedbackConfig, JoinConfig

T0 = 1_700_000_000_000
Input = tuple[Stored, Prediction | Label]


def id_of(time_ms: int, number: int) -> bytes:
    return time_ms.to_bytes(6) + bytes(2) + number.to_bytes(8)


def config_of(**settings: object) -> FeedbackConfig:
    labels = {"label": {"type": "number"}}
    base = {"labels": labels, "window_s": 10, "lateness_s": 20, "dangling_ttl_s": 120}
    return FeedbackConfig(default=JoinConfig.model_validate(base | settings))


def prediction(
    number: int = 1,
    time_ms: int = T0,
    *,
    rows: int = 1,
    version: int = 1,
    role: str = "champion",
) -> Prediction:
    data = struct.pack(f"<{rows}f", *range(rows))
    output = Tensor("y", "FP32", (rows, 1), data)
    return Prediction(
        id_of(time_ms, number), time_ms, "m", version, role, "rule", 1.0, 1, 0, "", -1,
        (), rows, (output,), (), 10, "", "",
    )  # fmt: skip


def block(predictions: Sequence[Prediction]) -> Block:
    """Return predictions as the log has them."""
    return Block(
        encode(
            [
                Answer(
                    str(uuid.UUID(bytes=one.id)).encode(),
                    one.model,
                    one.time_ms * 1_000_000,
                    one.latency_us,
                    one.rows,
                    one,
                    (one.unit, one.bucket, one.segments),
                    tuple([TensorLayout(*t[:2], t.shape[1:]) for t in one.outputs]),
                    [tensor.data for tensor in one.outputs],
                    one.request_id.encode(),
                )
                for one in predictions
            ]
        )
    )


def label(
    value: float | None = 1.0,
    number: int = 1,
    *,
    time_ms: int = T0,
    row: int = 0,
    seq: int = 0,
    event: str = "e",
    kind: LabelKind = LabelKind.VALUE,
    born_ms: int = T0,
    name: str = "label",
    at: int = 1000,
) -> tuple[Label, int]:
    made = Label(
        event, "s", id_of(born_ms, number), None, row, name, kind, value, seq,
        time_ms, 1.0,
    )  # fmt: skip
    return made, T0 + at


def stored(topic: str, offset: int, arrived_ms: int) -> Stored:
    return Stored(topic, 0, offset, arrived_ms, Event(b"k", b"v"))


class Memory:
    """A join on plain dictionaries."""

    def __init__(self, config: FeedbackConfig) -> None:
        self.state = WorkingSet()
        self.join = Join(config, self.state)

    @property
    def effects(self) -> Effects:
        return self.join.effects

    def feed(self, inputs: Sequence[Input]) -> Memory:
        for event, what in inputs:
            if isinstance(what, Prediction):
                self.join.predict(event.arrived_ms, what)
            else:
                self.join.label(event, what)
        return self

    def predict(self, made: Prediction, at: int = 0) -> Memory:
        return self.feed([(stored("predictions", 0, T0 + at), made)])

    def label(self, made: tuple[Label, int]) -> Memory:
        return self.feed([(stored("labels", 0, made[1]), made[0])])

    def advance(self, at: int) -> Memory:
        self.join.advance(T0 + at, sorted({*self.state.pending, *self.state.dangling}))
        return self


def history(rng: random.Random) -> tuple[FeedbackConfig, list[Input]]:
    """Return events of both topics, each in its order, one topic behind the other."""
    config = config_of(
        conflict=rng.choice(["first", "last", "sum", "max", "reject"]),
        default=rng.choice([None, 0.0]),
        needs_activation=rng.random() < 0.3,
        sample=rng.choice([1.0, 0.5]),
    )
    numbers = range(1, rng.randint(2, 5))
    made = []
    for number in numbers:
        rows = rng.randint(1, 3)
        for version, role in ((1, "champion"), (2, "shadow"))[: rng.randint(0, 2)]:
            one = prediction(number, T0, rows=rows, version=version, role=role)
            one = one._replace(propensity=rng.choice([1.0, 0.5, 0.25]))
            made += [one] * rng.choice([1, 1, 2])
    rng.shuffle(made)
    spread = rng.choice([5_000, 40_000, 200_000])
    arrivals = sorted(T0 + rng.randrange(0, spread) for _ in made)
    predictions: list[Input] = [
        (stored("predictions", at, arrived), one)
        for at, (arrived, one) in enumerate(zip(arrivals, made, strict=True))
    ]
    labels = []
    for event in range(rng.randint(0, 14)):
        kind = rng.choices(list(LabelKind), [8, 2, 2, 1])[0]
        value = float(rng.randrange(3)) if kind is LabelKind.VALUE else None
        one_label, _ = label(
            value, rng.choice(numbers), row=rng.randrange(3), seq=rng.randrange(2),
            time_ms=T0 + rng.randrange(4), event=str(event), kind=kind,
        )  # fmt: skip
        labels += [one_label] * rng.choice([1, 1, 2])
    rng.shuffle(labels)
    earliest = rng.choice([0, 0, -110_000])
    arrivals = sorted(T0 + rng.randrange(earliest, spread) for _ in labels)
    return config, predictions + [
        (stored("labels", at, arrived), one)
        for at, (arrived, one) in enumerate(zip(arrivals, labels, strict=True))
    ]


def interleaved(rng: random.Random, inputs: Sequence[Input]) -> list[Input]:
    """Return the same events with the two topics interleaved in some order."""
    queues = [
        [each for each in inputs if each[0].topic == topic]
        for topic in ("predictions", "labels")
    ]
    taken: list[Input] = []
    while any(queues):
        taken.append(rng.choice([queue for queue in queues if queue]).pop(0))
    return taken

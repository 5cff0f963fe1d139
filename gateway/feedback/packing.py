"""The join's state as bytes in a row; see `gateway.feedback.shard` for the layout.

Everything ends with its checksum: SQLite has some in its write-ahead log, but none in
the file itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gateway.feedback.checked import Damaged, dumped, loaded
from gateway.feedback.label_state import Known
from gateway.feedback.pending import Answers, Held, Pending
from gateway.feedback.types import (
    Alias,
    DeadLetter,
    Event,
    Label,
    LabelKind,
    Prediction,
    Reason,
    Stored,
    Tensor,
)

FORMAT = 3
"""Of everything in here; it also changes with the order of fields in `types`."""
Head = tuple[Any, ...]
"""What predictions have in common: strings, numbers, and the form of the outputs."""


def pack(value: object) -> bytes:
    """Return named tuples and plain values, within each other, as bytes."""
    return dumped(_plain(value))


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, str) else value


def head_from(packed: bytes) -> Head:
    """Return what `pack` made of a head."""
    head: Head = loaded(packed)
    return head


def pack_answers(answers: Answers, number_of: Callable[[Head], int]) -> bytes:
    """Return answers as bytes; `number_of` gives the number of a head."""
    # What changes from one request to the next is no part of the head.
    return dumped(
        [
            (
                number_of((one.version, one.role, one.policy, one.segments,
                           tuple([tensor[:3] for tensor in one.outputs]))),
                one.propensity, one.revision, one.snapshot, one.unit, one.bucket,
                *[tensor.data for tensor in one.outputs],
            )
            for one in answers.values()
        ]
    )  # fmt: skip


def heads_in(packed: bytes) -> Iterator[int]:
    """Return the numbers of the heads that `pack_answers` was given."""
    return (answer[0] for answer in loaded(packed))


def pack_labels(pending: Pending) -> bytes | None:
    """Return labels and revisions as bytes; most requests have none."""
    if not pending.labels and not pending.revisions:
        return None
    labels = [(at, known[:]) for at, known in pending.labels.items()]
    return dumped((labels, pending.revisions))


def pack_pending(
    key: bytes, due_ms: int, pending: Pending, number_of: Callable[[Head], int]
) -> tuple[object, ...]:
    """Return the columns of a request; `number_of` gives the number of a head."""
    return (
        key,
        due_ms,
        number_of((pending.model, pending.rows)),
        pending.time_ms,
        pending.arrived_ms - pending.time_ms,
        flags_of(pending),
        pack_answers(pending.answers, number_of),
        pack_labels(pending),
    )


def flags_of(pending: Pending) -> int:
    """Return what is true of a request, as bits."""
    return pending.activated | pending.closed << 1


def pending_from(columns: Sequence[Any], heads: Mapping[int, Head]) -> Pending:
    """Return what `pack_pending` was given; its answers are read when asked for."""
    key, _, number, time_ms, delay_ms, flags, answers, packed = columns
    try:
        model, rows = heads[number]
    except (KeyError, ValueError):
        raise Damaged("a request has no head") from None
    load = partial(_answers_from, answers, heads, (key, time_ms, model, rows))
    found = Pending(model, time_ms, rows, time_ms + delay_ms, load)
    found.activated, found.closed = bool(flags & 1), bool(flags & 2)
    if packed is not None:
        labels, found.revisions = loaded(packed)
        found.labels = {at: Known(*known) for at, known in labels}
    return found


def _answers_from(
    packed: bytes,
    heads: Mapping[int, Head],
    request: tuple[bytes, int, str, int],
) -> Answers:
    key, time_ms, model, rows = request
    found = {}
    for number, propensity, revision, snapshot, unit, bucket, *data in loaded(packed):
        try:
            version, role, policy, segments, forms = heads[number]
        except (KeyError, ValueError):
            raise Damaged("an answer has no head") from None
        outputs = tuple(
            [
                Tensor(name, datatype, shape, each)
                for (name, datatype, shape), each in zip(forms, data, strict=True)
            ]
        )
        found[version, role] = Prediction(
            key, time_ms, model, version, role, policy, propensity, revision,
            snapshot, unit, bucket, segments, rows, outputs, (), 0, "", "",
        )  # fmt: skip
    return found


def net(pending: Pending) -> object:
    """Return what of a request is a function of the events alone."""
    answers = [
        one._replace(inputs=(), latency_us=0, tenant="", request_id="")
        for _, one in sorted(pending.answers.items())
    ]
    return (
        pending.model, pending.time_ms, pending.rows, pending.arrived_ms, answers,
        sorted(pending.labels.items()), pending.activated, pending.closed,
    )  # fmt: skip


def pack_held(held: list[Held]) -> bytes:
    """Return labels that wait as bytes."""
    return pack(tuple(held))


def held_from(packed: bytes) -> list[Held]:
    """Return what `pack_held` was given."""
    return [Held(_stored(stored), _label(label)) for stored, label in loaded(packed)]


def event_from(packed: bytes) -> Event:
    """Return what `pack` made of an event."""
    return Event(*loaded(packed))


def dead_from(packed: bytes) -> DeadLetter:
    """Return what `pack` made of a dead letter."""
    stored, reason, detail, first_ms, attempts = loaded(packed)
    return DeadLetter(_stored(stored), Reason(reason), detail, first_ms, attempts)


def _stored(plain: Any) -> Stored:  # noqa: ANN401
    topic, partition, offset, arrived_ms, event = plain
    return Stored(topic, partition, offset, arrived_ms, Event(*event))


def _label(plain: Any) -> Label:  # noqa: ANN401
    label = Label(*plain)
    alias = None if label.alias is None else Alias(*label.alias)
    return label._replace(kind=LabelKind(label.kind), alias=alias)

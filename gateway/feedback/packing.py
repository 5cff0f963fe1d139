"""The join's state as bytes in a row; see `gateway.feedback.shard` for the layout."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Mapping
from typing import Any

from gateway.feedback.join import Held, Pending
from gateway.feedback.label_state import Known
from gateway.feedback.types import (
    Alias,
    DeadLetter,
    Event,
    Label,
    LabelKind,
    Outcome,
    Prediction,
    Reason,
    Status,
    Stored,
    Tensor,
)

FORMAT = 1
"""Of everything in here; it also changes with the order of fields in `types`."""
Head = tuple[Any, ...]
"""What predictions have in common: strings, numbers, and the form of the outputs."""


def pack(value: object) -> bytes:
    """Return named tuples and plain values, within each other, as bytes."""
    # Version 2 has no back references: equal values give equal bytes.
    plain: Any = _plain(value)
    return marshal.dumps(plain, 2)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, str) else value


def _load(packed: bytes) -> Any:  # noqa: ANN401
    return marshal.loads(packed)  # noqa: S302  # only what this module wrote


def head_from(packed: bytes) -> Head:
    """Return what `pack` made of a head."""
    head: Head = _load(packed)
    return head


def pack_pending(pending: Pending, number_of: Callable[[Head], int]) -> bytes:
    """Return a request as bytes; `number_of` gives the number of a head."""
    answers = []
    for one in pending.answers.values():
        outputs = tuple((t.name, t.datatype, t.shape) for t in one.outputs)
        head = (one.version, one.role, one.policy, one.revision, one.snapshot,
                one.segments, outputs)  # fmt: skip
        data = tuple(tensor.data for tensor in one.outputs)
        answers.append((number_of(head), one.propensity, one.unit, one.bucket, data))
    labels = tuple((at, tuple(known)) for at, known in pending.labels.items())
    # Names are told apart by the head: most requests have no label yet.
    return marshal.dumps(
        (
            number_of((pending.model, pending.rows)),
            pending.time_ms,
            pending.arrived_ms - pending.time_ms,
            pending.activated | pending.closed << 1,
            tuple(answers),
            labels,
            tuple(pending.revisions.items()),
        ),
        2,
    )


def pending_from(key: bytes, packed: bytes, heads: Mapping[int, Head]) -> Pending:
    """Return what `pack_pending` was given."""
    number, time_ms, delay_ms, flags, answers, labels, revisions = _load(packed)
    model, rows = heads[number]
    found = Pending(model, time_ms, rows, time_ms + delay_ms)
    found.activated, found.closed = bool(flags & 1), bool(flags & 2)
    for number, propensity, unit, bucket, data in answers:
        version, role, policy, revision, snapshot, segments, forms = heads[number]
        outputs = tuple(
            Tensor(name, datatype, shape, each)
            for (name, datatype, shape), each in zip(forms, data, strict=True)
        )
        found.answers[version, role] = Prediction(
            key, time_ms, model, version, role, policy, propensity, revision,
            snapshot, unit, bucket, segments, rows, outputs, (), 0, "", "",
        )  # fmt: skip
    found.labels = {at: Known(*known) for at, known in labels}
    found.revisions = dict(revisions)
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
    return [Held(_stored(stored), _label(label)) for stored, label in _load(packed)]


def dead_from(packed: bytes) -> DeadLetter:
    """Return what `pack` made of a dead letter."""
    stored, reason, detail, first_ms, attempts = _load(packed)
    return DeadLetter(_stored(stored), Reason(reason), detail, first_ms, attempts)


def pack_outcome(row: Outcome) -> bytes:
    """Return an outcome as bytes."""
    output = tuple(tensor[:] for tensor in row.output)
    return marshal.dumps(
        (*row[:14], output, *row[15:17], str(row.status), *row[18:]), 2
    )


def outcome_from(packed: bytes) -> Outcome:
    """Return what `pack_outcome` was given."""
    row = Outcome(*_load(packed))
    output = tuple(Tensor(*tensor) for tensor in row.output)
    return row._replace(output=output, status=Status(row.status))


def _stored(plain: Any) -> Stored:  # noqa: ANN401
    topic, partition, offset, arrived_ms, event = plain
    return Stored(topic, partition, offset, arrived_ms, Event(*event))


def _label(plain: Any) -> Label:  # noqa: ANN401
    label = Label(*plain)
    alias = None if label.alias is None else Alias(*label.alias)
    return label._replace(kind=LabelKind(label.kind), alias=alias)

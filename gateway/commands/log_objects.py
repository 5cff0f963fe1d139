"""Events and joined rows as JSON: what ``baton log`` prints and exports. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from featurizer.encode import decode_array
from gateway.call import nested
from gateway.feedback import cloudevents, columns, letters
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.types import Event, Label, Prediction, Stored, Tensor, Value
from gateway.protocol import outcomes_pb2 as pb

Values = Callable[[NDArray[np.generic], str], object]
"""Makes of an array and its datatype what stands for them in an object."""
_ANY_SIZE = 1 << 62
_ANY_PARTITION = 1 << 31


def objects(stored: Stored, values: Values = nested) -> Iterator[dict[str, Any]]:
    """Yield what an event says: an object per prediction, label or dead letter.

    Each has the event's ``partition``, ``offset`` and ``arrived_ms``. What cannot be
    decoded has ``error``, which says why, and ``event``, which is all that is there.

    Args:
        stored: Of any topic.
        values: For the tensors of predictions; nested lists unless given.
    """
    place: dict[str, Any] = {
        "partition": stored.partition,
        "offset": stored.offset,
        "arrived_ms": stored.arrived_ms,
    }
    event = stored.event
    try:
        if stored.topic == PREDICTIONS:
            # Decoded before the first is yielded: a bad block is an error as a whole.
            for prediction in columns.decode(event.value or b""):
                yield place | _prediction(prediction, values)
        elif stored.topic == LABELS:
            yield place | label_object(cloudevents.decode(event, _ANY_SIZE))
        else:
            yield place | _letter(event)
    except (ValueError, cloudevents.Rejected) as error:
        yield place | {"error": str(error), "event": _raw(event)}


def line(thing: dict[str, Any]) -> str:
    """Return an object as a line of JSON."""
    return json.dumps(thing, separators=(",", ":"))


def _prediction(one: Prediction, values: Values) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": str(UUID(bytes=one.id)),
        "time_ms": one.time_ms,
        "model": one.model,
        "version": one.version,
        "role": one.role,
        "policy": one.policy,
        "propensity": one.propensity,
        "revision": one.revision,
        "snapshot": one.snapshot,
        "unit": one.unit,
        "bucket": one.bucket,
        "segments": one.segments,
        "rows": one.rows,
        "outputs": {},
        "latency_us": one.latency_us,
        "request_id": one.request_id,
    }
    _add(found, "output", one.outputs, values)
    if one.inputs:
        _add(found, "input", one.inputs, values)
    return found


def _add(
    found: dict[str, Any], side: str, tensors: Iterable[Tensor], values: Values
) -> None:
    cells = found.setdefault(f"{side}s", {})
    for tensor in tensors:
        try:
            cells[tensor.name] = _values(tensor, values)
        except (ValueError, KeyError) as error:
            cells[tensor.name] = None
            found["error"] = f"{side} {tensor.name!r} cannot be decoded: {error}"


def row_objects(row: pb.JoinedRow, values: Values = nested) -> Iterator[dict[str, Any]]:
    """Yield a joined row: the one object that is made of it.

    Args:
        row: As the EventLog service has it.
        values: For its outputs; nested lists unless given.
    """
    found: dict[str, Any] = {
        "partition": row.partition,
        "number": row.number,
        "id": row.prediction_id,
        "row": row.row,
        "model": row.model,
        "version": row.version,
        "role": row.role,
        "policy": row.policy,
        "propensity": row.propensity,
        "revision": row.revision,
        "snapshot": row.snapshot,
        "unit": row.unit,
        "bucket": row.bucket,
        "segments": list(row.segments),
        "time_ms": row.time_ms,
        "cohort_ms": row.cohort_ms,
        "outputs": {},
        "labels": {one.label_name: label_value(one) for one in row.labels},
        "label_ms": row.label_ms if row.HasField("label_ms") else None,
        "status": row.status,
        "weight": row.weight,
        "sign": row.sign,
        "revision_of_row": row.revision_of_row,
        "provisional": row.provisional,
    }
    _add(
        found,
        "output",
        (Tensor(t.name, t.datatype, tuple(t.shape), t.data) for t in row.outputs),
        values,
    )
    yield found


def label_value(label: pb.LabelValue) -> Value | None:
    """Return what a label says; ``None`` where it was taken back."""
    kind = label.WhichOneof("value")
    if kind is None:
        return None
    if kind == "vector":
        return tuple(label.vector.values)
    value: Value = getattr(label, kind)
    return value


def _values(tensor: Tensor, values: Values) -> object:
    if not tensor.data and 0 not in tensor.shape:
        return None  # redacted
    array = decode_array(tensor.data, tensor.datatype, tensor.shape)
    return values(array, tensor.datatype)


def label_object(label: Label) -> dict[str, Any]:
    """Return a label event."""
    found: dict[str, Any] = {"id": label.event_id, "source": label.source}
    found["kind"] = label.kind.value
    if label.alias is None:
        found["prediction_id"] = str(UUID(bytes=label.prediction_id))
    else:
        found |= label.alias._asdict()
    found |= {"row": label.row, "label_name": label.name}
    if label.value is not None:
        found["value"] = label.value
    return found | {"seq": label.seq, "weight": label.weight, "time_ms": label.time_ms}


def _letter(event: Event) -> dict[str, Any]:
    was = letters.origin(event, _ANY_PARTITION)
    found: dict[str, Any] = {
        "reason": was.reason,
        "detail": was.detail,
        "origin": {
            "topic": was.topic,
            "partition": was.partition,
            "offset": was.offset,
        },
    }
    if was.topic == LABELS:
        try:
            return found | {
                "label": label_object(cloudevents.decode(was.event, _ANY_SIZE))
            }
        except cloudevents.Rejected:
            pass  # as its reason says
    return found | {"event": _raw(was.event)}


def _raw(event: Event) -> dict[str, Any]:
    """Return an event as it is; a value that is no UTF-8 is hexadecimal."""
    value: dict[str, Any] = {"value": None}
    if event.value is not None:
        try:
            value = {"value": event.value.decode()}
        except UnicodeDecodeError:
            value = {"value_hex": event.value.hex()}
    return {
        "key": event.key.decode(errors="backslashreplace"),
        "headers": {
            name: said.decode(errors="backslashreplace") for name, said in event.headers
        },
    } | value

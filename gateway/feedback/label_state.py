"""What is known of one label of one row, and what another event makes of it.

Each step is such that an event that comes again changes nothing: no set of events seen
has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from gateway.feedback.types import Label, LabelKind, Reason, Value
from gateway.feedback_config import JoinConfig, LabelConfig

MOST_PARTS = 256
"""Of one label that is summed up."""
_LONGEST_CLASS = 256
_LONGEST_VECTOR = 4096
TOMBSTONE = (-1, "")
"""Where, among a request's labels, its last tombstone is noted: no row is -1."""
_LAST = (1 << 63) - 1


class Known(NamedTuple):
    """A label as it stands.

    Attributes:
        seq: Of the events that it is made of.
        value: ``None`` once retracted.
        time_ms: Event time of the value.
        weight: Of the value.
        parts: Source, event id and value of each part of a sum.
    """

    seq: int
    value: Value | None
    time_ms: int
    weight: float
    parts: tuple[tuple[str, str, float], ...] = ()


class Verdict(StrEnum):
    """What became of an event."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    CONFLICT = "conflict"
    REJECTED = "rejected"
    FULL = "full"

    __hash__ = str.__hash__  # an enum's own is in Python; each event is counted


def fold(old: Known | None, label: Label, conflict: str) -> tuple[Known, Verdict]:
    """Return a label after another event, and what became of the event.

    A higher `seq` replaces all that was before it, a lower one is superseded. Of one
    `seq`, a retraction beats every value; among different values `conflict` decides.
    """
    new = _fresh(label, conflict)
    if old is None or label.seq > old.seq:
        return new, Verdict.APPLIED
    if label.seq < old.seq:
        return old, Verdict.SUPERSEDED
    retracted = label.kind is LabelKind.RETRACTED
    if old.value is None:
        return old, Verdict.DUPLICATE if retracted else Verdict.SUPERSEDED
    if retracted:
        return new, Verdict.APPLIED
    if conflict == "sum":
        return _add(old, new)
    return _choose(old, new, conflict)


def _fresh(label: Label, conflict: str) -> Known:
    parts: tuple[tuple[str, str, float], ...] = ()
    if conflict == "sum" and isinstance(label.value, float):
        parts = ((label.source, label.event_id, label.value),)
    return Known(label.seq, label.value, label.time_ms, label.weight, parts)


def _add(old: Known, new: Known) -> tuple[Known, Verdict]:
    (part,) = new.parts
    if any(part[:2] == known[:2] for known in old.parts):
        return old, Verdict.DUPLICATE
    if len(old.parts) >= MOST_PARTS:
        return old, Verdict.FULL
    parts = (*old.parts, part)
    total = math.fsum(value for _, _, value in parts)
    latest = max(old, new, key=lambda known: known.time_ms)
    return latest._replace(value=total, parts=parts), Verdict.APPLIED


def _choose(old: Known, new: Known, conflict: str) -> tuple[Known, Verdict]:
    same = old.value == new.value
    verdict = Verdict.DUPLICATE if same else Verdict.CONFLICT
    if conflict == "last":
        newer = (new.time_ms, repr(new.value)) > (old.time_ms, repr(old.value))
        return (new if newer else old), verdict
    if conflict == "max" and not same:
        return (new if _number(new) > _number(old) else old), verdict
    if conflict == "reject" and not same:
        return old, Verdict.REJECTED
    return old, verdict


def _number(known: Known) -> float:
    assert isinstance(known.value, float)  # the configuration allows no other
    return known.value


def take(
    labels: dict[tuple[int, str], Known], label: Label, arrived_ms: int, conflict: str
) -> Verdict:
    """Apply an event to a request's labels: a value, a retraction, or a tombstone.

    Args:
        labels: By row and name; changed.
        label: That fits the request.
        arrived_ms: When the log took it in.
        conflict: As in `fold`.
    """
    if label.kind is LabelKind.WITHDRAWN:
        return _withdraw(labels, label, arrived_ms)
    if _is_withdrawn(labels, label):
        return Verdict.SUPERSEDED
    at = (label.row, label.name)
    labels[at], verdict = fold(labels.get(at), label, conflict)
    return verdict


def _withdraw(
    labels: dict[tuple[int, str], Known], label: Label, arrived_ms: int
) -> Verdict:
    """Take back every label that came before a tombstone, whichever row it is of.

    The tombstone is noted, so that copies of labels that came before it are known.
    """
    if _is_withdrawn(labels, label):
        return Verdict.DUPLICATE
    time_ms, offset = label.forwarded or (arrived_ms, _LAST)
    noted = labels.pop(TOMBSTONE, None)
    if noted is not None:
        time_ms, offset = max((time_ms, offset), (noted.time_ms, noted.seq))
    said = any(known.value is not None for known in labels.values())
    labels.clear()
    labels[TOMBSTONE] = Known(offset, None, time_ms, 1.0)
    return Verdict.APPLIED if said else Verdict.DUPLICATE


def _is_withdrawn(labels: Mapping[tuple[int, str], Known], label: Label) -> bool:
    """Return whether a forwarded label came before the last tombstone.

    A forwarded one may come twice, and the second time after a tombstone that took the
    first back. What was appended under the prediction id comes where it lies.
    """
    noted = labels.get(TOMBSTONE)
    if noted is None or label.forwarded is None:
        return False
    return label.forwarded <= (noted.time_ms, noted.seq)


def misfit(label: Label, settings: JoinConfig, rows: int) -> tuple[Reason, str] | None:
    """Return why a label does not belong to a request, or ``None`` if it does."""
    config = settings.labels.get(label.name)
    if config is None:
        names = ", ".join(sorted(settings.labels))
        return Reason.UNKNOWN_LABEL, f"no label {label.name!r} (there are: {names})"
    if not 0 <= label.row < rows:
        return Reason.NO_SUCH_ROW, f"row {label.row} of {rows}"
    if label.kind is LabelKind.VALUE and not _fits(label.value, config):
        return Reason.INVALID, f"{label.name} takes a {config.type} as configured"
    return None


def _fits(value: Value | None, config: LabelConfig) -> bool:
    match value:
        case bool():
            return config.type == "bool"
        case str():
            known = not config.classes or value in config.classes
            return config.type == "class" and known and len(value) <= _LONGEST_CLASS
        case float():
            return config.type == "number" and math.isfinite(value)
        case tuple():
            sized = len(value) == config.length if config.length else True
            return (
                config.type == "vector"
                and sized
                and len(value) <= _LONGEST_VECTOR
                and all(map(math.isfinite, value))
            )
        case _:
            return False

"""What the join knows of a request, and the rows that it comes to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.feedback.label_state import Known
from gateway.feedback.rows import row_of
from gateway.feedback.sample import share_of
from gateway.feedback.thinning import Thinning
from gateway.feedback.types import (
    DeadLetter,
    Event,
    Label,
    Outcome,
    Prediction,
    Status,
    Stored,
    Tensor,
    Value,
)
from gateway.feedback_config import JoinConfig

Answers = dict[tuple[int, str], Prediction]
"""By version and role."""
RowKey = tuple[int, str, int]
"""Version, role and row."""


class Held(NamedTuple):
    """A label, with the event that it came in."""

    stored: Stored
    label: Label


@dataclass(slots=True)
class Pending:
    """A request whose labels may still come.

    Attributes:
        model: Of the request, as are `time_ms` and `rows`.
        arrived_ms: When the log took in the first of its predictions.
        load: Gives the answers there are so far; most labels never ask for them.
        labels: By row and name.
        activated: Somebody acted upon the answer.
        closed: Its window is; its rows are emitted.
        revisions: Of the emitted rows that were corrected.
    """

    model: str
    time_ms: int
    rows: int
    arrived_ms: int
    load: Callable[[], Answers] = dict
    labels: dict[tuple[int, str], Known] = field(default_factory=dict)
    activated: bool = False
    closed: bool = False
    revisions: dict[RowKey, int] = field(default_factory=dict)
    _answers: Answers | None = None

    @property
    def answers(self) -> Answers:
        """Those that are joined."""
        if self._answers is None:
            self._answers = self.load()
        return self._answers


@dataclass(slots=True)
class WorkingSet:
    """The part of a partition's state that a batch of events may touch.

    Attributes:
        pending: By prediction id.
        dangling: Labels without a prediction, in order, by prediction id.
        held: How many labels wait for a prediction in the whole partition.
        thinning: Says which requests were let in.
        changed: Ids whose state is not what it was.
        answered: Those of them that are new or have an answer more.
    """

    pending: dict[bytes, Pending] = field(default_factory=dict)
    dangling: dict[bytes, list[Held]] = field(default_factory=dict)
    held: int = 0
    thinning: Thinning = field(default_factory=Thinning)
    changed: set[bytes] = field(default_factory=set)
    answered: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Effects:
    """What a batch brought about.

    Attributes:
        outcomes: Rows, in the order in which they were emitted.
        dead: Labels that could not be used.
        forwarded: Labels to be appended under the id of their prediction.
        counts: Labels by what became of them.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    forwarded: list[Event] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def horizon_ms(settings: JoinConfig) -> int:
    """Return for how long after a prediction its labels are of use."""
    return (settings.window_s + settings.lateness_s) * 1000


def rows_of(
    key: bytes, pending: Pending, settings: JoinConfig, share: float = 1.0
) -> dict[RowKey, Outcome]:
    """Return what a request comes to, row by row, with the labels known now.

    Args:
        key: Its id.
        pending: The request.
        settings: Of its model.
        share: Of requests that were let in, when it was.
    """
    if settings.needs_activation and not pending.activated:
        return {}
    found: dict[RowKey, Outcome] = {}
    for row in range(pending.rows):
        labels, label_ms, weight, status = labels_of(pending.labels, row, settings)
        for (version, role), answer in sorted(pending.answers.items()):
            at = (version, role, row)
            output: tuple[Tensor, ...] = tuple(
                row_of(tensor, row) for tensor in answer.outputs
            )
            found[at] = Outcome(
                key,
                row,
                answer.model,
                version,
                role,
                answer.policy,
                answer.propensity,
                answer.revision,
                answer.snapshot,
                answer.unit,
                answer.bucket,
                answer.segments,
                answer.time_ms,
                answer.time_ms - answer.time_ms % (settings.cohort_s * 1000),
                output,
                labels,
                label_ms,
                status,
                weight / (share * share_of(answer.role, answer.propensity, settings)),
                1,
                pending.revisions.get(at, 0),
                provisional=False,
            )
    return found


Labels = tuple[tuple[tuple[str, Value], ...], int | None, float, Status]
"""Of a row: values by name, time and weight of the latest, and the status."""


def labels_of(
    known_of: Mapping[tuple[int, str], Known], row: int, settings: JoinConfig
) -> Labels:
    """Return the labels of a row, the time and weight of the latest, and the status."""
    values, latest, status = [], None, Status.LABELLED
    for name in sorted(settings.labels):
        known = known_of.get((row, name))
        if known is not None and known.value is not None:
            values.append((name, known.value))
            if latest is None or known.time_ms > latest.time_ms:
                latest = known
        elif settings.default is not None:
            values.append((name, settings.default))
            status = Status.DEFAULT
    if not values:
        status = Status.MISSING
    if latest is None:
        return tuple(values), None, 1.0, status
    return tuple(values), latest.time_ms, latest.weight, status

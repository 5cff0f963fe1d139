"""What the event log carries and what the join makes of it. Pure.

Times are Unix milliseconds, unless a name says otherwise. `arrived_ms` is when the
event log took an event in: it never goes back within a partition, and it alone decides
what came in time, so that a replay decides the same.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

Value = float | bool | str | tuple[float, ...]
"""Of a label: number, truth, class, vector."""


class Tensor(NamedTuple):
    """A tensor of a prediction, or one row of it.

    Attributes:
        name: Of the input or output.
        datatype: As in the Open Inference Protocol, ``FP32`` and so on.
        shape: With the rows first; of one row, without them.
        data: Little-endian elements; strings and bytes each behind their length
            (4 bytes), as on the wire. Empty where the model's owner redacted it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class Prediction(NamedTuple):
    """What one version answered to one request.

    The primary and every shadow have one each, with the same id.

    Attributes:
        id: 16 bytes, a UUIDv7 (RFC 9562).
        time_ms: When the request was admitted.
        model: Name the client used.
        version: That answered.
        role: ``champion``, ``challenger`` or ``shadow``.
        policy: Kind of the policy that chose it; ``rule`` for a rule of the table.
        propensity: Probability of the arm when it was chosen, in (0, 1].
        revision: Of the traffic table.
        snapshot: Of the policy's weights; 0 for the table's shares.
        unit: What the assignment sticks to; empty for none.
        bucket: Of the unit, -1 for none.
        segments: Values of the configured segments, empty where absent.
        rows: Of the request, at least 1.
        outputs: With all rows.
        inputs: Likewise where the request is in the sample, else empty.
        latency_us: From admission to the answer.
        tenant: Of the client; empty until there are tenants.
        request_id: The client's own; empty for none.
    """

    id: bytes
    time_ms: int
    model: str
    version: int
    role: str
    policy: str
    propensity: float
    revision: int
    snapshot: int
    unit: str
    bucket: int
    segments: tuple[str, ...]
    rows: int
    outputs: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    latency_us: int
    tenant: str
    request_id: str


class LabelKind(StrEnum):
    """What a label event says."""

    VALUE = "value"
    RETRACTED = "retracted"
    ACTIVATION = "activation"
    WITHDRAWN = "withdrawn"
    """A tombstone: every label of the prediction that came before it is taken back."""


class Alias(NamedTuple):
    """The client's own name for a prediction."""

    tenant: str
    model: str
    request_id: str


class Label(NamedTuple):
    """One ground-truth event.

    Attributes:
        event_id: Of the event; with `source` it says which events are the same one.
        source: Who says so.
        prediction_id: 16 bytes; empty if `alias` names the prediction.
        alias: The client's own name for it, or ``None``.
        row: Of the prediction.
        name: Of the label.
        kind: Value, retraction, or that the answer was acted upon.
        value: ``None`` unless `kind` is a value.
        seq: Higher ones supersede lower ones.
        time_ms: When it became true, as its source says.
        weight: Of the row in whatever is computed from it, finite and above 0.
        forwarded: When the log took in the event that this is a copy of, and its
            offset; ``None`` unless it named the prediction by an alias.
    """

    event_id: str
    source: str
    prediction_id: bytes
    alias: Alias | None
    row: int
    name: str
    kind: LabelKind
    value: Value | None
    seq: int
    time_ms: int
    weight: float
    forwarded: tuple[int, int] | None = None


class Status(StrEnum):
    """How a row came by its labels."""

    LABELLED = "labelled"
    MISSING = "missing"
    DEFAULT = "default"


class Outcome(NamedTuple):
    """A row of a prediction, joined: what monitors, policies and reports see.

    A correction is two of these in the cohort of the first: one that takes the old
    row back (`sign` -1) and one with the new values (`sign` 1).

    Attributes:
        id: Of the prediction.
        row: Of the prediction.
        model: Of the prediction, as all up to `time_ms`.
        cohort_ms: `time_ms`, rounded down to the model's cohorts.
        output: The row of every output.
        labels: By name, sorted by name; the default for one that never came, if so
            configured.
        label_ms: Event time of the latest label; ``None`` without any.
        status: How it came by its labels.
        weight: Of the label, over the share of predictions that are joined.
        sign: 1, or -1 for a row taken back.
        revision_of_row: 0 for the first, counting up.
        provisional: Its window is still open.
    """

    id: bytes
    row: int
    model: str
    version: int
    role: str
    policy: str
    propensity: float
    revision: int
    snapshot: int
    unit: str
    bucket: int
    segments: tuple[str, ...]
    time_ms: int
    cohort_ms: int
    output: tuple[Tensor, ...]
    labels: tuple[tuple[str, Value], ...]
    label_ms: int | None
    status: Status
    weight: float
    sign: int
    revision_of_row: int
    provisional: bool


class Reason(StrEnum):
    """Why an event went to the dead letters."""

    UNREADABLE = "unreadable"
    UNKNOWN_VERSION = "unknown_version"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    UNKNOWN_LABEL = "unknown_label"
    UNKNOWN_MODEL = "unknown_model"
    NO_SUCH_ROW = "no_such_row"
    CONFLICT = "conflict"
    LATE = "late"
    ORPHAN = "orphan"
    OVERFLOW = "overflow"


class Event(NamedTuple):
    """What is appended to the event log.

    Attributes:
        key: Decides the partition where none is given; may be empty.
        value: ``None`` for a tombstone.
        headers: In order; names may repeat.
        time_ms: Given by the producer; 0 for none.
    """

    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    time_ms: int = 0


class Stored(NamedTuple):
    """An event that the log has.

    Attributes:
        offset: Grows within a partition; gaps are what was lost, expired or compacted.
        arrived_ms: When the log took it in; see the module.
        event: As it was appended.
    """

    topic: str
    partition: int
    offset: int
    arrived_ms: int
    event: Event


class DeadLetter(NamedTuple):
    """An event that could not be used, and why.

    Attributes:
        stored: The event and where it lies.
        reason: For counters and scripts.
        detail: For people: what is wrong and the way out.
        first_ms: When it was first seen.
        attempts: How often it was tried.
    """

    stored: Stored
    reason: Reason
    detail: str
    first_ms: int
    attempts: int

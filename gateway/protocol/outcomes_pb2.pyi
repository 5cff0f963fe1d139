from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LabelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VALUE: _ClassVar[LabelKind]
    RETRACTED: _ClassVar[LabelKind]
    ACTIVATION: _ClassVar[LabelKind]
    WITHDRAWN: _ClassVar[LabelKind]
VALUE: LabelKind
RETRACTED: LabelKind
ACTIVATION: LabelKind
WITHDRAWN: LabelKind

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class LabelData(_message.Message):
    __slots__ = ("prediction_id", "tenant", "model", "request_id", "row", "label_name", "number", "truth", "text", "vector", "seq", "weight")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    LABEL_NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    tenant: str
    model: str
    request_id: str
    row: int
    label_name: str
    number: float
    truth: bool
    text: str
    vector: Vector
    seq: int
    weight: float
    def __init__(self, prediction_id: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., request_id: _Optional[str] = ..., row: _Optional[int] = ..., label_name: _Optional[str] = ..., number: _Optional[float] = ..., truth: _Optional[bool] = ..., text: _Optional[str] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ..., seq: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class LabelEvent(_message.Message):
    __slots__ = ("id", "source", "kind", "time_ms", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    source: str
    kind: LabelKind
    time_ms: int
    data: LabelData
    def __init__(self, id: _Optional[str] = ..., source: _Optional[str] = ..., kind: _Optional[_Union[LabelKind, str]] = ..., time_ms: _Optional[int] = ..., data: _Optional[_Union[LabelData, _Mapping]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("labels",)
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[LabelEvent]
    def __init__(self, labels: _Optional[_Iterable[_Union[LabelEvent, _Mapping]]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("place", "reason", "detail")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    place: int
    reason: str
    detail: str
    def __init__(self, place: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("taken", "refused", "refusals")
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    taken: int
    refused: int
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    def __init__(self, taken: _Optional[int] = ..., refused: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class StoredEvent(_message.Message):
    __slots__ = ("topic", "partition", "offset", "arrived_ms", "key", "value", "headers")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_MS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    offset: int
    arrived_ms: int
    key: bytes
    value: bytes
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., arrived_ms: _Optional[int] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("topic", "partition", "offset", "most")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    offset: int
    most: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., most: _Optional[int] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[StoredEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[StoredEvent, _Mapping]]] = ...) -> None: ...

class ExtentsRequest(_message.Message):
    __slots__ = ("topic",)
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    topic: str
    def __init__(self, topic: _Optional[str] = ...) -> None: ...

class PartitionExtent(_message.Message):
    __slots__ = ("start", "end", "elsewhere")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    elsewhere: bool
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., elsewhere: _Optional[bool] = ...) -> None: ...

class ExtentsResponse(_message.Message):
    __slots__ = ("partitions",)
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionExtent]
    def __init__(self, partitions: _Optional[_Iterable[_Union[PartitionExtent, _Mapping]]] = ...) -> None: ...

class ReplayRequest(_message.Message):
    __slots__ = ("partition", "offsets")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offsets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, partition: _Optional[int] = ..., offsets: _Optional[_Iterable[int]] = ...) -> None: ...

class ReplayResponse(_message.Message):
    __slots__ = ("replayed",)
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    replayed: int
    def __init__(self, replayed: _Optional[int] = ...) -> None: ...

class RowsRequest(_message.Message):
    __slots__ = ("partition", "start", "end", "model", "version", "status", "since_ms", "last")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    partition: int
    start: int
    end: int
    model: str
    version: int
    status: str
    since_ms: int
    last: int
    def __init__(self, partition: _Optional[int] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., status: _Optional[str] = ..., since_ms: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class RowsResponse(_message.Message):
    __slots__ = ("rows", "next")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[JoinedRow]
    next: int
    def __init__(self, rows: _Optional[_Iterable[_Union[JoinedRow, _Mapping]]] = ..., next: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class LabelValue(_message.Message):
    __slots__ = ("label_name", "number", "truth", "text", "vector")
    LABEL_NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    label_name: str
    number: float
    truth: bool
    text: str
    vector: Vector
    def __init__(self, label_name: _Optional[str] = ..., number: _Optional[float] = ..., truth: _Optional[bool] = ..., text: _Optional[str] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ...) -> None: ...

class JoinedRow(_message.Message):
    __slots__ = ("partition", "number", "prediction_id", "row", "model", "version", "role", "policy", "propensity", "revision", "snapshot", "unit", "bucket", "segments", "time_ms", "cohort_ms", "outputs", "labels", "label_ms", "status", "weight", "sign", "revision_of_row", "provisional")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    COHORT_MS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_MS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SIGN_FIELD_NUMBER: _ClassVar[int]
    REVISION_OF_ROW_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    partition: int
    number: int
    prediction_id: str
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
    segments: _containers.RepeatedScalarFieldContainer[str]
    time_ms: int
    cohort_ms: int
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    labels: _containers.RepeatedCompositeFieldContainer[LabelValue]
    label_ms: int
    status: str
    weight: float
    sign: int
    revision_of_row: int
    provisional: bool
    def __init__(self, partition: _Optional[int] = ..., number: _Optional[int] = ..., prediction_id: _Optional[str] = ..., row: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., role: _Optional[str] = ..., policy: _Optional[str] = ..., propensity: _Optional[float] = ..., revision: _Optional[int] = ..., snapshot: _Optional[int] = ..., unit: _Optional[str] = ..., bucket: _Optional[int] = ..., segments: _Optional[_Iterable[str]] = ..., time_ms: _Optional[int] = ..., cohort_ms: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., labels: _Optional[_Iterable[_Union[LabelValue, _Mapping]]] = ..., label_ms: _Optional[int] = ..., status: _Optional[str] = ..., weight: _Optional[float] = ..., sign: _Optional[int] = ..., revision_of_row: _Optional[int] = ..., provisional: _Optional[bool] = ...) -> None: ...

class LookRequest(_message.Message):
    __slots__ = ("prediction_id",)
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    def __init__(self, prediction_id: _Optional[str] = ...) -> None: ...

class LookResponse(_message.Message):
    __slots__ = ("partition", "known", "model", "time_ms", "arrived_ms", "rows", "closed", "closes_ms", "forgotten_ms", "activated", "needs_activation", "answers", "labels", "joined", "waiting", "left_out")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_MS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    CLOSES_MS_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATED_FIELD_NUMBER: _ClassVar[int]
    NEEDS_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    partition: int
    known: bool
    model: str
    time_ms: int
    arrived_ms: int
    rows: int
    closed: bool
    closes_ms: int
    forgotten_ms: int
    activated: bool
    needs_activation: bool
    answers: _containers.RepeatedCompositeFieldContainer[JoinedAnswer]
    labels: _containers.RepeatedCompositeFieldContainer[KnownLabel]
    joined: _containers.RepeatedCompositeFieldContainer[JoinedRow]
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingLabel]
    left_out: int
    def __init__(self, partition: _Optional[int] = ..., known: _Optional[bool] = ..., model: _Optional[str] = ..., time_ms: _Optional[int] = ..., arrived_ms: _Optional[int] = ..., rows: _Optional[int] = ..., closed: _Optional[bool] = ..., closes_ms: _Optional[int] = ..., forgotten_ms: _Optional[int] = ..., activated: _Optional[bool] = ..., needs_activation: _Optional[bool] = ..., answers: _Optional[_Iterable[_Union[JoinedAnswer, _Mapping]]] = ..., labels: _Optional[_Iterable[_Union[KnownLabel, _Mapping]]] = ..., joined: _Optional[_Iterable[_Union[JoinedRow, _Mapping]]] = ..., waiting: _Optional[_Iterable[_Union[WaitingLabel, _Mapping]]] = ..., left_out: _Optional[int] = ...) -> None: ...

class JoinedAnswer(_message.Message):
    __slots__ = ("version", "role", "policy", "propensity", "revision", "snapshot", "unit", "bucket", "segments")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    role: str
    policy: str
    propensity: float
    revision: int
    snapshot: int
    unit: str
    bucket: int
    segments: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., role: _Optional[str] = ..., policy: _Optional[str] = ..., propensity: _Optional[float] = ..., revision: _Optional[int] = ..., snapshot: _Optional[int] = ..., unit: _Optional[str] = ..., bucket: _Optional[int] = ..., segments: _Optional[_Iterable[str]] = ...) -> None: ...

class KnownLabel(_message.Message):
    __slots__ = ("row", "value", "seq", "time_ms", "weight", "parts")
    ROW_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    row: int
    value: LabelValue
    seq: int
    time_ms: int
    weight: float
    parts: _containers.RepeatedCompositeFieldContainer[LabelPart]
    def __init__(self, row: _Optional[int] = ..., value: _Optional[_Union[LabelValue, _Mapping]] = ..., seq: _Optional[int] = ..., time_ms: _Optional[int] = ..., weight: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[LabelPart, _Mapping]]] = ...) -> None: ...

class LabelPart(_message.Message):
    __slots__ = ("source", "id", "number")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    source: str
    id: str
    number: float
    def __init__(self, source: _Optional[str] = ..., id: _Optional[str] = ..., number: _Optional[float] = ...) -> None: ...

class WaitingLabel(_message.Message):
    __slots__ = ("event", "until_ms")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    event: StoredEvent
    until_ms: int
    def __init__(self, event: _Optional[_Union[StoredEvent, _Mapping]] = ..., until_ms: _Optional[int] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Block(_message.Message):
    __slots__ = ("ids", "after_ms", "latency_us", "rows", "origins", "origin", "units", "buckets", "segments", "segment", "request_ids", "layouts", "layout", "data", "sizes", "names")
    IDS_FIELD_NUMBER: _ClassVar[int]
    AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    after_ms: _containers.RepeatedScalarFieldContainer[int]
    latency_us: _containers.RepeatedScalarFieldContainer[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    origins: _containers.RepeatedCompositeFieldContainer[Origin]
    origin: _containers.RepeatedScalarFieldContainer[int]
    units: _containers.RepeatedScalarFieldContainer[str]
    buckets: _containers.RepeatedScalarFieldContainer[int]
    segments: _containers.RepeatedCompositeFieldContainer[Segments]
    segment: _containers.RepeatedScalarFieldContainer[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    layouts: _containers.RepeatedCompositeFieldContainer[Layout]
    layout: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    sizes: _containers.RepeatedScalarFieldContainer[int]
    names: Names
    def __init__(self, ids: _Optional[bytes] = ..., after_ms: _Optional[_Iterable[int]] = ..., latency_us: _Optional[_Iterable[int]] = ..., rows: _Optional[_Iterable[int]] = ..., origins: _Optional[_Iterable[_Union[Origin, _Mapping]]] = ..., origin: _Optional[_Iterable[int]] = ..., units: _Optional[_Iterable[str]] = ..., buckets: _Optional[_Iterable[int]] = ..., segments: _Optional[_Iterable[_Union[Segments, _Mapping]]] = ..., segment: _Optional[_Iterable[int]] = ..., request_ids: _Optional[_Iterable[str]] = ..., layouts: _Optional[_Iterable[_Union[Layout, _Mapping]]] = ..., layout: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., sizes: _Optional[_Iterable[int]] = ..., names: _Optional[_Union[Names, _Mapping]] = ...) -> None: ...

class Names(_message.Message):
    __slots__ = ("ids", "request_ids", "models", "model")
    IDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedScalarFieldContainer[str]
    model: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[bytes] = ..., request_ids: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[str]] = ..., model: _Optional[_Iterable[int]] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("model", "version", "role", "policy", "propensity", "revision", "snapshot")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    role: str
    policy: str
    propensity: float
    revision: int
    snapshot: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., role: _Optional[str] = ..., policy: _Optional[str] = ..., propensity: _Optional[float] = ..., revision: _Optional[int] = ..., snapshot: _Optional[int] = ...) -> None: ...

class Segments(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("tensors", "inputs")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Change(_message.Message):
    __slots__ = ("model", "reason", "actor", "expected_revision", "operation_id", "dry_run", "evidence_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_JSON_FIELD_NUMBER: _ClassVar[int]
    model: str
    reason: str
    actor: str
    expected_revision: int
    operation_id: str
    dry_run: bool
    evidence_json: str
    def __init__(self, model: _Optional[str] = ..., reason: _Optional[str] = ..., actor: _Optional[str] = ..., expected_revision: _Optional[int] = ..., operation_id: _Optional[str] = ..., dry_run: _Optional[bool] = ..., evidence_json: _Optional[str] = ...) -> None: ...

class ChangeResponse(_message.Message):
    __slots__ = ("revision", "diff", "applied", "refusal", "fronts", "versions", "audit_seq", "audit_hash", "notes", "model")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIFF_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FRONTS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_SEQ_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HASH_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    revision: int
    diff: _containers.RepeatedScalarFieldContainer[str]
    applied: bool
    refusal: str
    fronts: int
    versions: _containers.RepeatedScalarFieldContainer[int]
    audit_seq: int
    audit_hash: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, revision: _Optional[int] = ..., diff: _Optional[_Iterable[str]] = ..., applied: _Optional[bool] = ..., refusal: _Optional[str] = ..., fronts: _Optional[int] = ..., versions: _Optional[_Iterable[int]] = ..., audit_seq: _Optional[int] = ..., audit_hash: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("change", "source", "metadata_json", "require_approval")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_APPROVAL_FIELD_NUMBER: _ClassVar[int]
    change: Change
    source: str
    metadata_json: str
    require_approval: bool
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., source: _Optional[str] = ..., metadata_json: _Optional[str] = ..., require_approval: _Optional[bool] = ...) -> None: ...

class SetMetadataRequest(_message.Message):
    __slots__ = ("change", "version", "metadata_json")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METADATA_JSON_FIELD_NUMBER: _ClassVar[int]
    change: Change
    version: int
    metadata_json: str
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., version: _Optional[int] = ..., metadata_json: _Optional[str] = ...) -> None: ...

class ShowRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ShowResponse(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("change", "alias", "version")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    change: Change
    alias: str
    version: int
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., alias: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ApproveRequest(_message.Message):
    __slots__ = ("change", "version")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    change: Change
    version: int
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class RequireApprovalRequest(_message.Message):
    __slots__ = ("change", "required")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    change: Change
    required: bool
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., required: _Optional[bool] = ...) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("change", "traffic_json")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_JSON_FIELD_NUMBER: _ClassVar[int]
    change: Change
    traffic_json: str
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., traffic_json: _Optional[str] = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("change", "frozen")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    change: Change
    frozen: bool
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., frozen: _Optional[bool] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("change", "to_revision")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    TO_REVISION_FIELD_NUMBER: _ClassVar[int]
    change: Change
    to_revision: int
    def __init__(self, change: _Optional[_Union[Change, _Mapping]] = ..., to_revision: _Optional[int] = ...) -> None: ...

class RewardRequest(_message.Message):
    __slots__ = ("model", "items")
    class Item(_message.Message):
        __slots__ = ("version", "reward", "propensity", "time", "segments", "policy")
        VERSION_FIELD_NUMBER: _ClassVar[int]
        REWARD_FIELD_NUMBER: _ClassVar[int]
        PROPENSITY_FIELD_NUMBER: _ClassVar[int]
        TIME_FIELD_NUMBER: _ClassVar[int]
        SEGMENTS_FIELD_NUMBER: _ClassVar[int]
        POLICY_FIELD_NUMBER: _ClassVar[int]
        version: int
        reward: float
        propensity: float
        time: float
        segments: _containers.RepeatedScalarFieldContainer[str]
        policy: str
        def __init__(self, version: _Optional[int] = ..., reward: _Optional[float] = ..., propensity: _Optional[float] = ..., time: _Optional[float] = ..., segments: _Optional[_Iterable[str]] = ..., policy: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    model: str
    items: _containers.RepeatedCompositeFieldContainer[RewardRequest.Item]
    def __init__(self, model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[RewardRequest.Item, _Mapping]]] = ...) -> None: ...

class RewardResponse(_message.Message):
    __slots__ = ("taken", "ignored")
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    taken: int
    ignored: int
    def __init__(self, taken: _Optional[int] = ..., ignored: _Optional[int] = ...) -> None: ...

class DecisionsRequest(_message.Message):
    __slots__ = ("model", "limit")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    limit: int
    def __init__(self, model: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class EstimateRequest(_message.Message):
    __slots__ = ("model", "shares_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARES_JSON_FIELD_NUMBER: _ClassVar[int]
    model: str
    shares_json: str
    def __init__(self, model: _Optional[str] = ..., shares_json: _Optional[str] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ("before", "limit", "model", "operation_id")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    before: int
    limit: int
    model: str
    operation_id: str
    def __init__(self, before: _Optional[int] = ..., limit: _Optional[int] = ..., model: _Optional[str] = ..., operation_id: _Optional[str] = ...) -> None: ...

class AuditResponse(_message.Message):
    __slots__ = ("entries_json",)
    ENTRIES_JSON_FIELD_NUMBER: _ClassVar[int]
    entries_json: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, entries_json: _Optional[_Iterable[str]] = ...) -> None: ...

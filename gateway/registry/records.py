"""What the registry keeps of a model and its versions, and what goes into a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import ConfigDict, JsonValue, StringConstraints, TypeAdapter
from pydantic import ValidationError as PydanticError

from gateway.documents import first_fault
from gateway.errors import InvalidRequest
from gateway.registry.audit import canonical
from gateway.traffic.table import MODEL_TRAFFIC, ModelTraffic

MAX_METADATA_BYTES = 1 << 20
"""Bound of a version's metadata, as JSON."""

Text = Annotated[str, StringConstraints(max_length=4096)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a model's graph.

    Attributes:
        name: Its name.
        datatype: Protocol name, such as ``FP32``; ONNX's own where the protocol has
            none.
        shape: With the batch dimension; -1 where variable. ``None``: of any rank.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        inputs: Those that a request must bring.
        outputs: All of them.
    """

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version comes from.

    Attributes:
        source: Path or URL that it was imported from.
        code_commit: Of the training code.
        data_digest: Of the training data.
        run_id: Of the training run, where another system numbers them.
        parameters: Of the training.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: Text = ""
    code_commit: Text = ""
    data_digest: Text = ""
    run_id: Text = ""
    parameters: Mapping[str, Text] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What people say about a version; may change. JSON or YAML has these names.

    Attributes:
        description: For people.
        owner: Who answers for it.
        stage: Such as ``staging``; a word of the team, without effect.
        metrics: Offline results by name.
        feature_schema: What the features are.
        training_profile: Their distributions at training, for drift monitors.
        lineage: Where it comes from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    description: Text = ""
    owner: Text = ""
    stage: Text = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    feature_schema: Mapping[str, JsonValue] = field(default_factory=dict)
    training_profile: Mapping[str, JsonValue] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=Lineage)


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable artefact of a model, and what is said about it.

    Attributes:
        version: Its number; never given to other bytes.
        digest: Of the artefact in the store.
        signature: What it takes and gives.
        config: Its ``config.pbtxt``; empty for none.
        metadata: What people say about it.
        created_by: Who imported it.
        created: When, as in the audit log.
        approved_by: Who approved it; empty for nobody.
    """

    version: int
    digest: str
    signature: Signature
    config: str
    metadata: Metadata
    created_by: str
    created: str
    approved_by: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version to be imported; its artefact is in the store.

    Attributes:
        digest: Of the artefact.
        signature: What it takes and gives.
        version: Its number; ``None`` for the next one.
        config: Its ``config.pbtxt``; empty for none.
        metadata: What is said about it.
        notes: Worth telling: what was left out, and why.
        waits: Its source serves other versions of the model, and not this one.
    """

    digest: str
    signature: Signature
    version: int | None = None
    config: str = ""
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A model at one revision.

    Attributes:
        name: Its name.
        revision: Number of its last change.
        require_approval: Versions need an approver other than their importer before
            they get traffic.
        versions: By number, ascending.
        traffic: What was decided about its traffic; `ModelTraffic.revision` is that
            of the change that last touched it.
        effective: Revision that this traffic was decided in, which after a rollback
            is an earlier one.
    """

    name: str
    revision: int = 0
    require_approval: bool = False
    versions: Mapping[int, Version] = field(default_factory=dict)
    traffic: ModelTraffic = field(default_factory=ModelTraffic)
    effective: int = 0

    def may_serve(self, version: int) -> bool:
        """Return whether a version may answer clients."""
        found = self.versions.get(version)
        return found is not None and (
            not self.require_approval or bool(found.approved_by)
        )


@dataclass(frozen=True, slots=True)
class Change:
    """Who wants a change, why, and from where.

    Attributes:
        actor: Who.
        reason: Why; goes into the audit log.
        expected_revision: The model's revision that the change was made for; ``None``
            for whatever it is.
        operation_id: Of this attempt and its repetitions, which have no effect beyond
            the first; empty: each call is a change of its own.
        evidence: JSON object for the audit log.
        dry_run: Say what would happen, and change nothing.
        peer: Who asks, as the kernel knows it; goes into the audit log.
        seen: Revision and decision in force when it was prepared, by whoever carries
            it out; ``None``: it needed no preparation. Who rolled back since then does
            not find that undone.

    Repetitions of an operation may differ in the last two.
    """

    actor: str
    reason: str
    expected_revision: int | None = None
    operation_id: str = ""
    evidence: Mapping[str, JsonValue] = field(default_factory=dict)
    dry_run: bool = False
    peer: str = ""
    seen: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change did, or, of a dry run, would do.

    Attributes:
        model: Which model.
        revision: Its revision afterwards.
        seq: The audit entry; 0 of a dry run.
        hash: Of that entry; empty of a dry run.
        versions: The versions concerned, such as those imported.
        change: The difference, line by line.
        refusal: Of a dry run: why the change would be refused; empty if it would not.
        applied: It changed something: false of a dry run, and where all was so already.
    """

    model: str
    revision: int
    seq: int
    hash: str
    versions: tuple[int, ...]
    change: tuple[str, ...]
    refusal: str = ""
    applied: bool = False


METADATA = TypeAdapter(Metadata)
VERSION = TypeAdapter(Version)


def metadata_from(value: object, where: str = "metadata") -> Metadata:
    """Read metadata as JSON or YAML gave it.

    Raises:
        InvalidRequest: Names the first field that is wrong.
    """
    try:
        metadata = METADATA.validate_python(value)
        size = len(canonical(METADATA.dump_python(metadata, mode="json")))
    except PydanticError as error:
        raise InvalidRequest(f"{where}: {first_fault(error, Metadata)}") from error
    except ValueError as error:
        raise InvalidRequest(f"{where}: is not JSON: {error}") from error
    if size > MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"{where}: has {size} bytes, and at most {MAX_METADATA_BYTES} are kept; "
            "put the rest beside the model and name where"
        )
    return metadata


def with_fields(metadata: Metadata, fields: Mapping[str, object]) -> Metadata:
    """Return metadata with fields replaced; of the lineage, field by field.

    Raises:
        InvalidRequest: Names the first field that is wrong.
    """
    value: dict[str, object] = METADATA.dump_python(metadata, mode="json")
    known, given = value["lineage"], fields.get("lineage")
    merged = {**value, **fields}
    if isinstance(known, dict) and isinstance(given, dict):
        merged["lineage"] = {**known, **given}
    return metadata_from(merged)


def traffic_body(traffic: ModelTraffic) -> dict[str, object]:
    """Return traffic as JSON, with nothing left to chance: sets are sorted."""
    value: dict[str, object] = MODEL_TRAFFIC.dump_python(traffic, mode="json")
    rules = value["rules"]
    assert isinstance(rules, list)
    for rule in rules:
        rule["units"].sort()
    return value

"""The configuration of the event log and the join; a section of `gateway.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_SECTION = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
_Count = Annotated[int, Field(ge=1)]
_Bytes = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Feature = Annotated[str, Field(min_length=1)]
_Port = Annotated[int, Field(ge=0, le=65535)]


class KafkaConfig(BaseModel):
    """Where the event log's topics are, if not in the embedded log."""

    model_config = _SECTION

    bootstrap_servers: tuple[str, ...]
    """``host:port`` of some of the brokers."""
    topic_prefix: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9._-]*$", max_length=200)
    ] = "baton."
    """Before ``predictions``, ``labels`` and ``dlq``."""
    group: Annotated[str, Field(min_length=1)] = "baton"
    """Consumer group; controllers of one group share the partitions."""
    instance: str = ""
    """Name of this controller in the group, the same after a restart and no other's:
    its partitions then wait for it (static membership). Empty: none, partitions move
    as soon as it is gone."""
    replication: _Count = 1
    """Replicas of topics that are made because they are missing."""
    session_timeout_ms: Annotated[int, Field(ge=1000)] = 10_000
    """A controller that says nothing for this long loses its partitions."""
    stuck_after_s: _Count = 30
    """A consumer that reads nothing for this long although there is something to read
    is made anew."""
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Of the connection to the brokers."""
    ca: Path | None = None
    """PEM file with the authorities of the brokers; the system's if it is not set."""
    certificate: Path | None = None
    """PEM file with this client's certificate, where brokers ask for one."""
    key: Path | None = None
    """PEM file with its private key."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How the user shows who they are, with a SASL security."""
    username: str = ""
    """User, with a SASL security."""
    password_file: Path | None = None
    """File with the user's password, and nothing else, with a SASL security."""

    @model_validator(mode="after")
    def _complete(self) -> KafkaConfig:
        if not self.bootstrap_servers:
            raise ValueError("bootstrap_servers: name at least one broker")
        if self.security.startswith("SASL") and not (
            self.username and self.password_file
        ):
            raise ValueError("with a SASL security, give username and password_file")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class LabelConfig(BaseModel):
    """One label of a model."""

    model_config = _SECTION

    type: Literal["class", "number", "vector", "bool"] = "class"
    """``class``: text. ``vector``: numbers."""
    classes: tuple[str, ...] = ()
    """Classes there are; empty for any (each at most 256 characters)."""
    length: Annotated[int, Field(ge=0)] = 0
    """Numbers of a vector; 0 for any, up to 4096."""


class InputsConfig(BaseModel):
    """Which inputs of a model's requests go into the event log.

    Those of explored answers and of shadows always do: of every arm but the champion,
    and of what its policy was unlikely to choose (a propensity below 0.5).
    """

    model_config = _SECTION

    sample: _Share = 0.0
    """Share of the champion's other answers whose inputs do so too, by a hash of the
    prediction id."""
    redact: tuple[_Feature, ...] = ()
    """Inputs that never do: ``name``, or ``name[0]`` for one column of a tensor that
    has rows and columns. If one of them is none of a version's inputs, no input of that
    version is recorded: see `baton_log_predictions_total`."""
    hash: tuple[_Feature, ...] = ()
    """Inputs of which only a hash does, 32 hexadecimal digits for each element
    (BLAKE2b with the key of `hash_key_file`): named likewise, of BYTES alone."""

    @model_validator(mode="after")
    def _one_each(self) -> InputsConfig:
        both = sorted({*self.redact} & {*self.hash})
        if both:
            raise ValueError(f"{', '.join(both)}: either redact or hash it")
        return self


class JoinConfig(BaseModel):
    """How the labels of a model meet its predictions."""

    model_config = _SECTION

    labels: dict[str, LabelConfig] = {"label": LabelConfig()}
    """Labels there are, by name; others go to the dead letters."""
    window_s: _Count = 3600
    """How long a prediction waits for its labels. Its row is emitted when the window
    closes and not before, so that slow labels count as much as fast ones."""
    lateness_s: Annotated[int, Field(ge=0)] = 86_400
    """How long after that corrections are taken; later ones go to the dead letters."""
    conflict: Literal["first", "last", "sum", "max", "reject"] = "last"
    """What becomes of a second, different value: ``last`` is the highest `seq`, then
    the latest event time; ``sum`` and ``max`` are for numbers that come in parts."""
    default: float | bool | str | None = None
    """Value of a label that never came; without one its row says ``missing``."""
    needs_activation: bool = False
    """Only predictions that somebody acted upon (an activation event) are joined."""
    cohort_s: _Count = 3600
    """Rows are counted by the time of their prediction, in steps of this."""
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the champion's predictions that are joined, by a hash of the id, with
    the others' weight; explored and shadow predictions always are, and those that
    their policy was unlikely to choose (a propensity below 0.5)."""
    dangling_ttl_s: Annotated[int, Field(ge=120)] = 600
    """How long a label waits for its prediction."""
    inputs: InputsConfig | None = None
    """Inputs to record with the predictions; none unless this is set, and with ``{}``
    those of explored answers and shadows."""

    @model_validator(mode="after")
    def _default_fits(self) -> JoinConfig:
        default = self.default
        for name, label in self.labels.items() if default is not None else ():
            match default:
                case bool():
                    fits = label.type == "bool"
                case str():
                    known = not label.classes or default in label.classes
                    fits = label.type == "class" and known
                case _:
                    fits = label.type == "number"
            if not fits:
                classes = f" ({', '.join(label.classes)})" if label.classes else ""
                raise ValueError(
                    f"default: {default!r} is no value of {name}, a {label.type}"
                    f"{classes}"
                )
        return self

    @model_validator(mode="after")
    def _in_parts(self) -> JoinConfig:
        if self.conflict in ("sum", "max"):
            others = [n for n, label in self.labels.items() if label.type != "number"]
            if others:
                raise ValueError(
                    f"conflict: {self.conflict} is for labels of type number; "
                    f"{', '.join(others)} is of another"
                )
        return self


class FeedbackConfig(BaseModel):
    """The event log and the join of labels to predictions."""

    model_config = _SECTION

    enabled: bool = False
    """Record predictions in the event log and join labels to them."""
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    """Of each topic. It cannot change later: labels would miss their predictions."""
    kafka: KafkaConfig | None = None
    """Brokers that hold the event log; without them it is a file in `state_dir`."""
    retention_h: _Count = 24 * 30
    """How long the embedded log keeps events; Kafka's topics say so themselves."""
    max_log_bytes: _Bytes = 8 << 30
    """Size at which the embedded log drops its oldest events before their time."""
    block_rows: Annotated[int, Field(ge=1, le=65_536)] = 1024
    """Predictions that a front sends together, at most."""
    block_ms: Annotated[int, Field(ge=1)] = 50
    """How long one waits for others, at most."""
    ring_bytes: _Bytes = 64 << 20
    """What a front keeps while the log does not take it; more is dropped, counted."""
    hash_key_file: Path | None = None
    """Secret with which inputs are hashed, at least 16 random bytes, so that a hash
    cannot be looked up without it; the same everywhere where hashes are to be compared.
    Unless it is set, ``inputs.key`` in `state_dir` is made."""
    host: str = "127.0.0.1"
    """Address of `port`."""
    port: _Port | None = None
    """TCP port of the Outcomes service, where labels come in over gRPC; 0 takes a free
    one. It always listens on ``outcomes.sock`` in `state_dir`."""
    by_request_id: bool = False
    """Labels may name the client's own request id instead of the prediction's: fronts
    note which prediction each is. Ids have to be unique within window_s and lateness_s
    of a model; of two requests with one id, the first has its labels."""
    max_label_bytes: _Bytes = 64 << 10
    """Largest label event that is taken."""
    max_pending: _Count = 10_000_000
    """Requests of one partition whose labels may still come, about. From three quarters
    of it on, a sample of them is joined that halves as it fills, with as much more
    weight; the others' labels are counted."""
    max_dangling: _Count = 1_000_000
    """Labels of one partition that wait for predictions; more are dead letters."""
    max_outcomes: _Count = 1_000_000
    """Joined rows of one partition that are kept; older ones make room."""
    models: dict[str, JoinConfig] = {}
    """How the labels of each model meet its predictions."""
    default: JoinConfig = JoinConfig()
    """The same for models that are not named."""

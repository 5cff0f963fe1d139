"""The configuration of the event log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_SECTION = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
_Count = Annotated[int, Field(ge=1)]


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

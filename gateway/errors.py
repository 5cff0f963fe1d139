"""Errors a client may see. Each knows its gRPC code and whether a retry may help."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """gRPC status codes (grpc/grpc, doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GatewayError(Exception):
    """An error with a status. The message is for the client; it holds no secrets.

    Attributes:
        code: gRPC status code.
        label: Value of the ``outcome`` label in metrics.
        pushback_ms: Milliseconds the client should wait before a retry, sent as
            ``grpc-retry-pushback-ms``; ``None`` to leave it to the client.
    """

    code: ClassVar[Code] = Code.INTERNAL
    label: ClassVar[str] = "internal"

    def __init__(self, message: str, *, pushback_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.pushback_ms = pushback_ms


class InvalidRequest(GatewayError):
    """The request itself is wrong; the same request will fail again."""

    code = Code.INVALID_ARGUMENT
    label = "invalid"


class UnknownModel(GatewayError):
    """No such model or version is known."""

    code = Code.NOT_FOUND
    label = "not_found"


def unknown_model(name: str) -> UnknownModel:
    """Return the error about a model that is not there, in Triton's words."""
    text = f"Request for unknown model: '{name}' is not found"
    return UnknownModel(text if name else f"{text} (the request names no model)")


class NotReady(GatewayError):
    """The version is known and does not serve now."""

    code = Code.UNAVAILABLE
    label = "not_ready"


class QueueFull(GatewayError):
    """The model has as much work in flight as it may."""

    code = Code.UNAVAILABLE
    label = "queue_full"


class TooLarge(GatewayError):
    """A message, or the bytes in flight, would exceed a limit of the process."""

    code = Code.RESOURCE_EXHAUSTED
    label = "too_large"


class QueueTimeout(GatewayError):
    """The ``timeout`` parameter passed while the request was still queued."""

    code = Code.UNAVAILABLE
    label = "queue_timeout"


class DeadlineExceeded(GatewayError):
    """The deadline passed before an answer was there."""

    code = Code.DEADLINE_EXCEEDED
    label = "deadline"


class WorkerLost(GatewayError):
    """The workers that ran the request died, and no attempt is left."""

    code = Code.UNAVAILABLE
    label = "worker_lost"


class Draining(GatewayError):
    """This process is going away; another one should be asked."""

    code = Code.UNAVAILABLE
    label = "draining"


class ModelFailed(GatewayError):
    """The model raised an error on a valid request."""

    code = Code.INTERNAL
    label = "model_failed"


class Unsupported(GatewayError):
    """The RPC or mode is part of the protocol, and Baton does not have it."""

    code = Code.UNIMPLEMENTED
    label = "unsupported"


class LoadFailed(GatewayError):
    """A model could not be loaded; what served before goes on serving."""

    code = Code.FAILED_PRECONDITION
    label = "load_failed"


class RevisionConflict(GatewayError):
    """The state is not the one that the change was meant for."""

    code = Code.ABORTED
    label = "conflict"


class ChangeRefused(GatewayError):
    """A rule of the registry forbids the change as things stand."""

    code = Code.FAILED_PRECONDITION
    label = "refused"


class RegistryUnavailable(GatewayError):
    """The registry cannot be read or written; nothing was changed."""

    code = Code.UNAVAILABLE
    label = "registry"

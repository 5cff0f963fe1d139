"""A request that was admitted and waits for its one outcome."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import GatewayError
from workers.wire import Buffer

if TYPE_CHECKING:
    from gateway.serving.queues import VersionQueue


class Phase(IntEnum):
    """Where a request stands."""

    QUEUED = 0
    RUNNING = 1
    REQUEUED = 2
    DONE = 3


class RowTensor(NamedTuple):
    """The rows one request gets of one output: full shape and raw bytes."""

    dims: tuple[int, ...]
    data: Buffer


class Timing(NamedTuple):
    """Nanoseconds of the batch a request ran in."""

    input_ns: int
    infer_ns: int
    output_ns: int


class Pending:
    """One admitted request: its rows, its limits, and whom to tell.

    Attributes:
        queue: The queue of the version that serves it, from `submit` on.
        rows: Rows in the batch dimension; 1 where there is none.
        inputs: Per present input: spec index, full shape, raw bytes.
        shape_key: Equal for requests that may share a batch.
        nbytes: Input bytes.
        level: Priority level, 0 the most urgent.
        admitted_ns: When it was admitted.
        sent_ns: When its batch left for a worker; 0 before.
        queue_deadline_ns: When it must have left the queue; 0 for never.
        deadline_ns: When it must have its outcome.
        expires_ns: The instant it is registered for in the deadline wheel.
        attempts: Workers that died while it may have been running.
        phase: Where it stands.
        on_result: Called once on success, with outputs that are valid only during
            the call.
        on_error: Called once on failure.
    """

    __slots__ = (
        "admitted_ns",
        "attempts",
        "deadline_ns",
        "expires_ns",
        "inputs",
        "level",
        "nbytes",
        "on_error",
        "on_result",
        "phase",
        "queue",
        "queue_deadline_ns",
        "rows",
        "sent_ns",
        "shape_key",
    )

    def __init__(
        self,
        *,
        rows: int,
        inputs: list[tuple[int, tuple[int, ...], Buffer]],
        shape_key: tuple[object, ...],
        nbytes: int,
        level: int,
        admitted_ns: int,
        queue_deadline_ns: int,
        deadline_ns: int,
        on_result: Callable[[Pending, list[RowTensor], Timing], None],
        on_error: Callable[[Pending, GatewayError], None],
    ) -> None:
        self.queue: VersionQueue | None = None
        self.rows = rows
        self.inputs = inputs
        self.shape_key = shape_key
        self.nbytes = nbytes
        self.level = level
        self.admitted_ns = admitted_ns
        self.sent_ns = 0
        self.queue_deadline_ns = queue_deadline_ns
        self.deadline_ns = deadline_ns
        self.expires_ns = 0
        self.attempts = 0
        self.phase = Phase.QUEUED
        self.on_result = on_result
        self.on_error = on_error

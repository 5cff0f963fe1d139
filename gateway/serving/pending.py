"""A request that was admitted and waits for its one outcome."""

from __future__ import annotations

from abc import abstractmethod
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import GatewayError
from workers.wire import Buffer

if TYPE_CHECKING:
    from gateway.serving.queues import VersionQueue
    from gateway.serving.rows import BatchRows


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
    """One admitted request: its rows and its limits. Who waits for it derives from it.

    What few requests ever need is a class-level default, so that making one costs
    only what all need.

    Args:
        rows: Rows in the batch dimension; 1 where there is none.
        inputs: Per present input: spec index, full shape, raw bytes.
        shape_key: Equal for requests that may share a batch.
        nbytes: Input bytes.
        level: Priority level, 0 the most urgent.
        admitted_ns: When it was admitted.
        queue_deadline_ns: When it must have left the queue; 0 for never.
        deadline_ns: When it must have its outcome.

    Attributes:
        queue: The queue of the version that serves it, from `submit` on.
        sent_ns: When its batch left for a worker; 0 before.
        expires_ns: When it fails if it still waits: the earlier of both deadlines.
        attempts: Workers that died while it may have been running.
        phase: Where it stands.
        dropped: Nobody wants its outcome any more.
    """

    queue: VersionQueue | None = None
    sent_ns = 0
    attempts = 0

    def __init__(  # noqa: PLR0917 - made for every request: keywords cost time
        self,
        rows: int,
        inputs: list[tuple[int, tuple[int, ...], Buffer]],
        shape_key: tuple[object, ...],
        nbytes: int,
        level: int,
        admitted_ns: int,
        queue_deadline_ns: int,
        deadline_ns: int,
    ) -> None:
        self.rows = rows
        self.inputs = inputs
        self.shape_key = shape_key
        self.nbytes = nbytes
        self.level = level
        self.phase = Phase.QUEUED
        self.dropped = False
        self.admitted_ns = admitted_ns
        self.queue_deadline_ns = queue_deadline_ns
        self.deadline_ns = self.expires_ns = deadline_ns
        if 0 < queue_deadline_ns < deadline_ns:
            self.expires_ns = queue_deadline_ns

    @abstractmethod
    def on_result(self, rows: BatchRows, start: int) -> None:
        """Take the outcome: the request's rows of every output begin at `start`.

        Args:
            rows: Outputs of the whole batch, valid only during the call.
            start: The request's first row in it.
        """

    @abstractmethod
    def on_error(self, error: GatewayError) -> None:
        """Take the outcome: an error."""

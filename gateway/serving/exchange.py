"""An inference request on its way: what unary calls and streams share."""

from __future__ import annotations

from typing import Protocol

from gateway.clock import PredictionIds
from gateway.serving.pending import Pending
from gateway.serving.plans import Plan
from gateway.serving.routing import Choice, Context
from gateway.serving.rows import BatchRows
from workers.wire import Buffer

Inputs = list[tuple[int, tuple[int, ...], Buffer]]
"""Per present input of a request: spec index, full shape, raw bytes."""

_NOTHING: Inputs = []


class Copier(Protocol):
    """Makes copies of requests for shadows."""

    def copy(
        self, exchange: Exchange, rows: BatchRows, start: int, name: bytes
    ) -> None:
        """Copy a request that has just been answered."""


class Service(Protocol):
    """The part of `gateway.serving.infer.InferService` an exchange uses."""

    ids: PredictionIds

    @property
    def shadows(self) -> Copier:
        """Makes copies of answered requests."""

    def cancel(self, exchange: Exchange) -> None:
        """Drop a request whose client left."""

    @property
    def log(self) -> object | None:
        """Gets every answer; ``None`` where none is wanted."""

    def record(
        self, exchange: Exchange, rows: BatchRows, start: int, name: bytes
    ) -> None:
        """Note who answered a prediction, and what."""


class Exchange(Pending):
    """An admitted inference request; who gets its outcome derives from it.

    Attributes:
        plan: How it is served.
        id_field: The client's id, as it goes into the reply.
        service: Where it was admitted.
        choice: The arm that serves it; ``None`` where the model has none.
        context: What of the request took part in the choice.
    """

    plan: Plan
    choice: Choice | None
    context: Context
    id_field: bytes
    service: Service

    def cancel(self) -> None:
        """Drop the request: its client left."""
        self.service.cancel(self)

    def let_go(self) -> None:
        """Free its tensors now.

        Calls and callbacks refer to each other until the garbage collector comes by.
        """
        self.inputs = _NOTHING

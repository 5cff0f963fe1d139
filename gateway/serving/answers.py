"""What was answered, on its way to the event log. Loop thread only."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

from gateway.feedback.blocks import Answer, Layout, TensorLayout
from gateway.feedback.ring import Ring
from gateway.serving.exchange import Exchange
from gateway.serving.pending import Pending
from gateway.serving.queues import VersionQueue
from gateway.serving.routing import NO_CONTEXT, Choice, Context, Tally
from gateway.serving.rows import BatchRows
from gateway.traffic.table import Role

_MAX_LAYOUTS = 64
"""Shapes remembered of a version; more are worked out again."""
_MAX_ID_FIELD = 2 + 127
"""Longer request ids are not recorded; up to there their length is one byte."""


@lru_cache(4096)
def _alone(version: int, policy: str) -> Choice:
    """Return the choice of a request that no table had a say in."""
    return Choice(version, Role.CHAMPION, 1.0, policy, 0, 0, Tally())


class AnswerLog:
    """Offers every answer to a ring, with its outputs.

    Args:
        ring: Takes them.
        now_ns: Monotonic clock.
    """

    def __init__(self, ring: Ring, now_ns: Callable[[], int]) -> None:
        self._offer = ring.offer
        self._now = now_ns

    def answered(
        self, exchange: Exchange, rows: BatchRows, start: int, name: bytes
    ) -> None:
        """Take a client's answer: rows of a batch from `start` on."""
        plan = exchange.plan
        choice = exchange.choice
        if choice is None:
            policy = "version" if plan.asked_version else "none"
            choice = _alone(plan.entry.version, policy)
        id_field = exchange.id_field
        request_id = ""
        if id_field and len(id_field) <= _MAX_ID_FIELD:
            request_id = id_field[2:].decode()
        queue, context = plan.queue, exchange.context
        self._take(
            exchange, rows, start, name, plan.model, queue, choice, context, request_id
        )

    def shadowed(  # noqa: PLR0917 - keywords cost time
        self,
        copy: Pending,
        rows: BatchRows,
        start: int,
        name: bytes,
        model: str,
        queue: VersionQueue,
        choice: Choice,
    ) -> None:
        """Take a shadow's answer to a copy of a prediction's request."""
        self._take(copy, rows, start, name, model, queue, choice, NO_CONTEXT, "")

    def _take(  # noqa: PLR0917 - keywords cost time
        self,
        pending: Pending,
        rows: BatchRows,
        start: int,
        name: bytes,
        model: str,
        queue: VersionQueue,
        choice: Choice,
        context: Context,
        request_id: str,
    ) -> None:
        count = pending.rows
        if rows.plain is not None:
            shapes = rows.shapes
            outputs = [
                bytes(data[start * size : (start + count) * size])
                for data, size in rows.plain
            ]
        else:
            tensors = rows.cut(start, start + count)
            batches = 1 if queue.spec.max_batch_rows else 0
            shapes = tuple([tensor.dims[batches:] for tensor in tensors])
            outputs = [bytes(tensor.data) for tensor in tensors]
        latency_ns = self._now() - pending.admitted_ns
        self._offer(
            Answer(
                name,
                model,
                (time.time_ns() - latency_ns) // 1_000_000,
                latency_ns // 1000,
                count,
                choice,
                context,
                queue.layouts.get(shapes) or _layout(queue, shapes),
                outputs,
                request_id,
            )
        )


def _layout(queue: VersionQueue, shapes: tuple[tuple[int, ...], ...]) -> Layout:
    layout = tuple(
        [
            TensorLayout(tensor.name, tensor.datatype, shape)
            for tensor, shape in zip(queue.spec.outputs, shapes, strict=True)
        ]
    )
    if len(queue.layouts) >= _MAX_LAYOUTS:
        queue.layouts.clear()
    queue.layouts[shapes] = layout
    return layout

"""What was answered, on its way to the event log. Loop thread only."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from gateway.feedback.blocks import Layout, TensorLayout
from gateway.feedback.ring import Ring
from gateway.serving.exchange import Exchange
from gateway.serving.pending import Pending
from gateway.serving.queues import VersionQueue
from gateway.serving.routing import NO_CONTEXT, Choice, Tally
from gateway.serving.rows import BatchRows
from gateway.traffic.table import Role

_MAX_LAYOUTS = 64
"""Shapes remembered of a version; more are worked out again."""
_MAX_ID_FIELD = 2 + 127
"""Longer request ids are not recorded; up to there their length is one byte."""


@lru_cache(4096)
def _alone(model: str, version: int, policy: str) -> Choice:
    """Return the choice of a request that no table had a say in.

    Models have objects of their own, as those with a table do.
    """
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
            choice = _alone(plan.model, plan.entry.version, policy)
        id_field = exchange.id_field
        admitted_ns = exchange.admitted_ns
        outputs, nbytes = _cut(rows, start, exchange.rows)
        answer = (
            name,
            plan.model,
            admitted_ns,
            (self._now() - admitted_ns) // 1000,
            exchange.rows,
            choice,
            exchange.context,
            rows.layout or _layout(rows, plan.queue),
            outputs,
            id_field[2:] if len(id_field) <= _MAX_ID_FIELD else b"",
        )
        self._offer(answer, nbytes)

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
        admitted_ns = copy.admitted_ns
        outputs, nbytes = _cut(rows, start, copy.rows)
        answer = (
            name,
            model,
            admitted_ns,
            (self._now() - admitted_ns) // 1000,
            copy.rows,
            choice,
            NO_CONTEXT,
            rows.layout or _layout(rows, queue),
            outputs,
            b"",
        )
        self._offer(answer, nbytes)


def _cut(rows: BatchRows, start: int, count: int) -> tuple[list[bytes], int]:
    """Return `count` rows from `start` on of every output, and how long they are."""
    plain = rows.plain
    if plain is None:
        outputs = [bytes(tensor.data) for tensor in rows.cut(start, start + count)]
    elif len(plain) == 1:  # mostly
        data, size = plain[0]
        nbytes = count * size
        start *= size
        return [data[start : start + nbytes].tobytes()], nbytes
    else:
        end = start + count
        outputs = [bytes(data[start * size : end * size]) for data, size in plain]
    return outputs, sum(map(len, outputs))


def _layout(rows: BatchRows, queue: VersionQueue) -> Layout:
    """Return how a version's outputs look, and note it with the batch."""
    shapes = rows.shapes
    if rows.plain is None and queue.spec.max_batch_rows:
        shapes = tuple([shape[1:] for shape in shapes])
    layout = queue.layouts.get(shapes)
    if layout is None:
        layout = tuple(
            [
                TensorLayout(tensor.name, tensor.datatype, shape)
                for tensor, shape in zip(queue.spec.outputs, shapes, strict=True)
            ]
        )
        if len(queue.layouts) >= _MAX_LAYOUTS:
            queue.layouts.clear()
        queue.layouts[shapes] = layout
    rows.layout = layout
    return layout

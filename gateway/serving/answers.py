"""What was answered, on its way to the event log. Loop thread only."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from gateway.feedback.blocks import Form, Layout, TensorLayout
from gateway.feedback.ring import MAX_DATA_BYTES, Ring
from gateway.serving.exchange import Exchange
from gateway.serving.inputs import Recorders
from gateway.serving.pending import Pending
from gateway.serving.queues import VersionQueue
from gateway.serving.routing import NO_CONTEXT, Choice, Tally
from gateway.serving.rows import BatchRows
from gateway.traffic.table import Role

_MAX_LAYOUTS = 64
"""Layouts, and forms, remembered of a version; more are worked out again."""
_MAX_ID_FIELD = 2 + 127
"""Longer request ids are not recorded; up to there their length is one byte."""


@lru_cache(4096)
def _alone(model: str, version: int, policy: str) -> Choice:
    """Return the choice of a request that no table had a say in.

    Models have objects of their own, as those with a table do.
    """
    return Choice(version, Role.CHAMPION, 1.0, policy, 0, 0, Tally())


class AnswerLog:
    """Offers every answer to a ring, with its outputs, and its inputs if wanted.

    Args:
        ring: Takes them.
        now_ns: Monotonic clock.
        recorders: Add inputs; ``None`` where no model wants that.
    """

    def __init__(
        self,
        ring: Ring,
        now_ns: Callable[[], int],
        recorders: Recorders | None = None,
    ) -> None:
        self._offer = ring.offer
        self._now = now_ns
        self._recorders = recorders

    def answered(
        self, exchange: Exchange, rows: BatchRows, start: int, name: bytes
    ) -> None:
        """Take a client's answer: rows of a batch from `start` on."""
        plan = exchange.plan
        choice = exchange.choice
        if choice is None:
            policy = "version" if plan.asked_version else "none"
            choice = _alone(plan.model, plan.entry.version, policy)
        count = exchange.rows
        plain, form = rows.plain, rows.form
        if (  # mostly
            form is not None
            and rows.form_rows == count
            and plain is not None
            and len(plain) == 1
        ):
            output, size = plain[0]
            data = output[start * size : (start + count) * size].tobytes()
        else:
            form, data = _cut(rows, start, count, plan.queue)
        if self._recorders is not None:
            form, data = self._recorders.add(
                *(plan.model, plan.queue, choice, name),
                *(exchange.inputs, form, data, MAX_DATA_BYTES),
            )
        id_field = exchange.id_field
        answer = (
            name,
            plan.model,
            exchange.admitted_ns,
            self._now(),
            count,
            choice,
            exchange.context,
            form,
            data,
            id_field[2:] if len(id_field) <= _MAX_ID_FIELD else b"",
        )
        self._offer(answer, len(data))

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
        form, data = _cut(rows, start, copy.rows, queue)
        if self._recorders is not None:
            form, data = self._recorders.add(
                model, queue, choice, name, copy.inputs, form, data, MAX_DATA_BYTES
            )
        admitted_ns, answered_ns = copy.admitted_ns, self._now()
        answer = (
            *(name, model, admitted_ns, answered_ns, copy.rows, choice),
            *(NO_CONTEXT, form, data, b""),
        )
        self._offer(answer, len(data))


def _cut(
    rows: BatchRows, start: int, count: int, queue: VersionQueue
) -> tuple[Form, bytes]:
    """Return `count` rows from `start` on of every output."""
    plain = rows.plain
    if plain is None:
        pieces = [bytes(tensor.data) for tensor in rows.cut(start, start + count)]
        sizes = tuple(map(len, pieces))
        return Form(_layout(rows, queue), sizes), b"".join(pieces)
    end = start + count
    data = b"".join([data[start * size : end * size] for data, size in plain])
    form = rows.form
    if form is None or rows.form_rows != count:
        form = queue.forms.get((rows.shapes, count))
        if form is None:
            sizes = tuple([count * size for _, size in plain])
            form = Form(_layout(rows, queue), sizes)
            if len(queue.forms) >= _MAX_LAYOUTS:
                queue.forms.clear()
            queue.forms[rows.shapes, count] = form
        rows.form, rows.form_rows = form, count
    return form, data


def _layout(rows: BatchRows, queue: VersionQueue) -> Layout:
    """Return how a version's outputs look."""
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
    return layout

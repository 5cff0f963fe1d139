"""Cutting one request's rows out of a batch's outputs. Pure."""

from __future__ import annotations

import struct
from typing import Any

from gateway.clock import PredictionIds
from gateway.feedback.blocks import Form
from gateway.serving.pending import RowTensor
from workers.spec import ModelSpec
from workers.wire import ROW_OFFSETS, WireTensor

_NAMES = 32
"""Ids minted at a time: a batch may have far more rows than requests."""


class BatchRows:
    """The outputs of one batch.

    Args:
        spec: Tensors of the version.
        tensors: Outputs of the whole batch, each with one data buffer.
        batch_rows: Rows of the whole batch.

    Attributes:
        plain: Per output its data and bytes per row, where the version batches and
            every row has as many; ``None`` elsewhere.
        shapes: The outputs' shapes without the batch dimension; with it where
            `plain` is ``None``.
        names: Ids for the batch's replies, made when the first one wants one.
        plan: The last plan that cut a reply out of it, which is mostly the next,
        template: and what it used.
        form: Of the last reply's data in the event log,
        form_rows: and how many rows that has; 0 before the first.
    """

    __slots__ = (
        "_batch_rows",
        "_spec",
        "_tensors",
        "form",
        "form_rows",
        "names",
        "plain",
        "plan",
        "shapes",
        "template",
    )

    def __init__(
        self, spec: ModelSpec, tensors: list[WireTensor], batch_rows: int
    ) -> None:
        self._spec = spec
        self._tensors = tensors
        self._batch_rows = batch_rows
        self.names: list[bytes] = []
        self.plan: object = None
        self.template: Any = None
        self.form: Form | None = None
        self.form_rows = 0
        self.plain: list[tuple[memoryview, int]] | None = None
        if spec.max_batch_rows and not any(t.layout for t in tensors):
            self.plain = [
                (memoryview(t.data[0]), len(t.data[0]) // batch_rows) for t in tensors
            ]
            self.shapes = tuple([t.dims[1:] for t in tensors])
        else:
            self.shapes = tuple([t.dims for t in tensors])

    def name(self, ids: PredictionIds) -> bytes:
        """Return an id for one more reply of the batch."""
        if not self.names:
            self.names = ids.mint_all(min(self._batch_rows, _NAMES))
        return self.names.pop()

    def cut(self, start: int, end: int) -> list[RowTensor]:
        """Return rows `start` to `end` of every output, in spec order.

        Returns:
            One tensor per output; buffers are views of the batch's.
        """
        if self._spec.max_batch_rows == 0:
            return [RowTensor(t.dims, t.data[0]) for t in self._tensors]
        rows = []
        for tensor in self._tensors:
            data = tensor.data[0]
            if tensor.layout == ROW_OFFSETS:
                table = 8 * (self._batch_rows + 1)
                (first,) = struct.unpack_from("<Q", data, 8 * start)
                (last,) = struct.unpack_from("<Q", data, 8 * end)
                part = data[table + first : table + last]
            else:
                row_bytes = len(data) // self._batch_rows
                part = data[start * row_bytes : end * row_bytes]
            rows.append(RowTensor((end - start, *tensor.dims[1:]), part))
        return rows

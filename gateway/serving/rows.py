"""Cutting one request's rows out of a batch's outputs. Pure."""

from __future__ import annotations

import struct

from gateway.serving.pending import RowTensor
from workers.spec import ModelSpec
from workers.wire import ROW_OFFSETS, WireTensor


def rows_of_request(
    spec: ModelSpec, tensors: list[WireTensor], start: int, end: int, batch_rows: int
) -> list[RowTensor]:
    """Return rows `start` to `end` of every output.

    Args:
        spec: Tensors of the version.
        tensors: Outputs of the whole batch, each with one data buffer.
        start: First row of the request in the batch.
        end: Row after its last.
        batch_rows: Rows of the whole batch.

    Returns:
        One tensor per output, in spec order; buffers are views of `tensors`.
    """
    if spec.max_batch_rows == 0:
        return [RowTensor(t.dims, t.data[0]) for t in tensors]
    rows = []
    for tensor in tensors:
        data = tensor.data[0]
        if tensor.layout == ROW_OFFSETS:
            table = 8 * (batch_rows + 1)
            (first,) = struct.unpack_from("<Q", data, 8 * start)
            (last,) = struct.unpack_from("<Q", data, 8 * end)
            part = data[table + first : table + last]
        else:
            row_bytes = len(data) // batch_rows
            part = data[start * row_bytes : end * row_bytes]
        rows.append(RowTensor((end - start, *tensor.dims[1:]), part))
    return rows

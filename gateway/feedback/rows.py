"""One row of a tensor as it lies on the wire."""

from __future__ import annotations

import math
import struct

from gateway.feedback.types import Tensor

SIZES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2,
    "UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip
"""Bytes of an element (Open Inference Protocol, tensor data types)."""
_LENGTH = struct.Struct("<I")


def row_of(tensor: Tensor, row: int) -> Tensor:
    """Return a row of a tensor; of a redacted one, its name and type."""
    shape = tensor.shape[1:]
    if not tensor.data or tensor.shape[:1] == (1,):
        return Tensor(tensor.name, tensor.datatype, shape, tensor.data)
    each = math.prod(shape)
    size = SIZES.get(tensor.datatype)
    if size is not None:
        nbytes = each * size
        data = tensor.data[row * nbytes : (row + 1) * nbytes]
    else:
        start = _skip(tensor.data, 0, row * each)
        data = tensor.data[start : _skip(tensor.data, start, each)]
    return Tensor(tensor.name, tensor.datatype, shape, data)


def holds_strings(data: bytes, count: int) -> bool:
    """Return whether bytes are so many strings, each behind its length, and no more."""
    at = 0
    for _ in range(count):
        if at + _LENGTH.size > len(data):
            return False
        at += _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
    return at == len(data)


def _skip(data: bytes, at: int, strings: int) -> int:
    for _ in range(strings):
        at += _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
    return at

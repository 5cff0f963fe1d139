"""Batch sizes, shapes and elements as a graph wants them.

A GPU is fast only at shapes it has seen: kernels are chosen, memory is laid out
and graphs are captured per shape. So rows are padded up to one of a few sizes.
Pure: no onnxruntime.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from workers.spec import ModelSpec, TensorSpec

Array = NDArray[np.generic]


def batch_buckets(max_batch_rows: int) -> tuple[int, ...]:
    """Return the batch sizes of a version: powers of two, and its limit.

    Args:
        max_batch_rows: As in `ModelSpec`; 0 has one "bucket", the single run.

    Returns:
        Ascending sizes in rows, the last one `max_batch_rows` (or 1).

    Example:
        >>> batch_buckets(6)
        (1, 2, 4, 6)
    """
    sizes = []
    size = 1
    while size < max_batch_rows:
        sizes.append(size)
        size *= 2
    return (*sizes, max(max_batch_rows, 1))


def bucket_for(buckets: tuple[int, ...], rows: int) -> int:
    """Return the smallest of `buckets` that holds `rows`.

    A batch above the last bucket is a bug of the batcher, yet it runs as it is:
    a slow answer is better than a refused one.
    """
    index = bisect_left(buckets, rows)
    return buckets[index] if index < len(buckets) else rows


def pad_rows(array: Array, rows: int) -> Array:
    """Repeat the last row until there are `rows` of them.

    Real data, not zeros: a model may well divide by what it is given.

    Args:
        array: Shape (n, ...), 1 <= n <= `rows`.
        rows: Rows of the result.

    Returns:
        Shape (`rows`, ...); `array` itself where it has them already.
    """
    missing = rows - len(array)
    if missing == 0:
        return array
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def model_shape(tensor: TensorSpec, leading: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape the graph wants.

    Args:
        tensor: An input or output.
        leading: The batch dimension, or nothing for a version without one.
    """
    dims = tensor.dims if tensor.model_dims is None else tensor.model_dims
    return leading + dims


def is_bindable(spec: ModelSpec) -> bool:
    """Whether every tensor of a batch size has one shape and plain memory.

    Only then can device buffers be allocated once per bucket. BYTES live on the CPU,
    and onnxruntime 1.31 cannot copy BF16 from a device to NumPy.
    """
    return all(
        -1 not in model_shape(tensor, ())
        and tensor.datatype not in {"BYTES", "BF16"}
        and not tensor.optional
        for tensor in spec.inputs + spec.outputs
    )


def needs_conversion(tensor: TensorSpec) -> bool:
    """Whether an input's array is not simply what onnxruntime takes."""
    return (
        tensor.optional
        or tensor.model_dims is not None
        or tensor.datatype in {"BYTES", "BF16"}
    )


def decode_elements(array: Array) -> Array:
    """Turn BYTES elements into ``str``, as onnxruntime's strings are UTF-8.

    Given ``bytes``, its binding would take the printed form, ``b'..'``, as text.

    Args:
        array: Objects, ``bytes`` or ``str``, any shape.

    Raises:
        UnicodeDecodeError: An element is not UTF-8.
    """
    decoded = np.empty(array.size, dtype=object)
    decoded[:] = [
        one.decode() if isinstance(one, bytes) else one
        for one in array.reshape(-1).tolist()
    ]
    return decoded.reshape(array.shape)

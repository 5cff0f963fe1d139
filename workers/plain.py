"""The usual batch in one piece: one plain tensor in, one out, each in one frame. Pure.

Between two batches the other process has had the core and its caches: every line of
code that runs then costs three times what it does in a loop. So what nearly all
batches look like takes a short way of its own, to the same bytes as `workers.wire`
writes and the same answers as `workers.execute` gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES
from workers import wire
from workers.arrays import needs_conversion
from workers.spec import ModelSpec
from workers.wire import Buffer, Kind

Array = NDArray[np.generic]
_ZEROS = [bytes(size) for size in range(wire.ALIGNMENT)]


def is_plain(spec: ModelSpec) -> bool:
    """Return whether a version's usual run is one: see the top of this module."""
    return (
        len(spec.inputs) == len(spec.outputs) == 1
        and spec.max_batch_rows > 0
        and not needs_conversion(spec.inputs[0])
        and spec.outputs[0].model_dims is None
        and spec.outputs[0].datatype not in {"BYTES", "BF16"}
    )


def plain_run(
    id_: int,
    handle: int,
    slot: int,
    dims: tuple[int, ...],
    pieces: Sequence[Buffer],
    *,
    nbytes: int,
) -> bytes:
    """Encode a run of one inline tensor, input 0; `encode_run` gives the same bytes.

    Args:
        id_: Of the run.
        handle: Of the version.
        slot: Credit it holds.
        dims: Shape, rows first.
        pieces: Data, one piece per request.
        nbytes: Bytes of all pieces.
    """
    header = wire.pack_tensor(0, 0, nbytes, dims)
    gap = -(wire.RUN_HEAD.size + len(header)) % wire.ALIGNMENT
    tail = -nbytes % wire.ALIGNMENT
    size = wire.RUN_HEAD.size + len(header) + gap + nbytes + tail
    prefix = wire.PREFIX.pack(size, Kind.RUN, 0, 1, id_)
    head = wire.RUN_HEAD.pack(handle, dims[0], slot, False)
    return b"".join((prefix, head, header, _ZEROS[gap], *pieces, _ZEROS[tail]))


def plain_tensor(
    data: bytes, kind: Kind, head: int
) -> tuple[int, int, tuple[int, ...], int, int] | None:
    """Look at bytes that may be exactly one frame of one inline tensor.

    Args:
        data: As read from the socket.
        kind: What it must be.
        head: Bytes of that kind's head.

    Returns:
        Frame id, tensor index, shape, and where its data begin and end; ``None``
        where it is anything else.
    """
    if len(data) < wire.PREFIX.size + head + wire.TENSOR.size:
        return None
    size, found, flags, tensors, id_ = wire.PREFIX.unpack_from(data)
    if found != kind or flags or tensors != 1 or size != len(data) - wire.PREFIX.size:
        return None
    start = wire.PREFIX.size + head
    rank = data[start + wire.RANK_AT]
    end = start + wire.TENSOR.size + 8 * rank
    if rank > wire.MAX_RANK or len(data) < end:
        return None
    index, layout, nbytes, dims = wire.unpack_tensor(data[start:end])
    begin = end + -(end - wire.PREFIX.size) % wire.ALIGNMENT
    stop = begin + nbytes
    if layout or stop + -nbytes % wire.ALIGNMENT != len(data):
        return None
    return id_, index, dims, begin, stop


def run_head(data: bytes) -> tuple[int, int, int, bool]:
    """Return handle, rows, slot and alone of what `plain_tensor` took for a run."""
    handle, rows, slot, alone = wire.RUN_HEAD.unpack_from(data, wire.PREFIX.size)
    return handle, rows, slot, alone


def result_head(data: bytes) -> tuple[int, int, int, int, int]:
    """Return the three times, executions and rows of a plain result."""
    values: tuple[int, int, int, int, int] = wire.RESULT_HEAD.unpack_from(
        data, wire.PREFIX.size
    )
    return values


def plain_result(
    id_: int,
    times: tuple[int, int, int],
    rows: int,
    dims: tuple[int, ...],
    data: Buffer,
) -> bytes:
    """Encode a result of one inline tensor, output 0; see `encode_result`."""
    nbytes = len(data)
    header = wire.pack_tensor(0, 0, nbytes, dims)
    gap = -(wire.RESULT_HEAD.size + len(header)) % wire.ALIGNMENT
    tail = -nbytes % wire.ALIGNMENT
    size = wire.RESULT_HEAD.size + len(header) + gap + nbytes + tail
    prefix = wire.PREFIX.pack(size, Kind.RESULT, 0, 1, id_)
    head = wire.RESULT_HEAD.pack(*times, 1, rows)
    return b"".join((prefix, head, header, _ZEROS[gap], data, _ZEROS[tail]))


class QuickRun:
    """The usual run in one piece: one plain input, one plain output, one batch.

    Whatever is unusual about a frame or fails on the way is left to
    `workers.execute`, which also knows what to say about it.

    Args:
        call: Runs the model: its input array to its output array.
        spec: Of a version that `is_plain`.
    """

    __slots__ = ("_call", "_input", "_output")

    def __init__(self, call: Callable[[Array], Array], spec: ModelSpec) -> None:
        self._call = call
        self._input = DATATYPES[spec.inputs[0].datatype].numpy
        self._output = DATATYPES[spec.outputs[0].datatype].numpy

    def run(
        self,
        frame: bytes,
        plain: tuple[int, int, tuple[int, ...], int, int],
        rows: int,
    ) -> bytes | None:
        """Return the result's frame, or ``None`` to have `execute` do it.

        Args:
            frame: A whole RUN frame.
            plain: What `workers.wire.plain_tensor` said of it.
            rows: Of the batch.
        """
        started = time.monotonic_ns()
        id_, index, dims, begin, end = plain
        dtype = self._input
        try:
            count = (end - begin) // dtype.itemsize
            array = np.frombuffer(frame, dtype, count, begin).reshape(dims)
            ready = time.monotonic_ns()
            output = self._call(array)
            done = time.monotonic_ns()
            shape = output.shape
            if index or shape[0] != rows or output.dtype != self._output:
                return None
            data = output.data.cast("B")
        except Exception:  # `execute` finds out what it is
            return None
        times = (ready - started, done - ready, time.monotonic_ns() - done)
        return plain_result(id_, times, rows, shape, data)

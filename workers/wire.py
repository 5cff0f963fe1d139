"""Frames between fronts, workers and the supervisor over Unix sockets.

A frame is a 16-byte prefix and a body, all little-endian. Bodies of runs and
results are tensor headers first, then the data, each tensor on a 16-byte
boundary so that ONNX Runtime gets aligned memory. Data lies in the body, or in
the arena both ends map (`workers.arena`) where the frame's flag says so.

Pure: bytes in, values out. Every length is checked before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

PREFIX = struct.Struct("<IBBHQ")
"""Body bytes, kind, flags, number of tensors, id."""
RUN_HEAD = struct.Struct("<QIB?2x")
"""Handle, rows, arena slot, whether it runs alone."""
RESULT_HEAD = struct.Struct("<QQQII")
"""Input, infer and output nanoseconds, executions, rows of the merged batch."""
TENSOR = struct.Struct("<HBB4xQ")
"""Index in the spec, rank, layout, data bytes; then `rank` int64 dimensions."""

RANK_AT = 2
"""Where the rank stands in a tensor header."""

CREDITS = 2
"""Batches a front may have at one worker: one running, one prefetched. Each holds
one slot, 0 to CREDITS - 1."""
ALIGNMENT = 16
MAX_BODY_BYTES = (1 << 32) - 1
MAX_RANK = 64
IN_ARENA = 1
"""Flag of RUN and RESULT: the data is in the arena slot, not in the body."""
REPLY = 1
"""Flag of CONTROL: answers the request of the same id."""
REPLY_ERROR = 2
"""Flag of CONTROL: refuses the request of the same id."""
ROW_OFFSETS = 1
"""Layout of a BYTES output: (rows + 1) uint64 byte offsets precede the data."""


class WireError(Exception):
    """A frame that no peer of this version would send. This is a bug or an attack."""


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    RUN = 2
    RESULT = 3
    FAILURE = 4
    PAUSE = 5
    RESUME = 6
    CONTROL = 7


class Failure(IntEnum):
    """Why a run has no result; travels in the flags of a FAILURE frame."""

    MODEL_FAILED = 1
    OUT_OF_MEMORY = 2
    UNKNOWN_HANDLE = 3


class Frame(NamedTuple):
    """One frame as read: its prefix fields and a view of its body."""

    kind: int
    flags: int
    tensors: int
    id: int
    body: memoryview


@dataclass(slots=True)
class WireTensor:
    """One tensor of a run or result.

    Attributes:
        index: Position in the spec's inputs or outputs.
        dims: Full shape, batch dimension included.
        data: Raw bytes: one buffer when read, any number of pieces to write.
        layout: 0, or `ROW_OFFSETS`.
    """

    index: int
    dims: tuple[int, ...]
    data: Sequence[Buffer]
    layout: int = 0

    def nbytes(self) -> int:
        """Return the bytes of all pieces."""
        if len(self.data) == 1:
            return len(self.data[0])
        return sum([len(piece) for piece in self.data])


@dataclass(slots=True)
class Run:
    """A batch to run: `rows` rows of the version loaded as `handle`.

    Where `alone`, it shares its run with no other batch: it may have killed a worker.
    """

    id: int
    handle: int
    rows: int
    slot: int
    tensors: list[WireTensor]
    alone: bool = False


@dataclass(slots=True)
class Result:
    """A batch that ran, and what it took.

    Attributes:
        id: Id of the run.
        input_ns: Time to build the input arrays.
        infer_ns: Time inside the model.
        output_ns: Time to turn outputs into bytes.
        executions: 1, or 0 where the batch ran merged into another one's run, so
            that sums over all results count each run of the model once.
        batch_rows: Rows of the run, merged batches included.
        tensors: Outputs, each with one data view.
    """

    id: int
    input_ns: int
    infer_ns: int
    output_ns: int
    executions: int
    batch_rows: int
    tensors: list[WireTensor]


class FrameReader:
    """Cuts a byte stream into frames; a large body is joined once. Pure."""

    __slots__ = ("_chunks", "_have", "_max_body", "_need")

    @property
    def empty(self) -> bool:
        """Whether the next bytes begin a frame."""
        return not self._chunks

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = PREFIX.size
        self._max_body = max_body_bytes

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes and yield every frame they complete.

        Raises:
            WireError: A body is announced larger than the limit.
        """
        if self._chunks:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        position, end = 0, len(data)
        view = memoryview(data)
        while end - position >= PREFIX.size:
            size, kind, flags, tensors, id_ = PREFIX.unpack_from(data, position)
            if size > self._max_body:
                raise WireError(f"a frame of {size} bytes exceeds {self._max_body}")
            start = position + PREFIX.size
            if end - start < size:
                self._need = PREFIX.size + size
                break
            position = start + size
            yield Frame(kind, flags, tensors, id_, view[start:position])
        else:
            self._need = PREFIX.size
        if position < end:
            self._chunks.append(data[position:] if position else data)
        self._have = end - position


def encode_frame(kind: Kind, id_: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Encode a frame without tensors."""
    return PREFIX.pack(len(body), kind, flags, 0, id_) + body


def _padding(size: int) -> int:
    return -size % ALIGNMENT


@lru_cache(4096)
def pack_tensor(index: int, layout: int, size: int, dims: tuple[int, ...]) -> bytes:
    """Encode a tensor header; the same few come again and again."""
    head = TENSOR.pack(index, len(dims), layout, size)
    return head + struct.pack(f"<{len(dims)}q", *dims)


@lru_cache(4096)
def unpack_tensor(header: bytes) -> tuple[int, int, int, tuple[int, ...]]:
    """Decode a tensor header: index, layout, data bytes, shape."""
    index, rank, layout, size = TENSOR.unpack_from(header)
    return index, layout, size, struct.unpack_from(f"<{rank}q", header, TENSOR.size)


def _layout(head: bytes, tensors: Sequence[WireTensor]) -> tuple[bytes, int]:
    """Return head and tensor headers, padded, and the aligned bytes of all data."""
    parts = [head]
    total = 0
    for tensor in tensors:
        size = tensor.nbytes()
        parts.append(pack_tensor(tensor.index, tensor.layout, size, tensor.dims))
        total += size + _padding(size)
    headers = b"".join(parts)
    return headers + bytes(_padding(len(headers))), total


def _encode_tensors(
    kind: Kind,
    id_: int,
    head: bytes,
    tensors: Sequence[WireTensor],
    arena: memoryview | None,
) -> list[Buffer]:
    """Return the buffers of a frame; the data goes to `arena` where it fits."""
    headers, total = _layout(head, tensors)
    if arena is not None and total <= len(arena):
        position = 0
        for tensor in tensors:
            for piece in tensor.data:
                end = position + len(piece)
                arena[position:end] = piece
                position = end
            position += _padding(position)
        prefix = PREFIX.pack(len(headers), kind, IN_ARENA, len(tensors), id_)
        return [prefix + headers]
    if len(headers) + total > MAX_BODY_BYTES:
        raise WireError(f"{total} bytes of tensors do not fit a frame")
    prefix = PREFIX.pack(len(headers) + total, kind, 0, len(tensors), id_)
    buffers: list[Buffer] = [prefix + headers]
    for tensor in tensors:
        buffers.extend(tensor.data)
        gap = _padding(tensor.nbytes())
        if gap:
            buffers.append(bytes(gap))
    return buffers


def encode_run(run: Run, arena: memoryview | None = None) -> list[Buffer]:
    """Encode a run.

    Args:
        run: The batch; `data` of each tensor may be in pieces, one per request.
        arena: The slot's memory to place the data in, or ``None`` for inline.

    Returns:
        Buffers to write in order.
    """
    head = RUN_HEAD.pack(run.handle, run.rows, run.slot, run.alone)
    return _encode_tensors(Kind.RUN, run.id, head, run.tensors, arena)


def encode_result(result: Result, arena: memoryview | None = None) -> list[Buffer]:
    """Encode a result; see `encode_run` for `arena`."""
    head = RESULT_HEAD.pack(
        result.input_ns,
        result.infer_ns,
        result.output_ns,
        result.executions,
        result.batch_rows,
    )
    return _encode_tensors(Kind.RESULT, result.id, head, result.tensors, arena)


def _decode_tensors(
    frame: Frame, position: int, arena: memoryview | None
) -> list[WireTensor]:
    body = frame.body
    headers: list[tuple[int, int, int, tuple[int, ...]]] = []
    for _ in range(frame.tensors):
        if len(body) - position < TENSOR.size:
            raise WireError("truncated tensor header")
        rank = body[position + RANK_AT]
        end = position + TENSOR.size + 8 * rank
        if rank > MAX_RANK or len(body) < end:
            raise WireError("truncated tensor shape")
        headers.append(unpack_tensor(bytes(body[position:end])))
        position = end
    position += _padding(position)
    source = body
    if frame.flags & IN_ARENA:
        if arena is None:
            raise WireError("data in an arena this connection does not have")
        if position != len(body):
            raise WireError("a frame with arena data has a longer body")
        source, position = arena, 0
    tensors = []
    for index, layout, size, dims in headers:
        if len(source) - position < size:
            raise WireError("truncated tensor data")
        data = source[position : position + size]
        position += size + _padding(size)
        tensors.append(WireTensor(index, dims, (data,), layout))
    if source is body and position != len(body):
        raise WireError("trailing or missing bytes after the last tensor")
    return tensors


def decode_run(frame: Frame, slots: Sequence[memoryview] = ()) -> Run:
    """Decode a RUN frame; tensor data are views of its body or arena slot.

    Raises:
        WireError: The frame is truncated, or longer than its tensors.
    """
    if len(frame.body) < RUN_HEAD.size:
        raise WireError("truncated run")
    handle, rows, slot, alone = RUN_HEAD.unpack_from(frame.body, 0)
    if slot >= CREDITS:
        raise WireError(f"slot {slot} of {CREDITS}")
    arena = slots[slot] if slots else None
    tensors = _decode_tensors(frame, RUN_HEAD.size, arena)
    return Run(frame.id, handle, rows, slot, tensors, alone)


def decode_result(frame: Frame, arena: memoryview | None = None) -> Result:
    """Decode a RESULT frame; tensor data are views of its body or of `arena`.

    Raises:
        WireError: The frame is truncated, or longer than its tensors.
    """
    if len(frame.body) < RESULT_HEAD.size:
        raise WireError("truncated result")
    input_ns, infer_ns, output_ns, executions, rows = RESULT_HEAD.unpack_from(
        frame.body
    )
    tensors = _decode_tensors(frame, RESULT_HEAD.size, arena)
    return Result(frame.id, input_ns, infer_ns, output_ns, executions, rows, tensors)

"""Blocks of predictions as they are read: column by column. Pure.

Source: ``protos/records.proto``, where each column is described. Whatever a block
contradicts itself in is found when it is read, so nothing fails later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from gateway.feedback.blocks import ID_BYTES, Layout, TensorLayout
from gateway.feedback.rows import SIZES, holds_strings
from gateway.feedback.types import Prediction, Tensor
from gateway.protocol import records_pb2 as pb

_T = TypeVar("_T")

Origin = tuple[str, int, str, str, float, int, int]
"""Model, version, role, policy, propensity, revision and snapshot."""


_MOST_ROWS = 1 << 20
"""Of a prediction; no front takes a request with more."""


class BadBlock(ValueError):
    """These bytes are no block, or one that contradicts itself."""


class Block:
    """Some predictions; entry i of every column belongs to prediction i.

    Args:
        value: Of the event.

    Attributes:
        value: Likewise.
        count: How many there are.
        ids: 16 bytes each.
        times: When each was admitted, int64 of shape (count,), Unix milliseconds.
        rows: Of each, at least 1.
        origins: The different ones.
        origin: Which of them each has.
        layouts: The different ones, of outputs and then of inputs.
        layout: Which of them each has.

    Raises:
        BadBlock: It is none; says what is wrong with it.
    """

    def __init__(self, value: bytes) -> None:
        self.value = value
        try:
            self._block = block = pb.Block.FromString(value)
        except DecodeError as error:
            raise BadBlock(f"this is no block of predictions: {error}") from None
        self.ids = block.ids
        if len(self.ids) % ID_BYTES:
            text = f"{len(self.ids)} bytes of ids are no multiple of {ID_BYTES}"
            raise BadBlock(text)
        self.count = count = len(self.ids) // ID_BYTES
        self.rows = _column("rows", block.rows, count)
        if count and min(self.rows) < 1:
            raise BadBlock("a prediction has no rows")
        after_ms = _column("after_ms", block.after_ms, count)
        self.times = np.cumsum(np.array(after_ms, np.int64))
        self.origins: list[Origin] = [
            (o.model, o.version, o.role, o.policy, o.propensity, o.revision, o.snapshot)
            for o in block.origins
        ]
        self.origin = _index("origin", block.origin, self.origins, count)
        self.layouts = [_layout(each) for each in block.layouts]
        self.layout = _index("layout", block.layout, self.layouts, count)
        sizes = list(block.sizes)
        tensors = [len(self.layouts[index]) for index in self.layout]
        _check("sizes", sizes, sum(tensors))
        if count and max(self.rows) > _MOST_ROWS:
            raise BadBlock(f"a prediction has more than {_MOST_ROWS} rows")
        if sum(sizes) != len(block.data):
            text = f"tensors of {sum(sizes)} bytes are {len(block.data)} bytes long"
            raise BadBlock(text)
        self._tensors = list(accumulate(tensors, initial=0))
        self._ends = list(accumulate(sizes, initial=0))
        self._check_tensors(sizes)
        _check("latency_us", block.latency_us, count)
        for name in ("units", "buckets", "request_ids"):
            if values := getattr(block, name):
                _check(name, values, count)
        if block.segments or block.segment:
            _index("segment", block.segment, block.segments, count)

    def _check_tensors(self, sizes: Sequence[int]) -> None:
        """See that every tensor has the bytes of its rows."""
        each = [[_bytes_of(tensor) for tensor in layout] for layout in self.layouts]
        alike = len(each) == 1 and self.rows.count(1) == self.count
        if alike and sizes == each[0] * self.count:  # mostly
            return
        for place, layout in enumerate(self.layout):
            rows = self.rows[place]
            for tensor, expected, data in zip(
                self.layouts[layout], each[layout], self.pieces(place), strict=True
            ):
                if not data:
                    continue  # it was not recorded
                if expected is None:
                    whole = holds_strings(data, rows * math.prod(tensor.shape))
                else:
                    whole = len(data) == rows * expected
                if not whole:
                    text = f"{len(data)} bytes of {tensor.name} are not {rows} rows"
                    raise BadBlock(text)

    @cached_property
    def units(self) -> Sequence[str]:
        """What the assignment of each sticks to."""
        return list(self._block.units) or [""] * self.count

    @cached_property
    def buckets(self) -> Sequence[int]:
        """Of the units."""
        return list(self._block.buckets) or [-1] * self.count

    @cached_property
    def segments(self) -> list[tuple[str, ...]]:
        """Values of the configured segments, of each."""
        values = [tuple(each.values) for each in self._block.segments]
        if not values:
            return [()] * self.count
        return [values[index] for index in self._block.segment]

    @property
    def has_inputs(self) -> bool:
        """Whether there is more in it than the join needs."""
        return any(tensor.is_input for layout in self.layouts for tensor in layout)

    def id(self, place: int) -> bytes:
        """Return the id of one."""
        return self.ids[place * ID_BYTES : (place + 1) * ID_BYTES]

    def pieces(self, place: int) -> list[bytes]:
        """Return the elements of each tensor of one."""
        first, last = self._tensors[place], self._tensors[place + 1]
        data, ends = self._block.data, self._ends
        return [data[ends[at] : ends[at + 1]] for at in range(first, last)]

    def ids_at(self, places: Sequence[int]) -> list[bytes]:
        """Return the ids of some."""
        ids = self.ids
        starts = [place * ID_BYTES for place in places]
        return [ids[start : start + ID_BYTES] for start in starts]

    def only_pieces(self, places: Sequence[int]) -> list[bytes]:
        """Return the elements of the tensor of some that have one each."""
        data, ends = self._block.data, self._ends
        return [data[ends[place] : ends[place + 1]] for place in places]

    def predictions(self, places: Iterable[int] | None = None) -> list[Prediction]:
        """Return all of them, or those at some places, as objects."""
        return list(self._predictions(range(self.count) if places is None else places))

    def _predictions(self, places: Iterable[int]) -> Iterator[Prediction]:
        block = self._block
        latencies, request_ids = block.latency_us, block.request_ids
        times = self.times.tolist()
        for place in places:
            rows = self.rows[place]
            tensors: tuple[list[Tensor], list[Tensor]] = [], []
            layout = self.layouts[self.layout[place]]
            pieces = self.pieces(place)
            for (name, datatype, shape, is_input), data in zip(
                layout, pieces, strict=True
            ):
                tensor = Tensor(name, datatype, (rows, *shape), data)
                tensors[is_input].append(tensor)
            yield Prediction(
                self.id(place),
                times[place],
                *self.origins[self.origin[place]],
                self.units[place],
                self.buckets[place],
                self.segments[place],
                rows,
                tuple(tensors[False]),
                tuple(tensors[True]),
                latencies[place],
                "",
                request_ids[place] if request_ids else "",
            )

    def ids_alone(self, places: Sequence[int]) -> bytes:
        """Return bytes of which `ids_of` returns the ids at some places."""
        ids = b"".join(self.ids_at(places))
        return pb.Block(ids=ids).SerializeToString()

    def some(self, places: Sequence[int]) -> bytes:
        """Return a block of those at some places, with what the join needs of them."""
        old, new = self._block, pb.Block()
        new.ids = b"".join(self.ids_at(places))
        new.after_ms.extend(np.diff(self.times[places], prepend=0).tolist())
        for name in ("origins", "segments", "layouts"):
            getattr(new, name).extend(getattr(old, name))
        for layout in new.layouts:
            layout.ClearField("inputs")
        columns = ("latency_us", "rows", "origin", "units", "buckets", "segment")
        for name in (*columns, "layout"):
            if column := getattr(old, name):
                getattr(new, name).extend([column[place] for place in places])
        outputs = [len(layout.tensors) for layout in new.layouts]
        pieces = [
            piece
            for place in places
            for piece in self.pieces(place)[: outputs[self.layout[place]]]
        ]
        new.data = b"".join(pieces)
        new.sizes.extend(map(len, pieces))
        return new.SerializeToString()


def decode(value: bytes) -> list[Prediction]:
    """Return what a block holds.

    Raises:
        BadBlock: It is none; says what is wrong with it.
    """
    return Block(value).predictions()


def ids_of(value: bytes) -> bytes:
    """Return the ids of a block that was read before."""
    return pb.Block.FromString(value).ids


def _bytes_of(tensor: TensorLayout) -> int | None:
    """Return the bytes of one row; ``None`` for strings."""
    if tensor.datatype == "BYTES":
        return None
    size = SIZES.get(tensor.datatype)
    if size is None or min(tensor.shape, default=1) < 0:
        raise BadBlock(f"{tensor.name} is of {tensor.datatype} {tensor.shape}")
    return size * math.prod(tensor.shape)


def _layout(layout: pb.Layout) -> Layout:
    return tuple(
        [
            TensorLayout(each.name, each.datatype, tuple(each.shape), is_input)
            for tensors, is_input in ((layout.tensors, False), (layout.inputs, True))
            for each in tensors
        ]
    )


def _check(name: str, values: Sequence[object], count: int) -> None:
    if len(values) != count:
        raise BadBlock(f"column {name} has {len(values)} entries instead of {count}")


def _column(name: str, values: Sequence[_T], count: int) -> list[_T]:
    _check(name, values, count)
    return list(values)


def _index(
    name: str, indices: Sequence[int], values: Sequence[object], count: int
) -> list[int]:
    column = _column(name, indices, count)
    if column and max(column) >= len(values):
        raise BadBlock(f"column {name} points beyond its {len(values)} values")
    return column

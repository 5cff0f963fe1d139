"""From answers to blocks, one for each partition; `columns` has the way back.

Most columns of most blocks hold one value, or small numbers: their bytes are written as
they are. protobuf's own code takes one value after the other.

Source: protobuf's wire format (a tag is field number << 3 | wire type, 2 for all that
has a length; fields may come in any order; a packed field is its numbers as varints).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, cast

import numpy as np

from gateway.feedback.blocks import (
    COLUMNS,
    ID_BYTES,
    NO_CONTEXT,
    Answer,
    Choice,
    Context,
    Form,
    Layout,
    id_of,
)
from gateway.feedback.partition import murmur2
from gateway.protocol import records_pb2 as pb

_MAX_LATENCY_US = (1 << 32) - 1
_MAX_REMEMBERED = 1 << 14
"""Origins, and layouts, that are written once; then they are forgotten together."""
_FIELDS = {field.name: field.number for field in pb.Block.DESCRIPTOR.fields}
_SMALL = 128
"""Numbers below are one byte as varints."""


class Share(NamedTuple):
    """The block of one partition.

    Attributes:
        partition: Of the ids.
        records: Predictions in it, at least 1.
        block: Serialised.
    """

    partition: int
    records: int
    block: bytes


class BlockWriter:
    """Writes blocks; remembers how what recurs looks.

    Args:
        partitions: Of the event log.
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._origins: dict[int, tuple[Choice, str, bytes]] = {}
        self._layouts: dict[int, tuple[Layout, bytes]] = {}

    def write(self, answers: Sequence[object], epoch_ns: int) -> list[Share]:
        """Return the blocks of some predictions.

        Args:
            answers: Members of one `Offered`, then of the next, and so on.
            epoch_ns: Unix time at which the answers' clock was 0.
        """
        if not answers:
            return []
        columns: list[Any] = [answers[place::COLUMNS] for place in range(COLUMNS)]
        names = b"".join(columns[0])
        order, ends = _order(names, len(columns[0]), self._partitions)
        starts = [0, *ends[:-1]]
        ids = np.frombuffer(id_of(names), f"V{ID_BYTES}")[order]
        admitted = np.array(columns[2], np.int64)
        latency = np.minimum(
            (np.array(columns[3], np.int64) - admitted) // 1000, _MAX_LATENCY_US
        )
        times = (admitted[order] + epoch_ns) // 1_000_000
        after = times.copy()
        after[1:] -= times[:-1]
        take = _taker(order.tolist())
        latencies = latency[order].tolist()
        others = [take(columns[place]) for place in (1, *range(4, COLUMNS))]
        shares = []
        for partition, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if start == end:
                continue
            after[start] = times[start]
            block = pb.Block()
            block.after_ms.extend(after[start:end].tolist())
            block.latency_us.extend(latencies[start:end])
            parts = [_field("ids", ids[start:end].tobytes())]
            self._add(block, parts, *[column[start:end] for column in others])
            parts.append(block.SerializeToString())
            shares.append(Share(partition, end - start, b"".join(parts)))
        return shares

    def _add(  # noqa: PLR0917 - the columns in their order
        self,
        block: pb.Block,
        parts: list[bytes],
        models: Sequence[str],
        rows: Sequence[int],
        choices: Sequence[Choice],
        contexts: Sequence[Context],
        forms: Sequence[Form],
        data: Sequence[bytes],
        request_ids: Sequence[bytes],
    ) -> None:
        """Add a share's other columns, to its block or as serialised parts."""
        _numbers(block, parts, "rows", rows)
        places, indices = _coded(choices, models)
        parts += [self._origin(choices[place], models[place]) for place in places]
        _numbers(block, parts, "origin", indices)
        if contexts.count(NO_CONTEXT) < len(contexts):
            _contexts(block, parts, contexts)
        if any(request_ids):
            block.request_ids.extend(cast("Sequence[str]", request_ids))  # or UTF-8
        parts.append(_field("data", b"".join(data)))
        count, form = len(forms), forms[0]
        if forms.count(form) == count:
            layouts, sizes = (form.layout,) * count, form.sizes * count
        else:
            layouts = tuple([each.layout for each in forms])
            sizes = tuple(chain.from_iterable([each.sizes for each in forms]))
        places, indices = _coded(layouts)
        parts += [self._layout(layouts[place]) for place in places]
        _numbers(block, parts, "layout", indices)
        if sizes:
            _numbers(block, parts, "sizes", sizes)

    def _origin(self, choice: Choice, model: str) -> bytes:
        known = self._origins.get(id(choice))
        if known is not None and known[0] is choice and known[1] == model:
            return known[2]
        origin = pb.Origin(
            model=model,
            version=choice.version,
            role=choice.role,
            policy=choice.policy,
            propensity=choice.propensity,
            revision=choice.revision,
            snapshot=choice.snapshot,
        )
        written = _field("origins", origin.SerializeToString())
        if len(self._origins) >= _MAX_REMEMBERED:
            self._origins.clear()
        self._origins[id(choice)] = choice, model, written
        return written

    def _layout(self, layout: Layout) -> bytes:
        known = self._layouts.get(id(layout))
        if known is not None and known[0] is layout:
            return known[1]
        message = pb.Layout()
        for name, datatype, shape, is_input in layout:
            tensors = message.inputs if is_input else message.tensors
            tensors.add(name=name, datatype=datatype, shape=shape)
        written = _field("layouts", message.SerializeToString())
        if len(self._layouts) >= _MAX_REMEMBERED:
            self._layouts.clear()
        self._layouts[id(layout)] = layout, written
        return written


def encode(answers: Sequence[Answer], epoch_ns: int = 0) -> bytes:
    """Return one block of some predictions; for many blocks, `BlockWriter` is cheaper.

    Args:
        answers: The predictions.
        epoch_ns: Unix time at which the answers' clock was 0.
    """
    members = list(chain.from_iterable([answer.offered() for answer in answers]))
    shares = BlockWriter(1).write(members, epoch_ns)
    return shares[0].block if shares else b""


def _order(names: bytes, count: int, partitions: int) -> tuple[np.ndarray, list[int]]:
    """Return which prediction is where, by partition, and where each share ends."""
    if partitions == 1:
        return np.arange(count), [count]
    hashes = murmur2(np.frombuffer(names, np.uint8).reshape(count, -1))
    places = (hashes & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)
    ends = np.bincount(places, minlength=partitions).cumsum()
    return places.argsort(kind="stable"), ends.tolist()


def _taker(order: list[int]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what puts a column into an order."""
    if len(order) == 1:  # then an itemgetter returns no tuple
        return tuple
    return itemgetter(*order)


@lru_cache(1 << 14)
def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= _SMALL:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_TAGS = {name: _varint(number << 3 | 2) for name, number in _FIELDS.items()}


def _field(name: str, value: bytes) -> bytes:
    """Return a field of a block that has a length."""
    return b"".join((_TAGS[name], _varint(len(value)), value))


def _numbers(
    block: pb.Block, parts: list[bytes], name: str, values: Sequence[int]
) -> None:
    """Add a column of unsigned numbers, at least one."""
    first = values[0]
    if values.count(first) == len(values):
        parts.append(_field(name, _varint(first) * len(values)))
    elif max(values) < _SMALL:
        parts.append(_field(name, bytes(values)))
    else:
        getattr(block, name).extend(values)


def _contexts(block: pb.Block, parts: list[bytes], contexts: Sequence[Context]) -> None:
    units, buckets, segments = zip(*contexts, strict=True)
    if any(units):
        block.units.extend(units)
    if buckets.count(-1) < len(buckets):
        block.buckets.extend(buckets)
    if any(segments):
        number: dict[tuple[str, ...], int] = {}
        indices = [number.setdefault(values, len(number)) for values in segments]
        for values in number:
            block.segments.add(values=values)
        _numbers(block, parts, "segment", indices)


def _coded(
    values: Sequence[object], others: Sequence[object] = ()
) -> tuple[Sequence[int], Sequence[int]]:
    """Return where each different object stands, and which of them each is.

    Args:
        values: Equal ones are mostly one object.
        others: As many, which count as well; or none.
    """
    alike = not others or others.count(others[0]) == len(others)
    if alike and values.count(values[0]) == len(values):
        return (0,), (0,) * len(values)
    keys: Sequence[object] = list(map(id, values))
    if not alike:
        keys = list(zip(keys, others, strict=True))
    last = dict(zip(keys, range(len(keys)), strict=True))
    number = dict(zip(last, range(len(last)), strict=True))
    return tuple(last.values()), [number[key] for key in keys]

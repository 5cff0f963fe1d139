"""Predictions as fronts write them: blocks, column by column. Pure.

Source: ``protos/records.proto``, where each column is described.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol, cast

import numpy as np
from google.protobuf.message import DecodeError

from gateway.protocol import records_pb2 as pb

ID_BYTES = 16
_MAX_LATENCY_US = (1 << 32) - 1


class Choice(Protocol):
    """How an answer came about; see `Prediction` for the fields."""

    @property
    def version(self) -> int:
        """That answered."""

    @property
    def role(self) -> str:
        """Of its arm."""

    @property
    def policy(self) -> str:
        """That chose it."""

    @property
    def propensity(self) -> float:
        """Of the arm."""

    @property
    def revision(self) -> int:
        """Of the traffic table."""

    @property
    def snapshot(self) -> int:
        """Of the weights."""


class TensorLayout(NamedTuple):
    """A tensor as all rows of a prediction have it.

    Attributes:
        name: Of the output.
        datatype: As in the Open Inference Protocol.
        shape: Without the rows.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


Layout = tuple[TensorLayout, ...]


Context = tuple[str, int, tuple[str, ...]]
"""Unit, bucket and segments of a request; hashable."""
NO_CONTEXT: Context = ("", -1, ())


class Answer(NamedTuple):
    """A prediction as a front has it.

    Attributes:
        name: Its id, 36 ASCII characters.
        model: Name the client used.
        admitted_ns: When its request was admitted, on the monotonic clock.
        latency_us: From there to the answer.
        rows: Of the request, at least 1.
        choice: Which version answered, and why; equal ones should be one object.
        context: What of the request took part in that.
        layout: Of the outputs; equal ones should be one object.
        outputs: Elements of all rows, of each tensor of the layout.
        request_id: The client's own, in UTF-8; empty for none.
    """

    name: bytes
    model: str
    admitted_ns: int
    latency_us: int
    rows: int
    choice: Choice
    context: Context
    layout: Layout
    outputs: Sequence[bytes]
    request_id: bytes


Offered = tuple[
    bytes, str, int, int, int, Choice, Context, Layout, Sequence[bytes], bytes
]
"""An `Answer`, or the same as a plain tuple, which is made in a fifth of the time."""


def id_of(name: bytes) -> bytes:
    """Return the 16 bytes of an id of 36 characters; of many, joined, all theirs."""
    return bytes.fromhex(name.decode("ascii").replace("-", ""))


def encode(answers: Sequence[Offered], epoch_ns: int = 0) -> bytes:
    """Return the block of some predictions.

    Args:
        answers: The predictions.
        epoch_ns: Unix time at which the answers' clock was 0.
    """
    block = pb.Block()
    if answers:
        _encode_answers(block, answers, epoch_ns)
    return block.SerializeToString()


def _encode_answers(block: pb.Block, answers: Sequence[Offered], epoch_ns: int) -> None:
    (
        ids,
        models,
        admitted,
        latencies,
        rows,
        choices,
        contexts,
        layouts,
        outputs,
        request_ids,
    ) = zip(*answers, strict=True)
    block.ids = id_of(b"".join(ids))
    times = (np.array(admitted, np.int64) + epoch_ns) // 1_000_000
    times[1:] -= times[:-1].copy()
    block.after_ms.extend(times.tolist())
    if max(latencies) > _MAX_LATENCY_US:
        latencies = tuple([min(latency, _MAX_LATENCY_US) for latency in latencies])
    block.latency_us.extend(latencies)
    block.rows.extend(rows)
    _encode_origins(block, models, choices)
    if contexts.count(NO_CONTEXT) < len(contexts):
        _encode_contexts(block, contexts)
    if any(request_ids):
        block.request_ids.extend(cast("Sequence[str]", request_ids))  # or UTF-8
    places, indices = _coded(layouts, map(id, layouts))
    for place in places:
        added = block.layouts.add()
        for name, datatype, shape in layouts[place]:
            added.tensors.add(name=name, datatype=datatype, shape=shape)
    block.layout.extend(indices)
    pieces = list(chain.from_iterable(outputs))
    block.data = b"".join(pieces)
    block.sizes.extend(map(len, pieces))


def _encode_origins(
    block: pb.Block, models: Sequence[str], choices: Sequence[Choice]
) -> None:
    keys: Iterable[Hashable] = map(id, choices)
    if models.count(models[0]) < len(models):
        keys = zip(keys, models, strict=True)
    places, indices = _coded((), keys)
    for place in places:
        choice = choices[place]
        block.origins.add(
            model=models[place],
            version=choice.version,
            role=choice.role,
            policy=choice.policy,
            propensity=choice.propensity,
            revision=choice.revision,
            snapshot=choice.snapshot,
        )
    block.origin.extend(indices)


def _encode_contexts(block: pb.Block, contexts: Sequence[Context]) -> None:
    units, buckets, segments = zip(*contexts, strict=True)
    if any(units):
        block.units.extend(units)
    if buckets.count(-1) < len(buckets):
        block.buckets.extend(buckets)
    if any(segments):
        places, indices = _coded(segments, segments)
        for place in places:
            block.segments.add(values=segments[place])
        block.segment.extend(indices)


def _coded(
    values: Sequence[object], keys: Iterable[Hashable]
) -> tuple[list[int], list[int]]:
    """Return where each different key stands, and which of them each is.

    Args:
        values: What the keys stand for; the way is short if all are equal.
        keys: As many.
    """
    if values and values.count(values[0]) == len(values):
        return [0], [0] * len(values)
    keys = list(keys)
    last = dict(zip(keys, range(len(keys)), strict=True))
    if len(last) == 1:
        return [0], [0] * len(keys)
    number = {key: index for index, key in enumerate(last)}
    return list(last.values()), [number[key] for key in keys]


def predictions_in(value: bytes) -> int:
    """Return how many predictions a block holds; 0 if it is none."""
    try:
        return len(pb.Block.FromString(value).ids) // ID_BYTES
    except DecodeError:
        return 0

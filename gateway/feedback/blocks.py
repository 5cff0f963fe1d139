"""Predictions as the event log has them: blocks, column by column. Pure.

Source: ``protos/records.proto``, where each column is described.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple, Protocol, TypeVar

from google.protobuf.message import DecodeError

from gateway.feedback.types import Alias, Named, Prediction, Tensor
from gateway.protocol import records_pb2 as pb

ID_BYTES = 16
_MAX_LATENCY_US = (1 << 32) - 1
_T = TypeVar("_T")


class BadBlock(ValueError):
    """These bytes are no block, or one that contradicts itself."""


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


class Answer(NamedTuple):
    """A prediction as a front has it.

    Attributes:
        name: Its id, 36 ASCII characters.
        model: Name the client used.
        time_ms: When its request was admitted, in Unix milliseconds.
        latency_us: From there to the answer.
        rows: Of the request, at least 1.
        choice: Which version answered, and why; equal ones should be one object.
        context: Unit, bucket and segments; hashable.
        layout: Of the outputs; equal ones should be one object.
        outputs: Elements of all rows, of each tensor of the layout.
        request_id: The client's own; empty for none.
    """

    name: bytes
    model: str
    time_ms: int
    latency_us: int
    rows: int
    choice: Choice
    context: tuple[str, int, tuple[str, ...]]
    layout: Layout
    outputs: Sequence[bytes]
    request_id: str


class Decoded(NamedTuple):
    """What a block holds."""

    predictions: list[Prediction]
    names: list[Named]


def id_of(name: bytes) -> bytes:
    """Return the 16 bytes of an id of 36 characters; of many, joined, all theirs."""
    return bytes.fromhex(name.decode("ascii").replace("-", ""))


def encode(answers: Sequence[Answer], names: Sequence[Named] = ()) -> bytes:
    """Return the block of some predictions, and of clients' names of others.

    Args:
        answers: The predictions.
        names: Given by clients; those that belong in the same partition.
    """
    block = pb.Block()
    if answers:
        _encode_answers(block, answers)
    if names:
        block.aliases.ids = b"".join([named.prediction_id for named in names])
        block.aliases.tenants.extend([named.alias.tenant for named in names])
        block.aliases.models.extend([named.alias.model for named in names])
        block.aliases.request_ids.extend([named.alias.request_id for named in names])
    return block.SerializeToString()


def _encode_answers(block: pb.Block, answers: Sequence[Answer]) -> None:
    (
        ids,
        models,
        times,
        latencies,
        rows,
        choices,
        contexts,
        layouts,
        outputs,
        request_ids,
    ) = zip(*answers, strict=True)
    block.ids = id_of(b"".join(ids))
    before = (0, *times)
    block.after_ms.extend([t - b for t, b in zip(times, before, strict=False)])
    if max(latencies) > _MAX_LATENCY_US:
        latencies = tuple([min(latency, _MAX_LATENCY_US) for latency in latencies])
    block.latency_us.extend(latencies)
    block.rows.extend(rows)
    places, indices = _coded(list(zip(map(id, choices), models, strict=True)))
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
    places, indices = _coded(contexts)
    for place in places:
        unit, bucket, segments = contexts[place]
        block.contexts.add(unit=unit, bucket=bucket, segments=segments)
    block.context.extend(indices)
    if any(request_ids):
        block.request_ids.extend(request_ids)
    places, indices = _coded(list(map(id, layouts)))
    for place in places:
        added = block.layouts.add()
        for name, datatype, shape in layouts[place]:
            added.tensors.add(name=name, datatype=datatype, shape=shape)
    block.layout.extend(indices)
    pieces = list(chain.from_iterable(outputs))
    block.data = b"".join(pieces)
    block.sizes.extend(map(len, pieces))


def _coded(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Return where each different key stands, and which of them each is."""
    last = dict(zip(keys, range(len(keys)), strict=True))
    if len(last) == 1:
        return [0], [0] * len(keys)
    number = {key: index for index, key in enumerate(last)}
    return list(last.values()), [number[key] for key in keys]


# -- and back ------------------------------------------------------------------------


def decode(value: bytes) -> Decoded:
    """Return what a block holds.

    Raises:
        BadBlock: It is none; says what is wrong with it.
    """
    try:
        block = pb.Block.FromString(value)
    except DecodeError as error:
        raise BadBlock(f"this is no block of predictions: {error}") from None
    return Decoded(_predictions(block), _names(block.aliases))


def _ids(ids: bytes) -> list[bytes]:
    if len(ids) % ID_BYTES:
        raise BadBlock(f"{len(ids)} bytes of ids are no multiple of {ID_BYTES}")
    return [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]


def _predictions(block: pb.Block) -> list[Prediction]:
    ids = _ids(block.ids)
    count = len(ids)
    origins = [
        (o.model, o.version, o.role, o.policy, o.propensity, o.revision, o.snapshot)
        for o in block.origins
    ]
    contexts = [(c.unit, c.bucket, tuple(c.segments)) for c in block.contexts]
    layouts: list[Layout] = [
        tuple([TensorLayout(t.name, t.datatype, tuple(t.shape)) for t in each.tensors])
        for each in block.layouts
    ]
    rows = _column("rows", block.rows, count)
    if count and min(rows) < 1:
        raise BadBlock("a prediction has no rows")
    outputs = _outputs(block, rows, _looked_up("layout", block.layout, layouts, count))
    columns = zip(
        ids,
        accumulate(_column("after_ms", block.after_ms, count)),
        _looked_up("origin", block.origin, origins, count),
        _looked_up("context", block.context, contexts, count),
        rows,
        outputs,
        _column("latency_us", block.latency_us, count),
        _column("request_ids", block.request_ids or [""] * count, count),
        strict=True,
    )
    return [
        Prediction._make(
            [
                *(id_, time_ms, *origin, *context, rows_of),
                *(tensors, (), latency_us, "", request_id),
            ]
        )
        for (
            id_,
            time_ms,
            origin,
            context,
            rows_of,
            tensors,
            latency_us,
            request_id,
        ) in columns
    ]


def _outputs(
    block: pb.Block, rows: Sequence[int], layouts: Sequence[Layout]
) -> Iterator[tuple[Tensor, ...]]:
    count = sum(map(len, layouts))
    sizes = _column("sizes", block.sizes, count)
    data = block.data
    if sum(sizes) != len(data):
        raise BadBlock(f"outputs of {sum(sizes)} bytes are {len(data)} bytes long")
    ends = accumulate(sizes)
    start = 0
    for rows_of, layout in zip(rows, layouts, strict=True):
        tensors = []
        for name, datatype, shape in layout:
            end = next(ends)
            tensors.append(Tensor(name, datatype, (rows_of, *shape), data[start:end]))
            start = end
        yield tuple(tensors)


def _names(aliases: pb.Aliases) -> list[Named]:
    ids = _ids(aliases.ids)
    columns = (aliases.tenants, aliases.models, aliases.request_ids)
    if any(len(column) != len(ids) for column in columns):
        raise BadBlock(f"columns of aliases are not {len(ids)} long as their ids are")
    return [
        Named(Alias(*alias), id_)
        for alias, id_ in zip(zip(*columns, strict=True), ids, strict=True)
    ]


def _column(name: str, values: Sequence[_T], count: int) -> list[_T]:
    if len(values) != count:
        raise BadBlock(f"column {name} has {len(values)} entries instead of {count}")
    return list(values)


def _looked_up(
    name: str, indices: Sequence[int], values: Sequence[_T], count: int
) -> list[_T]:
    try:
        return [values[index] for index in _column(name, indices, count)]
    except IndexError:
        text = f"column {name} points beyond its {len(values)} values"
        raise BadBlock(text) from None

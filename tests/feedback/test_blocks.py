"""Blocks of predictions: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import math
import struct
import uuid
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.feedback.block_writer import BlockWriter, encode
from gateway.feedback.blocks import (
    Answer,
    Layout,
    TensorLayout,
    id_of,
)
from gateway.feedback.columns import BadBlock, Block, decode
from gateway.feedback.partition import partitions_of
from gateway.feedback.types import Prediction, Tensor
from gateway.protocol import records_pb2 as pb


class Chosen(NamedTuple):
    """A choice, as traffic makes it."""

    version: int
    role: str
    propensity: float
    policy: str
    revision: int
    snapshot: int


EPOCH_NS = 1_700_000_000_123_456_789
TEXT = st.text(max_size=8)
CHOICES = st.builds(
    Chosen,
    st.integers(1, 1 << 40),
    st.sampled_from(["champion", "challenger", "shadow"]),
    st.floats(0, 1, exclude_min=True),
    TEXT,
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
)
LAYOUTS = st.lists(
    st.builds(
        TensorLayout,
        TEXT,
        st.sampled_from(["FP32", "INT64", "BOOL", "BYTES", "BF16"]),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.booleans(),
    ),
    max_size=4,
).map(lambda tensors: tuple(sorted(tensors, key=lambda tensor: tensor.is_input)))
CONTEXTS = st.tuples(TEXT, st.integers(-1, 9999), st.lists(TEXT, max_size=2).map(tuple))


SIZES = {"FP32": 4, "INT64": 8, "BOOL": 1, "BF16": 2}


@st.composite
def elements(draw: st.DrawFn, tensor: TensorLayout, rows: int) -> bytes:
    """Return the bytes of so many rows; perhaps none, of an input."""
    if tensor.is_input and draw(st.booleans()):
        return b""  # redacted
    count = rows * math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        text = draw(st.binary(max_size=3))
        return (struct.pack("<I", len(text)) + text) * count
    return draw(st.binary(min_size=1, max_size=1)) * (SIZES[tensor.datatype] * count)


@st.composite
def answers(draw: st.DrawFn) -> list[Answer]:
    choices = draw(st.lists(CHOICES, min_size=1, max_size=3))
    layouts: list[Layout] = draw(st.lists(LAYOUTS, min_size=1, max_size=3))
    out = []
    for _ in range(draw(st.integers(0, 8))):
        layout = draw(st.sampled_from(layouts))
        out.append(
            Answer(
                str(draw(st.uuids())).encode(),
                draw(TEXT),
                draw(st.integers(0, 1 << 62)),
                draw(st.integers(0, (1 << 34))),
                rows := draw(st.sampled_from([1, 1, 1, 2, 5])),
                draw(st.sampled_from(choices)),
                draw(CONTEXTS),
                layout,
                [draw(elements(tensor, rows)) for tensor in layout],
                draw(TEXT).encode(),
            )
        )
    return out


def expected(answer: Answer) -> Prediction:
    choice = answer.choice
    return Prediction(
        uuid.UUID(answer.name.decode()).bytes,
        (answer.admitted_ns + EPOCH_NS) // 1_000_000,
        answer.model,
        choice.version,
        choice.role,
        choice.policy,
        choice.propensity,
        choice.revision,
        choice.snapshot,
        *answer.context,
        answer.rows,
        _tensors(answer, inputs=False),
        _tensors(answer, inputs=True),
        min(answer.latency_us, (1 << 32) - 1),
        "",
        answer.request_id.decode(),
    )


def _tensors(answer: Answer, *, inputs: bool) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(layout.name, layout.datatype, (answer.rows, *layout.shape), data)
        for layout, data in zip(answer.layout, answer.outputs, strict=True)
        if layout.is_input is inputs
    )


@given(answers())
def test_what_goes_in_comes_out(given_: list[Answer]) -> None:
    decoded = decode(encode(given_, EPOCH_NS))
    assert decoded == [expected(answer) for answer in given_]


@given(answers(), st.integers(1, 5))
def test_each_partition_gets_its_own_in_their_order(
    given_: list[Answer], partitions: int
) -> None:
    members = [member for answer in given_ for member in answer.offered()]
    shares = BlockWriter(partitions).write(members, EPOCH_NS)
    places = partitions_of([answer.name for answer in given_], partitions)
    assert [share.partition for share in shares] == sorted(set(places))
    for place, records, block in shares:
        own = [a for a, at in zip(given_, places, strict=True) if at == place]
        assert records == len(own)
        assert decode(block) == [expected(answer) for answer in own]


@given(answers(), st.data())
def test_a_part_of_a_block_is_what_the_join_needs(
    given_: list[Answer], data: st.DataObject
) -> None:
    block = Block(encode(given_, EPOCH_NS))
    every = [expected(answer) for answer in given_]
    assert block.has_inputs is any(one.inputs for one in every)
    places = [place for place in range(len(given_)) if data.draw(st.booleans())]
    assert block.predictions(places) == [every[place] for place in places]
    some = Block(block.some(places))
    assert not some.has_inputs
    needed = [every[place]._replace(inputs=()) for place in places]
    found = some.predictions()
    assert [one._replace(request_id="") for one in found] == [
        one._replace(request_id="") for one in needed
    ]


def test_what_a_writer_remembers_is_checked() -> None:
    writer = BlockWriter(1)
    for number in range(20):  # objects that are gone leave their ids to others
        choice, layout = Chosen(number, "champion", 1.0, "none", 0, 0), _one().layout
        layout = (layout[0]._replace(name=str(number)),)
        one = _one()._replace(choice=choice, layout=layout, model=str(number % 3))
        again = one._replace(model="other")
        for answer in (one, again):
            (share,) = writer.write(answer.offered(), EPOCH_NS)
            assert decode(share.block) == [expected(answer)]
        del choice, layout, one, again, answer


@given(st.binary(max_size=200))
def test_other_bytes_are_no_block(value: bytes) -> None:
    with suppress(BadBlock):  # and nothing else comes out
        decode(value)


@given(answers(), st.data())
def test_a_damaged_block_says_so_or_is_one(
    given_: list[Answer], data: st.DataObject
) -> None:
    block = bytearray(encode(given_))
    if not block:
        return
    place = data.draw(st.integers(0, len(block) - 1))
    block[place] = data.draw(st.integers(0, 255))
    with suppress(BadBlock):
        decode(bytes(block))


def _one(data: bytes = b"\0" * 4) -> Answer:
    return Answer(
        str(uuid.uuid4()).encode(),
        "m",
        1,
        2,
        1,
        Chosen(1, "champion", 1.0, "none", 0, 0),
        ("user", 7, ("de",)),
        (TensorLayout("y", "FP32", ()),),
        [data],
        b"",
    )


def test_a_number_that_is_none_stays_it() -> None:
    (prediction,) = decode(encode([_one(struct.pack("<f", math.nan))]))
    assert math.isnan(struct.unpack("<f", prediction.outputs[0].data)[0])


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("ids", "multiple of 16"),
        ("rows", "column rows"),
        ("after_ms", "column after_ms"),
        ("latency_us", "column latency_us"),
        ("origins", "points beyond"),
        ("segments", "column segment points beyond"),
        ("segment", "column segment has"),
        ("layouts", "column layout points beyond"),
        ("sizes", "column sizes"),
        ("data", "bytes long"),
    ],
)
def test_a_missing_column_is_named(column: str, says: str) -> None:
    block = pb.Block.FromString(encode([_one()]))
    if column == "ids":
        block.ids = block.ids[:-1]
    else:
        block.ClearField(column)
    with pytest.raises(BadBlock, match=says):
        decode(block.SerializeToString())


@pytest.mark.parametrize("column", ["units", "buckets", "request_ids"])
def test_a_column_may_be_left_out_and_not_too_short(column: str) -> None:
    block = pb.Block.FromString(encode([_one(), _one()._replace(request_id=b"r")]))
    del getattr(block, column)[-1]
    with pytest.raises(BadBlock, match=f"column {column} has 1"):
        decode(block.SerializeToString())
    block.ClearField(column)
    predictions = decode(block.SerializeToString())
    assert [(p.unit, p.bucket, p.request_id) for p in predictions] == [
        (
            "" if column == "units" else "user",
            -1 if column == "buckets" else 7,
            "" if column == "request_ids" else request_id,
        )
        for request_id in ("", "r")
    ]


def test_ids_are_the_bytes_of_their_names() -> None:
    ids = [uuid.uuid4(), uuid.uuid4()]
    joined = b"".join([str(each).encode() for each in ids])
    assert id_of(joined) == b"".join([each.bytes for each in ids])


@pytest.mark.parametrize(
    ("tensor", "rows", "data"),
    [
        (TensorLayout("y", "FP32", (2,)), 2, b"\0" * 15),
        (TensorLayout("y", "BYTES", (1,)), 2, b"\1"),
        (TensorLayout("y", "BYTES", (1,)), 1, b"\x09\0\0\0ab"),
        (TensorLayout("y", "BYTES", (1,)), 1, b"\0\0\0\0more"),
        (TensorLayout("y", "FP31", (1,)), 1, b"\0" * 4),
        (TensorLayout("y", "FP32", (-1,)), 1, b""),
        (TensorLayout("y", "FP32", (0,)), 4_000_000_000, b""),
    ],
)
def test_tensors_have_the_bytes_of_their_rows(
    tensor: TensorLayout, rows: int, data: bytes
) -> None:
    """Else whoever takes a row out of one later would fail, again and again."""
    one = _one(b"\0\0\0\0")._replace(rows=rows, layout=(tensor,), outputs=(data,))
    with pytest.raises(BadBlock, match=r"y is of|of y are|more than"):
        decode(encode([one]))

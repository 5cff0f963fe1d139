"""HPACK: the vectors of RFC 7541, the `hpack` package as oracle, and hostile blocks.

Where the two decoders may differ, by intent (`agree`):

- Ours refuses an integer that goes on for more than four bytes; hpack reads on for as
  long as there are bytes, so a zero may take a megabyte.
- Ours answers None for a list that is too long and stays usable; hpack raises. The
  oracle runs without a limit here, and the limit has tests of its own.
"""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.transport.hpack import (
    Decoder,
    Header,
    HpackError,
    encode_indexed,
    encode_literal,
)
from gateway.transport.hpack_tables import STATIC_TABLE

NO_LIMIT = 1 << 30
CAPTURED: dict[str, list[bytes]] = {
    client: [bytes.fromhex(block) for block in blocks]
    for client, blocks in json.loads(
        Path(__file__).with_name("header_blocks.json").read_text(encoding="utf-8")
    ).items()
}
huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode


def integer(value: int, flags: int, mask: int) -> bytes:
    if value < mask:
        return bytes((flags | value,))
    encoded, value = [flags | mask], value - mask
    while value >= 128:
        encoded.append(128 | value % 128)
        value //= 128
    return bytes((*encoded, value))


def string(text: bytes, *, coded: bool = False) -> bytes:
    text = huffman(text) if coded else text
    return integer(len(text), 0x80 * coded, 0x7F) + text


def resize(limit: int) -> bytes:
    return integer(limit, 0x20, 0x1F)


def inserted(name: bytes, value: bytes) -> bytes:
    return b"\x40" + string(name) + string(value)


def entries(decoder: Decoder) -> list[Header]:
    """The dynamic table, newest first, as references to it are answered."""
    found: list[Header] = []
    while True:
        try:
            fields = decoder.decode(encode_indexed(62 + len(found)))
        except HpackError:
            return found
        assert fields is not None, "the entry is beyond the list's limit"
        found += fields


def table_bytes(decoder: Decoder) -> int:
    return sum(len(name) + len(value) + 32 for name, value in entries(decoder))


def outcome(decoder: hpack.Decoder, block: bytes) -> list[Header] | None:
    try:
        return [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        return None


def agree(decoder: Decoder, oracle: hpack.Decoder, block: bytes) -> list[Header] | None:
    """Compare both on one block; its fields, or None where it is refused."""
    expected = outcome(oracle, block)
    refusal = ""
    try:
        fields = decoder.decode(block)
    except HpackError as error:
        refusal = str(error)
    if refusal:
        allowed = expected is None or "an integer of more than" in refusal
        assert allowed, f"only hpack reads {block.hex()}: {refusal}"
        return None
    assert fields == expected, block.hex()
    assert entries(decoder) == list(oracle.header_table.dynamic_entries)
    return fields


REQUESTS: list[list[Header]] = [
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
        (b"cache-control", b"no-cache"),
    ],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ],
]
STATUS_302, STATUS_307 = (b":status", b"302"), (b":status", b"307")
PRIVATE = (b"cache-control", b"private")
FIRST_DATE = (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT")
SECOND_DATE = (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT")
LOCATION = (b"location", b"https://www.example.com")
GZIP = (b"content-encoding", b"gzip")
COOKIE = (
    b"set-cookie",
    b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
)
RESPONSES: list[list[Header]] = [
    [STATUS_302, PRIVATE, FIRST_DATE, LOCATION],
    [STATUS_307, PRIVATE, FIRST_DATE, LOCATION],
    [(b":status", b"200"), PRIVATE, SECOND_DATE, LOCATION, GZIP, COOKIE],
]
REQUEST_TABLES = [
    [REQUESTS[0][3]],
    [REQUESTS[1][4], REQUESTS[0][3]],
    [REQUESTS[2][4], REQUESTS[1][4], REQUESTS[0][3]],
]
RESPONSE_TABLES = [
    [LOCATION, FIRST_DATE, PRIVATE, STATUS_302],
    [STATUS_307, LOCATION, FIRST_DATE, PRIVATE],
    [COOKIE, GZIP, SECOND_DATE],
]


@pytest.mark.parametrize(
    ("block", "field", "indexed"),
    [
        (
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
            (b"custom-key", b"custom-header"),
            True,
        ),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path"), False),
        ("100870617373776f726406736563726574", (b"password", b"secret"), False),
        ("82", (b":method", b"GET"), False),
    ],
    ids=["C.2.1", "C.2.2", "C.2.3", "C.2.4"],
)
def test_rfc_fields(block: str, field: Header, indexed: bool) -> None:
    decoder = Decoder()
    assert decoder.decode(bytes.fromhex(block)) == [field]
    assert entries(decoder) == [field] * indexed


@pytest.mark.parametrize(
    ("table", "blocks", "lists", "tables", "sizes"),
    [
        (
            4096,
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            REQUESTS,
            REQUEST_TABLES,
            [57, 110, 164],
        ),
        (
            4096,
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            REQUESTS,
            REQUEST_TABLES,
            [57, 110, 164],
        ),
        (
            256,
            [
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032"
                "303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e63"
                "6f6d",
                "4803333037c1c0bf",
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c0"
                "5a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f504955415851"
                "57454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
            ],
            RESPONSES,
            RESPONSE_TABLES,
            [222, 222, 215],
        ),
        (
            256,
            [
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1b"
                "ff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
                "4883640effc1c0bf",
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad"
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f95873160"
                "65c003ed4ee5b1063d5007",
            ],
            RESPONSES,
            RESPONSE_TABLES,
            [222, 222, 215],
        ),
    ],
    ids=["C.3", "C.4", "C.5", "C.6"],
)
def test_rfc_connections(
    table: int,
    blocks: list[str],
    lists: list[list[Header]],
    tables: list[list[Header]],
    sizes: list[int],
) -> None:
    decoder = Decoder(max_table_bytes=table)
    for block, fields, after, size in zip(blocks, lists, tables, sizes, strict=True):
        assert decoder.decode(bytes.fromhex(block)) == fields
        assert entries(decoder) == after
        assert table_bytes(decoder) == size


def test_the_static_table_is_that_of_the_oracle() -> None:
    decoder, oracle = Decoder(), hpack.Decoder()
    for index in range(1, 62):
        assert decoder.decode(encode_indexed(index)) == outcome(
            oracle, encode_indexed(index)
        )


@pytest.mark.parametrize("client", CAPTURED)
def test_blocks_of_stock_clients_are_read(client: str) -> None:
    decoder, oracle = Decoder(), hpack.Decoder()
    for block in CAPTURED[client]:
        fields = dict(agree(decoder, oracle, block) or ())
        assert fields[b":path"] == b"/inference.GRPCInferenceService/ModelInfer"
        assert fields[b"grpc-timeout"][-1:] in (b"S", b"m", b"u")


def test_captures_fill_the_table_until_entries_leave_it() -> None:
    decoder = Decoder()
    for block in CAPTURED["grpcio"]:
        decoder.decode(block)
    assert decoder.changes > len(entries(decoder))
    assert 3500 < table_bytes(decoder) <= 4096


def test_fields_of_the_table_are_the_same_objects_each_time() -> None:
    decoder = Decoder()
    block = inserted(b"user-agent", b"grpc-go")
    inserting = decoder.decode(block)
    first, second = decoder.decode(b"\xbe\x83"), decoder.decode(b"\xbe\x83")
    assert inserting
    assert first
    assert second
    assert first[0] is inserting[0]
    assert first[0] is second[0]
    assert first[1] is second[1]


names = st.one_of(
    st.sampled_from([name for name, _ in STATIC_TABLE]),
    st.sampled_from([b"grpc-timeout", b"x-a", b"x-b"]),
    st.binary(min_size=1, max_size=40),
)
values = st.one_of(
    st.sampled_from([b"", b"GET", b"POST", b"200", b"1S"]),
    st.binary(max_size=60),
    st.binary(min_size=120, max_size=400),
    st.integers(0, 10**8).map(lambda number: b"%du" % number),
)
fields = st.tuples(names, values, st.booleans())
steps = st.tuples(
    st.none() | st.integers(0, 512) | st.just(4096),
    st.lists(fields, max_size=12),
    st.booleans(),
)
Step = tuple[int | None, list[tuple[bytes, bytes, bool]], bool]
connections = st.lists(steps, min_size=1, max_size=12)


@given(connections)
@settings(deadline=None, max_examples=300)
def test_what_the_oracle_encodes_is_decoded(connection: list[Step]) -> None:
    encoder = hpack.Encoder()
    decoder, oracle = Decoder(), hpack.Decoder()
    for limit, headers, coded in connection:
        if limit is not None:
            encoder.header_table_size = limit
        block = encoder.encode([sent(*header) for header in headers], huffman=coded)
        assert agree(decoder, oracle, block) is not None
        assert list(encoder.header_table.dynamic_entries) == entries(decoder)


@given(connections)
@settings(deadline=None, max_examples=100)
def test_changes_grow_exactly_when_the_table_changes(connection: list[Step]) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for limit, headers, coded in connection:
        if limit is not None:
            changes = decoder.changes
            resized = limit != encoder.header_table_size
            encoder.header_table_size = limit
            decoder.decode(encoder.encode([]))
            assert (decoder.changes != changes) == resized
        for header in headers:
            before, changes = entries(decoder), decoder.changes
            decoder.decode(encoder.encode([sent(*header)], huffman=coded))
            # New entries are new objects, so identity tells an entry that stayed
            # from one that was replaced by its equal.
            after = entries(decoder)
            stayed = len(after) == len(before) and all(map(same, after, before))
            assert (decoder.changes == changes) == stayed


def sent(name: bytes, value: bytes, sensitive: bool) -> Header:
    return hpack.NeverIndexedHeaderTuple(name, value) if sensitive else (name, value)


def same(one: object, other: object) -> bool:
    return one is other


def test_a_reference_or_an_entry_too_large_for_an_empty_table_changes_nothing() -> None:
    decoder = Decoder()
    decoder.decode(inserted(b"a", b"b"))
    changes = decoder.changes
    decoder.decode(b"\x82\xbe" + encode_literal(b"x", b"y") + b"\x10\x01x\x01y")
    assert decoder.changes == changes
    decoder.decode(inserted(b"large", bytes(4096)))
    assert entries(decoder) == []
    changes += 1
    assert decoder.changes == changes
    decoder.decode(inserted(b"large", bytes(4096)))
    decoder.decode(resize(4096))
    assert decoder.changes == changes
    decoder.decode(resize(100))
    assert decoder.changes > changes


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
@settings(deadline=None, max_examples=1500)
def test_arbitrary_bytes_are_judged_as_the_oracle_does(blocks: list[bytes]) -> None:
    decoder, oracle = Decoder(), hpack.Decoder()
    for block in blocks:
        if agree(decoder, oracle, block) is None:
            break


def mutated(chance: random.Random, block: bytes) -> bytes:
    changed = bytearray(block)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = bytes((chance.randrange(256),))
            case 1:
                changed[at:at] = chance.randbytes(chance.randint(1, 3))
            case 2:
                del changed[at : at + chance.randint(1, 3)]
            case _:
                changed[at : at + 1] = bytes(
                    byte ^ 1 << chance.randrange(8) for byte in changed[at : at + 1]
                )
    return bytes(changed)


@pytest.mark.parametrize("client", CAPTURED)
def test_mutations_of_real_blocks_are_judged_as_the_oracle_does(client: str) -> None:
    chance = random.Random(client)
    blocks = CAPTURED[client]
    read = refused = 0
    for _ in range(500):
        decoder, oracle = Decoder(), hpack.Decoder()
        at = chance.randrange(len(blocks))
        for block in blocks[:at]:
            assert decoder.decode(block) == outcome(oracle, block)
        for block in blocks[at : at + 3]:
            if agree(decoder, oracle, mutated(chance, block)) is None:
                refused += 1
                break
            read += 1
    assert min(read, refused) > 100, "the mutations try one side only"


def test_random_blocks_raise_nothing_but_the_error() -> None:
    chance = random.Random(7541)
    blocks = [block for client in CAPTURED.values() for block in client]
    read = refused = 0
    for number in range(100_000):
        if number % 50 == 0:
            decoder = Decoder()
            for block in CAPTURED["grpcio"]:
                decoder.decode(block)
        try:
            decoder.decode(
                mutated(chance, chance.choice(blocks))
                if number % 2
                else chance.randbytes(chance.randint(1, 60))
            )
            read += 1
        except HpackError:
            refused += 1
    assert min(read, refused) > 5_000, "the blocks try one side only"
    assert table_bytes(decoder) <= 4096


SINGLE_FIELDS = {
    "long index": encode_indexed(62 + 70),
    "literal": encode_literal(b"x-name", b"value"),
    "literal, static name": encode_literal(b":path", b"/a"),
    "literal, long static name": encode_literal(b"via", b"x"),
    "inserted": inserted(b"x-name", b"value"),
    "coded": b"\x40" + string(b"x-name", coded=True) + string(b"value", coded=True),
    "never indexed": b"\x10" + string(b"x") + string(b"y" * 200),
    "resize": resize(3000),
}


@pytest.mark.parametrize("block", SINGLE_FIELDS.values(), ids=SINGLE_FIELDS)
def test_a_field_cut_short_anywhere_is_refused(block: bytes) -> None:
    def filled() -> Decoder:
        decoder = Decoder()
        for number in range(80):
            decoder.decode(inserted(b"n%d" % number, b"v"))
        return decoder

    assert filled().decode(block) is not None
    for end in range(1, len(block)):
        with pytest.raises(HpackError):
            filled().decode(block[:end])


@pytest.mark.parametrize("client", CAPTURED)
def test_a_block_cut_short_is_refused_or_is_its_first_fields(client: str) -> None:
    block = CAPTURED[client][0]
    whole = Decoder().decode(block)
    assert whole
    refused = 0
    for end in range(len(block)):
        try:
            fields = Decoder().decode(block[:end])
        except HpackError:
            refused += 1
        else:
            assert fields == whole[: len(fields or ())]
    assert refused > len(block) - len(whole) - 1


HUFFMAN_A = 0b00011 << 3
INVALID = {
    "index 0": b"\x80",
    "beyond the static table": b"\xbe",
    "far beyond": encode_indexed(10_000),
    "name beyond the table": b"\x7f\x00" + string(b"v"),
    "integer of six bytes": b"\x3f\x80\x80\x80\x80\x00",
    "endless integer": b"\xff" + b"\x80" * 1000,
    "integer overflow": b"\xff\xff\xff\xff\xff\x7f",
    "huge string": b"\x00\x7f\xff\xff\xff\x7f",
    "table too large": resize(4097),
    "size update after a field": b"\x82" + resize(100),
    "padding of zeros": b"\x00\x81" + bytes((HUFFMAN_A,)) + b"\x00",
    "padding of eleven bits": b"\x00\x82" + bytes((HUFFMAN_A | 7, 0xFF)) + b"\x00",
    "padding of eight bits": b"\x00\x81\xff\x00",
    "EOS": b"\x00\x84\xff\xff\xff\xff\x00",
    "EOS and padding": b"\x00\x84\xff\xff\xff\xfc\x00",
    "EOS after text": b"\x00\x85" + bytes((HUFFMAN_A | 7,)) + b"\xff" * 4 + b"\x00",
}


@pytest.mark.parametrize("block", INVALID.values(), ids=INVALID)
def test_invalid_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(HpackError, match=r"\w{4}"):
        Decoder().decode(block)


def test_an_integer_may_have_five_bytes() -> None:
    assert Decoder().decode(b"\x3f\x80\x80\x80\x00\x82") == [(b":method", b"GET")]


def test_padding_of_up_to_seven_ones_is_read() -> None:
    assert Decoder().decode(b"\x00\x81" + bytes((HUFFMAN_A | 7,)) + b"\x00") == [
        (b"a", b"")
    ]
    # "X" has eight bits, "&" ends a byte: no padding at all.
    assert Decoder().decode(b"\x00" + string(b"&X", coded=True) + b"\x00") == [
        (b"&X", b"")
    ]


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_huffman_coded_strings_of_any_bytes_are_read(text: bytes) -> None:
    block = b"\x00" + string(text, coded=True) + string(text[::-1], coded=True)
    assert Decoder().decode(block) == [(text, text[::-1])]


def test_size_updates_come_first_and_may_be_two() -> None:
    decoder = Decoder()
    decoder.decode(inserted(b"a", b"b"))
    assert decoder.decode(resize(0) + resize(4096) + b"\x82") == [(b":method", b"GET")]
    assert entries(decoder) == []
    decoder.decode(inserted(b"c", b"d"))
    assert entries(decoder) == [(b"c", b"d")]


def test_an_entry_may_be_named_by_the_one_it_evicts() -> None:
    decoder = Decoder(max_table_bytes=40)
    decoder.decode(inserted(b"name", b"abc"))
    assert decoder.decode(b"\x7e" + string(b"defg")) == [(b"name", b"defg")]
    assert entries(decoder) == [(b"name", b"defg")]


@given(
    st.lists(st.tuples(st.booleans(), names, values), max_size=12),
    st.integers(0, 1500),
)
@settings(deadline=None, max_examples=300)
def test_a_list_beyond_its_limit_is_none_and_the_table_stays_in_step(
    headers: list[tuple[bool, bytes, bytes]], limit: int
) -> None:
    block = b"".join(
        inserted(name, value) if insert else encode_literal(name, value)
        for insert, name, value in headers
    )
    limited, unlimited = Decoder(4096, limit), Decoder(4096, NO_LIMIT)
    expected = unlimited.decode(block)
    assert expected == [(name, value) for _, name, value in headers]
    size = sum(len(name) + len(value) + 32 for _, name, value in headers)
    assert limited.decode(block) == (expected if size <= limit else None)
    assert limited.changes == unlimited.changes
    for index in range(len(entries(unlimited))):
        reference = encode_indexed(62 + index)
        field = unlimited.decode(reference)
        assert field
        fits = len(field[0][0]) + len(field[0][1]) + 32 <= limit
        assert limited.decode(reference) == (field if fits else None)


def seconds(decoder: Decoder, block: bytes) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        decoder.decode(block)
        best = min(best, time.perf_counter() - started)
    return best


def test_a_bomb_of_references_costs_no_memory_and_no_more_time_than_small_ones() -> (
    None
):
    decoder = Decoder()
    decoder.decode(inserted(b"bomb", bytes(4000)))
    bomb, small = b"\xbe" * 200_000, b"\x82" * 200_000
    assert decoder.decode(b"\xbe") is not None
    tracemalloc.start()
    try:
        assert decoder.decode(bomb) is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert decoder.decode(small) is None
        _, peak_small = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 16 KiB hold at most 512 fields of 32 bytes: one pointer each, and the list grows
    # by an eighth.
    assert peak < 8192
    assert peak_small < 16384
    assert seconds(decoder, bomb) < 3 * seconds(
        Decoder(4096, NO_LIMIT), b"\x82" * 200_000
    )


def test_bytes_that_use_every_step_of_the_code_are_bounded_in_memory() -> None:
    chance = random.Random(1)
    tracemalloc.start()
    try:
        for _ in range(300):
            text = chance.randbytes(2000)
            block = b"\x00" + string(text, coded=True) + string(b"")
            assert Decoder().decode(block) == [(text, b"")]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 16 << 20


@given(names, values, st.booleans())
@settings(deadline=None)
def test_encoded_literals_are_read_by_both(
    name: bytes, value: bytes, long: bool
) -> None:
    value *= 1 + 40 * long
    block = encode_literal(name, value)
    decoder = Decoder(4096, NO_LIMIT)
    oracle = hpack.Decoder(NO_LIMIT)
    assert decoder.decode(block) == outcome(oracle, block) == [(name, value)]
    assert decoder.changes == 0


def test_encoded_literals_use_the_static_names() -> None:
    assert encode_literal(b":status", b"200") == b"\x08\x03200"
    assert encode_literal(b"content-type", b"x") == b"\x0f\x10\x01x"
    assert encode_literal(b"grpc-status", b"0") == b"\x00\x0bgrpc-status\x010"


@pytest.mark.parametrize("index", [1, 61, 62, 126, 127, 128, 254, 255, 1337, 1 << 20])
def test_encoded_references_are_those_of_the_oracle(index: int) -> None:
    expected = hpack.hpack.encode_integer(index, 7)
    expected[0] |= 0x80
    assert encode_indexed(index) == bytes(expected) == integer(index, 0x80, 0x7F)

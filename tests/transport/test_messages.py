"""Messages cut out of a body: in any pieces, of any size, compressed or broken."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError, TooLarge, Unsupported
from gateway.transport.messages import BadMessage, MessageReader, check_encoding
from tests.transport.peer import message

LIMIT = 5000
"""Above the size below which pieces are gathered."""
PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
}


def read(
    body: bytes, pieces: list[int] | None = None, encoding: bytes = b"identity"
) -> tuple[list[bytes], int]:
    """Return the messages of a body cut in pieces, and what is left of it."""
    reader = MessageReader(encoding, LIMIT)
    found: list[bytes] = []
    at = 0
    for size in pieces or [len(body)]:
        found += reader.feed(body[at : at + size])
        at += size
    found += reader.feed(body[at:])
    return found, reader.held


bodies = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([LIMIT - 1, LIMIT]).map(lambda n: b"\x00\xff" * (n // 2)),
    ),
    max_size=8,
)
cuts = st.lists(
    st.sampled_from([0, 1, 2, 4, 5, 6, 30, 700, 1023, 1024, 2000]), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(bodies, cuts, st.integers(0, 6000))
def test_messages_are_the_same_in_any_pieces(
    sent: list[bytes], pieces: list[int], rest: int
) -> None:
    whole = b"".join(message(body) for body in sent)
    found, held = read(whole, pieces)
    assert (found, held) == (sent, 0)
    assert all(type(body) is bytes for body in found)
    cut = whole[: max(0, len(whole) - rest)]
    found, held = read(cut, pieces)
    assert found == sent[: len(found)]
    assert held == len(cut) - sum(5 + len(body) for body in found)


@settings(max_examples=100, deadline=None)
@given(bodies, cuts, st.sampled_from(sorted(PACKED)), st.randoms())
def test_compressed_and_plain_messages_may_follow_each_other(
    sent: list[bytes], pieces: list[int], encoding: bytes, order: random.Random
) -> None:
    whole = b""
    for body in sent:
        packed = PACKED[encoding](body)
        if order.random() < 0.7 and len(packed) <= LIMIT:
            whole += message(packed, compressed=True)
        else:
            whole += message(body)
    assert read(whole, pieces, encoding) == (sent, 0)


@pytest.mark.parametrize("encoding", sorted(PACKED))
@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 1 << 20])
def test_the_limit_holds_before_and_after_decompression(
    encoding: bytes, size: int
) -> None:
    plain = message(bytes(size))
    packed = message(PACKED[encoding](bytes(size)), compressed=True)
    for body in (plain, packed):
        if size <= LIMIT:
            assert read(body, None, encoding) == ([bytes(size)], 0)
        else:
            with pytest.raises(TooLarge, match="larger than max"):
                read(body, None, encoding)


def test_a_message_too_large_is_refused_by_its_announcement() -> None:
    with pytest.raises(TooLarge, match=r"\(5001 vs. 5000\)"):
        read(b"\0\x00\x00\x13\x89")


def test_what_came_before_a_mistake_is_handed_over() -> None:
    reader = MessageReader(b"identity", LIMIT)
    found = []
    with pytest.raises(BadMessage):  # noqa: PT012
        for body in reader.feed(message(b"good") + b"\2\0\0\0\1x"):
            found.append(body)  # noqa: PERF402 - what came before the error counts
    assert found == [b"good"]


@pytest.mark.parametrize("encoding", sorted(PACKED))
def test_compressed_data_cut_short_or_followed_by_more(encoding: bytes) -> None:
    packed = PACKED[encoding](b"message" * 9)
    for size in range(len(packed)):
        with pytest.raises(BadMessage):
            read(message(packed[:size], compressed=True), None, encoding)
    for more in (b"x", packed):
        with pytest.raises(BadMessage):
            read(message(packed + more, compressed=True), None, encoding)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(sorted(PACKED)), st.integers(0, 60))
def test_garbage_is_a_message_or_an_error_of_ours(
    garbage: bytes, encoding: bytes, at: int
) -> None:
    packed = bytearray(PACKED[encoding](b"message" * 9))
    packed[at % len(packed)] ^= 1 << at % 8
    for body in (garbage, bytes(packed)):
        with suppress(BadMessage):
            found, held = read(message(body, compressed=True), None, encoding)
            assert (len(found), held) == (1, 0)


@pytest.mark.parametrize("flag", [2, 3, 0x80, 0xFF])
def test_compression_flags_are_0_or_1(flag: int) -> None:
    with pytest.raises(BadMessage, match=f"compression flag {flag}"):
        read(bytes((flag,)) + message(b"x")[1:], None, b"gzip")


def test_a_compressed_message_without_an_encoding() -> None:
    with pytest.raises(BadMessage, match="without grpc-encoding"):
        read(message(b"x", compressed=True))


@pytest.mark.parametrize("encoding", [b"br", b"snappy", b"\xff", b"GZIP", b""])
def test_unknown_encodings_are_refused_with_those_there_are(encoding: bytes) -> None:
    with pytest.raises(Unsupported, match="identity, gzip, deflate") as refused:
        check_encoding(encoding)
    assert isinstance(refused.value, GatewayError)

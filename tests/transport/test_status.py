"""What ends a call: status, message, metadata, as other implementations read it."""

from __future__ import annotations

import base64
import re
import sys
from urllib.parse import unquote_to_bytes

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Draining, GatewayError, InvalidRequest
from gateway.transport.frames import HeaderBlock
from gateway.transport.status import (
    HEADERS,
    MAX_DETAILS_BYTES,
    decode_binary,
    details,
    encode_metadata,
    percent_encode,
    response_headers,
    trailers,
)


def decoded(block: HeaderBlock | bytes) -> list[tuple[bytes, bytes]]:
    data = block if isinstance(block, bytes) else block.data
    return [tuple(field) for field in Decoder().decode(data, raw=True)]


def test_all_of_unicode_makes_the_way_there_and_back() -> None:
    """Every code point but the surrogates, which no UTF-8 has."""
    points = [p for p in range(sys.maxunicode + 1) if not 0xD800 <= p < 0xE000]
    for start in range(0, len(points), 4096):
        text = "".join(map(chr, points[start : start + 4096]))
        encoded = percent_encode(text)
        assert re.fullmatch(rb"([ -$&-~]|%[0-9A-F]{2})*", encoded)
        assert unquote_to_bytes(encoded).decode() == text


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("plain, with ~ and space", b"plain, with ~ and space"),
        ("100%", b"100%25"),
        ("%41", b"%2541"),
        ("a\r\nb\t\0", b"a%0D%0Ab%09%00"),
        ("\u00fc\u20ac\U0001f600", b"%C3%BC%E2%82%AC%F0%9F%98%80"),
        ("\x7f\x80", b"%7F%C2%80"),
        ("", b""),
    ],
)
def test_percent_encoding_by_example(text: str, encoded: bytes) -> None:
    """grpc/grpc, doc/PROTOCOL-HTTP2.md: 0x20 to 0x7E but the percent sign."""
    assert percent_encode(text) == encoded


@given(st.text(st.characters(codec=None, categories=None), max_size=2000))
def test_any_message_is_sent_as_valid_text_of_bounded_length(text: str) -> None:
    """Lone surrogates and characters cut in two included."""
    sent = details(InvalidRequest(text)).encode()
    assert len(sent) <= MAX_DETAILS_BYTES
    expected = text.encode(errors="replace")
    assert expected.startswith(sent)
    assert len(expected) - len(sent) < 4 or len(sent) > MAX_DETAILS_BYTES - 4
    fields = dict(decoded(trailers(InvalidRequest(text))))
    assert unquote_to_bytes(fields[b"grpc-message"]) == sent


def test_trailers_by_example() -> None:
    assert decoded(trailers(None)) == [(b"grpc-status", b"0")]
    error = Draining("gone", pushback_ms=7)
    ended = [
        (b"grpc-status", b"14"),
        (b"grpc-message", b"gone"),
        (b"grpc-retry-pushback-ms", b"7"),
    ]
    begun = [(b":status", b"200"), (b"content-type", b"application/grpc")]
    assert decoded(trailers(error)) == ended
    assert decoded(trailers(error, alone=True)) == begun + ended
    assert decoded(trailers(error, [("x", "y")])) == [*ended, (b"x", b"y")]
    assert decoded(trailers(None, [("x", "y")]))[-1] == (b"x", b"y")
    assert decoded(trailers(None, alone=True)) == [*begun, (b"grpc-status", b"0")]
    assert response_headers(()) is HEADERS
    assert decoded(response_headers([("x", "y")])) == [*begun, (b"x", b"y")]


def test_errors_that_differ_are_not_taken_for_each_other() -> None:
    """Blocks of errors are remembered; all that goes into them is the key."""
    errors: list[GatewayError] = [
        InvalidRequest("a"),
        InvalidRequest("b"),
        Draining("a"),
        Draining("a", pushback_ms=0),
        Draining("a", pushback_ms=1),
    ]
    blocks = [trailers(e, alone=alone).data for e in errors for alone in (True, False)]
    assert len(set(blocks)) == len(blocks)


@given(st.binary(max_size=300))
def test_binary_metadata_makes_the_way_there_and_back(raw: bytes) -> None:
    ((name, value),) = decoded(encode_metadata([("x-raw-bin", raw)]))
    assert name == b"x-raw-bin"
    assert b"=" not in value  # gRPC: senders should not pad
    assert decode_binary(value) == raw
    assert decode_binary(base64.b64encode(raw)) == raw


@pytest.mark.parametrize("value", [b"a", b"!!!!", b"Y Q=", b"\xff\xff", b"YQ==YQ=="])
def test_what_is_no_base64(value: bytes) -> None:
    assert decode_binary(value) is None


def test_metadata_is_text_or_bytes_by_its_key() -> None:
    sent = [("x-text", "value"), ("x-ascii", b"value"), ("x-bin", b"\xff\xfe")]
    assert decoded(encode_metadata(sent)) == [
        (b"x-text", b"value"),
        (b"x-ascii", b"value"),
        (b"x-bin", b"//4"),
    ]

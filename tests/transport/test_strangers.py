"""Clients that do not speak gRPC, or no HTTP/2: byte for byte, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hpack import Decoder, Encoder

from gateway.clock import now_ns
from gateway.config import GrpcConfig
from gateway.rpc import Methods
from tests.gateway_process import free_port
from tests.transports import LISTENERS, listening

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4
PROTOCOL_ERROR, STREAM_CLOSED = 1, 5
WAIT_S = 5


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload).to_bytes(3, "big")
    return size + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def request(method: str, *more: tuple[str, str], end: bool = False) -> bytes:
    """Return the HEADERS frame of stream 1 for a request without gRPC."""
    fields = [(":method", method), (":scheme", "http"), (":path", "/")]
    block = Encoder().encode([*fields, (":authority", "localhost"), *more])
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, block)


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with listening("own", Methods(unary={}, streams={})) as served:
        yield served


async def send(address: str, sent: bytes) -> bytes:
    """Send bytes, and a PING behind; return all until its answer, or the end."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent + frame(PING, 0, 0, b"the last"))
    received = b""
    async with asyncio.timeout(WAIT_S):
        while b"the last" not in received:
            more = await reader.read(65536)
            if not more:
                break
            received += more
    writer.close()
    return received


def frames_of(received: bytes) -> list[tuple[int, int, bytes]]:
    """Return (kind, flags, payload) of all frames about stream 1, or GOAWAY."""
    found = []
    while received:
        size = int.from_bytes(received[:3], "big")
        kind, flags = received[3], received[4]
        stream = int.from_bytes(received[5:9], "big")
        if stream == 1 or kind == GOAWAY:
            found.append((kind, flags, received[9 : 9 + size]))
        received = received[9 + size :]
    return found


def status(block: bytes) -> str:
    return str(dict(Decoder().decode(block))[":status"])


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (frame(RST_STREAM, 0, 1, bytes(4)) + frame(DATA, 1, 1, b"x"), STREAM_CLOSED),
        (frame(WINDOW_UPDATE, 0, 1, bytes(4)), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\x00\x01a\x01b"), PROTOCOL_ERROR),
        (frame(HEADERS, 5, 1, b"\x82"), PROTOCOL_ERROR),  # :method as a trailer
    ],
)
async def test_mistakes_on_a_refused_request_are_stream_errors(
    address: str, wrong: bytes, code: int
) -> None:
    received = await send(address, PREFACE + request("GET") + wrong)
    assert frames_of(received) == [(RST_STREAM, 0, code.to_bytes(4, "big"))]


@pytest.mark.parametrize("ended", [True, False])
async def test_a_body_of_another_length_than_promised_is_a_stream_error(
    address: str, ended: bool
) -> None:
    head = request("POST", ("content-length", "1"), end=ended)
    body = b"" if ended else frame(DATA, END_STREAM, 1, b"test")
    received = await send(address, PREFACE + head + body)
    assert frames_of(received) == [(RST_STREAM, 0, bytes((0, 0, 0, PROTOCOL_ERROR)))]


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [("GET", b"", "405"), ("POST", b"{}", "415"), ("POST", bytes(4000), "415")],
)
async def test_who_speaks_no_grpc_is_told_so_once_the_request_is_over(
    address: str, method: str, body: bytes, expected: str
) -> None:
    sent = PREFACE + request(method, end=not body)
    if body:
        assert frames_of(await send(address, sent)) == []
        sent += frame(DATA, END_STREAM, 1, body)
    (head, text, last) = frames_of(await send(address, sent))
    assert status(head[2]) == expected
    assert text[2] == b"This port speaks gRPC, which needs HTTP/2.\n"
    assert last == (DATA, END_STREAM, b"")


async def test_a_body_without_end_is_not_waited_for(address: str) -> None:
    chunks = frame(DATA, 0, 1, bytes(10_000)) * 7
    found = frames_of(await send(address, PREFACE + request("POST") + chunks))
    assert status(found[0][2]) == "415"
    assert (RST_STREAM, 0, bytes(4)) in found  # all is said, send no more


@pytest.mark.parametrize(
    "sent", [b"INVALID CONNECTION PREFACE\r\n\r\n", b"\x16\x03\x01\x02\x00", b"PRI *\r"]
)
async def test_what_is_no_preface_gets_a_goaway(address: str, sent: bytes) -> None:
    ((kind, _, payload),) = frames_of(await send(address, sent))
    assert (kind, payload[4:8]) == (GOAWAY, bytes((0, 0, 0, PROTOCOL_ERROR)))


async def test_http_1_is_answered_in_http_1_alone(address: str) -> None:
    received = await send(address, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505 ")
    assert body == b"This port speaks gRPC, which needs HTTP/2.\n"


@pytest.mark.parametrize("sent", [PREFACE, b"PRI * HTTP/1"])
async def test_settings_are_the_first_frame(address: str, sent: bytes) -> None:
    received = await send(address, sent)
    assert received[3] == SETTINGS


async def test_who_connects_and_waits_is_told_of_a_drain() -> None:
    listener: Any = LISTENERS["own"](Methods({}, {}), GrpcConfig(), now_ns)
    port = free_port()
    await listener.start(f"127.0.0.1:{port}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    async with asyncio.timeout(WAIT_S):
        while not listener.connections:  # noqa: ASYNC110 - it announces them to none
            await asyncio.sleep(0)
        stopping = asyncio.create_task(listener.stop(WAIT_S))
        while not frames_of(received):
            received += await reader.read(65536)
    writer.close()
    await stopping
    assert received[3] == SETTINGS
    assert frames_of(received)[0][0] == GOAWAY

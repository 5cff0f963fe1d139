"""The seam between handlers and transports means the same on every transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from gateway.errors import Draining
from gateway.rpc import Call, Methods, StreamCall
from tests.transports import LISTENERS, listening

Code = grpc.StatusCode
INITIAL = (("x-initial", "first"), ("x-initial-bin", b"\x00\xff"))
TRAILING = (("x-trailing", "last"), ("x-trailing-bin", bytes(range(256))))


class Stream:
    """Answers each message with itself; ``fail`` ends the stream with an error."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream
        stream.initial_metadata = INITIAL
        stream.trailing_metadata = TRAILING

    def on_message(self, message: bytes) -> None:
        if message == b"fail":
            self._stream.finish(Draining("gone", pushback_ms=7))
        else:
            self._stream.send(message)

    def on_half_close(self) -> None:
        self._stream.finish()

    def on_cancel(self) -> None:
        pass

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        pass


def echo(call: Call, message: bytes) -> None:
    """Answer with the message, later."""
    call.initial_metadata = INITIAL
    call.trailing_metadata = TRAILING
    asyncio.get_running_loop().call_soon(call.reply, message)


def fails(call: Call, message: bytes) -> None:
    call.initial_metadata = INITIAL
    call.trailing_metadata = TRAILING
    call.fail(Draining("gone", pushback_ms=7))


def headers(call: Call, message: bytes) -> None:
    """Answer with what the seam says of three request headers."""
    text = call.metadata("x-text")
    raw = call.metadata_bytes("x-raw-bin")
    absent = call.metadata("x-none"), call.metadata_bytes("x-none-bin")
    call.reply(repr((text, raw, absent)).encode())


def peer(call: Call, message: bytes) -> None:
    """Answer with who asks."""
    call.reply(call.peer().encode())


METHODS = Methods(
    unary={
        "/test.S/Echo": echo,
        "/test.S/Fails": fails,
        "/test.S/Headers": headers,
        "/test.S/Peer": peer,
    },
    streams={"/test.S/Stream": Stream},
)


@pytest.fixture(params=sorted(LISTENERS))
async def address(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with listening(request.param, METHODS) as served:
        yield served


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as opened:
        yield opened


def pairs(metadata: Any) -> set[tuple[str, Any]]:
    """Return metadata without what grpc's own client puts there."""
    return {pair for pair in tuple(metadata or ()) if pair[0].startswith("x-")}


async def test_a_unary_call_carries_the_handlers_metadata(
    channel: grpc.aio.Channel,
) -> None:
    call = channel.unary_unary("/test.S/Echo")(b"message", timeout=10)
    assert await call == b"message"
    assert pairs(await call.initial_metadata()) == set(INITIAL)
    assert pairs(await call.trailing_metadata()) == set(TRAILING)


async def test_a_call_says_who_asks(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        said = await channel.unary_unary("/test.S/Peer")(b"", timeout=10)
    host, _, said_port = said.decode().rpartition(":")
    assert host == "127.0.0.1"
    assert int(said_port) not in {0, int(address.split(":")[1])}


async def test_a_failed_call_carries_the_handlers_metadata_and_the_pushback(
    channel: grpc.aio.Channel,
) -> None:
    call = channel.unary_unary("/test.S/Fails")(b"", timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    error = failed.value
    assert (error.code(), error.details()) == (Code.UNAVAILABLE, "gone")
    assert pairs(error.initial_metadata()) == set(INITIAL)
    assert pairs(error.trailing_metadata()) == set(TRAILING)
    trailers = tuple(error.trailing_metadata() or ())
    assert ("grpc-retry-pushback-ms", "7") in trailers


def stream(address: str, messages: list[bytes]) -> tuple[list[bytes], Any]:
    """Return what a stream answered, and the ended call.

    By the sync client: grpc.aio's drops the response headers where the trailers come
    in the same read.
    """
    received = []
    with grpc.insecure_channel(address) as opened:
        call = opened.stream_stream("/test.S/Stream")(iter(messages), timeout=10)
        with suppress(grpc.RpcError):
            received.extend(call)
        call.code()  # waits for the end
    return received, call


@pytest.mark.parametrize("messages", [[], [b"one"], [b"one", b"two", b""]])
async def test_a_stream_carries_the_handlers_metadata(
    address: str, messages: list[bytes]
) -> None:
    received, call = await asyncio.to_thread(stream, address, messages)
    assert received == messages
    assert call.code() == Code.OK
    assert pairs(call.initial_metadata()) == set(INITIAL)
    assert pairs(call.trailing_metadata()) == set(TRAILING)


@pytest.mark.parametrize("messages", [[b"fail"], [b"one", b"fail"]])
async def test_a_failed_stream_carries_the_handlers_metadata(
    address: str, messages: list[bytes]
) -> None:
    received, call = await asyncio.to_thread(stream, address, messages)
    assert received in ([], messages[:-1])
    assert call.code() == Code.UNAVAILABLE
    assert pairs(call.initial_metadata()) == set(INITIAL)
    assert pairs(call.trailing_metadata()) == set(TRAILING)


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xff\xfe,\n", bytes(range(256))])
async def test_request_headers_are_text_or_bytes_by_their_names(
    channel: grpc.aio.Channel, raw: bytes
) -> None:
    metadata = (("x-text", "a, b"), ("x-raw-bin", raw))
    answer = await channel.unary_unary("/test.S/Headers")(
        b"", metadata=metadata, timeout=10
    )
    assert answer.decode() == repr(("a, b", raw, (None, None)))


@pytest.mark.parametrize("name", ["Gzip", "Deflate", "NoCompression"])
@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_compressed_requests_are_read(
    channel: grpc.aio.Channel, name: str, size: int
) -> None:
    compression = getattr(grpc.Compression, name)
    message = b"\x07" * size
    answer = await channel.unary_unary("/test.S/Echo")(
        message, compression=compression, timeout=10
    )
    assert answer == message
    call = channel.stream_stream("/test.S/Stream")(
        iter([message, message]), compression=compression, timeout=10
    )
    assert [part async for part in call] == [message, message]

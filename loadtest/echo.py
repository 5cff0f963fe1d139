"""The ceiling of large tensors: a server that moves bytes and does nothing else.

It takes what any gRPC client sends, walks over the frames without reading them, and
answers every request with the same few bytes. What it reaches is what one core can
receive through a socket in Python, at most; the client and the bytes are the same as
for a server that scores.

Source of frames and numbers: RFC 9113, sections 4.1 and 6.
"""

from __future__ import annotations

import asyncio
import signal
from typing import cast

import uvloop

from loadtest.requests import DATA, END_HEADERS, END_STREAM, HEADERS, frame, framed

REPLY_BYTES = 64
"""Length of the message in every answer."""
PREFACE_BYTES = 24
FRAME_HEAD_BYTES = 9
BUFFER_BYTES = 1 << 18
ROOM = 1 << 30
"""Window of streams and connection; what is received is given back, headers and all,
so that it grows by some bytes a call and must not begin at its limit of 2**31 - 1."""
SETTINGS, WINDOW_UPDATE = 4, 8
ACK = 1
INITIAL_WINDOW_SIZE = 4


def field(name: bytes, value: bytes) -> bytes:
    """Return a header as a literal that is not indexed (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


def window(stream: int, size: int) -> bytes:
    """Return a frame that lets the client send `size` bytes more."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


HELLO = frame(
    SETTINGS,
    0,
    0,
    INITIAL_WINDOW_SIZE.to_bytes(2, "big") + ROOM.to_bytes(4, "big"),
) + window(0, ROOM)
STATUS_200 = b"\x88"
ANSWER_HEADERS = STATUS_200 + field(b"content-type", b"application/grpc")
ANSWER_MESSAGE = framed(bytes(REPLY_BYTES))
ANSWER_TRAILERS = field(b"grpc-status", b"0")


def answer(stream: int) -> bytes:
    """Return the answer to the request on a stream."""
    return (
        frame(HEADERS, END_HEADERS, stream, ANSWER_HEADERS)
        + frame(DATA, 0, stream, ANSWER_MESSAGE)
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, ANSWER_TRAILERS)
    )


class Echo(asyncio.BufferedProtocol):
    """One connection."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._skip = PREFACE_BYTES
        self._head = b""
        self._last_of = 0
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.write(HELLO)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Receive into the same buffer again and again."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Walk over frames; answer the requests that end."""
        at, replies = 0, []
        self._received += nbytes
        while at < nbytes:
            if self._skip:
                step = min(self._skip, nbytes - at)
                self._skip -= step
                at += step
                if self._skip:
                    break
                if self._last_of:
                    replies.append(answer(self._last_of))
                    self._last_of = 0
                continue
            step = FRAME_HEAD_BYTES - len(self._head)
            self._head += bytes(self._buffer[at : min(at + step, nbytes)])
            at += step
            if len(self._head) == FRAME_HEAD_BYTES:
                replies += self._begin(self._head)
                self._head = b""
        if replies:
            replies.append(window(0, self._received))
            self._received = 0
            self._transport.write(b"".join(replies))

    def _begin(self, head: bytes) -> list[bytes]:
        """Take the head of a frame; return what is to be said to it at once."""
        self._skip = int.from_bytes(head[:3], "big")
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == DATA and flags & END_STREAM:
            if not self._skip:
                return [answer(stream)]
            self._last_of = stream
        if kind == SETTINGS and not flags & ACK:
            return [frame(SETTINGS, ACK, 0, b"")]
        return []


async def _serve(port: int) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = await loop.create_server(Echo, "127.0.0.1", port)
    await stopping.wait()
    server.close()


def serve(port: int) -> None:
    """Serve until SIGTERM."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(port))

"""A server that answers every call with the same bytes: what does the client cost?

It does the least a server can: it looks for the DATA frames that end a call, or, on
streams, counts messages, and has its answer ready. It is no HTTP/2 server for anybody
but `loadtest.client` and h2load, and checks nothing.
"""

from __future__ import annotations

import asyncio
import signal
import struct
from typing import cast

import uvloop

from loadtest.requests import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    frame,
    frame_head,
    framed,
)

SETTINGS, PING, WINDOW_UPDATE, ACK = 4, 6, 8, 1
PREFACE_BYTES = 24
ROOM = 1 << 30
REPLY = bytes(64)
MESSAGE = framed(REPLY)
# Source: RFC 7541; 0x88 is ":status: 200", 0x5f the name content-type.
HEADER_BLOCK = b"\x88\x0f\x10\x10application/grpc"
TRAILER_BLOCK = b"\x00\x0bgrpc-status\x010"
_HEAD = struct.Struct(">HBBBI")
_ANSWER = (
    frame_head(HEADERS, END_HEADERS, len(HEADER_BLOCK)),
    HEADER_BLOCK + frame_head(DATA, 0, len(MESSAGE)),
    MESSAGE + frame_head(HEADERS, END_HEADERS | END_STREAM, len(TRAILER_BLOCK)),
    TRAILER_BLOCK,
)
STREAM_PATH = b"Stream"


class Canned(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._skip = PREFACE_BYTES
        self._received = 0
        self._streams: set[int] = set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send settings and room for everything."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport = transport
        settings = struct.pack(">HIHI", 4, ROOM, 3, 1 << 20)
        transport.write(
            frame(SETTINGS, 0, 0, settings)
            + frame(WINDOW_UPDATE, 0, 0, ROOM.to_bytes(4, "big"))
        )

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        assert self._transport is not None
        data = self._rest + data
        if len(data) < self._skip:
            self._rest = data
            return
        out: list[bytes] = []
        position, self._skip = self._skip, 0
        a, b, c, d = _ANSWER
        while len(data) - position >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, position)
            stop = position + 9 + (high << 8 | low)
            if stop > len(data):
                break
            id4 = data[position + 5 : position + 9]
            if kind == DATA:
                self._received += stop - position - 9
                if stream in self._streams:
                    if stop - position > 9:
                        out += (frame_head(DATA, 0, len(MESSAGE)), id4, MESSAGE)
                    if flags & END_STREAM:
                        out += (frame_head(1, 5, len(d)), id4, d)
                        self._streams.discard(stream)
                elif flags & END_STREAM:
                    out += (a, id4, b, id4, c, id4, d)
            elif kind == HEADERS:
                self._headers(stream, stop, len(data), data, out)
            elif kind == SETTINGS and not flags & ACK:
                out.append(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                out.append(frame(PING, ACK, 0, data[position + 9 : stop]))
            position = stop
        self._rest = data[position:]
        if self._received > ROOM >> 1:
            room = self._received.to_bytes(4, "big")
            out.append(frame(WINDOW_UPDATE, 0, 0, room))
            self._received = 0
        self._transport.write(b"".join(out))

    def _headers(
        self, stream: int, stop: int, end: int, data: bytes, out: list[bytes]
    ) -> None:
        """A stream is a call whose DATA does not follow at once."""
        follows = end - stop >= 9 and _HEAD.unpack_from(data, stop)
        if not follows or not follows[3] & END_STREAM or follows[4] != stream:
            self._streams.add(stream)
            out += (_ANSWER[0], stream.to_bytes(4, "big"), HEADER_BLOCK)


async def _serve(port: int) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = await loop.create_server(Canned, "127.0.0.1", port)
    await stopping.wait()
    server.close()


def serve(port: int) -> None:
    """Serve until SIGTERM."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(port))

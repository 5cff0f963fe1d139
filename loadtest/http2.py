"""A lean HTTP/2 client connection for gRPC calls. Loop thread only.

It exists because the load must cost less than the server: stock clients saturate at a
few thousand calls per second and core. What it leaves out is what a load does not
need (server push, priorities, metadata of answers); what it does, it does as RFC 9113
says: both directions of flow control, SETTINGS and PING acknowledged, GOAWAY obeyed.

Requests are bytes made before (`loadtest.requests`). Of answers only what counts is
looked at: the number of bytes of DATA and the status in the trailers, which is known
by the bytes of the header block as long as the compression table has not changed.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterator
from typing import Protocol, cast

from loadtest.answers import (
    LOST,
    MALFORMED,
    UNPROCESSED,
    Answers,
    Undecodable,
    reset_status,
)
from loadtest.calls import Call
from loadtest.outgoing import DEFAULT_WINDOW, Outgoing
from loadtest.requests import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    TABLE_BYTES,
    Piece,
    Request,
    frame,
    frame_head,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RST_STREAM, SETTINGS, PING, GOAWAY = 3, 4, 6, 7
WINDOW_UPDATE, CONTINUATION = 8, 9
ACK, PADDED, PRIORITY = 1, 8, 32
HEADER_TABLE_SIZE, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME = 1, 3, 4, 5
"""Settings; source: RFC 9113 section 6.5.2."""
CANCEL = 8
LAST_STREAM = (1 << 31) - 1
WINDOW = 1 << 24
"""Bytes a server may send ahead, per stream and in all of a connection."""
MAX_BLOCK = 1 << 20

_HEAD = struct.Struct(">HBBBI")
_PAIR = struct.Struct(">HI")
_UPDATE = frame_head(WINDOW_UPDATE, 0, 4)
_RESET = frame_head(RST_STREAM, 0, 4)


class Owner(Protocol):
    """Who makes the calls."""

    def ready(self, connection: Connection) -> None:
        """The server's settings are here: calls may be made."""

    def answered(
        self, connection: Connection, call: Call, status: str, now_ns: int
    ) -> None:
        """A call ended."""

    def message(
        self, connection: Connection, call: Call, payload: bytes, now_ns: int
    ) -> None:
        """A message arrived on a call that was opened as a stream."""

    def closed(self, connection: Connection, error: Exception | None) -> None:
        """The connection is gone; each of its calls was answered before."""


class Connection(asyncio.Protocol):
    """One connection of a load.

    Attributes:
        open: Calls without an answer, oldest first.
        retiring: No more calls: the server said so, or stream ids run out.
        max_calls: Calls the server allows at a time.
        problem: What the server did that this client cannot live with; else empty.
    """

    def __init__(self, owner: Owner, request: Request, window: int = WINDOW) -> None:
        self.open: dict[int, Call] = {}
        self.retiring = False
        self.problem = ""
        self.max_calls = LAST_STREAM
        self._owner = owner
        self._request = request
        self._blocks: Iterator[Piece] = request.sequence()
        self._body = request.body()
        self._body_head = frame_head(DATA, END_STREAM, len(self._body))
        self._whole = False  # the body fits the server's frames and windows
        self._transport: asyncio.Transport | None = None
        self._settled = False
        self._next_id = 1
        self._rest = b""
        self._reading = False
        self._outgoing = Outgoing()
        self._window = window
        self._unreported = 0
        self._answers = Answers()
        self._block: tuple[int, int, bytearray] | None = None

    # -- Calls

    def start(self, start_ns: int) -> Call:
        """Make a call; `flush` sends it."""
        stream = self._next_id
        self._next_id = stream + 2
        if stream > LAST_STREAM - 1024:
            self.retiring = True
        self.open[stream] = call = Call(stream, start_ns)
        head, block = next(self._blocks)
        id4 = stream.to_bytes(4, "big")
        size = len(self._body)
        out = self._outgoing
        if self._whole and out.window >= size and not out.streams:
            out.window -= size
            out.out += (head, id4, block, self._body_head, id4, self._body)
        else:
            out.out += (head, id4, block)
            out.open(stream)
            out.send(stream, self._body, ends=True)
        return call

    def start_stream(self, start_ns: int) -> Call:
        """Open a stream without messages; `write` adds them."""
        stream = self._next_id
        self._next_id = stream + 2
        self.open[stream] = call = Call(stream, start_ns)
        call.streaming = True
        call.body = bytearray()
        head, block = next(self._blocks)
        self._outgoing.out += (head, stream.to_bytes(4, "big"), block)
        self._outgoing.open(stream)
        return call

    def write(self, call: Call) -> None:
        """Send the request's message on an open stream."""
        self._outgoing.send(call.stream, self._body, ends=False)

    def half_close(self, call: Call) -> None:
        """Say that a stream gets no more messages."""
        self._outgoing.send(call.stream, b"", ends=True)

    def cancel(self, stream: int) -> Call | None:
        """Reset a call; None if it has its answer already. `flush` sends it."""
        call = self.open.pop(stream, None)
        if call is not None:
            self._outgoing.streams.pop(stream, None)
            code = CANCEL.to_bytes(4, "big")
            self._outgoing.out += (_RESET, stream.to_bytes(4, "big"), code)
        return call

    def flush(self) -> None:
        """Send what was written since."""
        out = self._outgoing.out
        if out and not self._reading and self._transport is not None:
            self._transport.write(b"".join(out))
            out.clear()

    def close(self) -> None:
        """Say goodbye and close."""
        if self._transport is not None:
            self._outgoing.out.append(frame(GOAWAY, 0, 0, bytes(8)))
            self.flush()
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection as a client that crashes does."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the server."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport = transport
        settings = _PAIR.pack(2, 0) + _PAIR.pack(INITIAL_WINDOW, self._window)
        more = max(0, self._window - DEFAULT_WINDOW)
        hello = PREFACE + frame(SETTINGS, 0, 0, settings)
        if more:
            hello += frame(WINDOW_UPDATE, 0, 0, more.to_bytes(4, "big"))
        transport.write(hello)

    def connection_lost(self, error: Exception | None) -> None:
        """Answer what is open, then tell the owner."""
        self.retiring = True
        self._transport = None
        now_ns = time.monotonic_ns()
        self._outgoing.streams.clear()
        for stream in tuple(self.open):
            call = self.open.pop(stream)
            self._owner.answered(self, call, LOST, now_ns)
        self._outgoing.out.clear()
        self._owner.closed(self, error)

    def data_received(self, data: bytes) -> None:  # noqa: PLR0912  # the hot loop
        """Take whole frames out of what arrived, then send what that caused."""
        now_ns = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        opened, known, head = self.open, self._answers.known, _HEAD.unpack_from
        sending, answered = self._outgoing.streams, self._owner.answered
        self._reading = True
        while end - position >= 9:
            high, low, kind, flags, stream = head(data, position)
            begin = position + 9
            stop = begin + (high << 8 | low)
            if stop > end:
                break
            position = stop
            if kind == DATA and not flags:
                self._unreported += stop - begin
                call = opened.get(stream)
                if call is not None:
                    call.received += stop - begin
                    if call.body is not None:
                        self._content(call, data[begin:stop], now_ns)
            elif kind == HEADERS and flags & ~END_STREAM == END_HEADERS:
                block = data[begin:stop]
                status = known.get(block, MALFORMED)
                if status is MALFORMED:
                    status = self._status(block)
                if flags & END_STREAM:
                    call = opened.pop(stream, None)
                    if call is not None:
                        if sending:
                            sending.pop(stream, None)
                        answered(self, call, status or MALFORMED, now_ns)
            else:
                self._other(kind, flags, stream, data[begin:stop], now_ns)
        self._rest = data[position:] if position < end else b""
        if self._unreported > self._window >> 1:
            self._report()
        self._reading = False
        self.flush()
        if self.retiring:
            self._close_if_done()

    # -- Frames

    def _content(self, call: Call, payload: bytes, now_ns: int) -> None:
        """Keep DATA of a call; hand over the messages of a stream."""
        body = call.body
        assert body is not None
        if not call.streaming:
            body += payload
            return
        if body:
            payload = bytes(body + payload)
            body.clear()
        position, end = 0, len(payload)
        while end - position >= 5:
            begin = position + 5
            stop = begin + int.from_bytes(payload[position + 1 : begin], "big")
            if stop > end:
                break
            self._owner.message(self, call, payload[begin:stop], now_ns)
            position = stop
        body += payload[position:]

    def _other(
        self, kind: int, flags: int, stream: int, payload: bytes, now_ns: int
    ) -> None:
        """Take what is not the usual answer."""
        if self._block is not None and kind != CONTINUATION:
            self._fail("header block interrupted by another frame")
        elif kind == DATA:
            self._rare_data(flags, stream, payload, now_ns)
        elif kind in (HEADERS, CONTINUATION):
            self._rare_headers(kind, flags, stream, payload, now_ns)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._settings(payload)
        elif kind == PING:
            if not flags & ACK:
                self._outgoing.out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._outgoing.more(stream, int.from_bytes(payload, "big"))
        elif kind == RST_STREAM:
            status = reset_status(int.from_bytes(payload, "big"))
            self._finish(stream, status, now_ns)
        elif kind == GOAWAY:
            self.retiring = True
            last = int.from_bytes(payload[:4], "big") & LAST_STREAM
            for late in [each for each in self.open if each > last]:
                self._finish(late, UNPROCESSED, now_ns)
            self._close_if_done()

    def _rare_data(self, flags: int, stream: int, payload: bytes, now_ns: int) -> None:
        """DATA with padding, or that ends a stream (which gRPC servers never do)."""
        self._unreported += len(payload)
        if flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        call = self.open.get(stream)
        if call is not None:
            call.received += len(payload)
            if call.body is not None:
                self._content(call, payload, now_ns)
        if flags & END_STREAM:
            self._finish(stream, MALFORMED, now_ns)

    def _rare_headers(
        self, kind: int, flags: int, stream: int, payload: bytes, now_ns: int
    ) -> None:
        """HEADERS with padding or priority, or in several frames."""
        if kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & PRIORITY:
                payload = payload[5:]
            self._block = (stream, flags & END_STREAM, bytearray())
        if self._block is None or self._block[0] != stream:
            self._fail("CONTINUATION without HEADERS")
            return
        _, ends, block = self._block
        block += payload
        if len(block) > MAX_BLOCK:
            self._fail(f"header block of more than {MAX_BLOCK} bytes")
        elif flags & END_HEADERS:
            self._block = None
            status = self._status(bytes(block))
            if ends:
                self._finish(stream, status or MALFORMED, now_ns)

    def _status(self, block: bytes) -> str | None:
        try:
            return self._answers.status(block)
        except Undecodable as error:
            self._fail(f"header block that cannot be decoded: {error}")
            return MALFORMED

    def _settings(self, payload: bytes) -> None:
        for key, value in _PAIR.iter_unpack(payload):
            if key == INITIAL_WINDOW:
                self._outgoing.resize(value)
            elif key == MAX_FRAME:
                self._outgoing.frame = value
            elif key == MAX_STREAMS:
                self.max_calls = value
            elif key == HEADER_TABLE_SIZE and value < TABLE_BYTES:
                self._fail(f"header table of only {value} bytes")
                return
        out = self._outgoing
        self._whole = len(self._body) <= min(out.frame, out.stream_window)
        out.out.append(frame(SETTINGS, ACK, 0, b""))
        out.pump()
        if not self._settled:
            self._settled = True
            self._owner.ready(self)

    def _report(self) -> None:
        """Give the server back the room of what was read.

        A stream may send as much as the connection. So it cannot run out of room if
        each gets its share whenever the connection does, at half a window.
        """
        out = self._outgoing.out
        out += (_UPDATE, bytes(4), self._unreported.to_bytes(4, "big"))
        self._unreported = 0
        for stream, call in self.open.items():
            size = call.received - call.reported
            if size:
                call.reported = call.received
                id4 = stream.to_bytes(4, "big")
                out += (_UPDATE, id4, size.to_bytes(4, "big"))

    def _finish(self, stream: int, status: str, now_ns: int) -> None:
        self._outgoing.streams.pop(stream, None)
        call = self.open.pop(stream, None)
        if call is not None:
            self._owner.answered(self, call, status, now_ns)

    def _close_if_done(self) -> None:
        if self.retiring and not self.open:
            self.close()

    def _fail(self, problem: str) -> None:
        self.problem = f"the server sent a {problem}"
        self.retiring = True
        self.abort()

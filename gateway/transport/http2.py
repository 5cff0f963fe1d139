"""HTTP/2, server side: bytes in, calls on streams; responses in, bytes out. Pure.

RFC 9113 as a state machine without I/O, loop or clock. `Connection.receive` takes
whatever arrived and tells streams what happened; responses append to `out`, which the
owner writes when it likes (`wake` tells it that there is something).

Four classes, each knowing only those before it: `Sender` (windows and what waits for
them), `Control` (frames about the connection, and what they cost), `Receiver` (bodies
and their windows), `Connection` (frames in, and the requests they begin).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.transport import frames
from gateway.transport.control import unpad
from gateway.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PRIORITISED,
    ErrorCode,
    Setting,
)
from gateway.transport.hpack import Decoder, HpackError
from gateway.transport.hpack_tables import Header
from gateway.transport.receiving import Receiver
from gateway.transport.streams import (
    Application,
    Limits,
    Malformed,
    TransportStatistics,
    Violation,
    gather,
)

_MAX_HEADS = 256
"""Header blocks remembered per connection; a stock client repeats a handful."""
_MAX_HEADS_BYTES = 1 << 16
"""Of their lists together: nobody else counts them."""
_HTTP1 = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\n"
    b"connection: close\r\n\r\nThis port speaks gRPC, which needs HTTP/2.\n"
)


class Connection(Receiver):
    """One connection. Its owner calls `receive`, writes `out`, and calls `lost`.

    Args:
        application: Gets header lists and makes streams.
        limits: What the peer may ask.
        statistics: Where calls and enforced limits are counted.
        wake: Called when `out` gets something while it was empty.

    Attributes:
        preface_due: The client has not said that it speaks HTTP/2.
    """

    def __init__(
        self,
        application: Application,
        limits: Limits,
        statistics: TransportStatistics,
        wake: Callable[[], None],
    ) -> None:
        super().__init__(application, limits, statistics, wake)
        self._chunks: list[bytes | bytearray] = []  # of a frame that is not whole yet
        self._have = 0
        self._need = 0
        self.preface_due = True
        self._expect: int | None = frames.SETTINGS
        self._decoder = Decoder(max_list_bytes=limits.max_header_bytes)
        self._heads: dict[bytes, Any] = {}
        self._heads_at = 0
        self._heads_bytes = 0
        self._heads_stale = False
        self._block: list[bytes] = []
        self._block_flags = 0
        self._block_id = 0
        self._others: dict[int, Callable[[int, int, bytes], None]] = {
            DATA: self._odd_data,
            HEADERS: self._odd_headers,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_rst_stream,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push_promise,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
            CONTINUATION: self._on_continuation,
        }
        ours = {
            Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            Setting.MAX_FRAME_SIZE: limits.max_frame_bytes,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
        }
        extra = limits.connection_window_bytes - DEFAULT_WINDOW
        # No wake: it waits for the client's preface, which shows that it speaks HTTP/2.
        self.out.append(frames.settings(ours))
        if extra:  # an update of 0 is an error (RFC 9113, 6.9)
            self.out.append(frames.window_update(0, extra))

    # -- for the owner ------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take the next bytes of the connection, cut anywhere."""
        if self.failed:
            return
        try:
            position = 0
            if self._data_left:
                position = self._more_data(data)
            elif self._chunks:
                self._have += len(data)
                if self._have < self._need:
                    gather(self._chunks, data)
                    return  # joined once, however small the pieces it comes in
                self._chunks.append(data)
                data = b"".join(self._chunks)
                self._chunks.clear()
            if self.preface_due:
                if not self._take_preface(data):
                    return
                position = len(frames.PREFACE)
            self._receive(data, position)
            half = self.limits.connection_window_bytes >> 1
            if self._window <= half and not self.failed:
                self._reopen_window()
        except Violation as violation:
            if violation.limit:
                self.statistics.enforced(violation.limit)
            self.end(violation.code, violation.reason)
        except HpackError as error:
            self.end(ErrorCode.COMPRESSION_ERROR, str(error))

    # -- frames in ----------------------------------------------------------------

    # The hot loop: a call for every frame costs more than the rest.
    def _receive(  # noqa: PLR0912, PLR0915
        self, data: bytes, position: int
    ) -> None:
        self.first_id = self.last_id + 1
        end = len(data)
        streams = self.streams
        usual = self.limits.max_whole_bytes
        stream_window = self.limits.stream_window_bytes
        unpack = frames.unpack_header
        heads = self._heads
        max_streams = self.limits.max_streams
        statistics = self.statistics
        open_stream = self.application.open
        while end - position >= frames.HEADER_BYTES:
            high, low, kind, flags, stream_id = unpack(data, position)
            length = high << 8 | low
            start = position + 9
            position = start + length
            if length > usual:
                self._check_large(kind, length)
            if self._expect is not None:
                self._check_expected(kind, flags, stream_id)
            if position > end:
                self._need = position - start + frames.HEADER_BYTES
                position = self._begin_data(data, start, length, kind, flags, stream_id)
                break
            if kind == DATA and flags <= END_STREAM:
                stream = streams.get(stream_id)
                if (
                    stream is not None
                    and length
                    and (not stream.careful or (flags and stream.whole(length)))
                ):
                    self._window -= length
                    stream.unread += length
                    if self._window < 0 or stream.unread > stream_window:
                        self._overrun(stream)
                    if flags:
                        stream.careful = stream.remote_closed = True
                    stream.on_data(data[start:position], bool(flags))
                    continue
            elif kind == HEADERS and flags | END_STREAM == END_STREAM | END_HEADERS:
                block = data[start:position]
                head = heads.get(block)
                if (
                    head is not None
                    and flags == END_HEADERS
                    and stream_id & 1
                    and self.last_id < stream_id <= self.refuse_above
                    and len(streams) < max_streams
                ):  # the usual case of `_on_headers`
                    self.last_id = stream_id
                    statistics.calls += 1
                    open_stream(stream_id, head, False)
                else:
                    self._on_headers(flags, stream_id & MAX_STREAM_ID, block)
                continue
            handler = self._others.get(kind)
            if handler is None:
                self.spend("unknown_frame")  # ignored (RFC 9113, 5.5)
            else:
                handler(flags, stream_id & MAX_STREAM_ID, data[start:position])
            if self.failed:
                return
        else:
            self._need = frames.HEADER_BYTES
        if position < end:
            self._chunks.append(data[position:])
            self._have = end - position

    def _take_preface(self, data: bytes) -> bool:
        """Return whether the client's preface is there; refuse what is none."""
        size = len(frames.PREFACE)
        if data[:size] == frames.PREFACE:
            self.preface_due = False
            self._wake()
            return True
        if not frames.PREFACE.startswith(data[:size]):
            if b" HTTP/1." in data:
                self.failed = True
                self.out.clear()
                self.out.append(_HTTP1)
            else:
                self.end(ErrorCode.PROTOCOL_ERROR, "no preface")
            self._wake()
        self._chunks.append(data)
        self._have = len(data)
        self._need = size
        return False

    def _check_expected(self, kind: int, flags: int, stream_id: int) -> None:
        """Only one frame may come now: the first SETTINGS, or a CONTINUATION."""
        if kind != self._expect:
            text = f"frame type {kind} where type {self._expect} must follow"
            raise Violation(ErrorCode.PROTOCOL_ERROR, text)
        if kind == frames.SETTINGS:
            if flags & ACK:
                raise Violation(ErrorCode.PROTOCOL_ERROR, "no SETTINGS after preface")
            self._expect = None
        elif stream_id & MAX_STREAM_ID != self._block_id:
            text = "CONTINUATION of another stream"
            raise Violation(ErrorCode.PROTOCOL_ERROR, text)

    # -- HEADERS ------------------------------------------------------------------

    def _on_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        """Begin a stream, or end one with trailers."""
        if stream_id <= self.last_id or not stream_id & 1:
            self._late_headers(flags, stream_id, block)
            return
        self.last_id = stream_id
        head = self._heads.get(block)
        if head is None:
            headers = self._decode(block)
            try:
                head = self.application.read_head(headers)
            except Malformed:
                self.statistics.enforced("malformed_headers")
                self.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR)
                return
            if headers is None:
                self.statistics.enforced("header_bytes")
                self.spend("header_bytes")
            elif not self._heads_stale:
                self._heads[block] = head
        if len(self.streams) >= self.limits.max_streams:
            self.statistics.enforced("concurrent_streams")
            self.stream_error(stream_id, ErrorCode.REFUSED_STREAM)
            return
        if stream_id > self.refuse_above:
            self.spend("late_stream")
            return  # the peer knows from GOAWAY that it was not served
        self.statistics.calls += 1
        stream = self.application.open(stream_id, head, bool(flags & END_STREAM))
        if flags & END_STREAM:
            stream.careful = stream.remote_closed = True
            if stream.expected:
                self.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR)
            else:
                stream.on_data(b"", True)

    def _decode(self, block: bytes) -> list[Header] | None:
        """Decode a header block, and forget heads where blocks change their meaning.

        A block that changes the dynamic table may mean something else the next time,
        and so may all that were remembered.
        """
        if len(block) > self.limits.max_block_bytes:
            text = f"a header block of {len(block)} bytes"
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, text, "header_bytes")
        decoder = self._decoder
        headers = decoder.decode(block)
        self._heads_stale = decoder.changes != self._heads_at
        self._heads_bytes += decoder.list_bytes
        if self._heads_stale or (
            len(self._heads) >= _MAX_HEADS or self._heads_bytes > _MAX_HEADS_BYTES
        ):
            self._heads_at = decoder.changes
            self._heads_bytes = decoder.list_bytes
            self._heads.clear()
        return headers

    def _late_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        """HEADERS on a stream that was opened before: trailers, or a mistake."""
        headers = self._decode(block)  # whatever it is, the table must keep in step
        self._check_not_idle(stream_id, "HEADERS")
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self.forgotten(stream_id):
                text = f"HEADERS on stream {stream_id}, which is closed"
                raise Violation(ErrorCode.STREAM_CLOSED, text)
            self.spend("closed_stream")
        elif stream.remote_closed:
            self.stream_error(stream_id, ErrorCode.STREAM_CLOSED)
        elif (
            not flags & END_STREAM
            or stream.expected
            or any(name[:1] == b":" for name, _ in headers or ())
        ):
            self.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.careful = stream.remote_closed = True
            stream.on_data(b"", True)

    def _odd_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Take HEADERS with padding or priority, or of which CONTINUATIONs follow."""
        if flags & PADDED:
            payload = unpad(payload)
        itself = False
        if flags & PRIORITISED:
            if len(payload) < 5:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, "a short HEADERS frame")
            itself = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID == stream_id
            payload = payload[5:]
        kept = flags & END_STREAM | (PRIORITISED if itself else 0)
        if flags & END_HEADERS:
            self._on_block(kept, stream_id, payload)
        else:
            self._expect = CONTINUATION
            self._block_id = stream_id
            self._block_flags = kept
            self._block = [payload]

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        """Take a header block that is whole; PRIORITISED: it depends on itself."""
        self._on_headers(flags & END_STREAM, stream_id, block)
        if flags & PRIORITISED:
            self.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._expect != CONTINUATION:
            text = "CONTINUATION without a header block"
            raise Violation(ErrorCode.PROTOCOL_ERROR, text)
        block = self._block
        block.append(payload)
        limits = self.limits
        size = sum(len(piece) for piece in block)
        if len(block) - 1 > limits.max_continuations or size > limits.max_block_bytes:
            text = "a header block without end"
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, text, "continuations")
        if flags & END_HEADERS:
            self._expect = None
            self._block = []
            self._on_block(self._block_flags, stream_id, b"".join(block))

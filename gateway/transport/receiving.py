"""The receiving half of an HTTP/2 connection: bodies, and their windows. Pure."""

from __future__ import annotations

from collections.abc import Callable

from gateway.transport import frames
from gateway.transport.control import Control, pad_length, unpad
from gateway.transport.frames import (
    DATA,
    END_STREAM,
    MAX_STREAM_ID,
    MIN_FRAME_BYTES,
    PADDED,
    ErrorCode,
)
from gateway.transport.streams import (
    Application,
    Limits,
    Stream,
    TransportStatistics,
    Violation,
)


class Receiver(Control):
    """The part of a connection that takes bodies; see `Control` for the arguments."""

    def __init__(
        self,
        application: Application,
        limits: Limits,
        statistics: TransportStatistics,
        wake: Callable[[], None],
    ) -> None:
        super().__init__(application, limits, statistics, wake)
        self._window = limits.connection_window_bytes
        self._data_left = 0  # of a frame that is not whole yet
        self._data_pad = 0  # of its bytes, at the end
        self._data_id = 0
        self._data_ended = False

    def give_back(self, stream: Stream, nbytes: int) -> None:
        """Let the peer send as many more bytes on a stream."""
        stream.consumed += nbytes
        if stream.consumed >= self.limits.stream_window_bytes >> 1:
            if not stream.remote_closed and stream.id in self.streams:
                self.write(frames.window_update(stream.id, stream.consumed))
            stream.unread -= stream.consumed
            stream.consumed = 0

    def _check_large(self, kind: int, length: int) -> None:
        """Refuse a frame that is too large, whether or not all of it is there."""
        largest = self.limits.max_frame_bytes
        if length > largest:
            text = f"a frame of {length} bytes exceeds {largest}"
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, text, "frame_bytes")
        if kind != DATA and length > self.limits.max_whole_bytes:
            text = f"a frame of type {kind} with {length} bytes"
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, text, "frame_bytes")

    def _begin_data(  # noqa: PLR0917 - a frame as the loop has it
        self, data: bytes, start: int, length: int, kind: int, flags: int, raw_id: int
    ) -> int:
        """Take what is there of a large DATA frame; return where the rest begins."""
        end = len(data)
        if length <= MIN_FRAME_BYTES:
            return start - frames.HEADER_BYTES
        if kind != DATA or start >= end:
            return start - frames.HEADER_BYTES
        padded = bool(flags & PADDED)
        self._data_pad = pad_length(data[start], length) if padded else 0
        self._data_id = raw_id & MAX_STREAM_ID
        self._data_ended = bool(flags & END_STREAM)
        self._data_left = length - (end - start)
        piece = data[start + padded : start + length - self._data_pad]
        self._some_data(self._data_id, piece, end - start, ended=False)
        return end

    def _more_data(self, data: bytes) -> int:
        """Go on with a DATA frame; return where it ends."""
        size = min(self._data_left, len(data))
        body = min(size, max(0, self._data_left - self._data_pad))
        self._data_left -= size
        piece = data if body == len(data) else data[:body]
        ended = self._data_ended and not self._data_left
        self._some_data(self._data_id, piece, size, ended=ended)
        return size

    def _odd_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Take a whole DATA frame that is not the usual case."""
        size = len(payload)
        if flags & PADDED:
            payload = unpad(payload)
        if not payload and not flags & END_STREAM:
            self.spend("empty_data")
        ended = bool(flags & END_STREAM)
        self._some_data(stream_id, payload, size, ended=ended)

    def _some_data(
        self, stream_id: int, payload: bytes, size: int, *, ended: bool
    ) -> None:
        """Deliver bytes of a body; `size` counts against the windows."""
        self._window -= size
        if self._window < 0:
            text = "more data than the window of the connection"
            limit = "connection_window_bytes"
            raise Violation(ErrorCode.FLOW_CONTROL_ERROR, text, limit)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "DATA")
            if self.forgotten(stream_id):
                self.spend("closed_stream")
            else:
                self.stream_error(stream_id, ErrorCode.STREAM_CLOSED)
            return
        if stream.remote_closed:
            self.stream_error(stream_id, ErrorCode.STREAM_CLOSED)
            return
        stream.unread += size
        if stream.unread > self.limits.stream_window_bytes:
            self.statistics.enforced("stream_window_bytes")
            self.stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.expected is not None:
            stream.expected -= len(payload)
            if stream.expected < 0 or (ended and stream.expected):
                self.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR)
                return
        if ended:
            stream.careful = stream.remote_closed = True
        if size > len(payload):
            self.give_back(stream, size - len(payload))  # padding
        stream.on_data(payload, ended)

    def _reopen_window(self) -> None:
        """Let the peer send on; what waits in memory is bounded by the application."""
        whole = self.limits.connection_window_bytes
        self.write(frames.window_update(0, whole - self._window))
        self._window = whole

    def _overrun(self, stream: Stream) -> None:
        """End the connection: the peer sent more than it may."""
        whole = self._window < 0
        limit = "connection_window_bytes" if whole else "stream_window_bytes"
        whose = "the connection" if whole else f"stream {stream.id}"
        text = f"more data than the window of {whose}"
        raise Violation(ErrorCode.FLOW_CONTROL_ERROR, text, limit)

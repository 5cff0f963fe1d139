"""Frames about the connection itself: settings, windows, pings, and their price. Pure.

Frames that cost work and bring nothing forward are paid from a budget: every call
answered and every KiB sent earns some, time earns some (`replenish`), and a peer that
has spent it all is told ENHANCE_YOUR_CALM. That one rule bounds the attacks of 2019
(CVE-2019-9511 to 9518) and rapid reset (CVE-2023-44487) alike.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from gateway.transport import frames
from gateway.transport.frames import (
    ACK,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    MAX_WINDOW,
    MIN_FRAME_BYTES,
    ErrorCode,
    Setting,
)
from gateway.transport.sending import EMPTY_TABLE, Sender
from gateway.transport.streams import (
    Application,
    Limits,
    Stream,
    TransportStatistics,
    Violation,
)

_DRAIN_PING = b"baton-go"
_DEFAULT_TABLE_BYTES = 4096
_MAX_FORGOTTEN = 256
"""Streams we ended early whose late frames are still expected."""


class Control(Sender):
    """The part of a connection that is about no stream in particular.

    Args:
        application: Told of pings.
        limits: What the peer may ask.
        statistics: Where enforced limits are counted.
        wake: Called when `out` gets something while it was empty.

    Attributes:
        failed: Nothing more is read; close once `out` is written.
        last_id: Highest stream the peer has opened.
    """

    def __init__(
        self,
        application: Application,
        limits: Limits,
        statistics: TransportStatistics,
        wake: Callable[[], None],
    ) -> None:
        super().__init__(wake)
        self.application = application
        self.limits = limits
        self.statistics = statistics
        self.failed = False
        self.last_id = 0
        self.refuse_above = MAX_STREAM_ID
        self.first_id = 1  # streams from here on were opened in this read
        self._forgotten: dict[int, None] = {}
        self._budget = limits.max_idle_frames
        self._paid = 0
        self._draining = False
        self._table_bytes = _DEFAULT_TABLE_BYTES

    # -- the budget ---------------------------------------------------------------

    def spend(self, what: str) -> None:
        """Pay for a frame that brought nothing forward.

        Raises:
            Violation: The budget is spent.
        """
        most = self.limits.max_idle_frames
        earned = self.progress - self._paid
        self._paid = self.progress
        self._budget = min(most, self._budget + earned) - 1
        if self._budget < 0:
            text = f"too many frames without progress, the last: {what}"
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, text, "idle_frames")

    def replenish(self, share: float) -> None:
        """Give a share of the budget back; the owner does so as time passes."""
        most = self.limits.max_idle_frames
        self._budget = min(most, self._budget + int(most * share) + 1)

    # -- going away ---------------------------------------------------------------

    def drain(self) -> None:
        """Ask the peer to open no more streams; those it opens meanwhile are served.

        The first GOAWAY names no stream; once the PING behind it is answered, all
        that the peer sent before it knew has arrived (RFC 9113, 6.8).
        """
        if not self._draining and not self.failed:
            self._draining = True
            self.write(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self.ping(_DRAIN_PING)

    def refuse_new(self) -> None:
        """Take no more streams than those seen; the second step of `drain`."""
        if self._draining and self.refuse_above == MAX_STREAM_ID and not self.failed:
            self.refuse_above = self.last_id
            self.write(frames.goaway(self.last_id, ErrorCode.NO_ERROR))

    def drained(self) -> bool:
        """Return whether nothing is open and the peer knows that it is to go."""
        return self.refuse_above != MAX_STREAM_ID and not self.streams

    def end(self, code: ErrorCode, reason: str) -> None:
        """End the connection with what is open on it; close once `out` is written."""
        if not self.failed:
            self.failed = True
            self.write(frames.goaway(self.last_id, code, reason))

    def lost(self) -> None:
        """Tell every stream that the connection is gone."""
        self.failed = True
        streams = tuple(self.streams.values())
        self.streams.clear()
        self.blocked.clear()
        for stream in streams:
            stream.queue = None
            stream.on_reset()

    def reset_stream(self, stream: Stream, code: ErrorCode) -> None:
        """End one stream now; late frames of the peer for it are ignored."""
        if self.streams.pop(stream.id, None) is not None:
            self.blocked.pop(stream.id, None)
            self.forget(stream.id)
            stream.queue = None
            self.write(frames.reset(stream.id, code))

    def ping(self, payload: bytes) -> None:
        """Send a PING of 8 bytes; whatever comes back shows that the peer lives."""
        self.write(frames.frame(frames.PING, 0, 0, payload))

    def forget(self, stream_id: int) -> None:
        """Expect late frames of a stream that ended here first."""
        self._forgotten[stream_id] = None
        if len(self._forgotten) > _MAX_FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]

    def forgotten(self, stream_id: int) -> bool:
        """Return whether late frames of a closed stream are no mistake."""
        return stream_id in self._forgotten or stream_id > self.refuse_above

    def stream_error(self, stream_id: int, code: ErrorCode) -> None:
        """End one stream because of what the peer did on it."""
        self.spend("stream_error")
        stream = self.streams.pop(stream_id, None)
        self.blocked.pop(stream_id, None)
        self.forget(stream_id)
        self.write(frames.reset(stream_id, code))
        if stream is not None:
            stream.queue = None
            stream.on_reset()

    # -- frames -------------------------------------------------------------------

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        self.spend("settings")
        if flags & ACK:
            if payload:
                text = "a SETTINGS acknowledgement with a payload"
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, text)
            return
        if len(payload) % 6:
            text = f"SETTINGS of {len(payload)} bytes"
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, text)
        window = self.initial_window
        for key, value in struct.iter_unpack(">HI", payload):
            self.spend("settings")
            self._set(key, value)
        self.write(frames.frame(frames.SETTINGS, ACK, 0))
        if self.initial_window > window:
            for stream in [s for s in self.streams.values() if s.queue]:
                self.spend("settings")
                self.send_queued(stream)

    def _set(self, key: int, value: int) -> None:
        """Obey one setting of the peer; unknown ones are ignored (6.5.2)."""
        if key == Setting.INITIAL_WINDOW_SIZE:
            highest = max((s.send_delta for s in self.streams.values()), default=0)
            if value + max(0, highest) > MAX_WINDOW:
                text = f"an initial window of {value} bytes"
                raise Violation(ErrorCode.FLOW_CONTROL_ERROR, text)
            self.initial_window = value
        elif key == Setting.MAX_FRAME_SIZE:
            if not MIN_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
                text = f"a maximum frame size of {value}"
                raise Violation(ErrorCode.PROTOCOL_ERROR, text)
            self.peer_frame = value
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise Violation(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
        elif key == Setting.HEADER_TABLE_SIZE:
            if value < self._table_bytes:
                self.table_update = EMPTY_TABLE
            self._table_bytes = value

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            text = f"PING of {len(payload)} bytes"
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, text)
        self.spend("ping")
        if not flags & ACK:
            self.write(frames.frame(frames.PING, ACK, 0, payload))
            self.application.on_ping()
        elif payload == _DRAIN_PING:
            self.refuse_new()

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            text = f"WINDOW_UPDATE of {len(payload)} bytes"
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, text)
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        self.spend("window_update")
        if not stream_id:
            if not increment:
                raise Violation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            if self.send_window + increment > MAX_WINDOW:
                text = "a connection window above 2^31-1"
                raise Violation(ErrorCode.FLOW_CONTROL_ERROR, text)
            self.send_window += increment
            self.send_blocked()
            return
        self._check_not_idle(stream_id, "WINDOW_UPDATE")
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if not increment:
            self.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR)
        elif self.initial_window + stream.send_delta + increment > MAX_WINDOW:
            self.stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            stream.send_delta += increment
            if stream.queue:
                self.send_queued(stream)

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            text = f"RST_STREAM of {len(payload)} bytes"
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, text)
        self._check_not_idle(stream_id, "RST_STREAM")
        stream = self.streams.pop(stream_id, None)
        if stream is None or stream_id >= self.first_id:
            self.spend("reset")  # nothing was gained by opening it
        if stream is not None:
            self.blocked.pop(stream_id, None)
            stream.queue = None
            stream.on_reset()

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Check a PRIORITY frame; it has no effect (RFC 9113, 5.3.2)."""
        if not stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "PRIORITY without a stream")
        self.spend("priority")
        if len(payload) != 5:
            self.stream_error(stream_id, ErrorCode.FRAME_SIZE_ERROR)
        elif int.from_bytes(payload[:4], "big") & MAX_STREAM_ID == stream_id:
            self.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR)

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Note that the client will leave; it closes when it is done."""
        if stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, "a short GOAWAY")
        self.spend("goaway")

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise Violation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _check_not_idle(self, stream_id: int, what: str) -> None:
        if not stream_id or stream_id > self.last_id or not stream_id & 1:
            text = f"{what} on stream {stream_id}, which was never opened"
            raise Violation(ErrorCode.PROTOCOL_ERROR, text)


def unpad(payload: bytes) -> bytes:
    """Take the padding off a DATA or HEADERS payload (RFC 9113, 6.1)."""
    size = len(payload)
    return payload[1 : size - pad_length(payload[0] if payload else 0, size)]


def pad_length(padding: int, size: int) -> int:
    """Return the bytes of padding, if a payload of `size` bytes has room for them."""
    if padding >= size:
        raise Violation(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return padding

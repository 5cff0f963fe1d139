"""What the HTTP/2 machine and the protocol above it share. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.transport.frames import ErrorCode, HeaderBlock
from gateway.transport.hpack_tables import Header

_SMALL_BYTES = 1024
"""Pieces below this size are gathered: as objects of their own, pieces of two bytes
would cost 28 times what they hold."""
_HEADERS_SLACK = 261
"""Length of the padding, 255 bytes of it, and the priority of a HEADERS frame."""


def gather(chunks: list[bytes | bytearray], data: bytes) -> None:
    """Put a piece behind others that wait for more; there is one at least."""
    if len(data) >= _SMALL_BYTES:
        chunks.append(data)
    elif isinstance(chunks[-1], bytearray):
        chunks[-1] += data
    else:
        chunks.append(bytearray(data))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may ask of us.

    Attributes:
        max_streams: Streams open at a time.
        max_header_bytes: Bytes of one header list, decoded (RFC 9113, 6.5.2); a call
            that brings more is refused.
        max_continuations: CONTINUATION frames of one header block.
        max_frame_bytes: Largest frame payload taken.
        stream_window_bytes: Bytes a stream may send before they are consumed.
        connection_window_bytes: The same for all streams together.
        max_idle_frames: Frames that cost work and bring nothing forward, beyond
            those that calls pay for; see `gateway.transport.http2`.
    """

    max_streams: int = 1024
    max_header_bytes: int = 16_384
    max_continuations: int = 8
    max_frame_bytes: int = 1 << 20
    stream_window_bytes: int = 1 << 20
    connection_window_bytes: int = 16 << 20
    max_idle_frames: int = 4096

    @property
    def max_block_bytes(self) -> int:
        """Bytes of an encoded header block; more end the connection.

        More than a call may have: reading a block that is too large for its call
        keeps the table in step, so that the other calls go on.
        """
        return 4 * self.max_header_bytes

    @property
    def max_whole_bytes(self) -> int:
        """Payload of a frame that must be held until all of it is there.

        No more than a HEADERS frame with the largest block: nobody else counts it. Of
        DATA alone there may be more, as it is handed on in pieces.
        """
        return min(self.max_frame_bytes, self.max_block_bytes + _HEADERS_SLACK)


@dataclass(slots=True)
class TransportStatistics:
    """What all connections of a listener count. Everything but `open` only grows.

    Attributes:
        open: Connections open now.
        accepted: Connections accepted.
        calls: Calls begun.
        buffered_bytes: Bytes of unfinished messages held now.
        limits: Times a limit was enforced, by its name.
    """

    open: int = 0
    accepted: int = 0
    calls: int = 0
    buffered_bytes: int = 0
    limits: dict[str, int] = field(default_factory=dict)

    def enforced(self, limit: str, times: int = 1) -> None:
        """Count that a limit was enforced."""
        self.limits[limit] = self.limits.get(limit, 0) + times


class Violation(Exception):
    """The peer broke the protocol or a limit, and the connection must end.

    Args:
        code: Goes into the GOAWAY frame.
        reason: So does this, for people.
        limit: Name of the limit it broke, for the metric; empty for none.
    """

    def __init__(self, code: ErrorCode, reason: str, limit: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.limit = limit


class Malformed(Exception):
    """A header list that is no request: its stream ends with PROTOCOL_ERROR."""


class Stream:
    """One stream. The protocol on top derives from it and is told what happens.

    Most attributes are class-level defaults: a call that goes the usual way never
    sets them, which is a good part of what it costs.

    Attributes:
        id: Stream number.
        wire_id: The same as in a frame header.
        careful: Its next frame needs more than the usual checks.
        remote_closed: The peer has sent END_STREAM.
        expected: Bytes of body that `content-length` promised and that are to come.
        unread: Bytes received for which no window was given back.
        consumed: Those of them the application has done with.
        send_delta: Added to the peer's initial window it is what we may send.
        queue: Chunks that wait for a window, or ``None``.
        queued_bytes: Their size.
        ending: The stream ends once the queue is empty,
        trailers: with these, if any.
    """

    id: int
    wire_id: bytes
    careful = False
    remote_closed = False
    expected: int | None = None
    unread = 0
    consumed = 0
    send_delta = 0
    queue: deque[bytes | memoryview] | None = None
    queued_bytes = 0
    ending = False
    trailers: HeaderBlock | None = None

    def whole(self, length: int) -> bool:
        """Whether a last frame brings exactly what `content-length` promised."""
        return self.expected == length and not self.remote_closed

    @abstractmethod
    def on_data(self, data: bytes, ended: bool) -> None:
        """Take body bytes; `ended`: there will be no more. May come empty."""

    @abstractmethod
    def on_reset(self) -> None:
        """The peer ended the stream, or the connection is gone. Nothing follows."""

    def on_progress(self) -> None:
        """Some of what waited for a window has left."""


class Application(Protocol):
    """The protocol on top of HTTP/2, as a connection sees it."""

    def read_head(self, headers: list[Header] | None) -> Any:  # noqa: ANN401
        """Return what `open` is to get for a header list; ``None``: too large.

        What is returned may be handed to `open` again for equal header blocks.

        Raises:
            Malformed: The list is not a request.
        """

    def open(
        self,
        stream_id: int,
        head: Any,  # noqa: ANN401
        ended: bool,
    ) -> Stream:
        """Begin a stream and enter it into the connection's `streams`.

        `ended`: no body follows. The stream may be answered at once.
        """

    def on_ping(self) -> None:
        """The peer sent a PING."""

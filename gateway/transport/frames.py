"""HTTP/2 frames: numbers, error codes, and the bytes of what a server sends. Pure.

Source: RFC 9113, sections 4.1 (frame header), 6 (frame types), 6.5.2 (settings) and
7 (error codes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
unpack_header = struct.Struct(">HBBBI").unpack_from
"""Length (high 16 bits, low 8 bits), type, flags, reserved bit and stream."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITISED = 0x20
"""The HEADERS flag that RFC 9113 calls PRIORITY."""

MAX_STREAM_ID = (1 << 31) - 1
MAX_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65_535
MIN_FRAME_BYTES = 16_384
"""The payload every peer takes; SETTINGS_MAX_FRAME_SIZE may raise it."""
MAX_FRAME_BYTES = (1 << 24) - 1


class ErrorCode(IntEnum):
    """Why a stream or connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """Parameters of a SETTINGS frame (RFC 9113, section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return one whole frame."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream_id.to_bytes(4, "big") + payload


def settings(values: dict[Setting, int]) -> bytes:
    """Return a SETTINGS frame."""
    pairs = (struct.pack(">HI", key, value) for key, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def reset(stream_id: int, code: ErrorCode) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_id: int, code: ErrorCode, reason: str = "") -> bytes:
    """Return a GOAWAY frame."""
    body = last_id.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode()
    return frame(GOAWAY, 0, 0, body)


class HeaderBlock:
    """An encoded header block, with the beginnings of the frame that carries it.

    Args:
        data: Encoded without any reference to the dynamic table, so that it may be
            sent at any time on any connection.

    Attributes:
        data: As given.
        head: Length, type and flags of the HEADERS frame that goes on afterwards.
        last: The same for the frame that ends its stream.
    """

    __slots__ = ("data", "head", "last")

    def __init__(self, data: bytes) -> None:
        self.data = data
        size = min(len(data), MIN_FRAME_BYTES).to_bytes(3, "big")
        whole = END_HEADERS if len(data) <= MIN_FRAME_BYTES else 0
        self.head = size + bytes((HEADERS, whole))
        self.last = size + bytes((HEADERS, whole | END_STREAM))

    def frames(self, stream_id: int, *, end: bool) -> Iterator[bytes]:
        """Yield the HEADERS frame and as many CONTINUATION frames as are needed."""
        head = self.last if end else self.head
        yield head + stream_id.to_bytes(4, "big") + self.data[:MIN_FRAME_BYTES]
        for start in range(MIN_FRAME_BYTES, len(self.data), MIN_FRAME_BYTES):
            part = self.data[start : start + MIN_FRAME_BYTES]
            last = start + MIN_FRAME_BYTES >= len(self.data)
            yield frame(CONTINUATION, END_HEADERS if last else 0, stream_id, part)

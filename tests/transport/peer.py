"""The client's side of HTTP/2 for tests: frames as bytes, and what came as frames.

Written for tests alone and apart from `gateway.transport.frames`, so that a wrong
number there is not wrong here as well.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITISED = 0x4, 0x8, 0x20
TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME = 1, 2, 3, 4, 5
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED = 0, 1, 3, 5
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11
TOP = (1 << 31) - 1
DEFAULT_WINDOW = 65_535


class Frame(NamedTuple):
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        start = 4 if self.kind == GOAWAY else 0
        return int.from_bytes(self.payload[start : start + 4], "big")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame; `stream` may have the reserved bit."""
    size = len(payload).to_bytes(3, "big")
    return size + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def ping(payload: bytes = b"pingping", *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


OPENING = PREFACE + settings()
"""What a client says first."""


def grpc_fields(
    path: str = "/test.S/Echo", more: Iterable[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """Return the request headers of a gRPC call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


def block(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode headers without any table: the same bytes mean the same anywhere."""
    encoded = b""
    for name, value in fields:
        for text in (name.encode(), value.encode()):
            assert len(text) < 127, "lengths from 127 on take more than a byte"
        encoded += b"\x00" + bytes((len(name),)) + name.encode()
        encoded += bytes((len(value),)) + value.encode()
    return encoded


def long_field(size: int, name: bytes = b"a") -> bytes:
    """Encode a field of `size` zeros (RFC 7541, 5.1), without any table."""
    length, rest = b"\x7f", size - 127
    while rest >= 128:
        length += bytes((rest & 127 | 128,))
        rest >>= 7
    head = b"\x00" + bytes((len(name),)) + name
    return head + length + bytes((rest,)) + b"0" * size


def headers(stream: int, encoded: bytes, *, end: bool = False) -> bytes:
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, stream, encoded)


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """Return a gRPC message with its prefix."""
    return bytes((compressed,)) + len(body).to_bytes(4, "big") + body


def parse(received: bytes) -> tuple[list[Frame], bytes]:
    """Return the whole frames, and what is left."""
    found, at = [], 0
    while len(received) - at >= 9:
        size = int.from_bytes(received[at : at + 3], "big")
        if len(received) - at - 9 < size:
            break
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        payload = received[at + 9 : at + 9 + size]
        found.append(Frame(received[at + 3], received[at + 4], stream, payload))
        at += 9 + size
    return found, received[at:]


def frames(received: bytes) -> list[Frame]:
    """Return the frames of bytes that hold nothing else."""
    found, rest = parse(received)
    assert not rest, "the output ends inside a frame"
    return found

"""What a load sends, as bytes ready for the wire: header blocks and frames. Pure.

A call is one HEADERS frame and one or more DATA frames. All but the stream id is the
same from call to call, so everything is encoded before the first call is made.

Sources: RFC 9113 section 4.1 (frames), RFC 7541 (header compression), the gRPC over
HTTP/2 protocol (headers, five bytes before each message, `grpc-timeout` units).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import hpack

HEADERS, DATA = 1, 0
END_STREAM, END_HEADERS = 1, 4
PREFIX_BYTES = 5
"""gRPC puts a flag and a length before each message."""
TABLE_BYTES = 4096
"""Size of the server's header table unless it says otherwise."""
VARIED = 256
"""Different time limits sent one after the other where they are to vary."""

Piece = tuple[bytes, bytes]
"""A HEADERS frame cut where the stream id belongs: what precedes, what follows."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame."""
    return frame_head(kind, flags, len(payload)) + stream.to_bytes(4, "big") + payload


def frame_head(kind: int, flags: int, length: int) -> bytes:
    """Return the first five bytes of a frame; the stream id follows."""
    return length.to_bytes(3, "big") + bytes((kind, flags))


def framed(message: bytes) -> bytes:
    """Return a message as gRPC frames it: uncompressed, with its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def timeout(microseconds: int) -> str:
    """Return a time limit as `grpc-timeout` has it: at most 8 digits and a unit."""
    for unit, divisor in (("u", 1), ("m", 1_000), ("S", 1_000_000)):
        if microseconds < 100_000_000 * divisor:
            return f"{max(1, microseconds // divisor)}{unit}"
    raise ValueError(f"a time limit of {microseconds} us is too long for gRPC")


@dataclass(frozen=True, slots=True)
class Request:
    """One kind of call.

    Attributes:
        authority: Host and port, for the ``:authority`` header.
        path: Full name of the method.
        message: One serialised request.
        messages: How often the message is sent in one call.
        deadline_us: Sent as ``grpc-timeout``; 0 for none.
        varied: Send a slightly different time limit with each call, as real clients
            do: what is left of a budget is never the same. It is added to the
            header table each time, so no two blocks of a run are the same bytes.
        scheme: ``http`` or ``https``.
    """

    authority: str
    path: str
    message: bytes
    messages: int = 1
    deadline_us: int = 0
    varied: bool = False
    scheme: str = "http"

    def body(self) -> bytes:
        """Return the messages of one call as gRPC frames them."""
        return framed(self.message) * self.messages

    def headers(self) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """Return the HEADERS frames of a connection.

        The first call puts the headers into the server's table and the later ones
        name their places in it. With varied time limits the table would change for
        ever, so every `VARIED` calls it is emptied (two size updates, RFC 7541
        section 6.3) and the same frames come again.

        Returns:
            The frames to begin with, and those to repeat after them.
        """
        encoder = hpack.Encoder()
        if not self.varied or not self.deadline_us:
            limit = timeout(self.deadline_us) if self.deadline_us else ""
            first, again = (self._encode(encoder, limit) for _ in range(2))
            return (first,), (again,)
        encoder.header_table_size = 0
        encoder.header_table_size = TABLE_BYTES
        steps = range(VARIED)
        pieces = [
            self._encode(encoder, timeout(max(1, self.deadline_us - 7 * step)))
            for step in steps
        ]
        return (), tuple(pieces)

    def sequence(self) -> Iterator[Piece]:
        """Return the HEADERS frames of one connection, call by call."""
        first, again = self.headers()
        return itertools.chain(first, itertools.cycle(again))

    def _encode(self, encoder: hpack.Encoder, limit: str) -> Piece:
        fields = [
            (":method", "POST"),
            (":scheme", self.scheme),
            (":path", self.path),
            (":authority", self.authority),
            ("te", "trailers"),
            *([("grpc-timeout", limit)] if limit else []),
            ("content-type", "application/grpc"),
            ("user-agent", "baton-loadtest/1"),
        ]
        block = encoder.encode(fields, huffman=True)
        return frame_head(HEADERS, END_HEADERS, len(block)), block

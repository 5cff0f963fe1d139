"""gRPC's length-prefixed messages, cut out of a body that comes in any pieces. Pure.

Source: grpc/grpc, ``doc/PROTOCOL-HTTP2.md`` ("Length-Prefixed-Message").
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from gateway.errors import Code, GatewayError, TooLarge, Unsupported
from gateway.transport.streams import gather

PREFIX_BYTES = 5
_GZIP_WBITS, _ZLIB_WBITS = 31, 15
ENCODINGS = {b"identity": 0, b"gzip": _GZIP_WBITS, b"deflate": _ZLIB_WBITS}
"""Message encodings we decode, with zlib's word for each (RFC 1952, RFC 1950)."""


def message_prefix(size: int) -> bytes:
    """Return what precedes an uncompressed message of so many bytes."""
    return b"\0" + size.to_bytes(4, "big")


PREFIXES = [message_prefix(size) for size in range(4096)]
"""Of the messages that most calls send."""


class BadMessage(GatewayError):
    """The body is no sequence of messages."""

    code = Code.INTERNAL
    label = "bad_message"


class Cardinality(GatewayError):
    """A unary call with no message, or with more than one."""

    code = Code.UNIMPLEMENTED
    label = "cardinality"


class MessageReader:
    """Cuts one call's body into messages.

    Args:
        encoding: Value of ``grpc-encoding``.
        max_bytes: Largest message, before and after decompression.

    Attributes:
        held: Bytes of a message that is not whole yet.
    """

    __slots__ = ("_chunks", "_encoding", "_max_bytes", "_need", "held")

    def __init__(self, encoding: bytes, max_bytes: int) -> None:
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._chunks: list[bytes | bytearray] = []
        self._need = PREFIX_BYTES
        self.held = 0

    def keep(self, data: bytes) -> bool:
        """Take body bytes if they go on with a message and do not complete it."""
        chunks = self._chunks
        held = self.held + len(data)
        if not chunks or held >= self._need:
            return False
        gather(chunks, data)
        self.held = held
        return True

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take body bytes and yield every message they complete.

        Raises:
            TooLarge: A message is announced, or unpacks to, more than the limit.
            BadMessage: The prefix or the compressed data are broken.
            Unsupported: A compressed message of an encoding we lack.
        """
        if self._chunks:
            if self.keep(data):
                return
            self._chunks.append(data)
            self.held += len(data)
            if self.held == self._need > PREFIX_BYTES <= len(self._chunks[0]):
                yield self._whole()
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        position, end = 0, len(data)
        while end - position >= PREFIX_BYTES:
            start = position + PREFIX_BYTES
            size = int.from_bytes(data[position + 1 : start], "big")
            if size > self._max_bytes:
                raise _too_large(size, self._max_bytes)
            if end - start < size:
                self._need = PREFIX_BYTES + size
                break
            message = data[start : start + size]
            if data[position]:
                message = self._unpack(data[position], message)
            position = start + size
            self.held = end - position
            yield message
        else:
            self._need = PREFIX_BYTES
        self.held = end - position
        if self.held:
            self._chunks.append(data[position:] if position else data)

    def _whole(self) -> bytes:
        """Join the one message that the chunks are; a large one is copied once."""
        first, *rest = self._chunks
        message = b"".join((memoryview(first)[PREFIX_BYTES:], *rest))
        self._chunks.clear()
        self._need = PREFIX_BYTES
        self.held = 0
        return self._unpack(first[0], message) if first[0] else message

    def _unpack(self, flag: int, message: bytes) -> bytes:
        if flag != 1:
            raise BadMessage(f"a message with compression flag {flag}")
        wbits = ENCODINGS.get(self._encoding, 0)
        if not wbits:
            raise BadMessage("a compressed message without grpc-encoding")
        unpacker = zlib.decompressobj(wbits)
        try:
            unpacked = unpacker.decompress(message, self._max_bytes + 1)
        except zlib.error:
            name = self._encoding.decode()
            raise BadMessage(f"a message that is not valid {name}") from None
        if len(unpacked) > self._max_bytes:
            raise _too_large(len(unpacked), self._max_bytes)
        if not unpacker.eof:
            raise BadMessage("a compressed message cut short")
        if unpacker.unused_data:
            raise BadMessage("a compressed message with more behind its end")
        return unpacked


def check_encoding(encoding: bytes) -> None:
    """Refuse a ``grpc-encoding`` we lack.

    Raises:
        Unsupported: It is unknown; says which there are.
    """
    if encoding not in ENCODINGS:
        known = ", ".join(name.decode() for name in ENCODINGS)
        name = encoding.decode("ascii", "replace")
        raise Unsupported(f"grpc-encoding '{name}' is not supported; use {known}")


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge(f"Received message larger than max ({size} vs. {limit})")

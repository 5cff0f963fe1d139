"""How a gRPC call begins, ends and fails on the wire: headers, trailers, messages.

Source: grpc/grpc, ``doc/PROTOCOL-HTTP2.md``.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from uuid import uuid4

from gateway.errors import GatewayError
from gateway.logs import get_logger
from gateway.rpc import Metadata
from gateway.transport.frames import HeaderBlock
from gateway.transport.hpack import encode_indexed, encode_literal

_log = get_logger("transport")

MAX_DETAILS_BYTES = 1024
"""Longest error message sent, in UTF-8: trailers share the peer's header limit
(8 KiB), and gRPC percent-encodes what is not ASCII, three bytes for one."""

EXPIRED = "Deadline Exceeded"
"""Message of a call that its deadline ended, in the words of gRPC's own servers."""

_BASE = encode_indexed(8) + encode_literal(b"content-type", b"application/grpc")
HEADERS = HeaderBlock(_BASE)
"""``:status: 200`` and the content type: how every answered call begins."""
TRAILERS_OK = HeaderBlock(encode_literal(b"grpc-status", b"0"))
"""How a call that went well ends."""

_PASSED = frozenset(range(0x20, 0x7F)) - {ord("%")}


class InternalError(GatewayError):
    """A bug of ours: the client gets an incident id, the log the traceback."""


def incident(method: str) -> GatewayError:
    """Log the exception being handled; return what the client is told instead."""
    number = uuid4().hex[:12]
    _log.exception("handler_failed", method=method, incident=number)
    return InternalError(f"internal error, incident {number}")


def details(error: GatewayError) -> str:
    """Return an error's message as it may be sent: valid UTF-8 of bounded length."""
    data = error.message.encode(errors="replace")[:MAX_DETAILS_BYTES]
    return data.decode(errors="ignore")


def percent_encode(text: str) -> bytes:
    """Encode ``grpc-message``: printable ASCII as it is, all else as ``%XX``."""
    data = text.encode()
    if text.isascii() and text.isprintable() and "%" not in text:
        return data
    return b"".join(
        bytes((byte,)) if byte in _PASSED else b"%%%02X" % byte for byte in data
    )


def encode_metadata(metadata: Metadata) -> bytes:
    """Encode fields of a handler's own; values of ``-bin`` keys in base64."""
    fields = []
    for key, value in metadata:
        raw = value.encode("ascii") if isinstance(value, str) else value
        if key.endswith("-bin"):
            raw = base64.b64encode(raw).rstrip(b"=")
        fields.append(encode_literal(key.encode("ascii"), raw))
    return b"".join(fields)


def decode_binary(value: bytes) -> bytes | None:
    """Decode the value of a ``-bin`` header, padded or not; ``None`` if it is none.

    A list joined by commas gives its first element.
    """
    value = value.split(b",", 1)[0]
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return None


def response_headers(metadata: Metadata) -> HeaderBlock:
    """Return the response headers with fields of the handler's own."""
    return HeaderBlock(_BASE + encode_metadata(metadata)) if metadata else HEADERS


def trailers(
    error: GatewayError | None, metadata: Metadata = (), *, alone: bool = False
) -> HeaderBlock:
    """Return the trailers of a call.

    Args:
        error: Why it failed; ``None`` for OK.
        metadata: Fields of the handler's own.
        alone: There were no response headers: these stand for both.
    """
    if error is None:
        if not metadata and not alone:
            return TRAILERS_OK
        block = (_BASE if alone else b"") + encode_literal(b"grpc-status", b"0")
        return HeaderBlock(block + encode_metadata(metadata))
    failure = _failure(int(error.code), details(error), error.pushback_ms, alone)
    if metadata:
        return HeaderBlock(failure.data + encode_metadata(metadata))
    return failure


@lru_cache(512)
def _failure(code: int, text: str, pushback_ms: int | None, alone: bool) -> HeaderBlock:
    """Encode a status; under overload the same few are sent again and again."""
    block = _BASE if alone else b""
    block += encode_literal(b"grpc-status", str(code).encode())
    block += encode_literal(b"grpc-message", percent_encode(text))
    if pushback_ms is not None:
        pushback = str(pushback_ms).encode()
        block += encode_literal(b"grpc-retry-pushback-ms", pushback)
    return HeaderBlock(block)

"""Request headers: what HTTP/2 and gRPC demand of them, and what they ask for. Pure.

Sources: RFC 9113, sections 8.2 and 8.3; grpc/grpc, ``doc/PROTOCOL-HTTP2.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import Code, DeadlineExceeded, GatewayError, TooLarge, Unsupported
from gateway.rpc import Methods
from gateway.transport.frames import HeaderBlock
from gateway.transport.hpack import encode_literal
from gateway.transport.hpack_tables import Header
from gateway.transport.messages import check_encoding
from gateway.transport.status import EXPIRED, decode_binary, trailers
from gateway.transport.streams import Malformed

_MAX_REMEMBERED = 1024
"""Header lists remembered, without their timeout, over all connections."""
_MAX_TIMEOUT_NS = (1 << 62) - 1
_UNIT_NS = {
    b"H": 3_600_000_000_000,
    b"M": 60_000_000_000,
    b"S": 1_000_000_000,
    b"m": 1_000_000,
    b"u": 1_000,
    b"n": 1,
}
_TIMEOUT = re.compile(rb"[0-9]{1,8}[HMSmun]")
_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_CONNECTION = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding"}
    | {b"upgrade"}
)
_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\0\r\n]*")
_HELP = b"This port speaks gRPC, which needs HTTP/2.\n"
"""As `gateway.transport.http2` tells who speaks HTTP/1."""


class BadTimeout(GatewayError):
    """A ``grpc-timeout`` that is none."""

    code = Code.INTERNAL
    label = "bad_timeout"


class BadMetadata(GatewayError):
    """A ``-bin`` header that is no base64."""

    code = Code.INTERNAL
    label = "bad_metadata"


class Head:
    """What one header list asks for. Shared by all calls that sent the same.

    Attributes:
        path: Full name of the method.
        headers: All fields, without ``grpc-timeout``.
        unary: Handler of a unary method, or ``None``.
        stream: Factory of a streaming method, or ``None``.
        own_deadline: The handler answers by the deadline itself.
        encoding: Of compressed messages.
        refusal: Ends the call at once; with `body` after response headers, if any.
        body: For those who do not speak gRPC.
        length: Value of ``content-length``.
        max_message_bytes: Largest message.
        simple: A unary call that is not refused, and whose deadline is its own.
    """

    __slots__ = (
        "body",
        "encoding",
        "headers",
        "length",
        "max_message_bytes",
        "own_deadline",
        "path",
        "refusal",
        "simple",
        "stream",
        "unary",
    )

    def __init__(self, headers: tuple[Header, ...] = (), path: str = "") -> None:
        self.headers = headers
        self.path = path
        self.unary: Callable[[Any, bytes], None] | None = None
        self.stream: Callable[[Any], Any] | None = None
        self.own_deadline = False
        self.encoding = b"identity"
        self.refusal: HeaderBlock | None = None
        self.body = b""
        self.length: int | None = None
        self.simple = False
        self.max_message_bytes = 0


class HeadReader:
    """Reads header lists against a table of methods, and remembers what came of it.

    Args:
        methods: What is served.
        max_header_bytes: For the error of whoever sent more.
        max_message_bytes: Of every method.
    """

    def __init__(
        self, methods: Methods, max_header_bytes: int, max_message_bytes: int
    ) -> None:
        self._methods = methods
        self._max_message_bytes = max_message_bytes
        self._known: dict[tuple[Header, ...], Head] = {}
        self._too_large = Head()
        text = (
            f"the request's headers exceed {max_header_bytes} bytes "
            "(grpc.max_metadata_bytes)"
        )
        self._too_large.refusal = trailers(TooLarge(text), alone=True)

    def read(self, headers: list[Header] | None) -> tuple[Head, int]:
        """Return what a header list asks for, and its timeout in ns (0 for none).

        Args:
            headers: The list, or ``None`` where it was too large.

        Raises:
            Malformed: It is no HTTP/2 request.
        """
        if headers is None:
            return self._too_large, 0
        timeout: bytes | None = None
        rest = tuple([h for h in headers if h[0] != b"grpc-timeout"])
        if len(rest) != len(headers):
            timeout = next(v for n, v in headers if n == b"grpc-timeout")
        head = self._known.get(rest)
        if head is None:
            head = self._read(rest)
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[rest] = head
        if timeout is None:
            return head, 0
        if not _TIMEOUT.fullmatch(timeout):
            error = BadTimeout("grpc-timeout must be up to 8 digits and a unit")
            return _refused(rest, head.path, error), 0
        timeout_ns = int(timeout[:-1]) * _UNIT_NS[timeout[-1:]]
        if not timeout_ns and head.refusal is None:
            return _refused(rest, head.path, DeadlineExceeded(EXPIRED)), 0
        return head, min(timeout_ns, _MAX_TIMEOUT_NS)

    def _read(self, headers: tuple[Header, ...]) -> Head:
        fields = check_request(headers)
        path = fields[b":path"].decode("utf-8", "replace")
        head = Head(headers, path)
        head.max_message_bytes = self._max_message_bytes
        length = fields.get(b"content-length")
        if length is not None:
            if not length.isdigit() or len(length) > 18:
                raise Malformed("content-length is no number")
            head.length = int(length)
        content_type = fields.get(b"content-type", b"")
        if fields[b":method"] != b"POST":
            _refuse_http(head, b"405", ((b"allow", b"POST"),))
        elif not re.match(rb"application/grpc($|[+;])", content_type):
            _refuse_http(head, b"415", ())
        else:
            self._route(head, fields)
        return head

    def _route(self, head: Head, fields: Mapping[bytes, bytes]) -> None:
        head.encoding = fields.get(b"grpc-encoding", b"identity")
        head.unary = self._methods.unary.get(head.path)
        head.stream = self._methods.streams.get(head.path)
        head.own_deadline = head.path in self._methods.own_deadline
        try:
            check_encoding(head.encoding)
            check_binary(head.headers)
            if head.unary is None and head.stream is None:
                raise Unsupported(f"Method not found: {head.path}")
            head.simple = head.unary is not None and head.own_deadline
        except Unsupported as error:
            accepted = (("grpc-accept-encoding", "identity,deflate,gzip"),)
            head.refusal = trailers(error, accepted, alone=True)
        except BadMetadata as error:
            head.refusal = trailers(error, alone=True)


def _refused(headers: tuple[Header, ...], path: str, error: GatewayError) -> Head:
    """Return a head that ends its call with an error."""
    head = Head(headers, path)
    head.refusal = trailers(error, alone=True)
    return head


def _refuse_http(head: Head, status: bytes, fields: tuple[Header, ...]) -> None:
    """Answer whoever does not speak gRPC in plain HTTP."""
    head.body = _HELP
    fields = ((b":status", status), (b"content-type", b"text/plain"), *fields)
    length = str(len(_HELP)).encode()
    block = b"".join(encode_literal(*field) for field in fields)
    head.refusal = HeaderBlock(block + encode_literal(b"content-length", length))


def check_binary(headers: tuple[Header, ...]) -> None:
    """Check that binary metadata can be decoded, whether a handler reads it or not.

    Raises:
        BadMetadata: A value is no base64; names the key.
    """
    for name, value in headers:
        if name.endswith(b"-bin"):
            for part in value.split(b","):
                if decode_binary(part) is None:
                    raise BadMetadata(f"metadata {name.decode()} is not valid base64")


def check_request(headers: tuple[Header, ...]) -> dict[bytes, bytes]:
    """Check a request's header list and return its fields, the first of each name.

    Raises:
        Malformed: It breaks a rule of RFC 9113, 8.2 or 8.3, or RFC 9110, 8.6.
    """
    fields: dict[bytes, bytes] = {}
    regular = False
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Malformed("a field with characters that are not allowed")
        if name[:1] == b":":
            if regular or name in fields or name not in _PSEUDO:
                raise Malformed("a pseudo-header out of place")
        else:
            regular = True
            if name in _CONNECTION or (name == b"te" and value != b"trailers"):
                raise Malformed("a field about the connection")
            if name == b"content-length" and fields.get(name, value) != value:
                raise Malformed("two lengths of one body")
        fields.setdefault(name, value)
    if not fields.get(b":method") or b":scheme" not in fields:
        raise Malformed("no method, or no scheme")
    if not fields.get(b":path"):
        raise Malformed("no path")
    return fields

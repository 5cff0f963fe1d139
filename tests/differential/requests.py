"""Requests written frame by frame, by name: well-formed ones, and what goes wrong."""

from __future__ import annotations

import base64
import gzip
import json
import zlib

from tests.differential.raw import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    data,
    frame,
    headers,
    message,
)
from tests.differential.seam import CONFIG

ECHO, LATER, NEVER = "/test.S/Echo", "/test.S/Later", "/test.S/Never"
STREAM = "/test.S/Stream"
HI = message(b"hi")
LIMIT = CONFIG.max_message_bytes
REPEATED = b"compress me " * 500
GZIP, DEFLATE = gzip.compress(REPEATED), zlib.compress(REPEATED)


def call(
    path: str | None, *fields: tuple[str, str | bytes], **instead: str | None
) -> list[bytes]:
    """Return a request with one small message."""
    return [headers(path, *fields, **instead), *data(HI)]


def bodies(path: str) -> dict[str, list[bytes]]:
    """Return requests whose bodies are whole, cut, doubled, padded and so on."""
    head = headers(path)
    half = message(b"h" * 2000)
    largest = message(bytes(LIMIT))
    return {
        "no body": [headers(path, end=True)],
        "an empty body": [head, *data(b"")],
        "an empty frame first": [head, *data(b"", HI)],
        "an empty message": [head, *data(message(b""))],
        "byte by byte": [head, *data(*(bytes((byte,)) for byte in HI))],
        "an empty frame last": [head, *data(HI, b"")],
        "two messages": [head, *data(HI + message(b"there"))],
        "two messages in two frames": [head, *data(HI, message(b"there"))],
        "cut in the prefix": [head, *data(HI[:3])],
        "cut in the message": [head, *data(HI[:6])],
        "cut in a large message": [head, *data(half[:1000])],
        "one more byte": [head, *data(HI + b"x")],
        "one and a half messages": [head, *data(HI + half[:1000])],
        "flag 2": [head, *data(message(b"hi", 2))],
        "flag 255": [head, *data(message(b"hi", 255))],
        "the largest message": [head, *data(largest[:9000], largest[9000:])],
        "one byte too large": [head, *data(message(bytes(LIMIT + 1))[:16_000], b"")],
        "too large by far": [head, *data(b"\0\xff\xff\xff\xffx")],
        "too large behind another": [head, *data(HI + b"\0\xff\xff\xff\xffx")],
        "trailers end it": [
            head,
            *data(HI, end=False),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01x\x01y"),
        ],
        "padding": [head, frame(DATA, END_STREAM | PADDED, 1, b"\4" + HI + bytes(4))],
    }


def compressed(path: str) -> dict[str, list[bytes]]:
    """Return requests with compressed messages, in order and not."""

    def encoded(encoding: str | None, *messages: bytes) -> list[bytes]:
        return [headers(path, grpc_encoding=encoding), *data(b"".join(messages))]

    empty, broken = gzip.compress(b""), GZIP[:40] + b"broken" + GZIP[46:]
    fits, bomb = gzip.compress(bytes(LIMIT)), gzip.compress(bytes(LIMIT + 1))
    return {
        "gzip": encoded("gzip", message(GZIP, 1)),
        "deflate": encoded("deflate", message(DEFLATE, 1)),
        "gzip of nothing": encoded("gzip", message(empty, 1)),
        "gzip announced, not used": encoded("gzip", HI),
        "identity": encoded("identity", HI),
        "identity with the flag": encoded("identity", message(GZIP, 1)),
        "the flag without an encoding": encoded(None, message(GZIP, 1)),
        "an unknown encoding": encoded("snappy", HI),
        "an unknown encoding, used": encoded("snappy", message(b"hi", 1)),
        "an empty encoding": encoded("", HI),
        "GZIP": encoded("GZIP", message(GZIP, 1)),
        "gzip that is deflate": encoded("gzip", message(DEFLATE, 1)),
        "deflate that is gzip": encoded("deflate", message(GZIP, 1)),
        "gzip that is none": encoded("gzip", message(b"hi", 1)),
        "an empty gzip": encoded("gzip", message(b"", 1)),
        "gzip broken inside": encoded("gzip", message(broken, 1)),
        "gzip cut short": encoded("gzip", message(GZIP[:-9], 1)),
        "gzip with a wrong checksum": encoded("gzip", message(GZIP[:-8] + b"8" * 8, 1)),
        "gzip and more": encoded("gzip", message(GZIP + b"more", 1)),
        "two gzip members": encoded("gzip", message(GZIP + GZIP, 1)),
        "gzip that unpacks to the largest": encoded("gzip", message(fits, 1)),
        "gzip that unpacks to too much": encoded("gzip", message(bomb, 1)),
    }


def _paths() -> dict[str, list[bytes]]:
    wrong = ["/", "/test.S", "/test.S/", "/test.S/Nope", "/test.S/echo", "/no.S/Echo"]
    wrong += ["/test.S/Echo/", "/test.S//Echo", "//test.S/Echo", "test.S/Echo", "*"]
    wrong += ["/test.S/Echo?a=1", "/test.S/Echo#a", "/test.S/%45cho", "/test.S/Ech\x7f"]
    return {f"path {path!r}": call(path) for path in wrong}


def _http() -> dict[str, list[bytes]]:
    types = ["application/grpc+proto", "application/grpc+json", "application/grpc;a=b"]
    types += ["application/grpc ", "application/grpcx", "application/grpc-web"]
    types += ["Application/gRPC", "application/json", "text/plain", ""]
    requests = {f"content-type {t!r}": call(ECHO, content_type=t) for t in types}
    requests["no content-type"] = call(ECHO, content_type=None)
    for method in ("GET", "PUT", "OPTIONS", "post", ""):
        requests[f"method {method!r}"] = call(ECHO, method=method)
    for te in (None, "", "gzip", "Trailers", "trailers, gzip"):
        requests[f"te {te!r}"] = call(ECHO, te=te)
    requests |= {
        "scheme https": call(ECHO, scheme="https"),
        "scheme ftp": call(ECHO, scheme="ftp"),
        "no scheme": call(ECHO, scheme=None),
        "no method": call(ECHO, method=None),
        "no path": call(None),
        "an empty path": call(""),
        "no authority": call(ECHO, authority=None),
        "host for authority": call(ECHO, ("host", "there"), authority=None),
        "host beside authority": call(ECHO, ("host", "there")),
        "two paths": [headers(ECHO, (":path", ECHO)), *data(HI)],
        "a pseudo-header last": call(ECHO, (":x", "y")),
        "connection": call(ECHO, ("connection", "close")),
        "transfer-encoding": call(ECHO, ("transfer-encoding", "chunked")),
        "upper case": call(ECHO, ("X-Upper", "y")),
        "a space in a name": call(ECHO, ("x y", "z")),
        "a NUL in a value": call(ECHO, ("x-nul", b"a\0b")),
        "a line feed in a value": call(ECHO, ("x-lf", b"a\nb")),
        "content-length": call(ECHO, ("content-length", str(len(HI)))),
        "a cookie": call(ECHO, ("cookie", "a=b"), ("cookie", "c=d")),
        "large headers": call(ECHO, ("x-large", "a" * 7000)),
        "an empty user-agent": call(ECHO, ("user-agent", "")),
    }
    block = headers(ECHO, ("x-a", "b" * 100))[9:]
    requests["CONTINUATION"] = [
        frame(HEADERS, 0, 1, block[:20]),
        frame(CONTINUATION, 0, 1, block[20:40]),
        frame(CONTINUATION, END_HEADERS, 1, block[40:]),
        *data(HI),
    ]
    return requests


def _timeouts() -> dict[str, list[bytes]]:
    fine = ["1H", "1M", "10S", "9999999m", "99999999u", "99999999H", "00000010S"]
    wrong = [
        "",
        "1",
        "S",
        "1s",
        "1x",
        "-1S",
        "+1S",
        "1.5S",
        " 1S",
        "1 S",
        "1S ",
        "0x1S",
    ]
    wrong += ["100000000S", "1SS"]
    requests = {f"timeout {t!r}": call(ECHO, grpc_timeout=t) for t in fine + wrong}
    for path in (ECHO, LATER, NEVER, STREAM):
        requests[f"timeout '0S' {path}"] = call(path, grpc_timeout="0S")
    for timeout in ("1n", "100m"):
        requests[f"timeout {timeout!r} never"] = call(NEVER, grpc_timeout=timeout)
    requests["two timeouts"] = call(ECHO, ("grpc-timeout", "1H"), grpc_timeout="1H")
    return requests


def _metadata() -> dict[str, list[bytes]]:
    """Return calls that are answered with the headers their handler sees."""

    def asks(keys: str, *fields: tuple[str, str | bytes]) -> list[bytes]:
        body = message(keys.encode())
        return [headers("/test.S/Headers", *fields), *data(body)]

    def text(value: bytes | str) -> list[bytes]:
        return asks("x-a", ("x-a", value))

    def binary(*values: bytes | str) -> list[bytes]:
        return asks("x-a-bin", *(("x-a-bin", value) for value in values))

    padded = base64.b64encode(b"\xff\0\x80!").decode()
    return {
        "text": text("plain, a=b; c"),
        "empty text": text(""),
        "spaces around text": text("  a  b  "),
        "a tab in text": text("a\tb"),
        "text beyond ASCII": text("\N{SNOWMAN}".encode()),
        "text that is no UTF-8": text(b"\xff\xfe"),
        "percent signs in text": text("%41%zz"),
        "two texts": asks("x-a", ("x-a", "one"), ("x-a", "two")),
        "no such key": asks("x-none x-none-bin"),
        "binary, padded": binary(padded),
        "binary, not padded": binary(padded.rstrip("=")),
        "binary, empty": binary(""),
        "two binaries": binary(padded, "AAAA"),
        "binaries joined": binary(padded + ",AAAA"),
        "binaries joined, not padded": binary(padded.rstrip("=") + ",AAAA"),
        "binary that is no base64": binary("!!!"),
        "binary of one letter": binary("A"),
        "binary with a space": binary("AA AA"),
        "binary in the alphabet of URLs": binary("-_-_"),
        "a tracing key": asks("grpc-trace-bin", ("grpc-trace-bin", "AA")),
        "usual fields": asks(
            ":path :authority te content-type user-agent grpc-timeout",
            ("user-agent", "by hand"),
            ("grpc-timeout", "1H"),
        ),
        "fields of gRPC's own": asks(
            "grpc-x grpc-encoding grpc-accept-encoding grpc-previous-rpc-attempts",
            ("grpc-x", "1"),
            ("grpc-accept-encoding", "gzip"),
            ("grpc-previous-rpc-attempts", "2"),
        ),
    }


def _errors() -> dict[str, list[bytes]]:
    def fails(**spec: object) -> list[bytes]:
        return [headers("/test.S/Fail"), *data(message(json.dumps(spec).encode()))]

    requests = {f"status {code}": fails(code=code, text="why") for code in range(1, 17)}
    texts = {
        "empty": "",
        "spaces": "  a  b  ",
        "percent": "100% %41 %",
        "UTF-8": "größer als ∞ \N{SNOWMAN} \U0001f600",
        "control characters": "a\r\n\tb\0\x7f\x1b",
        "long": "l" * 1025,
        "long UTF-8": "a" + "é" * 600,
        "long emoji": "a" + "\U0001f600" * 300,
        "lone surrogate": "\ud800",
        "bytes as text": "\x80\xff",
    }
    requests |= {f"message {n!r}": fails(code=3, text=t) for n, t in texts.items()}
    initial, trailing = [("x-i", "1"), ("x-i", "2")], [("x-t", "a, b"), ("x-t", "")]
    return requests | {
        "push-back": fails(code=14, text="later", pushback=25),
        "push-back of zero": fails(code=14, text="later", pushback=0),
        "trailing metadata": fails(code=5, text="gone", trailing=trailing),
        "initial metadata": fails(code=5, text="gone", initial=initial),
        "both metadata": fails(code=5, text="", initial=initial, trailing=trailing),
        "a bug": [headers("/test.S/Raise"), *data(HI)],
    }


def _streams() -> dict[str, list[bytes]]:
    def stream(*words: bytes, head: bytes = headers(STREAM)) -> list[bytes]:
        return [head, *data(*(message(word) for word in words))]

    error = json.dumps({"code": 9, "text": "mitten drin: ü", "pushback": 3}).encode()
    short = headers(STREAM, grpc_timeout="200m")
    return {
        "one after the other": stream(b"one", b"two", b"", b"three"),
        "held to the end": stream(b"hold", b"one", b"two"),
        "an error first": stream(error, b"one"),
        "an error in the middle": stream(b"one", error, b"two"),
        "ended by the server": stream(b"one", b"end", b"two"),
        "ended by the server at once": stream(b"end"),
        "a bug at once": stream(b"raise"),
        "a bug in the middle": stream(b"one", b"raise", b"two"),
        "a deadline without end": [short, *data(message(b"one"), end=False)],
        "a deadline after half-close": stream(b"one", b"never", head=short),
        "an error, no half-close": [headers(STREAM), *data(message(error), end=False)],
        "an end, no half-close": [headers(STREAM), *data(message(b"end"), end=False)],
    }


def _named(what: str, requests: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    return {f"{what}: {name}": pieces for name, pieces in requests.items()}


REQUESTS: dict[str, list[bytes]] = (
    _named("unary", bodies(ECHO))
    | _named("stream", bodies(STREAM))
    | _named("unary", compressed(ECHO))
    | _named("stream", compressed(STREAM))
    | _named("unary", _paths() | _http() | _timeouts())
    | _named("metadata", _metadata())
    | _named("error", _errors())
    | _named("stream", _streams())
)
"""All of them."""

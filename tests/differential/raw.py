"""One HTTP/2 request written byte for byte, and all that is answered to it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from hpack import Decoder, Encoder

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
CONTINUATION = 9
END_STREAM, END_HEADERS, PADDED, ACK = 1, 4, 8, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WAIT_S = 10.0
_INCIDENT = re.compile("incident [0-9a-f]{12}")
Fields = Sequence[tuple[str, str | bytes]]

UNSEEN = {
    ":status": "compared as a part of its own",
    "content-type": "compared as a part of its own",
    "grpc-accept-encoding": "grpcio says with every answer what it could read; the own "
    "transport where it matters, when it refuses an encoding",
    "grpc-status": "compared as a part of its own",
    "grpc-message": "compared as a part of its own",
}
"""Response fields that are not compared as metadata, and why."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    size = len(payload).to_bytes(3, "big")
    return size + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def message(data: bytes, flag: int = 0) -> bytes:
    """Return a length-prefixed message of gRPC."""
    return bytes((flag,)) + len(data).to_bytes(4, "big") + data


def headers(
    path: str | None,
    *more: tuple[str, str | bytes],
    end: bool = False,
    **instead: str | None,
) -> bytes:
    """Return the HEADERS frame of a gRPC request.

    Args:
        path: Of the method; ``None`` for none.
        more: Fields behind the usual ones.
        end: Nothing follows.
        instead: Values of usual fields, with ``_`` for ``-`` and without the colon;
            ``None`` leaves a field out.
    """
    usual: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in instead.items():
        dashed = name.replace("_", "-")
        usual[f":{dashed}" if f":{dashed}" in usual else dashed] = value
    fields: list[Any] = [(n, v) for n, v in usual.items() if v is not None]
    block = Encoder().encode([*fields, *more])
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, block)


def data(*bodies: bytes, end: bool = True) -> list[bytes]:
    """Return a DATA frame for each piece of a body; `end`: the last one ends it."""
    last = len(bodies) - 1
    return [
        frame(DATA, END_STREAM if end and i == last else 0, 1, body)
        for i, body in enumerate(bodies)
    ]


@dataclass(frozen=True)
class Answer:
    """What a client sees of one call.

    Attributes:
        http: Status and content type.
        code: gRPC status; ``None`` if there was none.
        text: gRPC message, percent-decoded.
        messages: Length-prefixed messages, with their flag.
        initial: Response headers, without those of `UNSEEN`.
        trailing: Trailers, likewise. An answer of trailers alone has these only.
        ended: ``"status"``, ``"body"``, ``"reset N"``, ``"goaway N"`` or ``"closed"``.
    """

    http: tuple[str, str] | None = None
    code: int | None = None
    text: str = ""
    messages: tuple[bytes, ...] = ()
    initial: tuple[tuple[str, str], ...] = ()
    trailing: tuple[tuple[str, str], ...] = ()
    ended: str = ""

    def brief(self) -> str:
        """Return how it went in one line: without metadata and messages."""
        if self.code is not None:
            return f"{self.code} {self.text}".strip()
        if self.http is not None:
            return f"http {self.http[0]} {self.ended}"
        return self.ended

    def line(self) -> str:
        """Return all of it in one line, for the table of differences."""
        parts = [self.brief()]
        if self.code is None and self.http is None:
            return parts[0]
        parts += [repr(part)[1:100] for part in self.messages]
        for name in ("initial", "trailing"):
            found = getattr(self, name)
            parts += [f"{name} {key}={value}" for key, value in found]
        return " | ".join(parts)


@dataclass
class _Client:
    sock: socket.socket
    buffer: bytes = b""
    blocks: list[dict[str, str]] = field(default_factory=list)
    fields: list[tuple[tuple[str, str], ...]] = field(default_factory=list)
    body: bytes = b""
    decoder: Decoder = field(default_factory=Decoder)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while True:
            while len(self.buffer) >= 9:
                size = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) < 9 + size:
                    break
                head, payload = self.buffer[:9], self.buffer[9 : 9 + size]
                self.buffer = self.buffer[9 + size :]
                yield head[3], head[4], int.from_bytes(head[5:9], "big"), payload
            try:
                more = self.sock.recv(65536)
            except ConnectionResetError:
                return
            if not more:
                return
            self.buffer += more

    def until_end(self) -> str:
        """Read to the end of the stream; return how it ended."""
        for kind, flags, stream, payload in self.frames():
            if kind == SETTINGS and not flags & ACK:
                self.sock.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.sock.sendall(frame(PING, ACK, 0, payload))
            elif kind == GOAWAY and int.from_bytes(payload[4:8], "big"):
                return f"goaway {int.from_bytes(payload[4:8], 'big')}"
            elif kind == RST_STREAM and stream == 1:
                return f"reset {int.from_bytes(payload, 'big')}"
            elif kind == HEADERS:
                assert flags & END_HEADERS, "a response with CONTINUATION"
                block = tuple((str(n), str(v)) for n, v in self.decoder.decode(payload))
                self.fields.append(block)
            elif kind == DATA:
                self.body += payload
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                return "status" if kind == HEADERS else "body"
        return "closed"


def _metadata(block: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pair for pair in block if pair[0] not in UNSEEN))


def _messages(body: bytes) -> tuple[bytes, ...]:
    found = []
    while body:
        size = 5 + int.from_bytes(body[1:5], "big")
        found.append(body[:1] + body[5:size])
        body = body[size:]
    return tuple(found)


def exchange(port: int, pieces: Sequence[bytes], wait_s: float = WAIT_S) -> Answer:
    """Send pieces of stream 1, each in a write of its own; return the answer."""
    with socket.create_connection(("127.0.0.1", port), wait_s) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(sock)
        sock.sendall(PREFACE + frame(SETTINGS, 0, 0))
        try:
            for piece in pieces:
                sock.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused midway; what was answered before can still be read
        try:
            ended = client.until_end()
        except TimeoutError:
            ended = "silent"
    if not client.fields:
        return Answer(ended=ended)
    first, last = dict(client.fields[0]), dict(client.fields[-1])
    http = first[":status"], first.get("content-type", "")
    if "grpc-status" not in last:
        return Answer(http=http, ended=ended)
    text = unquote_to_bytes(last.get("grpc-message", "")).decode(errors="replace")
    initial = client.fields[0] if len(client.fields) > 1 else ()
    return Answer(
        http=http,
        code=int(last["grpc-status"]),
        text=_INCIDENT.sub("incident #", text),
        messages=_messages(client.body),
        initial=_metadata(initial),
        trailing=_metadata(client.fields[-1]),
        ended=ended,
    )

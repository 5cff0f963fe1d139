"""Handlers that do what a request tells them to, behind both transports at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.clock import now_ns
from gateway.config import GrpcConfig
from gateway.errors import Code, GatewayError
from gateway.rpc import Call, Methods, StreamCall
from tests.gateway_process import free_port
from tests.transports import LISTENERS

CONFIG = GrpcConfig(max_message_bytes=20_000, max_metadata_bytes=8192)
START_TIMEOUT_S = 20.0


def failure(spec: dict[str, Any]) -> GatewayError:
    """Return the error that a request asks for."""
    kind = type("Asked", (GatewayError,), {"code": Code(spec["code"])})
    return kind(spec.get("text", ""), pushback_ms=spec.get("pushback"))


def echo(call: Call, message: bytes) -> None:
    call.reply(message)


def later(call: Call, message: bytes) -> None:
    asyncio.get_running_loop().call_soon(call.reply, message)


def fail(call: Call, message: bytes) -> None:
    spec = json.loads(message)
    call.initial_metadata = [(k, v) for k, v in spec.get("initial", ())]
    call.trailing_metadata = [(k, v) for k, v in spec.get("trailing", ())]
    call.fail(failure(spec))


def headers(call: Call, message: bytes) -> None:
    """Answer with the values of the headers that are asked for, one key a line."""
    seen: list[Any] = []
    for key in message.decode().split():
        binary = key.endswith("-bin")
        seen.append(call.metadata_bytes(key) if binary else call.metadata(key))
    call.reply(repr(seen).encode())


def raises(call: Call, message: bytes) -> None:
    raise RuntimeError("a secret")


@dataclass
class Side:
    """One transport: where it listens, and what its handlers saw.

    Attributes:
        name: Of the transport.
        port: On 127.0.0.1.
        events: What handlers were told of calls that name themselves by ``x-name``.
    """

    name: str
    port: int
    events: dict[str, list[str]] = field(default_factory=dict)

    def note(self, name: str | None, event: str) -> None:
        if name is not None:
            self.events.setdefault(name, []).append(event)

    def never(self, call: Call, message: bytes) -> None:
        """Answer nothing; only a deadline or a cancellation ends it."""
        name = call.metadata("x-name")
        self.note(name, "begun")
        call.on_cancel = lambda: self.note(name, "cancelled")

    def methods(self) -> Methods:
        """Return the table."""
        unary = {
            "Echo": echo,
            "Later": later,
            "Fail": fail,
            "Headers": headers,
            "Raise": raises,
            "Never": self.never,
        }
        return Methods(
            unary={f"/test.S/{name}": handler for name, handler in unary.items()},
            streams={"/test.S/Stream": lambda stream: Stream(stream, self)},
        )


class Stream:
    """Obeys words; answers every other message with itself.

    ``hold`` keeps what follows until the client half-closes, ``never`` answers
    nothing any more, ``end`` ends with OK, ``raise`` is a bug, and an object of JSON
    ends with that error.
    """

    def __init__(self, stream: StreamCall, side: Side) -> None:
        self._stream = stream
        self._side = side
        self._name = stream.metadata("x-name")
        self._held: list[bytes] | None = None
        self._silent = False
        stream.initial_metadata = (("x-stream", "first"),)
        stream.trailing_metadata = (("x-stream-bin", b"\xff\0last"),)
        side.note(self._name, "begun")

    def on_message(self, message: bytes) -> None:
        self._side.note(self._name, f"message of {len(message)}")
        if message == b"hold":
            self._held = []
        elif message == b"never":
            self._silent = True
        elif message == b"raise":
            raise RuntimeError("a secret")
        elif message == b"end":
            self._stream.finish()
        elif message.startswith(b'{"code"'):
            self._stream.finish(failure(json.loads(message)))
        elif self._held is not None:
            self._held.append(message)
        elif not self._silent:
            self._stream.send(message)

    def on_half_close(self) -> None:
        self._side.note(self._name, "half-closed")
        for message in self._held or ():
            self._stream.send(message)
        if not self._silent:
            self._stream.finish()

    def on_cancel(self) -> None:
        self._side.note(self._name, "cancelled")

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        pass


@contextmanager
def both_sides() -> Iterator[tuple[Side, Side]]:
    """Serve the handlers by both transports on a loop in a thread: own, grpcio."""
    sides = Side("own", free_port()), Side("grpcio", free_port())
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        listeners = [LISTENERS[s.name](s.methods(), CONFIG, now_ns) for s in sides]
        for listener, side in zip(listeners, sides, strict=True):
            await listener.start(f"127.0.0.1:{side.port}")
        started.set()
        await stop.wait()
        for listener in listeners:
            await listener.stop(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(START_TIMEOUT_S), "the listeners did not start"
        yield sides
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()

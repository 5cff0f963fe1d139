"""Control messages between the supervisor and the other processes.

JSON in the frames of `workers.wire` over a Unix socket: notifications, and
requests that are answered once. Control only: nothing of a prediction passes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

from gateway import errors
from gateway.errors import GatewayError
from workers import wire
from workers.wire import FrameReader, Kind

Answer = Callable[[dict[str, Any] | GatewayError], None]
"""How a request is answered: with a result, or an error for the client."""
OnMessage = Callable[["Channel", dict[str, Any], Answer], None]

_MAX_BODY_BYTES = 1 << 30  # model files of a load request pass through, in base64


class ChannelClosed(GatewayError):
    """The other process went away before it answered."""

    code = errors.Code.UNAVAILABLE
    label = "control_lost"


class Channel(asyncio.Protocol):
    """One end of a control connection. Loop thread only.

    Args:
        on_message: Gets every notification and request. For a notification,
            answering does nothing.
        on_closed: Called once when the connection is gone.
    """

    def __init__(
        self, on_message: OnMessage, on_closed: Callable[[Channel], None]
    ) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._reader = FrameReader(_MAX_BODY_BYTES)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self._transport: asyncio.Transport | None = None

    def tell(self, message: dict[str, Any]) -> None:
        """Send a notification; lost if the connection is."""
        self._write(Kind.CONTROL, 0, message)

    def hello(self, message: dict[str, Any]) -> None:
        """Introduce this process; the first message on a connection."""
        self._write(Kind.HELLO, 0, message)

    def ask(self, message: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        """Send a request.

        Returns:
            The answer to come; it fails with the other side's `GatewayError`, or
            `ChannelClosed`.
        """
        future: asyncio.Future[dict[str, Any]] = (
            asyncio.get_running_loop().create_future()
        )
        if self._transport is None:
            future.set_exception(ChannelClosed("the process asked has gone away"))
            return future
        id_ = self._next_id
        self._next_id += 1
        self._asked[id_] = future
        self._write(Kind.CONTROL, id_, message)
        return future

    def close(self) -> None:
        """Close the connection after what is written."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what was asked and not answered."""
        self._transport = None
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ChannelClosed("the process asked has gone away"))
        self._asked.clear()
        self._on_closed(self)

    def data_received(self, data: bytes) -> None:
        """Take messages."""
        for frame in self._reader.feed(data):
            message = json.loads(bytes(frame.body))
            if frame.flags:
                self._take_answer(frame, message)
            else:
                self._on_message(self, message, self._answer_to(frame.id))

    def _take_answer(self, frame: wire.Frame, message: dict[str, Any]) -> None:
        future = self._asked.pop(frame.id, None)
        if future is None or future.done():
            return
        if frame.flags == wire.REPLY:
            future.set_result(message)
        else:
            future.set_exception(_error(message))

    def _answer_to(self, id_: int) -> Answer:
        def answer(result: dict[str, Any] | GatewayError) -> None:
            if not id_:
                return
            if isinstance(result, GatewayError):
                body = {"kind": _kind(result), "message": result.message}
                self._write(Kind.CONTROL, id_, body, wire.REPLY_ERROR)
            else:
                self._write(Kind.CONTROL, id_, result, wire.REPLY)

        return answer

    def _write(
        self, kind: Kind, id_: int, message: dict[str, Any], flags: int = 0
    ) -> None:
        if self._transport is not None:
            body = json.dumps(message).encode()
            self._transport.write(wire.encode_frame(kind, id_, body, flags))


def _kind(error: GatewayError) -> str:
    """Name the nearest class of `gateway.errors`, which the other end knows."""
    return next(
        kind.__name__
        for kind in type(error).__mro__
        if kind.__module__ == errors.__name__
    )


def _error(message: dict[str, Any]) -> GatewayError:
    kind = getattr(errors, message["kind"], GatewayError)
    error: GatewayError = kind(message["message"])
    return error

"""Admin handlers as coroutines, on the plain calls of `gateway.rpc`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from gateway.errors import GatewayError, InvalidRequest
from gateway.logs import get_logger
from gateway.rpc import Call, StreamCall, StreamHandler

_log = get_logger("admin")

_Q = TypeVar("_Q", bound=Message)


class Handlers:
    """Makes plain handlers out of coroutines, and keeps their tasks."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def unary(
        self, request_type: type[_Q], method: Callable[[_Q, str], Awaitable[Message]]
    ) -> Callable[[Call, bytes], None]:
        """Return a handler that parses, awaits and answers.

        `method` gets the request, and who asks (`gateway.rpc.Call.peer`).

        A client that goes away does not stop what it asked for: a change that has
        begun ends as it would have.
        """

        def handle(call: Call, message: bytes) -> None:
            try:
                request = request_type.FromString(message)
            except DecodeError:
                name = request_type.DESCRIPTOR.name
                call.fail(InvalidRequest(f"the message is not a valid {name}"))
                return
            task = asyncio.get_running_loop().create_task(
                self._run(call, method, request)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    def streaming(
        self, request_type: type[_Q], method: Callable[[_Q], AsyncIterator[Message]]
    ) -> Callable[[StreamCall], StreamHandler]:
        """Return a handler that parses one request and sends what `method` yields.

        The next message is asked for once the last one is written out; `method` ends
        where the client goes away.
        """
        return lambda call: _Stream(call, request_type, method)

    async def _run(
        self, call: Call, method: Callable[[_Q, str], Awaitable[Message]], request: _Q
    ) -> None:
        try:
            reply = await method(request, call.peer())
        except GatewayError as error:
            call.fail(error)
        except Exception:  # the edge: no text of ours reaches a client
            name = request.DESCRIPTOR.name
            _log.exception("admin_failed", request=name)
            call.fail(GatewayError(f"{name} failed; the controller's log says why"))
        else:
            call.reply(reply.SerializeToString())


class _Stream(Generic[_Q]):
    """One call with one request and many answers."""

    def __init__(
        self,
        call: StreamCall,
        request_type: type[_Q],
        method: Callable[[_Q], AsyncIterator[Message]],
    ) -> None:
        self._call = call
        self._request_type = request_type
        self._method = method
        self._task: asyncio.Task[None] | None = None
        self._written = asyncio.Event()

    def on_message(self, message: bytes) -> None:
        name = self._request_type.DESCRIPTOR.name
        if self._task is not None:
            return  # the first one is being answered
        try:
            request = self._request_type.FromString(message)
        except DecodeError:
            self._call.finish(InvalidRequest(f"the message is not a valid {name}"))
            return
        self._task = asyncio.get_running_loop().create_task(self._run(request))

    def on_half_close(self) -> None:
        if self._task is None:
            name = self._request_type.DESCRIPTOR.name
            self._call.finish(InvalidRequest(f"send one {name}"))

    def on_cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def on_sent(self, queued: int, _queued_bytes: int) -> None:
        if not queued:
            self._written.set()

    async def _run(self, request: _Q) -> None:
        try:
            async for answer in self._method(request):
                self._written.clear()
                self._call.send(answer.SerializeToString())
                await self._written.wait()
        except GatewayError as error:
            self._call.finish(error)
        except Exception:  # the edge: no text of ours reaches a client
            name = request.DESCRIPTOR.name
            _log.exception("stream_failed", request=name)
            text = f"{name} failed; the controller's log says why"
            self._call.finish(GatewayError(text))
        else:
            self._call.finish()

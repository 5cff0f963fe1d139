"""Admin handlers as coroutines, on the plain calls of `gateway.rpc`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from gateway.errors import GatewayError, InvalidRequest
from gateway.logs import get_logger
from gateway.rpc import Call

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

"""The handlers behind grpc.aio: raw bytes in and out, generic handlers, no stubs.

Why generic handlers: the messages stay bytes until a handler wants them, and
interceptors, which wrap every stream once more, are not needed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from gateway.config import GrpcConfig, TlsConfig
from gateway.errors import GatewayError
from gateway.logs import get_logger
from gateway.rpc import Buffer, Metadata, Methods, StreamCall, StreamHandler
from gateway.transport.messages import Cardinality
from gateway.transport.status import details, incident
from gateway.transport.streams import TransportStatistics

_log = get_logger("transport")

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


class _Context(Protocol):
    """The part of grpc.aio's ServicerContext in use."""

    def peer(self) -> str: ...
    def time_remaining(self) -> float | None: ...
    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]: ...
    async def read(self) -> Any: ...  # noqa: ANN401
    async def write(self, message: bytes) -> None: ...
    async def send_initial_metadata(self, metadata: Metadata) -> None: ...
    def set_trailing_metadata(self, metadata: Metadata) -> None: ...
    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Metadata
    ) -> None: ...


class _Headers:
    """What both kinds of calls do with metadata."""

    __slots__ = ("_context", "initial_metadata", "trailing_metadata")

    def __init__(self, context: _Context) -> None:
        self._context = context
        self.initial_metadata: Metadata = ()
        self.trailing_metadata: Metadata = ()

    def metadata(self, key: str) -> str | None:
        value = self._header(key)
        return value if isinstance(value, str) else None

    def metadata_bytes(self, key: str) -> bytes | None:
        value = self._header(key)
        return value if isinstance(value, bytes) else None

    def peer(self) -> str:
        kind, _, address = self._context.peer().partition(":")
        return address if kind in {"ipv4", "ipv6"} else ""

    def _header(self, key: str) -> str | bytes | None:
        for name, value in self._context.invocation_metadata() or ():
            if name == key:
                return value
        return None

    async def send_headers(self) -> None:
        """Send what the handler adds to the response headers, before anything else."""
        if self.initial_metadata:
            await self._context.send_initial_metadata(tuple(self.initial_metadata))

    async def abort(self, error: GatewayError) -> None:
        """End with the error's status and every trailer; raises what grpc wants."""
        trailers = tuple(self.trailing_metadata)
        if error.pushback_ms is not None:
            trailers += (("grpc-retry-pushback-ms", str(error.pushback_ms)),)
        status = _STATUS[int(error.code)]
        await self._context.abort(status, details(error), trailers)

    def end(self) -> None:
        """End with OK."""
        if self.trailing_metadata:
            self._context.set_trailing_metadata(tuple(self.trailing_metadata))


def _deadline_ns(context: _Context, now_ns: Callable[[], int]) -> int:
    remaining = context.time_remaining()
    return 0 if remaining is None else now_ns() + int(remaining * 1e9)


class _UnaryCall(_Headers):
    """`gateway.rpc.Call` on a future."""

    __slots__ = ("_future", "deadline_ns", "on_cancel")

    def __init__(
        self, context: _Context, future: asyncio.Future[bytes], deadline_ns: int
    ) -> None:
        super().__init__(context)
        self._future = future
        self.deadline_ns = deadline_ns
        self.on_cancel: Callable[[], None] | None = None

    def reply(self, message: bytes) -> None:
        if not self._future.done():
            self._future.set_result(message)

    def reply_parts(self, parts: tuple[Buffer, ...], size: int) -> None:
        self.reply(b"".join(parts))

    def fail(self, error: GatewayError) -> None:
        if not self._future.done():
            self._future.set_exception(error)


class _StreamCall(_Headers):
    """`gateway.rpc.StreamCall`: an outbox that one task writes out."""

    def __init__(self, context: _Context, deadline_ns: int) -> None:
        super().__init__(context)
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._wake = asyncio.Event()
        self.finished = False
        self._error: GatewayError | None = None
        self.deadline_ns = deadline_ns
        self.may_read = asyncio.Event()
        self.may_read.set()

    def send(self, message: bytes) -> None:
        if self.finished:
            return
        self._outbox.append(message)
        self._outbox_bytes += len(message)
        self._wake.set()

    def finish(self, error: GatewayError | None = None) -> None:
        if not self.finished:
            self.finished = True
            self._error = error
            self._wake.set()

    def pause(self) -> None:
        self.may_read.clear()

    def resume(self) -> None:
        self.may_read.set()

    async def write_out(self, handler: StreamHandler) -> None:
        """Write until the handler has finished and nothing is left."""
        outbox = self._outbox
        started = False
        while True:
            while outbox:
                if not started:
                    started = True
                    await self.send_headers()
                message = outbox.popleft()
                await self._context.write(message)
                self._outbox_bytes -= len(message)
                handler.on_sent(len(outbox), self._outbox_bytes)
            if self.finished:
                break
            self._wake.clear()
            await self._wake.wait()
        if not started:
            await self.send_headers()
        if self._error is not None:
            await self.abort(self._error)
        self.end()


class GrpcioListener:
    """One grpc.aio server for a table of methods.

    Args:
        methods: What to serve.
        config: Limits and keepalive.
        now_ns: Monotonic clock of deadlines.
    """

    def __init__(
        self, methods: Methods, config: GrpcConfig, now_ns: Callable[[], int]
    ) -> None:
        self._methods = methods
        self._config = config
        self._now_ns = now_ns
        self._server: Any = None
        self.statistics = TransportStatistics()  # grpc.aio does not say

    async def start(self, address: str) -> None:
        """Listen on ``host:port`` (shared with other fronts) and serve.

        Raises:
            RuntimeError: The address cannot be bound.
            OSError: A file of `grpc.tls` cannot be read.
        """
        self._server = grpc.aio.server(options=_options(self._config))
        self._server.add_generic_rpc_handlers((self._generic_handler(),))
        if self._config.tls is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, _credentials(self._config.tls))
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Close the port, let calls in flight end within `grace_s`, cut the rest."""
        await self._server.stop(grace_s)

    def _generic_handler(self) -> grpc.GenericRpcHandler:
        handlers: dict[str, Any] = {}
        for path, unary in self._methods.unary.items():
            behaviour = self._unary_behaviour(path, unary)
            # As a stream of requests: as a unary call, grpc.aio never answers who
            # half-closes without a message.
            handlers[path] = grpc.stream_unary_rpc_method_handler(behaviour)
        for path, stream in self._methods.streams.items():
            behaviour = self._stream_behaviour(path, stream)
            handlers[path] = grpc.stream_stream_rpc_method_handler(behaviour)

        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: Any) -> Any:  # noqa: ANN401
                return handlers.get(details.method)

        return Handler()

    def _unary_behaviour(
        self, path: str, handler: Callable[[_UnaryCall, bytes], None]
    ) -> Callable[[Any, _Context], Any]:
        async def behaviour(_requests: Any, context: _Context) -> bytes:  # noqa: ANN401
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            call = _UnaryCall(context, future, _deadline_ns(context, self._now_ns))
            try:
                message = await context.read()
                if message is grpc.aio.EOF:
                    raise Cardinality("a unary call takes one message, got no")
                handler(call, message)
                answer = await future
                await call.send_headers()
                call.end()
                return answer
            except asyncio.CancelledError:
                if call.on_cancel is not None:
                    call.on_cancel()
                raise
            except GatewayError as error:
                failure = error
            except Exception:  # the edge: a bug must not leak its text
                failure = incident(path)
            await call.send_headers()
            await call.abort(failure)
            raise AssertionError("abort returned")  # it always raises

        return behaviour

    def _stream_behaviour(
        self, path: str, factory: Callable[[StreamCall], StreamHandler]
    ) -> Callable[[Any, _Context], Any]:
        async def behaviour(_requests: Any, context: _Context) -> None:  # noqa: ANN401
            call = _StreamCall(context, _deadline_ns(context, self._now_ns))
            handler = factory(call)
            reader = asyncio.create_task(self._read(path, context, call, handler))
            try:
                await call.write_out(handler)
            except grpc.aio.AbortError:
                raise  # the handler ended it with an error
            except BaseException:  # the client went away, or the deadline passed
                handler.on_cancel()
                raise
            finally:
                reader.cancel()

        return behaviour

    async def _read(
        self, path: str, context: _Context, call: _StreamCall, handler: StreamHandler
    ) -> None:
        try:
            while True:
                await call.may_read.wait()
                message = await context.read()
                if call.finished:
                    return
                if message is grpc.aio.EOF:
                    handler.on_half_close()
                    return
                handler.on_message(message)
        except Exception:  # the edge, as above
            if not call.finished:  # otherwise it is the end of the call that raised
                call.finish(incident(path))


def _credentials(config: TlsConfig) -> grpc.ServerCredentials:
    """Return certificate, key and client authorities; they are read once."""
    pair = (config.key.read_bytes(), config.certificate.read_bytes())
    authorities = config.client_ca.read_bytes() if config.client_ca else None
    required = authorities is not None
    return grpc.ssl_server_credentials([pair], authorities, required)


def _options(config: GrpcConfig) -> list[tuple[str, int]]:
    """Return the channel arguments; the names are grpc's (grpc_types.h)."""
    ping_ms = config.min_ping_interval_ms
    options = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", config.max_metadata_bytes),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", ping_ms),
    ]
    if config.max_connection_age_s:
        age_ms = config.max_connection_age_s * 1000
        options.append(("grpc.max_connection_age_ms", age_ms))
        options.append(("grpc.max_connection_age_grace_ms", 30_000))
    return options

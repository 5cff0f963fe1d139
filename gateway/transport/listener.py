"""Our own transport on sockets: asyncio protocols around `gateway.transport.grpc`.

Runs on uvloop, and on asyncio's own loop. Whatever the calls of a connection have to
say within one turn of the loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from gateway.config import GrpcConfig
from gateway.logs import get_logger
from gateway.rpc import Methods
from gateway.transport.grpc import GrpcConnection, GrpcServer
from gateway.transport.sockets import bind, bind_unix, peer_of
from gateway.transport.streams import Limits, TransportStatistics
from gateway.transport.tls import Certificates

_log = get_logger("transport")

_TURN_S = 1.0
"""How often each connection is looked at: keepalive, age, budget of idle frames."""
_TICKS = 20
"""Parts a turn is cut into, so that ten thousand connections hold nobody up."""
_BUDGET_SHARE = 0.05
"""Share of `max_idle_frames` that a connection gets back with every turn."""
_GOAWAY_S = 1.0
"""How long the peer has to answer the PING between the two GOAWAYs of a drain."""
_CLOSE_S = 5.0
"""How long a failed connection has to take what is written to it."""
_AGE_JITTER = 0.1
"""Of the maximum age, either way, so that clients do not return together (gRFC A9)."""
_BACKLOG = 4096
_KEEPALIVE = b"baton-ka"
_NS = 1_000_000_000


def limits_of(config: GrpcConfig) -> Limits:
    """Return the limits of one connection as configured."""
    return Limits(
        max_streams=config.max_concurrent_streams,
        max_header_bytes=config.max_metadata_bytes,
        max_continuations=config.max_continuation_frames,
        stream_window_bytes=config.stream_window_bytes,
        connection_window_bytes=config.connection_window_bytes,
        max_idle_frames=config.max_idle_frames,
    )


class Listener:
    """One listening address and its connections. Loop thread only.

    Args:
        methods: What to serve.
        config: Limits, TLS and keepalive.
        now_ns: Monotonic clock of deadlines.
    """

    def __init__(
        self, methods: Methods, config: GrpcConfig, now_ns: Callable[[], int]
    ) -> None:
        self._config = config
        self._now = now_ns
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self.connections: set[ServerConnection] = set()
        self._ready: list[ServerConnection] = []
        self._flush_due = False
        self._tick: asyncio.TimerHandle | None = None
        self._turn: list[ServerConnection] = []
        self._ticks_left = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_ns = 0
        self._stopping = False
        self._empty = asyncio.Event()
        self._certificates: Certificates | None = None
        self.server = GrpcServer(
            methods,
            limits_of(config),
            max_message_bytes=config.max_message_bytes,
            max_connection_bytes=config.max_connection_bytes,
            max_buffered_bytes=config.max_buffered_bytes,
            min_ping_interval_ns=config.min_ping_interval_ms * 1_000_000,
            now_ns=now_ns,
            soon=self._loop.call_soon,
            deadline_added=self._deadline_added,
        )

    @property
    def statistics(self) -> TransportStatistics:
        """What the connections count."""
        return self.server.statistics

    async def start(self, address: str) -> int:
        """Listen on ``host:port`` (shared with other fronts) and serve.

        With `grpc.unix_socket` it listens there as well.

        Returns:
            The port: where `address` says 0, one that was free.

        Raises:
            OSError: The address cannot be bound.
            ValueError: The certificates cannot be used; says which and why.
        """
        context: ssl.SSLContext | None = None
        if self._config.tls is not None:
            self._certificates = Certificates(self._config.tls)
            context = self._certificates.context
        host, _, port = address.rpartition(":")
        sock = bind(host.strip("[]"), int(port))
        handshake_s = self._config.keepalive_timeout_s if context else None
        server = await self._loop.create_server(
            self._connect,
            sock=sock,
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=handshake_s,
        )
        self._servers.append(server)
        self._look_at_times()
        bound: int = sock.getsockname()[1]
        return bound

    async def start_unix(self, path: Path, *, private: bool = False) -> None:
        """Listen on a Unix socket, without TLS; whoever may write it may call.

        Args:
            path: Of the socket.
            private: Nobody but this user may.

        A socket that nobody listens on any more is replaced, and nothing else is.

        Raises:
            OSError: The path cannot be bound; says why.
        """
        sock = bind_unix(path, private=private)
        create = self._loop.create_unix_server
        server = await create(self._connect, sock=sock, backlog=_BACKLOG)
        self._servers.append(server)
        self._look_at_times()

    def _look_at_times(self) -> None:
        if self._tick is None:
            self._tick = self._loop.call_later(_TURN_S / _TICKS, self._look)

    async def stop(self, grace_s: float) -> None:
        """Close the port, let calls in flight end within `grace_s`, cut the rest."""
        self._stopping = True
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.drain()
        self._check_empty()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace_s)
        for connection in tuple(self.connections):
            connection.abort()
        for timer in (self._tick, self._expiry):
            if timer is not None:
                timer.cancel()

    def _connect(self) -> ServerConnection:
        return ServerConnection(self, self._config)

    # -- what connections call --------------------------------------------------

    def opened(self, connection: ServerConnection) -> None:
        """Take a new connection; one that comes while we stop is sent away."""
        self.connections.add(connection)
        self.server.statistics.accepted += 1
        self.server.statistics.open += 1
        if self._stopping:
            connection.drain()
        elif len(self.connections) > self._config.max_connections:
            self.server.statistics.enforced("connections")
            connection.abort()

    def closed(self, connection: ServerConnection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self.server.statistics.open -= 1
        self._check_empty()

    def _check_empty(self) -> None:
        if self._stopping and not self.connections:
            self._empty.set()

    def wake(self, connection: ServerConnection) -> None:
        """Write a connection's output once this turn of the loop is over."""
        self._ready.append(connection)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is ready now: one write per connection."""
        self._flush_due = False
        ready, self._ready = self._ready, []
        for connection in ready:
            connection.flush()

    # -- time -------------------------------------------------------------------

    def _look(self) -> None:
        """Look at the next part of the connections."""
        self._tick = self._loop.call_later(_TURN_S / _TICKS, self._look)
        if not self._ticks_left:
            self._ticks_left = _TICKS
            self._turn = list(self.connections)
            if self._certificates is not None:
                self._certificates.reload_if_changed()
                failed = self._certificates.report_failures(self._now())
                self.server.statistics.enforced("tls_handshake", failed)
        part = -(-len(self._turn) // self._ticks_left)
        self._ticks_left -= 1
        now = self._now()
        for _ in range(part):
            connection = self._turn.pop()
            if connection in self.connections:
                connection.look(now)

    def _deadline_added(self, deadline_ns: int) -> None:
        if not self._expiry_ns or deadline_ns < self._expiry_ns:
            self._arm()

    def _arm(self) -> None:
        due = self.server.deadlines.next_ns()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._expiry_ns = due or 0
        if due is not None:
            delay = max(0, due - self._now()) / 1e9
            self._expiry = self._loop.call_later(delay, self._expire)

    def _expire(self) -> None:
        try:
            self.server.expire()
        finally:
            self._arm()


class ServerConnection(asyncio.Protocol):
    """One socket: bytes between it and the state machines.

    Args:
        listener: Whose it is.
        config: Keepalive, age, buffer sizes.
    """

    def __init__(self, listener: Listener, config: GrpcConfig) -> None:
        self._listener = listener
        self._config = config
        self._transport: asyncio.Transport | None = None
        self._congested = False
        self._closing_ns = 0
        self._made_ns = 0
        self._read_ns = 0
        self._pinged_ns = 0
        self._retire_ns = 0
        self._cut_ns = 0
        self._drain_ns = 0
        self.grpc = GrpcConnection(listener.server, self._wake)
        self.grpc.peer = self._peer
        self._http2 = self.grpc.http2

    def _peer(self) -> str:
        return "" if self._transport is None else peer_of(self._transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client's preface: ours is written once it is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.set_write_buffer_limits(high=self._config.write_buffer_bytes)
        self._made_ns = self._read_ns = self._listener.server.now_ns()
        age_s = self._config.max_connection_age_s
        if age_s:
            spread = random.uniform(-_AGE_JITTER, _AGE_JITTER)  # noqa: S311
            self._retire_ns = self._read_ns + int(age_s * (1 + spread) * _NS)
        self._listener.opened(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        self._read_ns = self._listener.server.now_ns()
        self._http2.receive(data)

    def eof_received(self) -> bool:
        """Close when the client has closed its side: no gRPC client half-closes."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel every call."""
        self._transport = None
        self._http2.lost()
        self._http2.out.clear()
        self._listener.closed(self)

    def pause_writing(self) -> None:
        """Stop reading: who does not take answers need not ask more."""
        self._congested = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._congested = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.flush()

    def _wake(self) -> None:
        self._listener.wake(self)

    def flush(self) -> None:
        """Write what there is, unless the client does not take it."""
        transport = self._transport
        http2 = self._http2
        if transport is None or self._congested:
            return
        out = http2.take()
        if len(out) == 1:
            transport.write(out[0])
        elif out:
            data = b"".join(out)
            transport.write(data)
        if self.grpc.senders and not self._congested:
            self.grpc.report()
        if http2.failed:
            if not self._closing_ns:
                self._closing_ns = self._listener.server.now_ns()
                transport.close()
        elif self._drain_ns and http2.drained():
            transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def drain(self) -> None:
        """Ask the client to go elsewhere; close once its calls have ended."""
        if not self._drain_ns:
            self._drain_ns = self._listener.server.now_ns()
            self._http2.drain()
            self._listener.server.soon(self.flush)

    def look(self, now: int) -> None:
        """Do what time asks for: budget, deadlines, keepalive, age, a late close."""
        http2 = self._http2
        http2.replenish(_BUDGET_SHARE)
        if http2.streams:
            self.grpc.expire_unfinished(now)
        if http2.failed and not self._closing_ns:
            self._closing_ns = now  # not even the reason could be written yet
        if self._closing_ns:
            if now - self._closing_ns > _CLOSE_S * _NS:
                self.abort()
            return
        if self._drain_ns and now - self._drain_ns > _GOAWAY_S * _NS:
            http2.refuse_new()
            self.flush()
        if self._cut_ns and now > self._cut_ns:
            self.abort()
            return
        if self._retire_ns and now > self._retire_ns:
            self._retire_ns = 0
            self._listener.server.statistics.enforced("connection_age")
            self._cut_ns = now + self._config.max_connection_age_grace_s * _NS
            self.drain()
        self._keep_alive(now)

    def _keep_alive(self, now: int) -> None:
        """Ask a silent client whether it is there; close if it does not answer."""
        config = self._config
        silent_ns = now - self._read_ns
        if self._http2.preface_due:  # however much of it has come by and by
            if now - self._made_ns > config.keepalive_timeout_s * _NS:
                self._listener.server.statistics.enforced("preface")
                self.abort()
        elif self._pinged_ns > self._read_ns:
            if now - self._pinged_ns > config.keepalive_timeout_s * _NS:
                self._listener.server.statistics.enforced("keepalive")
                self.abort()
        elif config.keepalive_s and silent_ns > config.keepalive_s * _NS:
            self._pinged_ns = now
            self._http2.ping(_KEEPALIVE)

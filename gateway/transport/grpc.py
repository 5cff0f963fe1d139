"""gRPC over one HTTP/2 connection, and what all connections of a server share.

No sockets: `gateway.transport.listener` brings bytes and takes them away.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.deadlines import DeadlineWheel
from gateway.errors import Code, GatewayError
from gateway.rpc import Methods
from gateway.transport.calls import Call, StreamingCall, UnaryCall
from gateway.transport.frames import ErrorCode
from gateway.transport.heads import Head, HeadReader
from gateway.transport.http2 import Connection
from gateway.transport.refusal import RefusedCall
from gateway.transport.streams import Limits, Stream, TransportStatistics

_MAX_PING_STRIKES = 2
"""As gRPC's own servers have it (``grpc.http2.max_ping_strikes``)."""


class OutOfBuffer(GatewayError):
    """Unfinished messages fill the memory set aside for them."""

    code = Code.RESOURCE_EXHAUSTED
    label = "out_of_buffer"


class GrpcServer:
    """What the connections of one listener share. Loop thread only.

    Args:
        methods: What is served.
        limits: Of each connection.
        max_message_bytes: Largest request message.
        max_connection_bytes: Bytes of unfinished messages one connection may hold.
        max_buffered_bytes: The same over all connections.
        min_ping_interval_ns: Pings that come faster, without calls, are strikes.
        now_ns: Monotonic clock.
        soon: Runs a function on the next turn of the loop.
        deadline_added: Called when a deadline joins `deadlines`.
    """

    def __init__(
        self,
        methods: Methods,
        limits: Limits,
        *,
        max_message_bytes: int,
        max_connection_bytes: int,
        max_buffered_bytes: int,
        min_ping_interval_ns: int,
        now_ns: Callable[[], int],
        soon: Callable[[Callable[[], None]], object],
        deadline_added: Callable[[int], None],
    ) -> None:
        self.limits = limits
        self.max_message_bytes = max_message_bytes
        self.max_connection_bytes = max_connection_bytes
        self.max_buffered_bytes = max_buffered_bytes
        self.min_ping_interval_ns = min_ping_interval_ns
        self.now_ns = now_ns
        self.soon = soon
        self.deadline_added = deadline_added
        self.heads = HeadReader(methods, limits.max_header_bytes, max_message_bytes)
        self.statistics = TransportStatistics()
        self.deadlines: DeadlineWheel[Call] = DeadlineWheel()

    def expire(self) -> None:
        """End every call whose deadline has passed and whose handler left it to us."""
        for call in self.deadlines.expire(self.now_ns()):
            call.expires_ns = 0
            if not call.over:
                call.expire()


class GrpcConnection:
    """The gRPC half of one connection (`gateway.transport.streams.Application`).

    Args:
        server: What it shares with others.
        wake: Called when there is something to write.

    Attributes:
        http2: The HTTP/2 half.
        senders: Streaming calls to tell what still waits, once it is written.
        peer: Returns who is at the other end; see `gateway.rpc.Call`.
    """

    def __init__(self, server: GrpcServer, wake: Callable[[], None]) -> None:
        self.server = server
        self.senders: list[StreamingCall] = []
        self.peer: Callable[[], str] = str
        self._held = 0
        self._pinged_ns = 0
        self._progress = -1
        self._strikes = 0
        self.http2: Connection = Connection(
            self, server.limits, server.statistics, wake
        )
        self.read_head = server.heads.read
        self.give_back: Callable[[Stream, int], None] = self.http2.give_back

    def open(self, stream_id: int, opening: tuple[Head, int], ended: bool) -> Stream:
        """Begin a call."""
        head, timeout_ns = opening
        deadline_ns = self.server.now_ns() + timeout_ns if timeout_ns else 0
        call: Call
        if head.simple:
            call = self.http2.streams[stream_id] = UnaryCall(
                self, stream_id, head, deadline_ns
            )
            if head.length is not None:
                call.expected = head.length
                call.careful = True
            return call
        if head.refusal is not None:
            refused = call = RefusedCall(self, stream_id, head, 0)
            self.http2.streams[stream_id] = call
            call.remote_closed = ended
            refused.refuse(head.refusal)
            if head.body and head.length is not None:
                call.expected = head.length
                call.careful = True
            return call
        if head.unary is not None:
            call = UnaryCall(self, stream_id, head, deadline_ns)
            self.http2.streams[stream_id] = call
        else:
            call = streaming = StreamingCall(self, stream_id, head, deadline_ns)
            self.http2.streams[stream_id] = call
            streaming.begin()
        if deadline_ns and not head.own_deadline and not call.over:
            self.server.deadlines.add(call, deadline_ns)
            self.server.deadline_added(deadline_ns)
        if head.length is not None:
            call.expected = head.length
            call.careful = True
        return call

    def hold(self, more: int, *, check: bool = True) -> None:
        """Account for bytes of unfinished messages.

        Raises:
            OutOfBuffer: They exceed what the connection or the process may hold.
        """
        server = self.server
        self._held += more
        server.statistics.buffered_bytes += more
        if not check or more < 0:
            return
        if self._held > server.max_connection_bytes:
            server.statistics.enforced("connection_bytes")
            limit = server.max_connection_bytes
            raise OutOfBuffer(
                f"unfinished messages of this connection exceed {limit} bytes"
            )
        if server.statistics.buffered_bytes > server.max_buffered_bytes:
            server.statistics.enforced("buffered_bytes")
            limit = server.max_buffered_bytes
            raise OutOfBuffer(
                f"unfinished messages of all clients exceed {limit} bytes"
            )

    def expire_unfinished(self, now_ns: int) -> None:
        """End calls whose deadline came before their message: no handler has them."""
        for call in tuple(self.http2.streams.values()):
            if (
                isinstance(call, Call)
                and 0 < call.deadline_ns < now_ns
                and not (call.over or call.remote_closed)
            ):
                call.expire()

    def on_ping(self) -> None:
        """End a connection that pings too often while no call makes progress."""
        server = self.server
        now = server.now_ns()
        progress = self.http2.progress
        early = now - self._pinged_ns < server.min_ping_interval_ns
        if progress != self._progress:
            self._strikes = 0
        elif early:
            self._strikes += 1
        self._progress = progress
        self._pinged_ns = now
        if self._strikes > _MAX_PING_STRIKES:
            server.statistics.enforced("pings")
            self.http2.end(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def report(self) -> None:
        """Tell streaming handlers what still waits, now that the rest is written."""
        senders, self.senders = self.senders, []
        for call in senders:
            call.report()

"""gRPC calls on HTTP/2 streams: the other side of `gateway.rpc`. Loop thread only.

A call is its stream: one object. Unary calls are plain function calls with a reply
callback, so the usual way through here makes no task and no future.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gateway.errors import DeadlineExceeded, GatewayError, TooLarge
from gateway.rpc import Buffer, Metadata, StreamHandler
from gateway.transport.heads import Head
from gateway.transport.messages import (
    PREFIXES,
    BadMessage,
    Cardinality,
    MessageReader,
    message_prefix,
)
from gateway.transport.status import (
    EXPIRED,
    HEADERS,
    TRAILERS_OK,
    decode_binary,
    incident,
    response_headers,
    trailers,
)
from gateway.transport.streams import Stream

if TYPE_CHECKING:
    from gateway.transport.grpc import GrpcConnection

_KEPT = len(PREFIXES)
_ENTRY_BYTES = 64
"""What a message that waits costs beside its bytes, so that small ones count."""


class Call(Stream):
    """What unary and streaming calls share.

    Args:
        owner: The connection's gRPC half.
        stream_id: Number of the stream.
        head: What was asked for.
        deadline_ns: Absolute deadline, or 0.

    Attributes:
        owner: As given; ``None`` once the call is over.
    """

    expires_ns = 0
    _held = 0
    _waiting = 0

    def __init__(
        self, owner: GrpcConnection, stream_id: int, head: Head, deadline_ns: int
    ) -> None:
        self.owner = owner
        self.id = stream_id
        self.wire_id = stream_id.to_bytes(4, "big")
        self.head = head
        self.deadline_ns = deadline_ns
        # What every call reads is set here: a class-level default that is read costs
        # more than an attribute that is set (CPython 3.11 does not specialise it).
        self.careful = False
        self.remote_closed = False
        self.unread = 0
        self.over = False
        self.initial_metadata: Metadata = ()
        self.trailing_metadata: Metadata = ()
        self._reader: MessageReader | None = None

    def metadata(self, key: str) -> str | None:
        """Return a request header; see `gateway.rpc.Call`."""
        name = key.encode()
        for field, value in self.head.headers:
            if field == name:
                return value.decode("latin-1")
        return None

    def metadata_bytes(self, key: str) -> bytes | None:
        """Return a binary request header; see `gateway.rpc.Call`."""
        value = self.metadata(key)
        return None if value is None else decode_binary(value.encode("latin-1"))

    def peer(self) -> str:
        """Return who is at the other end; see `gateway.rpc.Call`."""
        return self.owner.peer()

    @abstractmethod
    def expire(self) -> None:
        """End the call: its deadline passed before its handler was done."""

    def _read(self, data: bytes, *, ended: bool) -> list[bytes]:
        """Return the messages that body bytes complete; `ended`: no more will come.

        Raises:
            GatewayError: The body is broken, or a limit would be exceeded.
        """
        reader = self._reader
        if reader is None:
            limit = self.owner.server.max_message_bytes
            reader = self._reader = MessageReader(self.head.encoding, limit)
        try:
            messages = list(reader.feed(data))
        except TooLarge:
            self.owner.server.statistics.enforced("message_bytes")
            raise
        if ended and reader.held:
            raise BadMessage("the body ends inside a message")
        self._hold()
        return messages

    def _hold(self) -> None:
        """Account for the bytes this call keeps in memory while it is incomplete."""
        held = self._waiting + (self._reader.held if self._reader is not None else 0)
        more = held - self._held
        self._held = held
        if more:
            self.owner.hold(more)

    def _let_go(self) -> None:
        """Free what an ended call holds."""
        self.over = True
        if self._held:
            self.owner.hold(-self._held, check=False)
            self._held = 0
        self._reader = None
        if self.expires_ns:
            self.owner.server.deadlines.remove(self)
            self.expires_ns = 0


class UnaryCall(Call):
    """One unary call: `gateway.rpc.Call`."""

    on_cancel: Callable[[], None] | None = None
    _message: bytes | None = None

    def on_data(self, data: bytes, ended: bool) -> None:
        """Take the body; hand the message over once there is no more."""
        if ended and self._reader is None:
            size = len(data) - 5
            head = self.head
            if (
                0 <= size <= head.max_message_bytes
                and not data[0]
                and size == int.from_bytes(data[1:5], "big")
            ):
                try:
                    head.unary(self, data[5:])  # type: ignore[misc]
                except Exception:  # the edge: a bug must not leak its text
                    self.fail(incident(head.path))
                return
        if not self.over:
            self._gather(data, ended)

    def _gather(self, data: bytes, ended: bool) -> None:
        self.owner.give_back(self, len(data))
        try:
            if self._reader is not None and not ended and self._reader.keep(data):
                self._hold()  # what most frames of a large message are
                return
            messages = self._read(data, ended=ended)
            if self._message is not None:
                messages.insert(0, self._message)
            if len(messages) > 1 or (ended and not messages):
                count = len(messages) or "no"
                raise Cardinality(f"a unary call takes one message, got {count}")
            if messages:
                self._message = messages[0]
                self._waiting = len(messages[0]) + _ENTRY_BYTES
                self._hold()
        except GatewayError as error:
            self.fail(error)
            return
        if ended:
            self._message = self._reader = None
            self._waiting = 0
            self._hold()
            self._run(messages[0])

    def _run(self, message: bytes) -> None:
        handler = self.head.unary
        assert handler is not None
        try:
            handler(self, message)
        except Exception:  # the edge: a bug must not leak its text
            self.fail(incident(self.head.path))

    def reply(self, message: bytes) -> None:
        """Send the response; see `gateway.rpc.Call`."""
        self.reply_parts((message,), len(message))

    def reply_parts(self, parts: tuple[Buffer, ...], size: int) -> None:
        """Send the response given in pieces; see `gateway.rpc.Call`."""
        if self.over:
            return
        head, tail = HEADERS, TRAILERS_OK
        if self.initial_metadata or self.trailing_metadata:
            head = response_headers(self.initial_metadata)
            tail = trailers(None, self.trailing_metadata)
        prefix = PREFIXES[size] if size < _KEPT else message_prefix(size)
        self.owner.http2.respond(self, head, (prefix, *parts), size + 5, tail)
        self.on_cancel = None
        if self._reader is not None or self.expires_ns:
            self._let_go()
        else:
            self.over = True

    def fail(self, error: GatewayError) -> None:
        """End the call with a status; see `gateway.rpc.Call`."""
        if self.over:
            return
        http2 = self.owner.http2
        if self.initial_metadata:
            http2.send_headers(self, response_headers(self.initial_metadata))
            http2.finish(self, trailers(error, self.trailing_metadata))
        else:
            block = trailers(error, self.trailing_metadata, alone=True)
            http2.send_headers(self, block, end=True)
        self.on_cancel = None
        self._let_go()

    def on_reset(self) -> None:
        """Tell the handler that nobody waits any more."""
        cancel, self.on_cancel = self.on_cancel, None
        self._message = None
        self._let_go()
        if cancel is not None:
            cancel()

    def expire(self) -> None:
        """Tell handler and client that the deadline has passed."""
        cancel = self.on_cancel
        self.fail(DeadlineExceeded(EXPIRED))
        if cancel is not None:
            cancel()


class StreamingCall(Call):
    """One call of any streaming shape: `gateway.rpc.StreamCall`."""

    _handler: StreamHandler
    _begun = False
    _ended = False
    _paused = False
    _inbox: deque[bytes] | None = None
    reporting = False

    def begin(self) -> None:
        """Make the handler."""
        factory = self.head.stream
        assert factory is not None
        try:
            self._handler = factory(self)
        except Exception:  # the edge, as above
            self._finish(incident(self.head.path))

    def on_data(self, data: bytes, ended: bool) -> None:
        """Hand over every whole message, or keep it while the handler pauses."""
        if self.over:
            return
        size = len(data) - 5
        if (
            0 <= size <= self.head.max_message_bytes
            and not (self._paused or self._inbox or data[0] or ended)
            and (self._reader is None or not self._reader.held)
            and size == int.from_bytes(data[1:5], "big")
        ):  # the usual case: one message
            self.owner.give_back(self, size + 5)
            try:
                self._handler.on_message(data[5:])
            except Exception:  # the edge, as above
                self._finish(incident(self.head.path))
                self._handler.on_cancel()
            return
        try:
            messages = self._read(data, ended=ended)
        except GatewayError as error:
            self.finish(error)
            self._handler.on_cancel()
            return
        self._ended = ended
        if self._paused or self._inbox:
            self._keep(messages)
            return
        self.owner.give_back(self, len(data))
        self._deliver(deque(messages))

    def _deliver(self, messages: deque[bytes]) -> None:
        handler = self._handler
        try:
            while messages and not self.over:
                if self._paused:
                    if self._waiting:  # they were kept before
                        self._inbox = messages
                    else:
                        self._keep(messages)
                    return
                message = messages.popleft()
                if self._waiting:
                    self._waiting -= len(message) + _ENTRY_BYTES
                handler.on_message(message)
            if self._ended and not self.over:
                self._ended = False  # said once, though more than one turn may end here
                handler.on_half_close()
        except Exception:  # the edge, as above
            self._finish(incident(self.head.path))
            handler.on_cancel()

    def _keep(self, messages: Iterable[bytes]) -> None:
        """Let messages wait for the handler; the stream's window bounds them too."""
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.extend(messages)
        self._waiting += sum(len(message) + _ENTRY_BYTES for message in messages)
        try:
            self._hold()
        except GatewayError as error:
            self.finish(error)
            self._handler.on_cancel()

    def pause(self) -> None:
        """Hold messages back; the client's window closes behind them."""
        self._paused = True

    def resume(self) -> None:
        """Take messages again: on the next turn of the loop, if some wait."""
        self._paused = False
        if self._inbox is not None or self.unread > self.consumed:
            self.owner.server.soon(self._catch_up)

    def _catch_up(self) -> None:
        if self._paused or self.over:
            return
        inbox, self._inbox = self._inbox, None
        self.owner.give_back(self, self.unread - self.consumed)
        if inbox is not None:
            self._deliver(inbox)
        if not self.over:
            self._hold()

    def send(self, message: bytes) -> None:
        """Send a message in its turn; see `gateway.rpc.StreamCall`."""
        if self.over:
            return
        http2 = self.owner.http2
        if not self._begun:
            self._begun = True
            http2.send_headers(self, response_headers(self.initial_metadata))
        size = len(message)
        prefix = PREFIXES[size] if size < _KEPT else message_prefix(size)
        http2.send_data(self, (prefix, message), size + 5)
        if not self.reporting:
            self.reporting = True
            self.owner.senders.append(self)

    def report(self) -> None:
        """Tell the handler what still waits for the client."""
        self.reporting = False
        if not self.over:
            self._handler.on_sent(len(self.queue or ()), self.queued_bytes)

    def on_progress(self) -> None:
        """Have the handler told that the client's window let something through."""
        if not self.over and not self.reporting:
            self.reporting = True
            self.owner.senders.append(self)

    def finish(self, error: GatewayError | None = None) -> None:
        """End the stream after what is queued; see `gateway.rpc.StreamCall`."""
        if not self.over:
            self._finish(error)

    def _finish(self, error: GatewayError | None) -> None:
        http2 = self.owner.http2
        begun = self._begun or bool(self.initial_metadata) or error is None
        if begun and not self._begun:
            http2.send_headers(self, response_headers(self.initial_metadata))
        http2.finish(self, trailers(error, self.trailing_metadata, alone=not begun))
        self._inbox = None
        self._let_go()

    def on_reset(self) -> None:
        """Tell the handler that the client went away."""
        if not self.over:
            self._inbox = None
            self._let_go()
            self._handler.on_cancel()

    def expire(self) -> None:
        """Tell client and handler that the deadline has passed."""
        self._finish(DeadlineExceeded(EXPIRED))
        self._handler.on_cancel()

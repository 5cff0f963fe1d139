"""Streaming calls that pause and resume, turn by turn."""

from __future__ import annotations

from collections.abc import Callable

from gateway.rpc import Methods, StreamCall
from gateway.transport.grpc import GrpcConnection, GrpcServer
from gateway.transport.streams import Limits
from tests.transport import peer

BLOCK = peer.block(peer.grpc_fields("/test.S/Stream"))


class Told:
    """A handler that starts paused and notes what it is told."""

    def __init__(self, stream: StreamCall) -> None:
        self.stream = stream
        self.told: list[object] = []
        stream.pause()

    def on_message(self, message: bytes) -> None:
        self.told.append(message)

    def on_half_close(self) -> None:
        self.told.append("half-closed")

    def on_cancel(self) -> None:
        self.told.append("cancelled")

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        pass


def test_the_end_is_told_once_though_it_comes_before_the_turn_that_resumes() -> None:
    handlers: list[Told] = []
    turn: list[Callable[[], None]] = []

    def stream(call: StreamCall) -> Told:
        handlers.append(Told(call))
        return handlers[-1]

    server = GrpcServer(
        Methods(unary={}, streams={"/test.S/Stream": stream}),
        Limits(),
        max_message_bytes=1000,
        max_connection_bytes=2000,
        max_buffered_bytes=2000,
        min_ping_interval_ns=1,
        now_ns=lambda: 1,
        soon=turn.append,
        deadline_added=lambda _: None,
    )
    http2 = GrpcConnection(server, lambda: None).http2
    sent = peer.message(b"in two parts")
    http2.receive(peer.OPENING + peer.headers(1, BLOCK) + peer.data(1, sent[:7]))
    (handler,) = handlers
    handler.stream.resume()
    http2.receive(peer.data(1, sent[7:], end=True))
    for function in turn:
        function()
    assert handler.told == [b"in two parts", "half-closed"]

"""Calls whose ends come at odd times, turn by turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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


def served(
    methods: Methods, soon: Callable[[Callable[[], None]], object] = lambda _: None
) -> GrpcServer:
    return GrpcServer(
        methods,
        Limits(),
        max_message_bytes=10_000,
        max_connection_bytes=20_000,
        max_buffered_bytes=20_000,
        min_ping_interval_ns=1,
        now_ns=lambda: 1,
        soon=soon,
        deadline_added=lambda _: None,
    )


def test_the_end_is_told_once_though_it_comes_before_the_turn_that_resumes() -> None:
    handlers: list[Told] = []
    turn: list[Callable[[], None]] = []

    def stream(call: StreamCall) -> Told:
        handlers.append(Told(call))
        return handlers[-1]

    methods = Methods(unary={}, streams={"/test.S/Stream": stream})
    server = served(methods, turn.append)
    http2 = GrpcConnection(server, lambda: None).http2
    sent = peer.message(b"in two parts")
    http2.receive(peer.OPENING + peer.headers(1, BLOCK) + peer.data(1, sent[:7]))
    (handler,) = handlers
    handler.stream.resume()
    http2.receive(peer.data(1, sent[7:], end=True))
    for function in turn:
        function()
    assert handler.told == [b"in two parts", "half-closed"]


@pytest.mark.parametrize("pieces", [[3], [20], [20, 5], [20, 5, 0], [3, 20, 2000]])
def test_a_body_that_ends_inside_a_message_is_an_error(pieces: list[int]) -> None:
    """However many frames it came in; the call must not wait for the rest."""
    got: list[bytes] = []
    server = served(Methods({"/test.S/Echo": lambda _, body: got.append(body)}, {}))
    http2 = GrpcConnection(server, lambda: None).http2
    http2.receive(peer.OPENING + peer.headers(1, peer.block(peer.grpc_fields())))
    body = peer.message(bytes(3000))
    for index, size in enumerate(pieces):
        piece, body = body[:size], body[size:]
        http2.receive(peer.data(1, piece, end=index == len(pieces) - 1))
    assert got == []
    written = b"".join(bytes(piece) for piece in http2.take())
    assert b"the body ends inside a message" in written
    assert not http2.streams
    assert server.statistics.buffered_bytes == 0

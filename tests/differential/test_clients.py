"""grpcio's client sees the same of both transports: the calls that take time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest

from tests.differential.differences import known
from tests.differential.seam import Side
from tests.gateway_process import wait_for

Sides = tuple[Side, Side]
STREAM, NEVER = "/test.S/Stream", "/test.S/Never"
TIMEOUT_S = 20.0
CANCELLED = "client: a cancelled stream"
LOST = "client: a stream on a lost connection"
COMPRESSIONS = ("NoCompression", "Deflate", "Gzip")
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Seen:
    """What the client saw of a call, and the handler of its client."""

    messages: tuple[bytes, ...]
    status: tuple[grpc.StatusCode, str]
    initial: frozenset[tuple[str, str | bytes]]
    trailing: frozenset[tuple[str, str | bytes]]
    events: tuple[str, ...] = ()

    def line(self) -> str:
        """Return status and events, for the table of differences."""
        return f"{self.status[0].name} {list(self.events)}"


class Caller:
    """One call to one side, step by step."""

    def __init__(
        self, side: Side, channel: grpc.Channel, path: str, **how: Any
    ) -> None:
        self._side = side
        self._name = f"{path} {len(side.events)}"
        self._go_on = threading.Semaphore(0)
        self._messages: list[bytes] = []
        self._more = True
        self.received: list[bytes] = []
        metadata: Metadata = (("x-name", self._name),)
        self.call = channel.stream_stream(path)(
            self._requests(), metadata=metadata, timeout=TIMEOUT_S, **how
        )

    def _requests(self) -> Iterator[bytes]:
        while True:
            self._go_on.acquire()
            if not self._messages:
                return
            yield self._messages.pop(0)

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._messages.append(message)
            self._go_on.release()

    def receive(self, count: int) -> None:
        for _ in range(count):
            self.received.append(next(self.call))

    def half_close(self) -> None:
        self._go_on.release()

    def events(self) -> list[str]:
        return self._side.events.get(self._name, [])

    def wait(self, event: str) -> None:
        wait_for(lambda: event in self.events())

    def seen(self) -> Seen:
        """Wait for the end of the call; return how it went."""
        with suppress(grpc.RpcError):
            self.received.extend(self.call)
        self._go_on.release()
        return Seen(
            tuple(self.received),
            (self.call.code(), self.call.details() or ""),
            metadata_of(self.call.initial_metadata()),
            metadata_of(self.call.trailing_metadata()),
            tuple(self.events()),
        )


def metadata_of(pairs: Any) -> frozenset[tuple[str, str | bytes]]:
    return frozenset(pair for pair in pairs or () if pair[0] != "grpc-accept-encoding")


@contextmanager
def connected(side: Side) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{side.port}") as channel:
        yield channel


def both(
    sides: Sides, act: Callable[[Side, grpc.Channel], Seen], case: str = ""
) -> Seen:
    """Do the same to both sides, and see the same; `case` may be in the table."""
    found = []
    for side in sides:
        with connected(side) as channel:
            found.append(act(side, channel))
    own, other = found
    if own != other:
        entry = known(case)
        assert entry is not None, found
        assert entry.explains(own.line(), other.line()), found
        assert replace(own, events=()) == replace(other, events=())
    return own


def test_a_cancelled_stream_reaches_the_handler_once(sides: Sides) -> None:
    def act(side: Side, channel: grpc.Channel) -> Seen:
        caller = Caller(side, channel, STREAM)
        caller.send(b"one")
        caller.receive(1)
        caller.send(b"never")
        caller.wait("message of 5")
        caller.call.cancel()
        caller.wait("cancelled")
        return caller.seen()

    seen = both(sides, act, CANCELLED)
    assert seen.status[0] == grpc.StatusCode.CANCELLED
    assert seen.events[-1] == "cancelled"
    assert seen.events.count("cancelled") == 1


@pytest.mark.parametrize("lost", [False, True])
def test_a_cancelled_unary_call_reaches_the_handler_once(
    sides: Sides, lost: bool
) -> None:
    def act(side: Side, channel: grpc.Channel) -> Seen:
        caller = Caller(side, channel, NEVER)
        caller.send(b"")
        caller.half_close()
        caller.wait("begun")
        if lost:
            channel.close()
        else:
            caller.call.cancel()
        caller.wait("cancelled")
        return caller.seen()

    seen = both(sides, act)
    assert seen.events == ("begun", "cancelled")
    assert seen.status[0] == grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("ended", [False, True])
def test_a_lost_connection_cancels_a_stream_once(sides: Sides, ended: bool) -> None:
    def act(side: Side, channel: grpc.Channel) -> Seen:
        caller = Caller(side, channel, STREAM)
        caller.send(b"never")
        caller.wait("message of 5")
        if ended:
            caller.half_close()
            caller.wait("half-closed")
        channel.close()
        caller.wait("cancelled")
        return caller.seen()

    seen = both(sides, act, LOST)
    assert seen.events[-1] == "cancelled"
    assert seen.events.count("cancelled") == 1


def test_what_is_in_flight_is_answered_after_the_half_close(sides: Sides) -> None:
    def act(side: Side, channel: grpc.Channel) -> Seen:
        caller = Caller(side, channel, STREAM)
        caller.send(b"one")
        caller.receive(1)
        caller.send(b"hold", *(b"%d" % number for number in range(50)))
        caller.half_close()
        return caller.seen()

    seen = both(sides, act)
    assert seen.status == (grpc.StatusCode.OK, "")
    assert seen.messages == (b"one", *(b"%d" % number for number in range(50)))


def test_an_error_while_requests_are_on_their_way(sides: Sides) -> None:
    def act(side: Side, channel: grpc.Channel) -> Seen:
        caller = Caller(side, channel, STREAM)
        caller.send(b"one", b'{"code": 10, "text": "abgebrochen: \\u00fc"}', b"two")
        return caller.seen()

    seen = both(sides, act)
    assert seen.status == (grpc.StatusCode.ABORTED, "abgebrochen: ü")
    assert seen.messages in ((), (b"one",))  # grpcio's client may drop it


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.001])
def test_a_deadline_that_has_passed(sides: Sides, timeout_s: float) -> None:
    for side in sides:
        with connected(side) as channel, pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(NEVER)(b"", timeout=timeout_s)
        assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_short_deadline_reaches_the_handler_once(sides: Sides) -> None:
    for side in sides:
        before = len(side.events.get("short", ()))
        metadata: Metadata = (("x-name", "short"),)
        with connected(side) as channel, pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(NEVER)(b"", timeout=0.2, metadata=metadata)
        assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda at=side, n=before: len(at.events.get("short", ())) == n + 2)
    assert sides[0].events["short"] == sides[1].events["short"]


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_streams(sides: Sides, name: str) -> None:
    sent = [b"", b"a", b"b" * 15_000, bytes(range(256)) * 20]

    def act(side: Side, channel: grpc.Channel) -> Seen:
        compression = getattr(grpc.Compression, name)
        caller = Caller(side, channel, STREAM, compression=compression)
        caller.send(*sent)
        caller.half_close()
        return caller.seen()

    assert both(sides, act).messages == tuple(sent)


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("size", [20_000, 20_001, 1_000_000])
def test_messages_about_the_limit(sides: Sides, name: str, size: int) -> None:
    found = []
    for side in sides:
        with connected(side) as channel:
            compression = getattr(grpc.Compression, name)
            answered = channel.unary_unary("/test.S/Echo").future(
                bytes(size), compression=compression, timeout=TIMEOUT_S
            )
            found.append(answered.code().name)
    wanted = "OK" if size == 20_000 else "RESOURCE_EXHAUSTED"
    assert found == [wanted, wanted]


def test_binary_metadata_both_ways(sides: Sides) -> None:
    values = [b"", b"\0", b"\xff\xfe,\n=", bytes(range(256))]
    for value in values:
        metadata: Metadata = (("x-a-bin", value), ("x-a-bin", b"second"), ("x-a", "t"))
        found = []
        for side in sides:
            with connected(side) as channel:
                ask = channel.unary_unary("/test.S/Headers")
                asked = b"x-a-bin x-a"
                found.append(ask(asked, metadata=metadata, timeout=TIMEOUT_S))
        assert found == [repr([value, "t"]).encode()] * 2

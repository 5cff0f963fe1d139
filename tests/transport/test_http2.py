"""HTTP/2 without a socket: bytes into a `Connection`, against what RFC 9113 says.

The application on top is the smallest there is: it notes what it is told, and answers
when a test says so. `ADVERSITY_REPEAT` makes the fuzzing longer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rpc import Methods, StreamCall
from gateway.transport.frames import HeaderBlock
from gateway.transport.grpc import GrpcConnection, GrpcServer
from gateway.transport.hpack import Header, encode_literal
from gateway.transport.http2 import Connection
from gateway.transport.streams import (
    Limits,
    Malformed,
    Stream,
    TransportStatistics,
)
from tests.transport import peer
from tests.transport.peer import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME,
    NO_ERROR,
    OPENING,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    TABLE_SIZE,
    TOP,
    WINDOW_UPDATE,
    Frame,
    frame,
)

REPEAT = int(os.environ.get("ADVERSITY_REPEAT", "1"))
FUZZED = 20_000 * REPEAT
BLOCK = peer.block(peer.grpc_fields())
HEAD = HeaderBlock(b"\x88")
TAIL = HeaderBlock(encode_literal(b"grpc-status", b"0"))
WIDE = Limits(stream_window_bytes=1 << 20, connection_window_bytes=1 << 24)
NARROW = Limits(
    max_streams=4,
    max_header_bytes=16_384,
    stream_window_bytes=65_535,
    connection_window_bytes=100_000,
)


class Recorded(Stream):
    """A stream that notes what it is told."""

    def __init__(self, session: Session, number: int, head: Any) -> None:
        self.session = session
        self.id = number
        self.wire_id = number.to_bytes(4, "big")
        self.head = head
        self.body = bytearray()
        self.ended = 0
        self.resets = 0

    def on_data(self, data: bytes, ended: bool) -> None:
        assert not self.ended, "data after the end"
        assert not self.resets, "data after the reset"
        self.body += data
        self.ended += ended
        if self.session.takes:
            self.session.connection.give_back(self, len(data))
        if ended and self.session.answers:
            size = len(self.body).to_bytes(4, "big")
            self.session.connection.respond(self, HEAD, (size,), 4, TAIL)

    def on_reset(self) -> None:
        self.resets += 1

    def told(self) -> tuple[Any, bytes, int, int]:
        return self.head, bytes(self.body), self.ended, self.resets


@dataclass
class Session:
    """A connection, its application, and all it wrote.

    Attributes:
        answers: Streams are answered as soon as they end.
        takes: Bytes are given back as they come.
    """

    limits: Limits = WIDE
    answers: bool = False
    takes: bool = True
    opened: list[Recorded] = field(default_factory=list)
    statistics: TransportStatistics = field(default_factory=TransportStatistics)
    output: bytes = b""
    woken: int = 0

    def __post_init__(self) -> None:
        self.connection = Connection(self, self.limits, self.statistics, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def read_head(self, headers: list[Header] | None) -> Any:
        if headers is not None and b":path" not in dict(headers):
            raise Malformed("no path")
        for name, value in headers or ():
            if name == b"content-length" and not value.isdigit():
                raise Malformed("no length")
        return None if headers is None else tuple(headers)

    def open(self, stream_id: int, head: Any, ended: bool) -> Stream:
        stream = Recorded(self, stream_id, head)
        self.connection.streams[stream_id] = stream
        for name, value in head or ():
            if name == b"content-length":
                stream.careful, stream.expected = True, int(value)
        self.opened.append(stream)
        return stream

    def on_ping(self) -> None:
        pass

    def feed(self, *pieces: bytes) -> Session:
        for piece in pieces:
            self.connection.receive(piece)
            self.output += self.new_bytes()
        return self

    def new_bytes(self) -> bytes:
        return b"".join(bytes(piece) for piece in self.connection.take())

    def new_frames(self) -> list[Frame]:
        return peer.frames(self.new_bytes())

    def frames(self) -> list[Frame]:
        return peer.frames(self.output)

    def stream(self) -> Recorded:
        """Return the only stream, and forget what was written so far."""
        (stream,) = self.opened
        self.new_bytes()
        return stream


def opened(limits: Limits = WIDE, *, takes: bool = True) -> Session:
    """Return a session after the opening."""
    session = Session(limits, takes=takes).feed(OPENING)
    session.output = b""
    return session


def with_stream(limits: Limits = WIDE) -> Session:
    """Return a session with stream 1 open."""
    return opened(limits).feed(peer.headers(1, BLOCK))


# -- requests in ------------------------------------------------------------------


@dataclass
class Request:
    """A request, and how its frames are written."""

    more: list[tuple[str, str]]
    chunks: list[tuple[bytes, int | None]]
    prioritised: bool
    padding: int | None
    continuations: list[int]
    counted: bool
    trailers: bool
    ended_by_headers: bool

    def body(self) -> bytes:
        return b"".join(chunk for chunk, _ in self.chunks)

    def fields(self) -> list[tuple[str, str]]:
        length = [("content-length", str(len(self.body())))] if self.counted else []
        return peer.grpc_fields(more=[*self.more, *length])


def padded(flags: int, payload: bytes, padding: int | None) -> tuple[int, bytes]:
    if padding is None:
        return flags, payload
    return flags | PADDED, bytes((padding,)) + payload + bytes(padding)


def written(request: Request, number: int, encoder: Encoder) -> Iterator[list[bytes]]:
    """Yield a request's frames, those that must stay together as one."""
    ended = request.ended_by_headers and not request.chunks and not request.trailers
    flags = END_STREAM if ended else 0
    encoded = encoder.encode(request.fields())
    cuts = sorted({min(cut, len(encoded)) for cut in request.continuations})
    pieces = [
        encoded[start:stop]
        for start, stop in zip([0, *cuts], [*cuts, len(encoded)], strict=True)
    ]
    first = pieces[0]
    if request.prioritised:
        flags |= PRIORITISED
        first = (number + 2).to_bytes(4, "big") + b"\x10" + first
    if len(pieces) == 1:
        flags |= END_HEADERS
    flags, first = padded(flags, first, request.padding)
    group = [frame(HEADERS, flags, number, first)]
    for piece in pieces[1:]:
        last = END_HEADERS if piece is pieces[-1] else 0
        group.append(frame(CONTINUATION, last, number, piece))
    if len(group) > 1 and not group[-1][4] & END_HEADERS:
        group[-1] = frame(CONTINUATION, END_HEADERS, number, pieces[-1])
    yield group
    for index, (chunk, padding) in enumerate(request.chunks):
        last = index == len(request.chunks) - 1 and not request.trailers
        flags, payload = padded(END_STREAM if last else 0, chunk, padding)
        yield [frame(DATA, flags, number, payload)]
    if request.trailers:
        yield [peer.headers(number, encoder.encode([("x-end", "1")]), end=True)]
    elif not request.chunks and not ended:
        yield [peer.data(number, b"", end=True)]


text = st.text("abcdefghij-", min_size=1, max_size=20)
requests = st.builds(
    Request,
    more=st.lists(st.tuples(text.map("x-{}".format), text), max_size=3),
    chunks=st.lists(
        st.tuples(
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from([16_384, 16_385, 40_000]).map(lambda n: b"ab" * n),
            ),
            st.none() | st.integers(0, 255),
        ),
        max_size=4,
    ),
    prioritised=st.booleans(),
    padding=st.none() | st.integers(0, 255),
    continuations=st.lists(st.integers(0, 120), max_size=4),
    counted=st.booleans(),
    trailers=st.booleans(),
    ended_by_headers=st.booleans(),
)


def interleaved(session: list[Request], order: random.Random) -> bytes:
    """Return the frames of all requests: streams begin in order, bodies mix."""
    encoder = Encoder()
    sent = [OPENING]
    waiting = list(enumerate(session))
    running: list[Iterator[list[bytes]]] = []
    while waiting or running:
        if waiting and (not running or order.random() < 0.5):
            index, request = waiting.pop(0)
            parts = written(request, 2 * index + 1, encoder)
            sent += next(parts)  # header blocks are encoded in the order they leave
            running.append(parts)
        else:
            parts = order.choice(running)
            group = next(parts, None)
            if group is None:
                running.remove(parts)
            else:
                sent += group
    return b"".join(sent)


def cut(whole: bytes, order: random.Random) -> list[bytes]:
    """Cut bytes into random pieces, small ones and large ones."""
    pieces, at = [], 0
    while at < len(whole):
        size = order.choice((1, 2, 8, 9, 10, 100, 1 << 14, 1 << 16))
        pieces.append(whole[at : at + size])
        at += size
    return pieces


def told(session: Session) -> list[tuple[Any, bytes, int, int]]:
    return [stream.told() for stream in session.opened]


@settings(max_examples=150 * REPEAT, deadline=None)
@given(st.lists(requests, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_requests_arrive_whole_however_they_are_written_and_cut(
    session: list[Request], order: random.Random
) -> None:
    sent = interleaved(session, order)
    whole = Session(answers=True).feed(sent)
    expected = [
        (
            tuple((n.encode(), v.encode()) for n, v in request.fields()),
            request.body(),
            1,
            0,
        )
        for request in session
    ]
    assert told(whole) == expected
    assert not whole.connection.failed
    assert not whole.connection.streams
    answered = [f.stream for f in whole.frames() if f.kind == HEADERS]
    assert sorted(answered) == sorted([2 * i + 1 for i in range(len(session))] * 2)
    pieces = Session(answers=True).feed(*cut(sent, order))
    assert told(pieces) == expected
    assert essence(pieces) == essence(whole)


def essence(session: Session) -> list[Frame]:
    """Return the output without window updates of streams.

    How they are bundled depends on the pieces in which large frames come.
    """
    return [f for f in session.frames() if f.kind != WINDOW_UPDATE]


@settings(max_examples=25 * REPEAT, deadline=None)
@given(st.data())
def test_one_byte_at_a_time_means_the_same(drawn: st.DataObject) -> None:
    small = requests.filter(lambda request: len(request.body()) < 1000)
    session = drawn.draw(st.lists(small, min_size=1, max_size=3))
    sent = interleaved(session, random.Random(1)) + drawn.draw(frame_sequences())
    whole = Session(answers=True).feed(sent)
    bytewise = Session(answers=True).feed(*(bytes((byte,)) for byte in sent))
    assert told(bytewise) == told(whole)
    assert bytewise.output == whole.output
    assert bytewise.connection.failed == whole.connection.failed


@st.composite
def frame_sequences(draw: st.DrawFn) -> bytes:
    """Frames of any kind: many are wrong, none is cut short."""
    kinds = st.integers(0, 11)
    payloads = st.binary(max_size=20) | st.just(BLOCK)
    some = st.builds(frame, kinds, st.integers(0, 255), st.integers(0, 11), payloads)
    return b"".join(draw(st.lists(some, max_size=6)))


def test_a_large_frame_is_delivered_as_it_comes() -> None:
    session = with_stream()
    body = random.Random(1).randbytes(100_000)
    sent = peer.data(1, body, end=True)
    session.feed(sent[:50_000])
    assert session.opened[0].body == body[: 50_000 - 9]
    session.feed(sent[50_000:])
    assert session.opened[0].told() == (session.opened[0].head, body, 1, 0)


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_a_large_padded_frame_is_delivered_as_it_comes(padding: int) -> None:
    """Held until it is whole, nobody would count it; it may be 1 MiB."""
    body = random.Random(1).randbytes(100_000)
    payload = bytes((padding,)) + body + bytes(padding)
    sent = frame(DATA, PADDED | END_STREAM, 1, payload)
    for at in (9, 10, 50_000, len(sent) - padding, len(sent) - padding // 2):
        session = with_stream()
        session.feed(sent[:at])
        assert session.opened[0].body == body[: max(0, at - 10)]
        session.feed(sent[at:], peer.headers(3, BLOCK))
        assert session.opened[0].told() == (session.opened[0].head, body, 1, 0)
        assert session.opened[0].unread - session.opened[0].consumed == 0
        assert len(session.opened) == 2


@pytest.mark.parametrize(
    ("kind", "size", "outcome"),
    [
        (HEADERS, 17_000, (None, {"header_bytes": 1}, 1)),
        (HEADERS, 65_000, (None, {"header_bytes": 1}, 1)),
        (HEADERS, 65_700, (ENHANCE_YOUR_CALM, {"header_bytes": 1}, 0)),
        (HEADERS, 66_000, (ENHANCE_YOUR_CALM, {"frame_bytes": 1}, 0)),
        (0x20, 65_700, (None, {}, 0)),
        (0x20, 66_000, (ENHANCE_YOUR_CALM, {"frame_bytes": 1}, 0)),
        (0x20, (1 << 20) + 1, (FRAME_SIZE_ERROR, {"frame_bytes": 1}, 0)),
    ],
)
def test_what_is_too_large_is_so_however_it_is_cut(
    kind: int, size: int, outcome: tuple[int | None, dict[str, int], int]
) -> None:
    sent = frame(kind, 4, 1, BLOCK + peer.long_field(size - len(BLOCK) - 7))
    for at in (1, 9, 10, 20_000, size // 2, len(sent)):
        session = opened().feed(sent[:at], sent[at:])
        code = next((f.code for f in session.frames() if f.kind == GOAWAY), None)
        assert (code, session.statistics.limits, len(session.opened)) == outcome


def test_a_frame_in_pieces_of_two_bytes_takes_what_it_holds() -> None:
    session = with_stream()
    sent = peer.data(1, bytes(16_384), end=True)
    for at in range(0, len(sent) - 2, 2):
        session.feed(sent[at : at + 2])
    held = session.connection._chunks
    assert sum(map(len, held)) > 16_384
    assert len(held) < 4
    session.feed(sent[-1:])
    assert session.opened[0].told() == (session.opened[0].head, bytes(16_384), 1, 0)


def test_a_header_block_that_was_remembered_may_come_to_mean_something_else() -> None:
    """The dynamic table shifts under a block that refers to it."""
    session = opened()
    first = BLOCK + b"\x40\x01a\x011"  # inserted: a is index 62
    again = BLOCK + b"\xbe"
    other = BLOCK + b"\x40\x01b\x012"
    for number, encoded in enumerate((first, again, again, other, again)):
        session.feed(peer.headers(2 * number + 1, encoded, end=True))
    fields = [stream.head[-1] for stream in session.opened]
    one, two = (b"a", b"1"), (b"b", b"2")
    assert fields == [one, one, one, two, two]


# -- data out: windows -------------------------------------------------------------


class Peer:
    """What a client knows of its windows, from the frames it sent and got."""

    def __init__(self) -> None:
        self.session = opened()
        self.connection = self.session.connection
        self.window = DEFAULT_WINDOW
        self.initial = DEFAULT_WINDOW
        self.largest = 16_384
        self.windows: dict[int, int] = {}
        self.got: dict[int, bytearray] = {}
        self.sent: dict[int, bytearray] = {}
        self.ended: dict[int, bool] = {}
        self.tails: dict[int, list[Frame]] = {}

    def open(self) -> None:
        number = 2 * len(self.windows) + 1
        self.session.feed(peer.headers(number, BLOCK))
        stream = self.session.opened[-1]
        self.windows[number] = self.initial
        self.got[number], self.sent[number] = bytearray(), bytearray()
        self.ended[number] = False
        self.tails[number] = []
        self.connection.send_headers(stream, HEAD)
        self.look()

    def send(self, which: int, parts: list[bytes]) -> None:
        stream = self.session.opened[which % len(self.session.opened)]
        if not self.ended[stream.id]:
            self.connection.send_data(stream, parts, sum(map(len, parts)))
            self.sent[stream.id] += b"".join(parts)

    def finish(self, which: int) -> None:
        stream = self.session.opened[which % len(self.session.opened)]
        if not self.ended[stream.id]:
            self.ended[stream.id] = True
            self.connection.finish(stream, TAIL)

    def tell(self, sent: bytes) -> None:
        """Send a frame of a client's; what comes obeys it at once."""
        self.connection.receive(sent)
        assert not self.connection.failed

    def look(self) -> None:
        """Take what was written: no byte more than the windows allow."""
        for got in self.session.new_frames():
            if got.kind == DATA:
                size = len(got.payload)
                assert not self.tails[got.stream], "data after the trailers"
                assert 0 < size <= self.largest
                assert size <= self.window
                assert size <= self.windows[got.stream]
                self.window -= size
                self.windows[got.stream] -= size
                self.got[got.stream] += got.payload
            elif got.kind == HEADERS:
                if got.flags & END_STREAM:
                    self.tails[got.stream].append(got)
            else:
                assert got.kind in (SETTINGS, RST_STREAM, WINDOW_UPDATE)
        for number, sent in self.sent.items():
            got_so_far = self.got[number]
            assert sent.startswith(got_so_far), "out of order"
            left = len(sent) - len(got_so_far)
            stuck = self.window <= 0 or self.windows[number] <= 0
            assert not left or stuck, "what could leave has left"
            stream = self.connection.streams.get(number)
            assert (stream.queued_bytes if stream else 0) == left
            assert bool(self.tails[number]) == (self.ended[number] and not left)

    def set_initial(self, value: int) -> None:
        for number in self.windows:
            self.windows[number] += value - self.initial
        self.initial = value
        self.tell(peer.settings((INITIAL_WINDOW, value)))

    def set_largest(self, value: int) -> None:
        self.largest = value
        self.tell(peer.settings((MAX_FRAME, value)))

    def open_window(self, which: int, more: int) -> None:
        number = 2 * (which % len(self.windows)) + 1
        if self.windows[number] + more <= TOP:
            self.windows[number] += more
            self.tell(peer.window_update(number, more))

    def open_connection(self, more: int) -> None:
        if self.window + more <= TOP:
            self.window += more
            self.tell(peer.window_update(0, more))


sizes = st.sampled_from([0, 1, 5, 100, 16_384, 16_385, 65_535, 70_000, 200_000])
increments = st.sampled_from([1, 100, 16_383, 65_535, 1 << 20])
which = st.integers(0, 5)
steps = st.one_of(
    st.just(("open",)),
    st.tuples(st.just("send"), which, st.lists(sizes, max_size=3)),
    st.tuples(st.just("finish"), which),
    st.tuples(st.just("set_initial"), st.sampled_from([0, 1, 100, 65_535, 1 << 20])),
    st.tuples(st.just("set_largest"), st.sampled_from([16_384, 20_000, (1 << 24) - 1])),
    st.tuples(st.just("open_window"), which, increments),
    st.tuples(st.just("open_connection"), increments),
)


@settings(max_examples=300 * REPEAT, deadline=None)
@given(st.lists(steps, max_size=40), st.randoms(use_true_random=False))
def test_data_leaves_in_order_and_never_beyond_the_peers_windows(
    session: list[tuple[Any, ...]], order: random.Random
) -> None:
    client = Peer()
    client.open()
    for name, *arguments in session:
        if name == "open" and len(client.windows) >= 6:
            continue
        if name == "send":
            number, lengths = arguments
            pieces = [order.randbytes(length) for length in lengths]
            client.send(number, pieces)
        else:
            getattr(client, name)(*arguments)
        client.look()
    for index in range(len(client.windows)):
        client.finish(index)
    client.look()
    for index in range(len(client.windows)):
        client.open_window(index, 1 << 26)
    client.look()
    client.open_connection(1 << 28)
    client.look()
    assert client.got == client.sent
    assert all(len(tails) == 1 for tails in client.tails.values())
    assert not client.connection.streams
    assert not client.connection.blocked


def test_blocked_streams_take_turns() -> None:
    """A stream with much to send does not keep the others from a shared window."""
    client = Peer()
    for index in range(3):
        client.open()
        client.open_window(index, 1 << 24)
        client.send(index, [bytes(1 << 20)])
        client.look()
    for _ in range(9):
        client.open_connection(10_000)
        client.look()
    received = {number: len(got) for number, got in client.got.items()}
    assert min(received.values()) >= 30_000


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 65_535, 65_536, 200_000])
def test_a_response_is_the_same_in_one_step(size: int) -> None:
    client = Peer()
    client.session.feed(peer.headers(1, BLOCK, end=True))
    stream = client.session.stream()
    body = random.Random(size).randbytes(size)
    client.connection.respond(stream, HEAD, (body[:3], body[3:]), size, TAIL)
    client.tell(peer.window_update(1, 1 << 20))
    client.tell(peer.window_update(0, 1 << 20))
    got = client.session.new_frames()
    kinds = [f.kind for f in got if f.kind != RST_STREAM]
    assert b"".join(f.payload for f in got if f.kind == DATA) == body
    assert kinds[0] == HEADERS
    assert kinds[-1] == HEADERS
    assert got[-1].flags & END_STREAM
    assert not client.connection.streams


def test_a_stream_that_is_reset_sends_nothing_of_what_waited() -> None:
    client = Peer()
    client.open()
    client.send(0, [bytes(100_000)])
    client.tell(peer.reset(1))
    client.session.new_bytes()
    client.tell(peer.window_update(0, 1 << 20))
    assert client.session.new_frames() == []
    assert client.session.opened[0].resets == 1


# -- data in: windows --------------------------------------------------------------


@settings(max_examples=100 * REPEAT, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(1, 16_384), st.floats(0, 1), st.booleans()
        ),
        max_size=60,
    )
)
def test_a_client_that_keeps_to_its_windows_is_never_cut(
    session: list[tuple[int, int, float, bool]],
) -> None:
    """And windows come back as the application takes what it got."""
    limits = NARROW
    running = opened(limits, takes=False)
    running.feed(*(peer.headers(number, BLOCK) for number in (1, 3, 5)))
    window = limits.connection_window_bytes
    windows = dict.fromkeys((1, 3, 5), limits.stream_window_bytes)
    untaken = dict.fromkeys((1, 3, 5), 0)
    for index, size, share, padding in session:
        stream = running.opened[index]
        flags, payload = padded(0, bytes(size), 7 if padding else None)
        if len(payload) <= min(window, windows[stream.id]):
            running.output = b""
            running.feed(frame(DATA, flags, stream.id, payload))
            window -= len(payload)
            windows[stream.id] -= len(payload)
            untaken[stream.id] += size
            taken = int(untaken[stream.id] * share)
            untaken[stream.id] -= taken
            running.connection.give_back(stream, taken)
            running.output += running.new_bytes()
            for got in running.frames():
                assert got.kind == WINDOW_UPDATE
                more = int.from_bytes(got.payload, "big")
                assert more > 0
                if got.stream:
                    windows[got.stream] += more
                else:
                    window += more
        assert not running.connection.failed
        assert window > limits.connection_window_bytes // 2
        assert window <= limits.connection_window_bytes
        for number, left in windows.items():
            assert left <= limits.stream_window_bytes - untaken[number]
    for stream in running.opened:
        running.connection.give_back(stream, untaken[stream.id])
        assert stream.unread <= limits.stream_window_bytes // 2


@pytest.mark.parametrize("size", [1000, 16_384])
def test_one_byte_more_than_the_streams_window_is_an_error(size: int) -> None:
    session = opened(NARROW, takes=False).feed(peer.headers(1, BLOCK))
    window = NARROW.stream_window_bytes
    for start in range(0, window, size):
        session.feed(peer.data(1, bytes(min(size, window - start))))
    assert not session.connection.failed
    assert not [f for f in session.frames() if f.kind in (RST_STREAM, GOAWAY)]
    session.feed(peer.data(1, b"x"))
    last = session.frames()[-1]
    assert (last.kind in (RST_STREAM, GOAWAY), last.code) == (True, FLOW_CONTROL_ERROR)


def test_a_frame_larger_than_the_connections_window_is_an_error() -> None:
    session = opened(NARROW, takes=False)
    session.feed(*(peer.headers(number, BLOCK) for number in (1, 3, 5)))
    sent = b"".join(peer.data(number, bytes(40_000)) for number in (1, 3, 5))
    session.feed(sent)
    last = session.frames()[-1]
    assert (last.kind, last.code) == (GOAWAY, FLOW_CONTROL_ERROR)
    assert session.statistics.limits == {"connection_window_bytes": 1}


def test_data_that_nobody_wants_still_opens_the_connections_window() -> None:
    """Or a client that keeps sending on reset streams would stall all others."""
    session = opened(NARROW)
    session.feed(peer.headers(1, BLOCK))
    session.connection.reset_stream(session.stream(), CANCEL)  # type: ignore[arg-type]
    session.new_bytes()
    for _ in range(10):
        session.feed(peer.data(1, bytes(16_000)))
    assert not session.connection.failed
    updates = [f for f in session.frames() if f.kind == WINDOW_UPDATE]
    assert {f.stream for f in updates} == {0}
    given = sum(int.from_bytes(f.payload, "big") for f in updates)
    assert 160_000 - NARROW.connection_window_bytes // 2 <= given <= 160_000


@pytest.mark.parametrize("window", [65_535, 65_536, (1 << 31) - 1])
def test_the_opening_announces_the_windows(window: int) -> None:
    """A WINDOW_UPDATE of 0 is an error to every client (RFC 9113, 6.9)."""
    session = Session(Limits(connection_window_bytes=window))
    first, *rest = session.new_frames()
    assert first.kind == SETTINGS
    given = [int.from_bytes(f.payload, "big") for f in rest]
    assert given == ([] if window == DEFAULT_WINDOW else [window - DEFAULT_WINDOW])


# -- mistakes ----------------------------------------------------------------------

OPEN = peer.headers(1, BLOCK)
CLOSED = OPEN + peer.reset(1)
HALF = peer.headers(1, BLOCK, end=True)
CONNECTION_ERRORS = {
    "data on stream 0": (peer.data(0, b"x"), PROTOCOL_ERROR),
    "data on an idle stream": (peer.data(1, b"x"), PROTOCOL_ERROR),
    "data on an even stream": (OPEN + peer.data(2, b"x"), PROTOCOL_ERROR),
    "data padded beyond its end": (
        OPEN + frame(DATA, PADDED, 1, b"\x05abcd"),
        PROTOCOL_ERROR,
    ),
    "padded data without a length": (OPEN + frame(DATA, PADDED, 1), PROTOCOL_ERROR),
    "headers on stream 0": (peer.headers(0, BLOCK), PROTOCOL_ERROR),
    "headers on an even stream": (peer.headers(2, BLOCK), PROTOCOL_ERROR),
    "headers on a lower idle stream": (
        peer.headers(5, BLOCK) + peer.headers(3, BLOCK),
        STREAM_CLOSED,
    ),
    "headers padded beyond their end": (
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + BLOCK),
        PROTOCOL_ERROR,
    ),
    "prioritised headers without room": (
        frame(HEADERS, END_HEADERS | PRIORITISED, 1, b"\0\0\0\0"),
        FRAME_SIZE_ERROR,
    ),
    "headers that do not decode": (peer.headers(1, b"\x82\x00\x05ab"), 9),
    "an index beyond the table": (peer.headers(1, b"\xff\x7f"), COMPRESSION_ERROR),
    "a table update above ours": (
        peer.headers(1, b"\x3f\xff\xff\x00" + BLOCK),
        COMPRESSION_ERROR,
    ),
    "trailers that do not decode": (OPEN + peer.headers(1, b"\xc0", end=True), 9),
    "headers that do not decode on a closed stream": (
        CLOSED + peer.headers(1, b"\xc0", end=True),
        COMPRESSION_ERROR,
    ),
    "another frame inside a header block": (
        frame(HEADERS, 0, 1, BLOCK) + peer.ping(),
        PROTOCOL_ERROR,
    ),
    "an unknown frame inside a header block": (
        frame(HEADERS, 0, 1, BLOCK) + frame(99, 0, 1),
        PROTOCOL_ERROR,
    ),
    "a continuation of another stream": (
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 3),
        PROTOCOL_ERROR,
    ),
    "a continuation of nothing": (frame(CONTINUATION, 4, 1, BLOCK), PROTOCOL_ERROR),
    "a continuation after the end": (
        OPEN + frame(CONTINUATION, END_HEADERS, 1),
        PROTOCOL_ERROR,
    ),
    "priority on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    "a reset of stream 0": (peer.reset(0), PROTOCOL_ERROR),
    "a reset of an idle stream": (peer.reset(1), PROTOCOL_ERROR),
    "a reset of 3 bytes": (OPEN + frame(RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "settings on a stream": (frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "settings of 5 bytes": (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "a settings acknowledgement with a payload": (
        frame(SETTINGS, ACK, 0, bytes(6)),
        FRAME_SIZE_ERROR,
    ),
    "push enabled by 2": (peer.settings((2, 2)), PROTOCOL_ERROR),
    "an initial window of 2^31": (
        peer.settings((INITIAL_WINDOW, 1 << 31)),
        FLOW_CONTROL_ERROR,
    ),
    "an initial window too large for a stream": (
        OPEN + peer.window_update(1, 1000) + peer.settings((INITIAL_WINDOW, TOP)),
        FLOW_CONTROL_ERROR,
    ),
    "frames of less than 16384": (peer.settings((MAX_FRAME, 16_383)), PROTOCOL_ERROR),
    "frames of 2^24": (peer.settings((MAX_FRAME, 1 << 24)), PROTOCOL_ERROR),
    "a push": (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), PROTOCOL_ERROR),
    "a ping on a stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "a ping of 7 bytes": (frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "a goaway on a stream": (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "a goaway of 7 bytes": (frame(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "a window update of 3 bytes": (
        frame(WINDOW_UPDATE, 0, 0, bytes(3)),
        FRAME_SIZE_ERROR,
    ),
    "a window update of 0": (peer.window_update(0, 0), PROTOCOL_ERROR),
    "a window update on an idle stream": (peer.window_update(1, 1), PROTOCOL_ERROR),
    "a connection window of 2^31": (peer.window_update(0, TOP), FLOW_CONTROL_ERROR),
    "a frame above the size we announced": (
        b"\x10\x00\x01\x00\x00\x00\x00\x00\x01",
        FRAME_SIZE_ERROR,
    ),
    "too many continuations": (
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1) * 9,
        ENHANCE_YOUR_CALM,
    ),
    "a header block above the limit": (
        peer.headers(1, BLOCK + peer.long_field(4 * 16_384)),
        ENHANCE_YOUR_CALM,
    ),
}
STREAM_ERRORS = {
    "data after the end": (HALF + peer.data(1, b"x"), STREAM_CLOSED),
    "headers after the end": (HALF + peer.headers(1, BLOCK, end=True), STREAM_CLOSED),
    "data on a closed stream": (CLOSED + peer.data(1, b"x"), STREAM_CLOSED),
    "trailers that do not end the stream": (OPEN + OPEN, PROTOCOL_ERROR),
    "a pseudo-header in trailers": (
        OPEN + peer.headers(1, b"\x82", end=True),
        PROTOCOL_ERROR,
    ),
    "headers that are no request": (peer.headers(1, b"\x82", end=True), PROTOCOL_ERROR),
    "a window update of 0": (OPEN + peer.window_update(1, 0), PROTOCOL_ERROR),
    "a stream window of 2^31": (OPEN + peer.window_update(1, TOP), FLOW_CONTROL_ERROR),
    "a priority of 4 bytes": (
        OPEN + frame(PRIORITY, 0, 1, bytes(4)),
        FRAME_SIZE_ERROR,
    ),
    "a stream that depends on itself": (
        OPEN + frame(PRIORITY, 0, 1, b"\0\0\0\x01\x10"),
        PROTOCOL_ERROR,
    ),
    "headers that depend on themselves": (
        frame(HEADERS, END_HEADERS | PRIORITISED, 1, b"\0\0\0\x01\x10" + BLOCK),
        PROTOCOL_ERROR,
    ),
    "headers that depend on themselves, continued": (
        frame(HEADERS, PRIORITISED, 1, b"\0\0\0\x01\x10" + BLOCK)
        + frame(CONTINUATION, END_HEADERS, 1),
        PROTOCOL_ERROR,
    ),
    "more streams than allowed": (
        b"".join(peer.headers(n, BLOCK) for n in (3, 5, 7, 9, 11)),
        REFUSED_STREAM,
    ),
    "less body than promised": (
        peer.headers(1, BLOCK + encode_literal(b"content-length", b"3"))
        + peer.data(1, b"ab", end=True),
        PROTOCOL_ERROR,
    ),
    "more body than promised": (
        peer.headers(1, BLOCK + encode_literal(b"content-length", b"3"))
        + peer.data(1, b"abcd"),
        PROTOCOL_ERROR,
    ),
    "no body where one was promised": (
        peer.headers(1, BLOCK + encode_literal(b"content-length", b"3"), end=True),
        PROTOCOL_ERROR,
    ),
    "trailers before the promised body": (
        peer.headers(1, BLOCK + encode_literal(b"content-length", b"3"))
        + peer.headers(1, b"\x00\x01a\x01b", end=True),
        PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
@pytest.mark.parametrize("bytewise", [False, True])
def test_connection_errors(name: str, bytewise: bool) -> None:
    sent, code = CONNECTION_ERRORS[name]
    session = opened(NARROW)
    session.feed(*([bytes((byte,)) for byte in sent] if bytewise else [sent]))
    last = session.frames()[-1]
    assert (last.kind, last.stream, last.code) == (GOAWAY, 0, code)
    assert session.connection.failed
    session.feed(peer.ping(), OPENING)
    assert session.frames()[-1] == last, "something was read after the end"


@pytest.mark.parametrize("name", STREAM_ERRORS)
@pytest.mark.parametrize("bytewise", [False, True])
def test_stream_errors(name: str, bytewise: bool) -> None:
    """They end their stream, and nothing else."""
    sent, code = STREAM_ERRORS[name]
    session = opened(NARROW)
    session.feed(*([bytes((byte,)) for byte in sent] if bytewise else [sent]))
    errors = [f for f in session.frames() if f.kind in (RST_STREAM, GOAWAY)]
    assert [(f.kind, f.code) for f in errors] == [(RST_STREAM, code)]
    number = errors[0].stream
    assert number not in session.connection.streams
    assert all(stream.resets <= 1 for stream in session.opened)
    live = [s for s in session.opened if s.id == number and not s.resets]
    assert not live, "the application believes that the stream lives"
    session.connection.lost()
    later = opened(NARROW).feed(sent, peer.headers(101, BLOCK, end=True))
    assert not later.connection.failed


@pytest.mark.parametrize(
    "sent",
    [
        frame(99, 0xFF, 0, b"unknown"),
        frame(99, 0xFF, 1 << 31 | 77, b"unknown, on any stream"),
        peer.settings((0x99, 7), (3, 0), (6, 1), (2, 0)),
        frame(PING, 0xFE & ~ACK, 0, bytes(8)),
        OPEN + frame(DATA, 0xF6, 1, b"flags that mean nothing"),
        OPEN + frame(DATA, 0, 1 << 31 | 1, b"the reserved bit"),
        frame(HEADERS, END_HEADERS, 1 << 31 | 1, BLOCK),
        frame(PRIORITY, 0, 77, b"\0\0\0\x01\x10"),
        CLOSED + peer.window_update(1, 1) + peer.reset(1),
        CLOSED + frame(PRIORITY, 0, 1, bytes(5)),
        frame(GOAWAY, 0, 0, bytes(8) + b"leaving"),
        frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        OPEN + frame(DATA, PADDED, 1, b"\x00"),
        OPEN + frame(DATA, PADDED, 1, b"\x03abc"),
    ],
)
def test_what_is_unusual_is_no_error(sent: bytes) -> None:
    session = opened().feed(sent)
    assert not [f for f in session.frames() if f.kind in (GOAWAY, RST_STREAM)]
    assert session.feed(peer.headers(9, BLOCK, end=True)).opened[-1].ended


@pytest.mark.parametrize(
    "first", [peer.ping(), frame(SETTINGS, ACK, 0), OPEN, frame(99, 0, 0)]
)
def test_settings_come_first(first: bytes) -> None:
    session = Session().feed(PREFACE, first)
    assert (session.frames()[-1].kind, session.frames()[-1].code) == (GOAWAY, 1)


def test_late_frames_of_a_stream_we_ended_are_no_mistake() -> None:
    """The client may not know yet; its header blocks still count for the table."""
    session = with_stream()
    session.connection.send_headers(session.stream(), TAIL, end=True)
    session.new_bytes()
    trailers = peer.headers(1, b"\x40\x01a\x01b", end=True)
    session.feed(peer.data(1, b"late"), peer.window_update(1, 5), trailers)
    session.feed(peer.headers(3, BLOCK + b"\xbe", end=True))
    assert not [f for f in session.frames() if f.kind in (GOAWAY, RST_STREAM)]
    assert session.opened[-1].head[-1] == (b"a", b"b")


# -- going away ---------------------------------------------------------------------


def test_a_drain_has_two_steps() -> None:
    session = with_stream()
    connection = session.connection
    connection.drain()
    connection.drain()  # once is enough
    goaway, asked = session.new_frames()
    assert (goaway.kind, goaway.payload) == (GOAWAY, TOP.to_bytes(4, "big") + bytes(4))
    assert asked.kind == PING
    assert not connection.drained()
    session.feed(peer.headers(3, BLOCK, end=True))  # sent before the client knew
    assert session.opened[-1].ended
    session.feed(frame(PING, ACK, 0, asked.payload))
    (last,) = session.frames()
    assert (last.kind, last.code) == (GOAWAY, NO_ERROR)
    assert last.payload[:4] == (3).to_bytes(4, "big")
    late = peer.headers(5, BLOCK) + peer.data(5, b"late") + peer.reset(5)
    session.feed(late)
    assert [stream.id for stream in session.opened] == [1, 3]
    assert not connection.failed
    assert not connection.drained()
    for stream in session.opened:
        connection.respond(stream, HEAD, (b"",), 0, TAIL)
    assert connection.drained()
    session.feed(*(peer.headers(n, BLOCK) for n in range(7, 20_000, 2)))
    assert connection.failed  # nobody who heard it goes on like this


def test_a_drain_goes_on_without_the_answer_to_its_ping() -> None:
    session = with_stream()
    session.connection.refuse_new()  # means nothing before a drain
    assert session.new_frames() == []
    session.connection.drain()
    session.connection.refuse_new()
    kinds = [(f.kind, f.payload[:4]) for f in session.new_frames() if f.kind == GOAWAY]
    assert kinds == [(GOAWAY, TOP.to_bytes(4, "big")), (GOAWAY, b"\0\0\0\x01")]


def test_an_end_tells_the_last_stream_and_lost_tells_every_stream() -> None:
    session = with_stream().feed(peer.headers(3, BLOCK))
    session.connection.end(ENHANCE_YOUR_CALM, "enough")  # type: ignore[arg-type]
    (last,) = session.new_frames()
    assert last.payload == b"\0\0\0\x03\0\0\0\x0benough"
    session.connection.lost()
    assert [stream.resets for stream in session.opened] == [1, 1]


# -- the compression table ------------------------------------------------------------


@pytest.mark.parametrize("values", [[0], [100], [0, 4096], [4095, 1 << 16]])
@pytest.mark.parametrize("way", ["respond", "headers", "refused"])
def test_a_smaller_table_is_acknowledged_in_the_next_block(
    values: list[int], way: str
) -> None:
    """RFC 7541, 4.2: hpack's decoder refuses blocks that do not say so."""
    session = opened()
    session.feed(peer.headers(1, BLOCK, end=True), peer.headers(3, BLOCK, end=True))
    decoder = Decoder()
    for value in values:
        session.feed(peer.settings((TABLE_SIZE, value)))
        decoder.max_allowed_table_size = value
        decoder.header_table_size = min(decoder.header_table_size, value)
    session.new_bytes()
    for stream in session.opened:
        if way == "respond":
            session.connection.respond(stream, HEAD, (b"",), 0, TAIL)
        else:
            if way == "headers":
                session.connection.send_headers(stream, HEAD)
            session.connection.send_headers(stream, TAIL, end=True)
    blocks = [f.payload for f in session.new_frames() if f.kind == HEADERS]
    assert blocks[0][:1] == b"\x20"
    assert all(block[:1] != b"\x20" for block in blocks[1:])
    for encoded in blocks:
        assert decoder.decode(encoded)


def test_a_larger_table_needs_no_word() -> None:
    session = with_stream().feed(peer.settings((TABLE_SIZE, 1 << 16)))
    session.connection.send_headers(session.stream(), HEAD)
    assert session.new_frames()[0].payload == b"\x88"


def test_large_header_blocks_are_continued() -> None:
    session = with_stream()
    big = HeaderBlock(encode_literal(b"x", b"v" * 40_000))
    session.connection.send_headers(session.stream(), big, end=True)
    first, *rest = [f for f in session.new_frames() if f.kind != RST_STREAM]
    assert (first.kind, first.flags) == (HEADERS, END_STREAM)
    assert [(f.kind, f.flags) for f in rest] == [(9, 0), (9, END_HEADERS)]
    whole = b"".join(f.payload for f in (first, *rest))
    assert Decoder(1 << 20).decode(whole) == [("x", "v" * 40_000)]


# -- fuzz -----------------------------------------------------------------------------


def session_bytes(order: random.Random, *, huffman: bool = True) -> list[bytes]:
    """Return frames as a busy client sends them."""
    encoder = Encoder()
    sent = [PREFACE, peer.settings((INITIAL_WINDOW, order.choice((0, 10, 1 << 20))))]
    for number in range(1, 2 * order.randint(2, 6), 2):
        fields = peer.grpc_fields(more=[("grpc-timeout", f"{number}m")])
        sent.append(peer.headers(number, encoder.encode(fields, huffman)))
        bodies = [
            peer.message(order.randbytes(order.randint(0, 60)))[: order.randint(0, 70)]
            for _ in range(3)
        ]
        sent += [peer.data(number, body) for body in bodies[: order.randint(0, 3)]]
        sent.append(
            order.choice(
                (
                    peer.data(number, b"", end=True),
                    peer.reset(number),
                    peer.ping(),
                    peer.window_update(number, 100),
                    peer.settings((TABLE_SIZE, order.choice((0, 4096)))),
                    frame(PRIORITY, 0, number, bytes(5)),
                    frame(HEADERS, 0, number, b"") + frame(CONTINUATION, 5, number),
                )
            )
        )
    return sent


def mutated(sent: list[bytes], order: random.Random) -> bytes:
    """Return the frames after some of them were bent, moved, or repeated."""
    sent = list(sent)
    for _ in range(order.randint(1, 4)):
        at = order.randrange(len(sent))
        what = order.randrange(6)
        if what == 0:
            del sent[at]
        elif what == 1:
            sent.insert(at, order.choice(sent))
        elif what == 2:
            sent[at] = sent[at][: order.randrange(len(sent[at]) + 1)]
        elif what == 3:
            sent.insert(at, order.randbytes(order.randint(0, 30)))
        else:
            bent = bytearray(sent[at])
            for _ in range(order.randint(1, 3)):
                if bent:
                    bent[order.randrange(len(bent))] = order.randrange(256)
            sent[at] = bytes(bent)
        if not sent:
            break
    return b"".join(sent)


def held(session: Session) -> int:
    """Return the bytes and entries that a connection keeps."""
    connection = session.connection
    chunks = [*connection._chunks, *connection._block]
    entries = len(connection._heads) + len(connection._forgotten)
    return sum(len(chunk) for chunk in chunks) + entries + len(connection.blocked)


@pytest.mark.parametrize("seed", range(10))
def test_no_bytes_whatever_raise_or_pile_up(seed: int) -> None:
    order = random.Random(seed)
    failures = 0
    limits = Limits(max_streams=8, max_idle_frames=64)
    for _ in range(FUZZED // 10):
        sent = mutated(session_bytes(order), order)
        session = Session(limits, answers=True)
        if order.random() < 0.3:
            session.feed(*cut(sent, order))
        else:
            session.feed(sent)
        assert held(session) <= limits.max_frame_bytes + 1024
        assert len(session.connection.streams) <= limits.max_streams
        if session.connection.failed:
            failures += 1
            if not session.output.endswith(b"needs HTTP/2.\n"):
                assert session.frames()[-1].kind == GOAWAY
        else:
            assert GOAWAY not in {f.kind for f in session.frames()}
        session.connection.lost()
        assert all(s.resets <= 1 for s in session.opened)
        assert not session.connection.streams
    assert failures > FUZZED // 50, "the mutations are too tame"


class Echo:
    """A streaming handler that answers each message with itself."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream

    def on_message(self, message: bytes) -> None:
        self._stream.send(message)

    def on_half_close(self) -> None:
        self._stream.finish()

    def on_cancel(self) -> None:
        pass

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        pass


@pytest.mark.parametrize("seed", range(4))
def test_nor_do_they_with_grpc_on_top(seed: int) -> None:
    """What is held for unfinished messages comes back to nothing."""
    order = random.Random(seed)
    methods = Methods(
        unary={"/test.S/Echo": lambda call, body: call.reply(body)},
        streams={"/test.S/Call": Echo},
    )
    clock = iter(range(1 << 60, 1 << 62, 1_000_000))
    server = GrpcServer(
        methods,
        Limits(max_streams=8, max_idle_frames=64),
        max_message_bytes=1000,
        max_connection_bytes=2000,
        max_buffered_bytes=2000,
        min_ping_interval_ns=1,
        now_ns=lambda: next(clock),
        soon=lambda function: function(),
        deadline_added=lambda _: None,
    )
    for _ in range(FUZZED // 20):
        path = order.choice(("/test.S/Echo", "/test.S/Call"))
        sent = [
            piece.replace(b"/test.S/Echo", path.encode())
            for piece in session_bytes(order, huffman=False)
        ]
        connection = GrpcConnection(server, lambda: None)
        connection.http2.receive(mutated(sent, order))
        connection.report()
        server.expire()
        assert 0 <= server.statistics.buffered_bytes <= 2000
        connection.http2.lost()
        assert server.statistics.buffered_bytes == 0
        assert len(server.deadlines) == 0
    assert server.statistics.calls > FUZZED // 20

"""Attacks, sent for real to a server in a process of its own.

Each must cost the server little CPU time and memory, and leave another client served
all the while (`Victim.bounded`). What stops it shows in `TransportStatistics.limits`.

| `grpc.` field           | test                             | limit              |
|-------------------------|----------------------------------|--------------------|
| max_message_bytes       | a_huge_message_is_refused_unread | message_bytes      |
|                         | a_compressed_bomb                | message_bytes      |
| max_metadata_bytes      | headers_that_unfold              | header_bytes       |
| max_concurrent_streams  | more_streams_than_allowed        | concurrent_streams |
| min_ping_interval_ms    | pings_too_often                  | pings              |
| max_connections         | more_connections_than_allowed    | connections        |
| max_connection_bytes    | unfinished_messages              | connection_bytes   |
| max_buffered_bytes      | unfinished_messages_of_all       | buffered_bytes     |
| stream_window_bytes     | more_than_a_window               | the field's name   |
| connection_window_bytes | `test_http2`                     | the field's name   |
| write_buffer_bytes      | a_client_that_reads_nothing      | none: it waits     |
| max_continuation_frames | headers_without_end              | continuations      |
| max_idle_frames         | frames_without_progress          | idle_frames        |
| keepalive_s, _timeout_s | `test_listener`                  | keepalive, preface |
| max_connection_age_s    | `test_listener`                  | connection_age     |

Frames above what we announce (frame_bytes) and header lists that are no request
(malformed_headers) have no field; they are here as well. `max_stream_inflight` and
`max_stream_bytes` are the inference service's, not the transport's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.gateway_process import wait_for
from tests.transport import peer
from tests.transport.peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HEADERS,
    INITIAL_WINDOW,
    OPENING,
    PREFACE,
    PRIORITY,
    REFUSED_STREAM,
    RST_STREAM,
    TOP,
    frame,
)
from tests.transport.server import Victim, Wire, victim

REPEAT = int(os.environ.get("ADVERSITY_REPEAT", "1"))
MIB = 1 << 20
FLOOD = 100_000
"""Frames of a flood: many times the budget."""
NARROW = {
    "max_connection_bytes": 4 * MIB,
    "max_buffered_bytes": 8 * MIB,
    "max_message_bytes": 2 * MIB,
    "max_connections": 100,
    "max_concurrent_streams": 200,
    "stream_window_bytes": 256 << 10,
    "connection_window_bytes": MIB,
}


def blocks(*names: str) -> list[bytes]:
    return [peer.block(peer.grpc_fields(f"/test.S/{name}")) for name in names]


ECHO, NEVER, LARGE, STREAM, DOWNLOAD, PAUSED = blocks(
    "Echo", "Never", "Large", "Stream", "Download", "Paused"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Victim]:
    with victim() as running:
        yield running


@pytest.fixture(scope="module")
def narrow() -> Iterator[Victim]:
    with victim(**NARROW) as running:
        yield running


def odd(flood: int) -> range:
    return range(1, 2 * flood, 2)


def opened(encoded: bytes, number: int = 1, *, body: bytes = b"") -> bytes:
    """Return a call's frames; with a body it is whole."""
    head = peer.headers(number, encoded)
    return head + (peer.data(number, peer.message(body), end=True) if body else b"")


# -- frames that cost work and bring nothing forward --------------------------------

EMPTY_NAMES = b"\x00\x00\x00" * 100
FLOODS = {
    "rapid reset, CVE-2023-44487": b"".join(
        peer.headers(n, ECHO) + peer.reset(n) for n in odd(FLOOD // 2)
    ),
    "rapid reset of whole calls": b"".join(
        opened(NEVER, n, body=b"x") + peer.reset(n) for n in odd(FLOOD // 2)
    ),
    "priority churn, CVE-2019-9513": b"".join(
        frame(PRIORITY, 0, n, (n + 2).to_bytes(4, "big") + b"\x10") for n in odd(FLOOD)
    ),
    "reset flood, CVE-2019-9514": b"".join(
        peer.headers(n, STREAM) + peer.window_update(n, 0) for n in odd(FLOOD // 2)
    ),
    "settings flood, CVE-2019-9515": peer.settings((INITIAL_WINDOW, 1 << 20)) * FLOOD,
    "settings by the thousand": peer.settings(
        *((INITIAL_WINDOW, 70_000 + n % 2) for n in range(2730))
    )
    * 40,
    "headers without names, CVE-2019-9516": b"".join(
        peer.headers(n, ECHO + EMPTY_NAMES) for n in odd(FLOOD // 10)
    ),
    "empty data, CVE-2019-9518": peer.headers(1, STREAM) + peer.data(1, b"") * FLOOD,
    "padding alone": peer.headers(1, STREAM)
    + frame(DATA, 8, 1, b"\xff" + bytes(255)) * (FLOOD // 10),
    "empty header blocks, CVE-2019-9518": b"".join(
        frame(HEADERS, 0, n) + frame(CONTINUATION, END_HEADERS, n)
        for n in odd(FLOOD // 2)
    ),
    "window updates": peer.headers(1, STREAM) + peer.window_update(1, 1) * FLOOD,
    "unknown frames": frame(0xBE, 0, 0, b"grease") * FLOOD,
    "more streams than allowed": b"".join(
        peer.headers(n, NEVER) for n in odd(FLOOD // 4)
    ),
    "data on a closed stream": peer.headers(1, STREAM)
    + peer.reset(1)
    + peer.data(1, b"x") * FLOOD,
    "trailers after trailers": b"".join(
        peer.headers(n, STREAM) + peer.headers(n, b"\x82", end=True)
        for n in odd(FLOOD // 2)
    ),
    "resets of what is reset": peer.headers(1, STREAM) + peer.reset(1) * FLOOD,
    "acknowledgements of pings": peer.ping(ack=True) * FLOOD,
    "acknowledgements of settings": frame(peer.SETTINGS, peer.ACK, 0) * FLOOD,
    "goaways": frame(peer.GOAWAY, 0, 0, bytes(8)) * FLOOD,
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_without_progress(server: Victim, name: str) -> None:
    """Four clients at a time; each is cut off long before it is done."""
    sent = FLOODS[name]
    before = server.enforced("idle_frames")
    with server.bounded(cpu_s=3, rss_mb=30):
        for _ in range(4):
            wire = server.connect()
            wire.send(sent)
            assert wire.goaway() in (ENHANCE_YOUR_CALM, -1)  # or cut by a reset
    assert server.enforced("idle_frames") == before + 4


def test_pings_too_often(server: Victim) -> None:
    """Ping flood, CVE-2019-9512; the third too early is one too many."""
    before = server.enforced("pings")
    with server.bounded(cpu_s=1, rss_mb=30):
        wire = server.connect()
        wire.send(peer.ping() * FLOOD)
        assert wire.goaway() in (ENHANCE_YOUR_CALM, -1)
        polite = server.connect()
        polite.send(peer.ping() * 3)
        polite.wait(peer.ping(ack=True) * 3)
        assert not polite.closed
    assert server.enforced("pings") == before + 1


def test_pings_between_calls_are_paid_by_the_calls(server: Victim) -> None:
    """BDP probes: grpcio sends a ping with nearly every read of much data."""
    wire = server.connect()
    for number in odd(6000):
        wire.send(opened(ECHO, number, body=b"x") + peer.ping())
    wire.wait(peer.frame(HEADERS, 0, 11_999)[5:])
    assert not wire.closed


def test_one_byte_at_a_time_out(server: Victim) -> None:
    """Data dribble, CVE-2019-9511: windows of one byte pay for no more than that."""
    wire = server.connect(PREFACE + peer.settings((INITIAL_WINDOW, 0)))
    wire.send(opened(LARGE, body=b"x"))
    with server.bounded(cpu_s=1, rss_mb=30):
        wire.send(peer.window_update(1, 1) * FLOOD)
        assert wire.goaway() in (ENHANCE_YOUR_CALM, -1)


def test_windows_opened_for_a_thousand_streams_that_wait(server: Victim) -> None:
    """Each frame about the connection could have every stream looked at."""
    many = b"".join(opened(LARGE, number, body=b"x") for number in odd(1000))
    for flood in (
        peer.window_update(0, 1) * FLOOD,
        b"".join(peer.settings((INITIAL_WINDOW, n)) for n in range(1, 3000)),
    ):
        wire = server.connect(PREFACE + peer.settings((INITIAL_WINDOW, 0)))
        wire.send(many)
        with server.bounded(cpu_s=2, rss_mb=100):
            wire.send(flood)
            assert wire.goaway() in (ENHANCE_YOUR_CALM, -1)
            wire.close()


# -- headers ------------------------------------------------------------------------


def test_headers_without_end(server: Victim) -> None:
    """CONTINUATION flood, CVE-2024-27316."""
    before = server.enforced("continuations")
    with server.bounded(cpu_s=1, rss_mb=30):
        for piece in (b"", b"\x00\x01a\x01b" * 200):
            wire = server.connect()
            sent = frame(HEADERS, 0, 1, ECHO) + frame(CONTINUATION, 0, 1, piece) * FLOOD
            wire.send(sent)
            assert wire.goaway() in (ENHANCE_YOUR_CALM, -1)
    assert server.enforced("continuations") == before + 2


def test_headers_that_unfold(server: Victim) -> None:
    """An HPACK bomb: 4 KiB in the table, referred to 16 000 times by a byte each."""
    before = server.enforced("header_bytes")
    bomb = b"\x40\x01a\x7f\xa1\x1e" + bytes(4000)
    with server.bounded(cpu_s=4, rss_mb=30):
        wire = server.connect()
        wire.send(peer.headers(1, ECHO + bomb, end=True))
        for number in odd(200):
            wire.send(peer.headers(number + 2, ECHO + b"\xbe" * 16_000, end=True))
        wire.wait((401).to_bytes(4, "big"))
        statuses = [f for f in wire.frames() if f.kind == HEADERS]
        assert all(b"grpc-status\x018" in f.payload for f in statuses[2:])
    assert server.enforced("header_bytes") >= before + 200


def test_large_headers_that_are_always_others(server: Victim) -> None:
    """Of what a connection may repeat, no more is remembered than it could need."""
    large = b"\x00\x01a\x7f\x99\x74" + b"a" * (15_000 - 9)
    with server.bounded(cpu_s=4, rss_mb=60):
        for _ in range(20):
            wire = server.connect()
            for number in odd(250):
                encoded = ECHO + large + b"%09d" % number
                wire.send(opened(encoded, number, body=b"x"))
            wire.wait(b"\0\0\x01\xf3")


def test_a_block_larger_than_allowed_ends_the_connection(server: Victim) -> None:
    before = server.enforced("header_bytes")
    wire = server.connect()
    wire.send(peer.headers(1, ECHO + peer.long_field(65_480)))
    assert wire.goaway() == ENHANCE_YOUR_CALM
    assert server.enforced("header_bytes") == before + 1


def test_a_call_with_headers_too_large_ends_alone(server: Victim) -> None:
    """Up to four times the limit; what it put into the table is there afterwards."""
    before = server.enforced("header_bytes")
    wire = server.connect()
    wire.send(peer.headers(1, ECHO))
    entry = b"\x40\x01a\x01b"  # into the table: a: b
    wire.send(peer.headers(3, ECHO + peer.long_field(64_000) + entry, end=True))
    wire.send(opened(ECHO + b"\xbe", 5, body=b"after"))  # refers to it
    wire.send(peer.data(1, peer.message(b"before"), end=True))
    wire.wait(b"after")
    wire.wait(b"before")
    refused = [f for f in wire.frames() if f.stream == 3 and f.kind == HEADERS]
    assert b"grpc-status\x018" in refused[0].payload
    assert b"(grpc.max_metadata_bytes)" in refused[0].payload
    assert server.enforced("header_bytes") == before + 1


def test_grpcio_hears_that_its_metadata_is_too_large(server: Victim) -> None:
    ends = server.channel.unary_unary("/test.S/Echo")
    for size in (20_000, 60_000):
        with pytest.raises(grpc.RpcError) as caught:
            ends(b"", timeout=10, metadata=(("x", "y" * size),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ends(b"fine", timeout=10, metadata=(("x", "y" * 9000),)) == b"fine"


def test_a_frame_larger_than_allowed_is_not_waited_for(server: Victim) -> None:
    before = server.enforced("frame_bytes")
    wire = server.connect()
    wire.send(b"\x20\x00\x00\x00\x00\x00\x00\x00\x01")
    assert wire.goaway() == FRAME_SIZE_ERROR
    assert server.enforced("frame_bytes") == before + 1


@pytest.mark.parametrize("kind", [1, 9, 0x20])
def test_a_frame_that_must_be_whole_is_no_larger_than_headers(
    server: Victim, kind: int
) -> None:
    """Only bodies may come in large frames: nothing else is handed on in pieces."""
    before = server.enforced("frame_bytes")
    wire = server.connect()
    if kind == 9:
        wire.send(peer.frame(1, 0, 1, ECHO))
    wire.send((1 << 19).to_bytes(3, "big") + bytes((kind, 4, 0, 0, 0, 1)) + bytes(99))
    assert wire.goaway() == ENHANCE_YOUR_CALM
    assert server.enforced("frame_bytes") == before + 1


def test_what_is_no_request_is_counted(server: Victim) -> None:
    before = server.enforced("malformed_headers")
    wire = server.connect()
    wire.send(peer.headers(1, ECHO + b"\x00\x02Up\x01x", end=True))
    wire.wait(peer.reset(1, peer.PROTOCOL_ERROR))
    assert server.enforced("malformed_headers") == before + 1


def test_more_streams_than_allowed(narrow: Victim) -> None:
    before = narrow.enforced("concurrent_streams")
    wire = narrow.connect()
    wire.send(b"".join(opened(NEVER, n, body=b"x") for n in odd(205)))
    wire.wait(peer.reset(409, REFUSED_STREAM))
    refused = [f.stream for f in wire.frames() if f.kind == RST_STREAM]
    assert refused == [401, 403, 405, 407, 409]
    assert narrow.enforced("concurrent_streams") == before + 5
    wire.send(peer.reset(1) + opened(ECHO, 411, body=b"x"))  # a place is free again
    wire.wait((411).to_bytes(4, "big"))


# -- bodies -------------------------------------------------------------------------


def test_a_huge_message_is_refused_unread(narrow: Victim) -> None:
    before = narrow.enforced("message_bytes")
    with narrow.bounded(cpu_s=1, rss_mb=20):
        for encoded in (ECHO, STREAM):
            wire = narrow.connect()
            wire.send(peer.headers(1, encoded))
            wire.send(peer.data(1, b"\0\xff\xff\xff\xff" + bytes(1000)))
            wire.wait(b"grpc-status\x018")
            assert b"Received message larger than max" in wire.received
    assert narrow.enforced("message_bytes") == before + 2


def deflated(size: int, copies: int = 1) -> bytes:
    """Return messages of that many zeros each, compressed."""
    body = zlib.compress(bytes(size), 9)
    return peer.message(body, compressed=True) * copies


@pytest.mark.parametrize("encoded", [ECHO, STREAM])
def test_a_compressed_bomb(narrow: Victim, encoded: bytes) -> None:
    before = narrow.enforced("message_bytes")
    field = peer.block([("grpc-encoding", "deflate")])
    body = deflated(100 * MIB)
    assert len(body) < 128 << 10
    with narrow.bounded(cpu_s=2, rss_mb=30):
        for number in odd(20):
            wire = narrow.connect()
            wire.send(peer.headers(number, encoded + field))
            for at in range(0, len(body), 16_000):
                wire.send(peer.data(number, body[at : at + 16_000]))
            wire.wait(b"grpc-status\x018")
    assert narrow.enforced("message_bytes") == before + 20


def test_many_small_bombs_for_a_stream_that_does_not_read(narrow: Victim) -> None:
    """Each is within the limit; together they are held to that of the connection."""
    before = narrow.enforced("connection_bytes")
    field = peer.block([("grpc-encoding", "deflate")])
    with narrow.bounded(cpu_s=3, rss_mb=60):
        wire = narrow.connect()
        wire.send(peer.headers(1, PAUSED + field) + peer.data(1, deflated(MIB, 12)))
        wire.wait(b"grpc-status\x018")
    assert narrow.enforced("connection_bytes") == before + 1


@pytest.mark.parametrize("whole", [False, True])
def test_unfinished_messages(narrow: Victim, whole: bool) -> None:
    """Of one connection; whole messages whose calls do not end count as well."""
    before = narrow.enforced("connection_bytes")
    size = 100_000
    body = peer.message(bytes(size))[: None if whole else -1]
    with narrow.bounded(cpu_s=2, rss_mb=40):
        wire = narrow.connect()
        for number in odd(100):
            wire.send(peer.headers(number, ECHO))
            for at in range(0, len(body), 16_000):
                wire.send(peer.data(number, body[at : at + 16_000]))
        wire.send(peer.ping(b"all sent"))
        wire.wait(b"all sent")
        assert narrow.statistics()["buffered_bytes"] <= NARROW["max_connection_bytes"]
        wire.send(opened(ECHO, 201, body=b"still served"))
        wire.wait(b"still served")
    assert narrow.enforced("connection_bytes") > before + 50
    wait_for(lambda: narrow.statistics()["buffered_bytes"] == 0)


def test_unfinished_messages_of_all(narrow: Victim) -> None:
    before = narrow.enforced("buffered_bytes")
    body = peer.message(bytes(NARROW["max_message_bytes"]))[:-1]
    frames = b"".join(
        peer.data(1, body[at : at + 16_000]) for at in range(0, len(body), 16_000)
    )
    with narrow.bounded(cpu_s=3, rss_mb=60):
        for _ in range(20):
            wire = narrow.connect()
            wire.send(peer.headers(1, ECHO) + frames)
            wire.send(peer.ping(b"all sent"))
            wire.wait(b"all sent")
        assert narrow.statistics()["buffered_bytes"] <= NARROW["max_buffered_bytes"]
    assert narrow.enforced("buffered_bytes") >= before + 16
    wait_for(lambda: narrow.statistics()["buffered_bytes"] == 0)


def test_a_message_in_pieces_of_two_bytes(narrow: Victim) -> None:
    """What is counted is what it takes: pieces are no objects of their own."""
    body = peer.message(bytes(MIB))[:-1]
    sent = b"".join(peer.data(1, body[at : at + 2]) for at in range(0, len(body), 2))
    with narrow.bounded(cpu_s=6, rss_mb=12):
        wire = narrow.connect()
        wire.send(peer.headers(1, ECHO) + sent + peer.ping(b"all sent"))
        wire.wait(b"all sent")
        assert narrow.statistics()["buffered_bytes"] == len(body)


def test_small_messages_for_a_stream_that_does_not_read(server: Victim) -> None:
    """The work is that of reading them, however many wait already."""
    sent = peer.data(1, peer.message(b"ab")) * 60_000
    with server.bounded(cpu_s=3, rss_mb=30):
        wire = server.connect()
        wire.send(peer.headers(1, PAUSED) + sent + peer.ping(b"all sent"))
        wire.wait(b"all sent")
        assert server.statistics()["buffered_bytes"] == 60_000 * (2 + 64)


def test_more_than_a_window(narrow: Victim) -> None:
    """More than a stream takes that its handler does not read."""
    before = narrow.enforced("stream_window_bytes")
    window = NARROW["stream_window_bytes"]
    body = b"".join(peer.data(1, bytes(16_384)) for _ in range(window // 16_384))
    with narrow.bounded(cpu_s=1, rss_mb=20):
        wire = narrow.connect()
        wire.send(peer.headers(1, PAUSED) + body + peer.ping(b"the most"))
        wire.wait(b"the most")
        wire.send(peer.data(1, b"x"))
        assert wire.goaway() == FLOW_CONTROL_ERROR
    assert narrow.enforced("stream_window_bytes") == before + 1


# -- slow clients -------------------------------------------------------------------


def test_slow_senders(narrow: Victim) -> None:
    """Slowloris: one byte at a time of the preface, of headers, of a body."""
    call = opened(ECHO, body=b"x" * 100)
    stories = [OPENING, OPENING + call, OPENING + peer.headers(1, ECHO) + call[-60:]]
    with narrow.bounded(cpu_s=3, rss_mb=30):
        wires = [narrow.connect(b"") for _ in range(90)]
        for at in range(100):
            for index, wire in enumerate(wires):
                story = stories[index % 3]
                wire.send(story[at : at + 1])
        assert not any(wire.closed for wire in wires)
        whole = narrow.connect(OPENING)
        whole.send(call)
        whole.wait(b"x" * 100)


def test_more_connections_than_allowed(narrow: Victim) -> None:
    """Those that are there are served on; there is room again when some leave."""
    before = narrow.enforced("connections")
    with narrow.bounded(cpu_s=2, rss_mb=30):
        wires = [narrow.connect() for _ in range(150)]
        refused = wait_for(lambda: closed(wires) >= 51 and closed(wires))
        assert refused == 51  # the bystander has one
        assert narrow.enforced("connections") == before + 51
        for wire in wires:
            wire.close()
        wait_for(lambda: narrow.statistics()["open"] == 1)
        late = narrow.connect()
        late.send(opened(ECHO, body=b"there is room"))
        late.wait(b"there is room")


def closed(wires: list[Wire]) -> int:
    for wire in wires:
        wire.read()
    return sum(wire.closed for wire in wires)


@pytest.mark.parametrize("encoded", [LARGE, DOWNLOAD])
def test_a_client_that_reads_nothing(server: Victim, encoded: bytes) -> None:
    """Internal buffering, CVE-2019-9517: windows wide open, the socket shut.

    The calls of one read (256 KiB, 1700 calls) are all served; no more are read.
    """
    opening = PREFACE + peer.settings((INITIAL_WINDOW, TOP))
    opening += peer.window_update(0, TOP - 65_535)
    with server.bounded(cpu_s=5, rss_mb=250):
        wire = server.connect(b"")
        sent = b"".join(opened(encoded, n, body=b"x") for n in odd(100_000))
        taken = wire.send(opening + sent, read=False, limit_s=2)
        assert taken < len(sent) // 2, "all of it was read"
        calls = server.statistics()["calls"]
        assert not wire.send(sent[taken:], read=False, limit_s=0.5)
        assert server.statistics()["calls"] - calls < 100  # the bystander's
    wait_for(lambda: server.statistics()["open"] == 1)


@pytest.mark.parametrize("encoded", [LARGE, DOWNLOAD])
def test_a_client_without_windows(narrow: Victim, encoded: bytes) -> None:
    """Its answers wait, as many as it may have calls."""
    opening = PREFACE + peer.settings((INITIAL_WINDOW, 0))
    with narrow.bounded(cpu_s=3, rss_mb=300):
        wire = narrow.connect(opening)
        wire.send(b"".join(opened(encoded, n, body=b"x") for n in odd(200)))
        wire.send(peer.ping(b"all sent"))
        wire.wait(b"all sent")
        assert not [f for f in wire.frames() if f.kind == DATA]
    wait_for(lambda: narrow.statistics()["open"] == 1)


# -- heavy clients that mean well -----------------------------------------------------


def test_ten_thousand_small_messages_each_way(server: Victim) -> None:
    """grpcio answers each with two WINDOW_UPDATEs, and pings in between."""
    before = server.statistics()["limits"]
    count_ = 10_000 * REPEAT
    messages = (b"%d" % n for n in range(count_))
    answers = server.channel.stream_stream("/test.S/Stream")(messages, timeout=60)
    assert [int(answer) for answer in answers] == list(range(count_))
    assert server.statistics()["limits"] == before


def test_five_thousand_calls_cancelled_by_their_deadlines(server: Victim) -> None:
    before = server.statistics()["limits"]
    never = server.channel.unary_unary("/test.S/Never")
    calls = []
    for _ in range(5000 * REPEAT):
        calls.append(never.future(b"x", timeout=0.02))
        if len(calls) >= 500:
            assert calls.pop(0).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert {call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert server.statistics()["limits"] == before


def test_a_thousand_calls_cancelled_at_once(server: Victim) -> None:
    """Five thousand would be taken for a rapid reset, which they are."""
    before = server.statistics()["limits"]
    with grpc.insecure_channel(
        f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        never = channel.unary_unary("/test.S/Never")
        for _ in range(200):
            calls = [never.future(b"x", timeout=10) for _ in range(5)]
            for call in calls:
                assert call.cancel()
        echo = channel.unary_unary("/test.S/Echo")
        assert echo(b"after", timeout=10) == b"after"
    assert server.statistics()["limits"] == before


@pytest.mark.skipif(not shutil.which("h2load"), reason="no h2load on the PATH")
def test_h2load_makes_many_calls(server: Victim, tmp_path: Path) -> None:
    before = server.statistics()["limits"]
    calls = 20_000 * REPEAT
    body = tmp_path / "body"
    body.write_bytes(peer.message(b"hello"))
    done = subprocess.run(
        [
            *("h2load", f"--requests={calls}", "--clients=4", "--max-concurrent=100"),
            *("--header=te: trailers", "--header=content-type: application/grpc"),
            *(f"--data={body}", f"http://127.0.0.1:{server.port}/test.S/Echo"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert f"{calls} succeeded, 0 failed, 0 errored" in done.stdout
    assert server.statistics()["limits"] == before

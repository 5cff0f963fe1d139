"""The load client over real connections: counts, statuses, windows, departures."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path

import grpc
import pytest

from loadtest.client import allow_files, measure
from loadtest.load import LoadFailed, Sample
from loadtest.measure import Histogram
from loadtest.requests import frame, framed
from tests.loadtest.served_calls import a_load, grpc_server, scripted_server

STREAM = "/test.Service/Stream"
ANSWER_HEADERS = b"\x88"
TRAILERS = b"\x00\x0bgrpc-status\x01"


async def echo(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
    return request


def good(stream: int, message: bytes = b"hello", status: bytes = b"0") -> bytes:
    return (
        frame(1, 4, stream, ANSWER_HEADERS)
        + frame(0, 0, stream, framed(message))
        + frame(1, 5, stream, TRAILERS + status)
    )


async def test_a_closed_loop_counts_what_the_server_answered(tmp_path: Path) -> None:
    served = 0

    async def count(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        nonlocal served
        served += 1
        return request

    async with grpc_server(count) as (_, port):
        sample = await measure(a_load(tmp_path, port))
    assert sample.bad == 0
    assert sample.statuses == {}
    # Calls open at the end are answered, but not counted.
    assert 0 < sample.requests <= served <= sample.requests + 2 * 4
    assert sample.offered == served
    assert Histogram(sample.histogram).total == sample.requests
    assert 0 < sample.p50_ms <= sample.p99_ms <= sample.max_ms < 5_000


async def test_statuses_are_counted_by_name(tmp_path: Path) -> None:
    turn = 0

    async def refuse(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        nonlocal turn
        turn += 1
        if turn % 2:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"turn {turn}")
        return request

    async with grpc_server(refuse) as (_, port):
        sample = await measure(a_load(tmp_path, port))
    assert set(sample.statuses) == {"UNAVAILABLE"}
    assert abs(sample.statuses["UNAVAILABLE"] - sample.requests) <= 2 * 4 + 1
    assert sample.bad == sample.statuses["UNAVAILABLE"]


async def test_an_unknown_method_is_unimplemented(tmp_path: Path) -> None:
    async with grpc_server(echo) as (_, port):
        sample = await measure(a_load(tmp_path, port, path="/test.Service/None"))
    assert set(sample.statuses) == {"UNIMPLEMENTED"}
    assert sample.requests == 0


@pytest.mark.parametrize(
    ("fields", "reply"),
    [
        ({"reply_bytes": 4}, b"hello"),
        ({"check_every": 1, "reply_bytes": 5}, b"other"),
    ],
)
async def test_wrong_answers_are_found(
    tmp_path: Path, fields: dict[str, int], reply: bytes
) -> None:
    async def answer(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
        return reply

    expected = tmp_path / "expected"
    expected.write_bytes(b"hello")
    async with grpc_server(answer) as (_, port):
        sample = await measure(
            a_load(tmp_path, port, expected_reply=str(expected), **fields)
        )
    assert set(sample.statuses) == {"WRONG_ANSWER"}
    assert sample.requests == 0


async def test_messages_larger_than_all_windows_go_both_ways(tmp_path: Path) -> None:
    """40 MB are more than the client's window, and a message more than the server's."""
    message = bytes(range(256)) * 16_000
    expected = tmp_path / "expected"
    expected.write_bytes(message)
    unlimited = (
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    )
    async with grpc_server(echo, options=unlimited) as (_, port):
        sample = await measure(
            a_load(
                tmp_path,
                port,
                message,
                connections=1,
                calls=3,
                seconds=1.5,
                check_every=1,
                expected_reply=str(expected),
            )
        )
    assert sample.bad == 0
    assert sample.requests * len(message) > 40_000_000


async def test_streams_keep_their_messages_outstanding(tmp_path: Path) -> None:
    open_now = most = 0

    async def watch(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        return request

    async with grpc_server(watch) as (_, port):
        sample = await measure(a_load(tmp_path, port, path=STREAM, outstanding=8))
    assert sample.bad == 0
    assert sample.requests > 8 * 8
    assert 1 < most <= 2 * 4


async def test_a_call_of_several_messages_is_one_time(tmp_path: Path) -> None:
    async with grpc_server(echo) as (_, port):
        sample = await measure(a_load(tmp_path, port, path=STREAM, messages=5))
    assert sample.bad == 0
    assert sample.requests == 5 * Histogram(sample.histogram).total > 0


async def test_a_deadline_is_sent_and_enforced(tmp_path: Path) -> None:
    limits: list[float] = []

    async def hang(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        limits.append(context.time_remaining())
        await asyncio.Event().wait()
        return request

    async with grpc_server(hang) as (_, port):
        sample = await measure(
            a_load(tmp_path, port, deadline_ms=50, vary_timeout=True)
        )
    assert sample.requests == sample.good == 0
    assert sample.bad >= 2 * 4 * 4  # the calls come again every 50 ms
    assert set(sample.statuses) <= {"EXPIRED", "DEADLINE_EXCEEDED", "CANCELLED"}
    assert 0 < max(limits) <= 0.05


async def test_streams_that_the_server_resets_are_counted(tmp_path: Path) -> None:
    refused = (7).to_bytes(4, "big")
    async with scripted_server(
        lambda _, stream: (
            frame(3, 0, stream, refused) if stream % 4 == 1 else good(stream)
        )
    ) as port:
        sample = await measure(a_load(tmp_path, port))
    assert set(sample.statuses) == {"UNAVAILABLE"}
    assert abs(sample.statuses["UNAVAILABLE"] - sample.requests) <= 2 * 4 + 1


async def test_goaway_is_obeyed(tmp_path: Path) -> None:
    """Call 5 is the last the server takes: later ones are told apart, none is lost."""

    def leave(_: int, stream: int) -> bytes:
        if stream < 5:
            return good(stream)
        if stream > 5:
            return b""
        last = (5).to_bytes(4, "big") + bytes(4)
        return frame(7, 0, 0, last) + good(stream)

    async with scripted_server(leave) as port:
        sample = await measure(a_load(tmp_path, port, connections=1))
    assert sample.reconnects > 0
    assert sample.requests == pytest.approx(3 * (sample.reconnects + 1), abs=3)
    assert set(sample.statuses) == {"GOAWAY"}


@pytest.mark.parametrize(
    "kind", [{}, {"path": STREAM, "outstanding": 4}], ids=["calls", "streams"]
)
async def test_connections_of_limited_age_fail_no_call(
    tmp_path: Path, kind: dict[str, object]
) -> None:
    limits = (("grpc.max_connection_age_ms", 200),)
    async with grpc_server(echo, options=limits) as (_, port):
        sample = await measure(a_load(tmp_path, port, seconds=1.0, **kind))
    assert sample.reconnects > 0
    assert sample.bad == 0


async def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    async with grpc_server(echo) as (server, port):
        task = asyncio.create_task(measure(a_load(tmp_path, port, seconds=2.0)))
        await asyncio.sleep(0.5)
        await server.stop(None)
    async with grpc_server(echo, port=port):
        sample = await task
    assert sample.reconnects >= 1
    assert sample.requests > 0


async def test_padding_continuation_and_ping_are_understood(tmp_path: Path) -> None:
    def odd(_: int, stream: int) -> bytes:
        trailers = TRAILERS + b"0"
        return (
            frame(6, 0, 0, b"12345678")
            + frame(
                1, 4 | 8 | 32, stream, b"\x02" + bytes(5) + ANSWER_HEADERS + b"\0\0"
            )
            + frame(0, 8, stream, b"\x03" + framed(b"hello") + bytes(3))
            + frame(1, 1, stream, trailers[:4])
            + frame(9, 4, stream, trailers[4:])
        )

    async with scripted_server(odd) as port:
        sample = await measure(a_load(tmp_path, port))
    assert sample.bad == 0
    assert sample.requests > 8


async def test_bytes_that_are_no_header_block_end_the_run(tmp_path: Path) -> None:
    async with scripted_server(lambda _, s: frame(1, 5, s, b"\xff" * 9)) as port:
        with pytest.raises(LoadFailed, match="cannot be decoded"):
            await measure(a_load(tmp_path, port))


@pytest.mark.parametrize(
    "kind",
    [
        {"cancel_share": 0.3, "drop_share": 0.02},
        {"cancel_share": 0.7, "drop_share": 0.3, "path": STREAM, "outstanding": 4},
    ],
    ids=["calls", "streams"],
)
async def test_cancelled_and_dropped_calls_are_no_failures(
    tmp_path: Path, kind: dict[str, object]
) -> None:
    async with grpc_server(echo) as (_, port):
        load = a_load(
            tmp_path,
            port,
            seconds=1.0,
            cancel_within_ms=20,
            seed=3,
            **kind,
        )
        sample = await measure(load)
    assert sample.statuses["CANCELLED_BY_CLIENT"] > 0
    assert sample.statuses["DROPPED_BY_CLIENT"] > 0
    assert set(sample.statuses) == {"CANCELLED_BY_CLIENT", "DROPPED_BY_CLIENT"}
    assert sample.bad == 0
    assert sample.reconnects > 0


async def test_idle_connections_stay_open(tmp_path: Path) -> None:
    async with grpc_server(echo) as (_, port):
        sample = await measure(a_load(tmp_path, port, idle=100))
    assert sample.idle_lost == 0
    assert sample.requests > 0


async def test_nobody_listening_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="is a gRPC server listening there"):
        await measure(a_load(tmp_path, 1))


def test_too_many_connections_for_this_process_are_said() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        allow_files(1000)
        return
    with pytest.raises(LoadFailed, match="raise the hard limit"):
        allow_files(hard + 1)


async def test_an_open_loop_charges_a_stall_to_every_call_that_was_due(
    tmp_path: Path,
) -> None:
    """500 calls per second, and the server holds all answers for 0.4 of a second."""
    gate = asyncio.Event()
    gate.set()

    async def stall(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        await gate.wait()
        return request

    lines = tmp_path / "lines"
    loop = asyncio.get_running_loop()
    async with grpc_server(stall) as (_, port):
        load = a_load(
            tmp_path, port, schedule=((1.5, 400, 400),), seconds=1.5, lines=str(lines)
        )
        loop.call_later(0.6, gate.clear)
        loop.call_later(1.0, gate.set)
        sample = await measure(load)
    assert sample.bad == 0
    assert sample.requests == sample.offered == 600
    # 160 of 600 calls were due during the stall: 80 waited over 0.2 s, 16 over 0.36.
    assert sample.p99_ms > 300
    assert sample.p90_ms > 150
    assert sample.p50_ms < 100
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sum(each["answers"] for each in found) == 600
    assert sum(each["offered"] for each in found) == 600


async def test_calls_beyond_what_may_be_open_are_counted_not_sent(
    tmp_path: Path,
) -> None:
    served = 0

    async def hang(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        nonlocal served
        served += 1
        await asyncio.Event().wait()
        return request

    async with grpc_server(hang) as (_, port):
        load = a_load(
            tmp_path,
            port,
            schedule=((0.5, 200, 200),),
            seconds=0.5,
            max_inflight=10,
            deadline_ms=2000,
        )
        sample: Sample = await measure(load)
    assert sample.offered == 100
    assert served == 10
    assert sample.statuses["OVERFLOW"] == 90
    assert sample.bad == 100

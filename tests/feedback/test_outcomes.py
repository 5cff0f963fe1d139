"""The Outcomes and EventLog services over real sockets, on the embedded log."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import grpc
import pytest
import pytest_asyncio

from gateway.config import Config
from gateway.controller.outcomes import (
    EVENT_LOG,
    MAX_LABELS,
    MAX_REFUSALS,
    OUTCOMES,
    SOCKET,
    OutcomesService,
    start,
)
from gateway.feedback.cloudevents import check_event, decode
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.joiner import Joiner
from gateway.feedback.letters import encode_letter, origin
from gateway.feedback.log import DEAD_LETTERS, LABELS, PREDICTIONS, EventLog
from gateway.feedback.log_file import LogFile
from gateway.feedback.partition import partition_of
from gateway.feedback.types import DeadLetter, Event, Label, Reason, Stored
from gateway.feedback_config import FeedbackConfig
from gateway.protocol import outcomes_pb2 as pb

PARTITIONS = 4
MOST = 64 << 10


@pytest.fixture
def config(tmp_path: Path) -> Config:
    feedback = FeedbackConfig(partitions=PARTITIONS, port=0)
    return Config(state_dir=tmp_path, feedback=feedback)


@pytest_asyncio.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    made = EmbeddedLog(LogFile(tmp_path / "log.sqlite", PARTITIONS))
    yield made
    await made.close()


def not_joining(log: EventLog, config: Config) -> Joiner:
    """Return a joiner that has no partitions."""
    return Joiner(log, config.state_dir / "joins", config.feedback)


@pytest_asyncio.fixture
async def channel(config: Config, log: EventLog) -> AsyncIterator[grpc.aio.Channel]:
    listener = await start(log, not_joining(log, config), config)
    async with grpc.aio.insecure_channel(f"unix:{config.state_dir / SOCKET}") as made:
        yield made
    await listener.stop(1)


def label(n: int = 0, **data: object) -> pb.LabelEvent:
    """Return a label of a prediction of its own."""
    fields = {"prediction_id": str(uuid4()), "text": f"class {n}"} | data
    body = pb.LabelData(**fields)  # type: ignore[arg-type]
    now = time.time_ns() // 1_000_000
    return pb.LabelEvent(id=f"e{n}", source="test", time_ms=now, data=body)


async def report(
    channel: grpc.aio.Channel, labels: list[pb.LabelEvent]
) -> pb.ReportResponse:
    """Call `Report`."""
    call = channel.unary_unary(
        OUTCOMES + "Report",
        pb.ReportRequest.SerializeToString,
        pb.ReportResponse.FromString,
    )
    answer: pb.ReportResponse = await call(pb.ReportRequest(labels=labels))
    return answer


async def stream(
    channel: grpc.aio.Channel, messages: list[list[pb.LabelEvent]]
) -> pb.ReportResponse:
    """Call `ReportStream`."""
    call = channel.stream_unary(
        OUTCOMES + "ReportStream",
        pb.ReportRequest.SerializeToString,
        pb.ReportResponse.FromString,
    )

    async def requests() -> AsyncIterator[pb.ReportRequest]:
        for labels in messages:
            yield pb.ReportRequest(labels=labels)

    answer: pb.ReportResponse = await call(requests())
    return answer


async def stored(log: EventLog, topic: str = LABELS) -> list[Stored]:
    """Return all that the log has of a topic."""
    found: list[Stored] = []
    for partition in range(PARTITIONS):
        found += await log.read(topic, partition, 0, 100_000)
    return found


async def labels_of(log: EventLog) -> list[Label]:
    return [decode(one.event, MOST) for one in await stored(log)]


async def test_what_is_reported_is_in_the_log_where_its_key_belongs(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    sent = [label(n) for n in range(50)]
    assert await report(channel, sent) == pb.ReportResponse(taken=50)
    found = await stored(log)
    assert all(s.partition == partition_of(s.event.key, PARTITIONS) for s in found)
    assert len({s.partition for s in found}) == PARTITIONS
    assert sorted(await labels_of(log)) == sorted(check_event(one) for one in sent)


async def test_every_label_that_is_not_taken_is_named(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    answer = await report(
        channel,
        [
            label(0),
            label(1, number=float("nan")),
            label(2, prediction_id="x"),
            label(3, prediction_id="", model="m", request_id="r"),
            label(4, prediction_id=""),
        ],
    )
    assert (answer.taken, answer.refused) == (1, 4)
    assert [(r.place, r.reason) for r in answer.refusals] == [
        (1, "invalid"),
        (2, "invalid"),
        (3, "invalid"),
        (4, "invalid"),
    ]
    assert all("prediction_id" in one.detail for one in answer.refusals[1:])
    assert "by_request_id is off" in answer.refusals[2].detail
    assert [one.event_id for one in await labels_of(log)] == ["e0"]


async def test_many_labels_hold_up_nobody_else(config: Config, log: EventLog) -> None:
    """Counted is what the thread computes for them: not what else the machine does,
    and not the collector, which goes through all objects of the test run.
    """
    service = OutcomesService(log, not_joining(log, config), config.feedback)
    labels = [label(n) for n in range(MAX_LABELS)]
    labels[::9] = [label(n, prediction_id="broken") for n in range(0, MAX_LABELS, 9)]
    longest = turns = 0.0

    async def watch() -> None:
        nonlocal longest, turns
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, turns, before = max(longest, now - before), turns + 1, now

    request = pb.ReportRequest(labels=labels)
    gc.disable()
    watching = asyncio.get_running_loop().create_task(watch())
    try:
        answer = await service.take(request)
    finally:
        watching.cancel()
        gc.enable()
    assert answer.taken + answer.refused == MAX_LABELS
    assert turns > 10
    assert longest < 0.02
    events = [one.event_id for one in await labels_of(log)]
    assert len(events) == answer.taken


async def test_labels_of_one_prediction_keep_their_order(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    ids = [str(uuid4()) for _ in range(3)]
    sent = [label(n, prediction_id=ids[n % 3], seq=n) for n in range(3000)]
    await report(channel, sent)
    found = await labels_of(log)
    for one in ids:
        seqs = [
            each.seq for each in found if str(UUID(bytes=each.prediction_id)) == one
        ]
        assert len(seqs) == 1000
        assert seqs == sorted(seqs)


async def test_port_0_is_a_free_one_and_said(
    config: Config, log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    listener = await start(log, not_joining(log, config), config)
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    (said,) = [one["address"] for one in fields if "address" in one]
    async with grpc.aio.insecure_channel(said.split(",")[1]) as tcp:
        assert (await report(tcp, [label(0)])).taken == 1
    await listener.stop(1)
    assert not said.endswith(":0")


async def test_a_message_has_a_bound(channel: grpc.aio.Channel, log: EventLog) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=str(MAX_LABELS)) as caught:
        await report(channel, [pb.LabelEvent()] * (MAX_LABELS + 1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await stored(log) == []


async def test_a_stream_takes_many_messages_and_counts_all(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    messages = [[label(m * 10 + n) for n in range(10)] for m in range(1200)]
    for message in messages:
        message[3].data.prediction_id = "broken"
    answer = await stream(channel, messages)
    assert (answer.taken, answer.refused) == (10_800, 1200)
    places = [refusal.place for refusal in answer.refusals]
    assert places == [m * 10 + 3 for m in range(MAX_REFUSALS)]
    ids = {one.event_id for one in await labels_of(log)}
    assert ids == {f"e{n}" for n in range(12_000) if n % 10 != 3}


async def test_an_empty_stream_and_a_bad_message_in_one(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    assert await stream(channel, []) == pb.ReportResponse()
    too_many = [pb.LabelEvent()] * (MAX_LABELS + 1)
    with pytest.raises(grpc.aio.AioRpcError, match=str(MAX_LABELS)):
        await stream(channel, [[label(0)], too_many, [label(1)]])
    assert [one.event_id for one in await labels_of(log)] == ["e0"]


async def read(
    channel: grpc.aio.Channel,
    topic: str,
    partition: int,
    offset: int = 0,
    most: int = 0,
) -> pb.ReadResponse:
    """Call `Read`."""
    call = channel.unary_unary(
        EVENT_LOG + "Read",
        pb.ReadRequest.SerializeToString,
        pb.ReadResponse.FromString,
    )
    request = pb.ReadRequest(topic=topic, partition=partition, offset=offset, most=most)
    answer: pb.ReadResponse = await call(request)
    return answer


async def extents(channel: grpc.aio.Channel, topic: str) -> list[tuple[int, int]]:
    """Call `Extents`."""
    call = channel.unary_unary(
        EVENT_LOG + "Extents",
        pb.ExtentsRequest.SerializeToString,
        pb.ExtentsResponse.FromString,
    )
    answer: pb.ExtentsResponse = await call(pb.ExtentsRequest(topic=topic))
    return [(one.start, one.end) for one in answer.partitions]


async def replay(channel: grpc.aio.Channel, partition: int, *offsets: int) -> int:
    """Call `Replay`."""
    call = channel.unary_unary(
        EVENT_LOG + "Replay",
        pb.ReplayRequest.SerializeToString,
        pb.ReplayResponse.FromString,
    )
    request = pb.ReplayRequest(partition=partition, offsets=offsets)
    answer: pb.ReplayResponse = await call(request)
    return answer.replayed


async def test_the_log_is_read_as_it_lies_there(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    events = [Event(b"", b"%d" % n, (("a", b"\xff"), ("a", b""))) for n in range(5)]
    await log.append(PREDICTIONS, 2, [*events, Event(b"k", None)])
    assert await extents(channel, PREDICTIONS) == [(0, 0), (0, 0), (0, 6), (0, 0)]
    found = (await read(channel, PREDICTIONS, 2, 3, 2)).events
    assert [(one.offset, one.value) for one in found] == [(3, b"3"), (4, b"4")]
    assert [(h.name, h.value) for h in found[0].headers] == [("a", b"\xff"), ("a", b"")]
    last = (await read(channel, PREDICTIONS, 2, 5)).events[0]
    assert last.key == b"k"
    assert not last.HasField("value")
    assert not (await read(channel, PREDICTIONS, 2, 6)).events


async def test_an_answer_is_no_larger_than_a_message(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    await log.append(LABELS, 0, [Event(b"", bytes(1 << 20)) for _ in range(40)])
    offset, calls = 0, 0
    while found := (await read(channel, LABELS, 0, offset)).events:
        assert found[0].offset == offset
        offset, calls = found[-1].offset + 1, calls + 1
    assert offset == 40
    assert calls > 1


@pytest.mark.parametrize(
    ("topic", "partition", "most"),
    [("other", 0, 0), (LABELS, PARTITIONS, 0), (LABELS, -1, 0), (LABELS, 0, 1001)],
)
async def test_places_that_are_not_there(
    channel: grpc.aio.Channel, topic: str, partition: int, most: int
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(channel, topic, partition, 0, most)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_dead_letters_go_back_where_they_came_from(
    channel: grpc.aio.Channel, log: EventLog
) -> None:
    await report(channel, [label(0)])
    (one,) = await stored(log)
    letter = DeadLetter(one, Reason.ORPHAN, "no prediction — in time", 5, 1)
    event = encode_letter(letter)
    await log.append(DEAD_LETTERS, one.partition, [event, Event(b"k", b"x")])
    was = origin(event, PARTITIONS)
    assert was == (
        LABELS,
        one.partition,
        one.offset,
        "orphan",
        letter.detail,
        was.event,
    )
    assert await replay(channel, one.partition, 0, 0) == 1
    assert [s.event[:3] for s in await stored(log)] == [one.event[:3]] * 2
    for offset, text in [(1, "headers"), (9, "labels dlq")]:
        with pytest.raises(grpc.aio.AioRpcError, match=text):
            await replay(channel, one.partition, 0, offset)
    assert len(await stored(log)) == 2  # of a bad call, nothing is replayed

"""What every event log does: the embedded one, and Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.kafka.broker import Cluster
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.kafka import KafkaLog, LogUnfit
from gateway.feedback.log import (
    DEAD_LETTERS,
    LABELS,
    PREDICTIONS,
    Consumer,
    EventLog,
    LogUnavailable,
    Place,
)
from gateway.feedback.log_file import LogFile
from gateway.feedback.types import Event, Stored
from gateway.feedback_config import KafkaConfig

PARTITIONS = 3
PLACE = Place(LABELS, 1)
EVENTS = st.builds(
    Event,
    st.binary(max_size=40),
    st.none() | st.binary(max_size=80),
    st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=3).map(
        tuple
    ),
    st.integers(0, 1 << 41),
)
Open = Callable[[], "asyncio.Future[EventLog]"]


def config_of(cluster: Cluster, **fields: object) -> KafkaConfig:
    """Return the configuration of topics and a group that nobody else has."""
    name = uuid4().hex[:8]
    fields = {"topic_prefix": f"{name}.", "group": name, **fields}
    return KafkaConfig.model_validate(
        {"bootstrap_servers": [cluster.bootstrap], "session_timeout_ms": 6000, **fields}
    )


@pytest.fixture(params=["embedded", "kafka"])
async def log(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[EventLog]:
    made: EventLog
    if request.param == "kafka":
        cluster = request.getfixturevalue("real_kafka")
        made = await KafkaLog.open(config_of(cluster), PARTITIONS)
    else:
        made = EmbeddedLog(LogFile(tmp_path / "log.sqlite", PARTITIONS))
    yield made
    await made.close()


class Reader:
    """A consumer, and what it was told."""

    def __init__(
        self, log: EventLog, starts: Mapping[Place, int] | None = None
    ) -> None:
        self.consumer: Consumer = log.consumer("join")
        self.starts = starts or {}
        self.told: list[tuple[str, list[int]]] = []
        self.partitions: set[int] = set()

    async def __aenter__(self) -> Reader:
        await self.consumer.start(self._assigned, self._revoked)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.consumer.stop()

    async def _assigned(self, partitions: Collection[int]) -> Mapping[Place, int]:
        self.told.append(("assigned", sorted(partitions)))
        self.partitions = set(partitions)
        return self.starts

    async def _revoked(self, partitions: Collection[int]) -> None:
        self.told.append(("revoked", sorted(partitions)))
        self.partitions -= set(partitions)

    async def read(self, count: int, most: int = 1000) -> list[Stored]:
        """Return the next `count` events, or fewer if no more come."""
        found: list[Stored] = []
        async with asyncio.timeout(30):
            while len(found) < count:
                found += await self.consumer.poll(most, 0.5)
        return found


def _values(events: Collection[Stored]) -> list[bytes | None]:
    return [stored.event.value for stored in events]


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batches=st.lists(st.lists(EVENTS, min_size=1, max_size=5), max_size=4))
async def test_events_come_back_as_they_were(
    log: EventLog, batches: list[list[Event]]
) -> None:
    before = (await log.extent(*PLACE)).end
    for batch in batches:
        await log.append(*PLACE, batch)
    wanted = [event for batch in batches for event in batch]
    found = await log.read(*PLACE, before, 1000)
    # Kafka's topics have Kafka's own time; and no key is an empty one.
    assert [stored.event[:3] for stored in found] == [event[:3] for event in wanted]
    assert [s.offset for s in found] == list(range(before, before + len(wanted)))
    assert {(s.topic, s.partition) for s in found} <= {PLACE}
    arrived = [stored.arrived_ms for stored in found]
    assert arrived == sorted(arrived)
    assert await log.extent(*PLACE) == (0, before + len(wanted))


async def test_reading_begins_anywhere_and_ends_at_the_end(log: EventLog) -> None:
    await log.append(*PLACE, [Event(b"k", b"%d" % n) for n in range(2000)])
    await log.append(DEAD_LETTERS, 1, [Event(b"k", b"elsewhere")])
    assert _values(await log.read(*PLACE, 1500, 3)) == [b"1500", b"1501", b"1502"]
    assert _values(await log.read(*PLACE, 1999, 1000)) == [b"1999"]
    assert await log.read(*PLACE, 2000, 1000) == []
    assert await log.read(LABELS, 2, 0, 1000) == []
    assert _values(await log.read(DEAD_LETTERS, 1, 0, 9)) == [b"elsewhere"]
    assert await log.extent(LABELS, 2) == (0, 0)
    assert log.partitions == PARTITIONS


async def test_appends_side_by_side_are_whole_and_in_order(log: EventLog) -> None:
    async def append(writer: int) -> None:
        for turn in range(20):
            numbers = range(turn * 5, turn * 5 + 5)
            events = [Event(b"%d" % writer, b"%d" % number) for number in numbers]
            await log.append(*PLACE, events)

    await asyncio.gather(*(append(writer) for writer in range(8)))
    found = await log.read(*PLACE, 0, 10_000)
    for writer in range(8):
        mine = [s.event.value for s in found if s.event.key == b"%d" % writer]
        assert mine == [b"%d" % number for number in range(100)]


async def test_a_consumer_waits_reads_on_and_begins_where_it_is_told(
    log: EventLog,
) -> None:
    await log.append(*PLACE, [Event(b"", b"%d" % n) for n in range(5)])
    async with Reader(log, {PLACE: 2}) as reader:
        assert _values(await reader.read(2, most=2)) == [b"2", b"3"]
        await reader.consumer.commit({PLACE: 4})
        assert _values(await reader.read(1)) == [b"4"]
        assert list(await reader.consumer.poll(100, 0.01)) == []
        assert not any(reader.consumer.lag().values())
        waiting = asyncio.create_task(reader.read(1))
        await log.append(PREDICTIONS, 2, [Event(b"", b"block")])
        assert [stored.topic for stored in await waiting] == [PREDICTIONS]
    everything = list(range(PARTITIONS))
    assert reader.told == [("assigned", everything), ("revoked", everything)]
    async with Reader(log) as again:
        found = await again.read(2)
        assert sorted(_values(found), key=str) == [b"4", b"block"], "as committed"
    async with Reader(log, {PLACE: 1}) as back:
        found = await back.read(5)
        assert _values([s for s in found if s.topic == LABELS]) == [
            b"1", b"2", b"3", b"4",
        ]  # fmt: skip


async def test_a_position_beyond_the_end_is_the_end(log: EventLog) -> None:
    """A log that lost what it had acknowledged is read on."""
    await log.append(*PLACE, [Event(b"", b"old")])
    async with Reader(log, {PLACE: 1000}) as reader:
        assert list(await reader.consumer.poll(10, 0.2)) == []
        await log.append(*PLACE, [Event(b"", b"new")])
        assert _values(await reader.read(1)) == [b"new"]


async def test_what_fails_in_taking_over_is_tried_again(log: EventLog) -> None:
    """A shard that could not be opened, say, must not be passed over."""
    await log.append(*PLACE, [Event(b"", b"label")])
    reader, fails = Reader(log), [OSError("full")]

    async def assigned(partitions: Collection[int]) -> Mapping[Place, int]:
        if fails:
            raise fails.pop()
        return await reader._assigned(partitions)

    with_failure = False
    try:
        await reader.consumer.start(assigned, reader._revoked)
    except OSError:
        with_failure = True
        await reader.consumer.start(assigned, reader._revoked)
    assert _values(await reader.read(1)) == [b"label"]
    assert not fails
    assert reader.told[0][0] == "assigned"
    assert with_failure == isinstance(log, EmbeddedLog)
    await reader.consumer.stop()


# -- Kafka alone -----------------------------------------------------------------------


async def test_two_members_share_the_partitions(real_kafka: Cluster) -> None:
    """Each partition has one reader at a time, and every event is read."""
    config = config_of(real_kafka)
    log = await KafkaLog.open(config, PARTITIONS)
    sent = 0

    async def send(count: int) -> None:
        nonlocal sent
        for number in range(sent, sent + count):
            event = Event(b"", b"%d" % number)
            await log.append(LABELS, number % PARTITIONS, [event])
        sent += count

    read: dict[bytes, list[int]] = {}

    async def read_on(reader: Reader, name: int) -> None:
        for stored in await reader.consumer.poll(1000, 0.1):
            assert stored.partition in reader.partitions
            read.setdefault(stored.event.value or b"", []).append(name)
            await reader.consumer.commit(
                {Place(stored.topic, stored.partition): stored.offset + 1}
            )

    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(Reader(log))]
        await send(30)
        async with asyncio.timeout(60):
            while len(read) < 30:
                await read_on(readers[0], 0)
            second = Reader(log)
            joining = asyncio.create_task(second.__aenter__())
            while not joining.done() or not second.partitions:
                await read_on(readers[0], 0)
            assert second.partitions.isdisjoint(readers[0].partitions)
            assert second.partitions | readers[0].partitions == {0, 1, 2}
            await send(30)
            while len(read) < 60:
                await asyncio.gather(read_on(readers[0], 0), read_on(second, 1))
            await second.__aexit__()
            while readers[0].partitions != {0, 1, 2}:
                await read_on(readers[0], 0)
            await send(30)
            while len(read) < 90:
                await read_on(readers[0], 0)
    assert {name for names in read.values() for name in names} == {0, 1}
    await log.close()


async def test_a_brokers_kill_9_loses_nothing(real_kafka: Cluster) -> None:
    log = await KafkaLog.open(config_of(real_kafka), PARTITIONS)
    async with Reader(log) as reader:
        await log.append(*PLACE, [Event(b"", b"%d" % n) for n in range(100)])
        assert len(await reader.read(100)) == 100
        real_kafka.kill(1)
        events = [Event(b"", b"%d" % n) for n in range(100, 200)]
        waiting = asyncio.create_task(log.append(*PLACE, events))
        await asyncio.to_thread(real_kafka.start, 1)
        try:
            await waiting
        except LogUnavailable:
            await log.append(*PLACE, events)  # as whoever appends would
        found = set(_values(await reader.read(100)))
        assert found == {b"%d" % n for n in range(100, 200)}
    await log.close()


async def test_topics_of_other_sizes_are_refused(real_kafka: Cluster) -> None:
    config = config_of(real_kafka)
    await (await KafkaLog.open(config, 3)).close()
    with pytest.raises(LogUnfit, match=r"has 3 partitions and feedback.partitions"):
        await KafkaLog.open(config, 4)


async def test_a_kafka_that_is_not_there_is_said_so() -> None:
    config = KafkaConfig(bootstrap_servers=("127.0.0.1:1",))
    with pytest.raises(LogUnavailable, match=r"Kafka at 127\.0\.0\.1:1"):
        await KafkaLog.open(config, 3)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_tls_and_a_user(
    real_kafka: Cluster, tmp_path: Path, mechanism: str
) -> None:
    secured = real_kafka.secured
    password = tmp_path / "password"
    password.write_text(f"{secured.password}\n")
    config = config_of(
        real_kafka,
        bootstrap_servers=[secured.bootstrap],
        security="SASL_SSL",
        ca=secured.ca,
        sasl_mechanism=mechanism,
        username=secured.username,
        password_file=password,
    )
    log = await KafkaLog.open(config, PARTITIONS)
    await log.append(*PLACE, [Event(b"k", b"v")])
    async with Reader(log) as reader:
        assert _values(await reader.read(1)) == [b"v"]
    await log.close()
    password.write_text("wrong")
    with pytest.raises(LogUnavailable):
        await KafkaLog.open(config, PARTITIONS)

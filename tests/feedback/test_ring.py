"""From a front's ring over a real socket into a real log, whatever happens between."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop

from gateway.clock import now_ns
from gateway.feedback import names
from gateway.feedback.blocks import Answer, TensorLayout
from gateway.feedback.columns import decode
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.frames import ACKNOWLEDGED, BLOCK_HEADER, FRAME
from gateway.feedback.log import PREDICTIONS, EventsRefused, LogUnavailable
from gateway.feedback.log_file import LogFile
from gateway.feedback.partition import partition_of
from gateway.feedback.receiver import Receiver
from gateway.feedback.ring import Ring
from gateway.feedback.types import Event, Prediction
from gateway.feedback_config import FeedbackConfig
from gateway.transport.sockets import bind_unix

PARTITIONS = 2


class Chosen(NamedTuple):
    """A choice, as traffic makes it."""

    version: int = 1
    role: str = "champion"
    propensity: float = 1.0
    policy: str = "none"
    revision: int = 0
    snapshot: int = 0


CHOICE = Chosen()
LAYOUT = (TensorLayout("y", "FP32", ()),)


def answer(model: str = "m", request_id: str = "", data: bytes = bytes(4)) -> Answer:
    name = str(uuid.uuid4()).encode()
    context = ("", -1, ())
    named = request_id.encode()
    layout = LAYOUT
    if len(data) != 4:
        layout = (TensorLayout("y", "FP32", (len(data) // 4,)),)
    return Answer(name, model, 7, 8, 1, CHOICE, context, layout, [data], named)


def ring_to(path: Path, config: FeedbackConfig) -> Ring:
    return Ring(config, path, now_ns)


def offer(ring: Ring, answer: Answer) -> None:
    ring.offer(answer.offered(), sum(map(len, answer.outputs)))


def settings(**fields: object) -> FeedbackConfig:
    given = {"enabled": True, "partitions": PARTITIONS, "block_rows": 8, "block_ms": 5}
    return FeedbackConfig.model_validate({**given, **fields})


def open_log(folder: Path) -> EmbeddedLog:
    return EmbeddedLog(LogFile(folder / "log.sqlite", PARTITIONS))


class Held(EmbeddedLog):
    """A log that takes nothing for now."""

    def __init__(self, file: LogFile) -> None:
        super().__init__(file)
        self.open = asyncio.Event()
        self.refuse = False
        self.asked = asyncio.Event()

    async def append(self, topic: str, partition: int, events: Sequence[Event]) -> None:
        self.asked.set()
        if self.refuse:
            self.refuse = False
            raise LogUnavailable("not now")
        await self.open.wait()
        await super().append(topic, partition, events)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - `run` bounds it
        await asyncio.sleep(0.005)


async def logged(log: EmbeddedLog) -> list[Prediction]:
    """Return what the log has, each block once."""
    found: list[Prediction] = []
    seen = set()
    for partition in range(PARTITIONS):
        for stored in await log.read(PREDICTIONS, partition, 0, 10_000):
            mark = dict(stored.event.headers)[BLOCK_HEADER]
            if mark in seen:
                continue
            seen.add(mark)
            decoded = decode(stored.event.value or b"")
            for each in decoded:
                name = str(uuid.UUID(bytes=each.id)).encode()
                assert partition_of(name, PARTITIONS) == partition
            found += decoded
    return found


async def noted(log: EmbeddedLog) -> set[str]:
    """Return the request ids that the log has, each where its labels come."""
    found = set()
    for partition in range(PARTITIONS):
        for stored in await log.read(PREDICTIONS, partition, 0, 10_000):
            for name in names.decode(stored.event.value or b"").names:
                key = "/".join(name.alias).encode()
                assert partition_of(key, PARTITIONS) == partition
                found.add(name.alias.request_id)
    return found


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work()

    uvloop.run(bounded())


def ids(answers: Sequence[Answer]) -> list[bytes]:
    return sorted(uuid.UUID(one.name.decode()).bytes for one in answers)


def test_what_is_offered_is_logged(tmp_path: Path) -> None:
    async def work() -> None:
        log = open_log(tmp_path)
        receiver = Receiver(log)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        assert (tmp_path / "log.sock").stat().st_mode & 0o777 == 0o600
        ring = ring_to(tmp_path / "log.sock", settings())
        given = [answer() for _ in range(101)]
        for one in given:
            offer(ring, one)
        # The last five wait for company, and no longer than they may.
        await until(lambda: ring.counts["offered"] == 101)
        await until(lambda: ring.unacknowledged == 0)
        predictions = await logged(log)
        assert sorted(one.id for one in predictions) == ids(given)
        assert ring.counts["dropped"] == 0
        assert await ring.close(5) == 0
        await receiver.stop()
        await log.close()

    run(work)


def test_closing_sends_what_is_left(tmp_path: Path) -> None:
    async def work() -> None:
        log = open_log(tmp_path)
        receiver = Receiver(log)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        ring = ring_to(tmp_path / "log.sock", settings(block_ms=60_000))
        offer(ring, answer())
        assert await ring.close(10) == 0
        predictions = await logged(log)
        assert len(predictions) == 1
        await receiver.stop()
        await log.close()

    run(work)


def test_a_receiver_that_comes_back_misses_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        held = log = Held(LogFile(tmp_path / "log.sqlite", PARTITIONS))
        path = tmp_path / "log.sock"
        ring = ring_to(path, settings())  # nobody listens yet
        given = [answer() for _ in range(400)]
        for one in given[:100]:
            offer(ring, one)
        first = Receiver(held)
        await first.start(bind_unix(path, private=True))
        await held.asked.wait()  # it has blocks that the log has not
        for one in given[100:200]:
            offer(ring, one)
        stopping = asyncio.ensure_future(first.stop())
        await asyncio.sleep(0)
        held.open.set()
        await stopping
        for one in given[200:300]:
            offer(ring, one)
        second = Receiver(log)
        await second.start(bind_unix(path, private=True))
        for one in given[300:]:
            offer(ring, one)
        await until(lambda: not ring.unacknowledged and ring.counts["offered"] == 400)
        predictions = await logged(log)
        assert sorted(one.id for one in predictions) == ids(given)
        assert ring.counts["resent"] > 0
        assert ring.counts["dropped"] == 0
        await ring.close(5)
        await second.stop()
        await log.close()

    run(work)


def test_a_block_that_comes_again_is_not_appended_again(tmp_path: Path) -> None:
    async def work() -> None:
        log = open_log(tmp_path)
        receiver = Receiver(log)
        path = tmp_path / "log.sock"
        await receiver.start(bind_unix(path, private=True))
        for _ in range(2):  # the acknowledgement was lost, say
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(bytes(16) + FRAME.pack(3, 1, 0) + b"abc")
            assert await reader.readexactly(12) == ACKNOWLEDGED.pack(1, 0)
            writer.close()
        assert receiver.repeated == 1
        assert len(await log.read(PREDICTIONS, 0, 0, 10)) == 1
        await receiver.stop()
        await log.close()

    run(work)


@pytest.mark.parametrize(
    "frame", [FRAME.pack(1 << 31, 1, 0), FRAME.pack(1, 1, PARTITIONS) + b"x"]
)
def test_what_is_no_block_is_hung_up_on(tmp_path: Path, frame: bytes) -> None:
    async def work() -> None:
        log = open_log(tmp_path)
        receiver = Receiver(log)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        path = str(tmp_path / "log.sock")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(bytes(16) + frame)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1)
        writer.close()
        await receiver.stop()
        await log.close()

    run(work)


def test_a_log_that_refuses_is_asked_again(tmp_path: Path) -> None:
    async def work() -> None:
        held = log = Held(LogFile(tmp_path / "log.sqlite", PARTITIONS))
        held.refuse = True
        held.open.set()
        receiver = Receiver(held)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        ring = ring_to(tmp_path / "log.sock", settings())
        given = [answer() for _ in range(8)]
        for one in given:
            offer(ring, one)
        assert await ring.close(10) == 0
        assert not held.refuse
        predictions = await logged(log)
        assert sorted(one.id for one in predictions) == ids(given)
        await receiver.stop()
        await log.close()

    run(work)


class Choosy(EmbeddedLog):
    """A log that will not take large events, and fails on some others."""

    async def append(self, topic: str, partition: int, events: Sequence[Event]) -> None:
        for event in events:
            if len(event.value or b"") > 10_000:
                raise EventsRefused("too large")
            if b"broken" in (event.value or b""):
                raise RuntimeError("broken")
        await super().append(topic, partition, events)


def test_what_the_log_will_never_take_is_counted_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        log = Choosy(LogFile(tmp_path / "log.sqlite", PARTITIONS))
        ring = ring_to(tmp_path / "log.sock", settings(block_ms=60_000))
        refused = [answer(data=bytes(11_000)), answer("broken")]
        for one in (answer(), refused[0], answer(), refused[1], answer()):
            offer(ring, one)
            ring.flush()  # blocks of their own
        receiver = Receiver(log)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        assert await ring.close(10) == 0
        assert ring.counts["refused"] == 2
        assert ring.counts["dropped"] == ring.counts["resent"] == 0
        predictions = await logged(log)
        assert len(predictions) == 3
        assert not {one.id for one in predictions} & set(ids(refused))
        await receiver.stop()
        await log.close()

    run(work)


def test_a_slow_log_costs_memory_up_to_the_bound_and_then_blocks(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        held = log = Held(LogFile(tmp_path / "log.sqlite", PARTITIONS))
        receiver = Receiver(held)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        config = settings(block_rows=16, ring_bytes=200_000)
        ring = ring_to(tmp_path / "log.sock", config)
        given = [answer(data=bytes(1000)) for _ in range(1600)]
        for place, one in enumerate(given):
            offer(ring, one)
            if place % 100 == 0:
                await asyncio.sleep(0)
        ring.flush()
        await held.asked.wait()
        assert ring.counts["offered"] == 1600
        dropped = ring.counts["dropped"]
        assert 0 < dropped < 1600
        assert ring.unacknowledged == 1600 - dropped
        assert ring.counts["bytes"] <= 200_000
        held.open.set()
        assert await ring.close(10) == 0
        predictions = await logged(log)
        assert len(predictions) == 1600 - dropped
        assert {one.id for one in predictions} <= set(ids(given))
        await receiver.stop()
        await log.close()

    run(work)


def test_without_a_receiver_what_is_left_is_counted(tmp_path: Path) -> None:
    async def work() -> None:
        ring = ring_to(tmp_path / "log.sock", settings())
        for _ in range(20):
            offer(ring, answer())
        assert await ring.close(0.05) == 20
        assert ring.counts["dropped"] == 20

    run(work)


def test_outputs_too_large_for_a_block_stay_behind(tmp_path: Path) -> None:
    async def work() -> None:
        log = open_log(tmp_path)
        receiver = Receiver(log)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        ring = ring_to(tmp_path / "log.sock", settings())
        offer(ring, answer(data=bytes(1 << 20)))
        assert await ring.close(10) == 0
        (prediction,) = await logged(log)
        assert prediction.outputs == ()
        assert ring.counts["stripped"] == 1
        await receiver.stop()
        await log.close()

    run(work)


@pytest.mark.parametrize("on", [True, False])
def test_request_ids_are_noted_where_that_is_asked_for(
    tmp_path: Path, *, on: bool
) -> None:
    async def work() -> None:
        log = open_log(tmp_path)
        receiver = Receiver(log)
        await receiver.start(bind_unix(tmp_path / "log.sock", private=True))
        ring = ring_to(tmp_path / "log.sock", settings(by_request_id=on))
        for number in range(40):
            offer(ring, answer(request_id=f"r{number}" if number % 4 else ""))
        assert await ring.close(10) == 0
        assert len(await logged(log)) == 40
        given = {f"r{number}" for number in range(40) if number % 4}
        assert await noted(log) == (given if on else set())
        assert ring.counts["unnamed"] == 0
        await receiver.stop()
        await log.close()

    run(work)


def test_request_ids_that_a_full_ring_does_not_take_are_counted(tmp_path: Path) -> None:
    async def work() -> None:
        config = settings(by_request_id=True, ring_bytes=1, block_rows=20)
        ring = ring_to(tmp_path / "nobody.sock", config)
        for number in range(20):
            offer(ring, answer(request_id=f"r{number}" if number % 4 else ""))
        assert (ring.counts["dropped"], ring.counts["unnamed"]) == (20, 15)
        await ring.close(0)

    run(work)

"""Labels by clients' request ids through a log, with joiners that stop and start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest

from gateway.clock import PredictionIds
from gateway.feedback import cloudevents
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.joiner import Joiner
from gateway.feedback.kafka import KafkaLog
from gateway.feedback.log import LABELS, PREDICTIONS, EventLog, LogUnavailable
from gateway.feedback.log_file import LogFile
from gateway.feedback.names import shared
from gateway.feedback.partition import partition_of
from gateway.feedback.shard import Shard
from gateway.feedback.types import Alias, Event, Label, LabelKind, Outcome
from gateway.feedback_config import FeedbackConfig
from tests.feedback.logged import Chosen, block
from tests.feedback.test_contract import config_of
from tests.feedback.test_joiner import Clock, counts, until

PARTITIONS = 3
COUNT = 30
NAMES = PredictionIds().mint_all(COUNT)


@pytest.fixture(params=["embedded", "kafka"])
async def log(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[EventLog, FeedbackConfig]]:
    given = {
        "partitions": PARTITIONS,
        "by_request_id": True,
        "default": {
            "labels": {"label": {"type": "number"}},
            "window_s": 60,
            "lateness_s": 60,
            "conflict": "sum",
        },
    }
    made: EventLog
    if request.param == "kafka":
        kafka = config_of(request.getfixturevalue("real_kafka"))
        made = await KafkaLog.open(kafka, PARTITIONS)
        given["kafka"] = kafka
    else:
        made = EmbeddedLog(LogFile(tmp_path / "log.sqlite", PARTITIONS))
    NAMES[:] = PredictionIds().mint_all(COUNT)  # they know when they were made
    yield made, FeedbackConfig.model_validate(given)
    await made.close()


def said(number: int, event_id: str, value: float | None) -> Event:
    """Return a label by request id; without a value, all of them are taken back."""
    kind = LabelKind.VALUE if value is not None else LabelKind.WITHDRAWN
    alias = Alias("", "m", f"order-{number}")
    return cloudevents.encode(
        Label(event_id, "test", b"", alias, 0, "label", kind, value, 0, 1, 1.0)
    )


async def send(log: EventLog, events: Sequence[Event]) -> None:
    for event in events:
        where = partition_of(event.key, PARTITIONS)
        await log.append(LABELS, where, [event])


async def predict(log: EventLog, now_ms: int) -> None:
    """Append predictions and their names as a front does."""
    for number, name in enumerate(NAMES):
        value = block([name], now_ms)
        where = partition_of(name, PARTITIONS)
        await log.append(PREDICTIONS, where, [Event(b"", value)])
        answer = (name, "m", 0, 0, 1, Chosen(), ("", -1, ()), (), (),
                  b"order-%d" % number)  # fmt: skip
        for share in shared(answer, PARTITIONS):
            event = Event(b"", share.block)
            await log.append(PREDICTIONS, share.partition, [event])


@asynccontextmanager
async def joining(
    log: EventLog, folder: Path, config: FeedbackConfig, clock: Clock
) -> AsyncIterator[Joiner]:
    joiner = Joiner(log, folder, config, now_ms=clock.now_ms)
    task = asyncio.get_running_loop().create_task(joiner.run())
    try:
        yield joiner
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def rows_in(folder: Path, config: FeedbackConfig) -> dict[bytes, Outcome]:
    found = {}
    for partition in range(PARTITIONS):
        shard = Shard(folder / f"{partition}.sqlite", partition, config)
        for _, row in shard.outcomes(most=1000):
            assert row.sign > 0
            assert row.id not in found
            found[row.id] = row
        shard.close()
    return found


async def test_each_counts_once_though_copies_come_twice(
    log: tuple[EventLog, FeedbackConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first copies are appended, and the joiner fails before it knows."""
    events, config = log
    clock, folder = Clock(), tmp_path / "joins"
    append = events.append
    failures = 0

    async def appended_and_gone(
        topic: str, partition: int, some: Sequence[Event]
    ) -> None:
        nonlocal failures
        await append(topic, partition, some)
        if topic == LABELS and failures < 2:
            failures += 1
            raise LogUnavailable("nobody hears of it")

    # Before their predictions, after them, in parts, and taken back.
    await send(events, [said(n, "one", 1.0) for n in range(0, COUNT, 2)])
    await predict(events, clock.now_ms())
    await send(events, [said(n, "one", 1.0) for n in range(1, COUNT, 2)])
    await send(events, [said(n, "two", 2.0) for n in range(COUNT)])
    await send(events, [said(n, "gone", None) for n in range(0, COUNT, 3)])
    await send(events, [said(n, "new", 5.0) for n in range(0, COUNT, 6)])
    monkeypatch.setattr(events, "append", appended_and_gone)
    async with joining(events, folder, config, clock) as joiner:
        labels = 2 * COUNT + COUNT // 3 + COUNT // 6
        await until(lambda: counts(joiner).get("forwarded") == labels, 30)
        await until(lambda: counts(joiner).get("applied") == labels, 30)
        clock.ahead_ms = 70_000
        await until(_all_rows(joiner), 30)
        dropped = counts(joiner).get("superseded", 0) + counts(joiner)["duplicate"]
        assert dropped > 0  # the copies
    rows = rows_in(folder, config)
    assert len(rows) == COUNT
    for number, name in enumerate(NAMES):
        labels_of = rows[UUID(name.decode()).bytes].labels
        if number % 6 == 0:
            assert labels_of == (("label", 5.0),)
        elif number % 3 == 0:
            assert labels_of == ()
        else:
            assert labels_of == (("label", 3.0),)

    assert failures == 2

    # Joined anew from the log, copies and all, and with more copies made: the same.
    anew = tmp_path / "anew"
    config = _other_group(config)
    async with joining(events, anew, config, clock) as joiner:
        await until(_all_rows(joiner), 30)
        # Those that lie there, and as many that are made of them.
        await until(lambda: _labels_joined(joiner) >= 2 * labels, 30)
    found = rows_in(anew, config)
    assert {k: row.labels for k, row in found.items()} == {
        k: row.labels for k, row in rows.items()
    }


def _all_rows(joiner: Joiner) -> Callable[[], bool]:
    return lambda: sum(r[-1] for r in joiner.health.snapshot()["rows"]) == COUNT


def _labels_joined(joiner: Joiner) -> int:
    known = counts(joiner)
    return sum(known.get(name, 0) for name in ("applied", "duplicate", "superseded"))


def _other_group(config: FeedbackConfig) -> FeedbackConfig:
    if config.kafka is None:
        return config
    kafka = config.kafka.model_copy(update={"group": f"{config.kafka.group}-2"})
    return config.model_copy(update={"kafka": kafka})

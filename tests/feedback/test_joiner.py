"""The joiner on the embedded log: what it does with events of every kind."""

from __future__ import annotations

import asyncio
import sqlite3
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gateway.clock import PredictionIds
from gateway.feedback import cloudevents
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.joiner import Joiner
from gateway.feedback.letters import origin
from gateway.feedback.log import DEAD_LETTERS, LABELS, PREDICTIONS, LogUnavailable
from gateway.feedback.log_file import LogFile
from gateway.feedback.partition import partition_of
from gateway.feedback.shard import Shard
from gateway.feedback.types import Event, Label, LabelKind, Outcome
from gateway.feedback_config import FeedbackConfig
from tests.feedback.logged import block

PARTITIONS = 2
CONFIG = FeedbackConfig.model_validate(
    {
        "partitions": PARTITIONS,
        "default": {
            "labels": {"label": {"type": "number"}},
            "window_s": 60,
            "lateness_s": 60,
        },
    }
)
NAMES = PredictionIds().mint_all(20)
"""Of the predictions of a test; ids know when they were made."""


class Clock:
    """The wall clock, that goes ahead when told to."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


class Running:
    """A log, a joiner on it, and what a test asks of both."""

    def __init__(self, folder: Path, log: EmbeddedLog) -> None:
        self.folder = folder
        self.log = log
        self.clock = Clock()

    @asynccontextmanager
    async def joining(self) -> AsyncIterator[Joiner]:
        joiner = Joiner(
            self.log, self.folder / "joins", CONFIG, now_ms=self.clock.now_ms
        )
        task = asyncio.get_running_loop().create_task(joiner.run())
        try:
            yield joiner
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def predicted(self, names: Sequence[bytes] = NAMES) -> None:
        for name in names:
            where = partition_of(name, PARTITIONS)
            value = block([name], self.clock.now_ms())
            await self.log.append(PREDICTIONS, where, [Event(b"", value)])

    async def labelled(self, *events: Event, partition: int | None = None) -> None:
        for event in events:
            where = partition_of(event.key, PARTITIONS)
            where = where if partition is None else partition
            await self.log.append(LABELS, where, [event])

    async def dead(self) -> list[Any]:
        found: list[Any] = []
        for partition in range(PARTITIONS):
            letters = await self.log.read(DEAD_LETTERS, partition, 0, 100)
            found += [origin(stored.event, PARTITIONS) for stored in letters]
        return found

    def rows(self) -> Iterator[Outcome]:
        """Yield the rows of all shards, which nobody else has open."""
        for partition in range(PARTITIONS):
            path = self.folder / "joins" / f"{partition}.sqlite"
            shard = Shard(path, partition, CONFIG)
            for _, row in shard.outcomes(most=1000):
                yield row
            shard.close()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    NAMES[:] = PredictionIds().mint_all(20)
    log = EmbeddedLog(LogFile(tmp_path / "log.sqlite", PARTITIONS))
    yield Running(tmp_path, log)
    await log.close()


def said(prediction: bytes, value: float, event_id: str = "1", **more: Any) -> Event:
    key = UUID(prediction.decode()).bytes
    label = Label(
        event_id, "test", key, None, 0, "label", LabelKind.VALUE, value, 0, 1, 1.0
    )._replace(**more)
    return cloudevents.encode(label)


async def until(condition: Callable[[], Any], limit_s: float = 20) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - it is no task's to set
            await asyncio.sleep(0.02)


def counts(joiner: Joiner) -> dict[str, int]:
    found: dict[str, int] = joiner.health.snapshot()["counts"]
    return found


async def test_labels_meet_their_predictions_when_the_window_closes(
    running: Running,
) -> None:
    async with running.joining() as joiner:
        await running.labelled(said(NAMES[0], 3.0))  # before its prediction
        await running.predicted()
        await running.labelled(*(said(name, 2.0) for name in NAMES[1:10]))
        await running.labelled(said(NAMES[1], 2.0))  # once more
        await until(lambda: counts(joiner) == {"applied": 10, "duplicate": 1})
        assert joiner.health.snapshot()["rows"] == []
        running.clock.ahead_ms = 66_000
        await until(lambda: joiner.health.snapshot()["rows"])
        await until(lambda: sum(r[-1] for r in joiner.health.snapshot()["rows"]) == 20)
        assert sorted(joiner.health.snapshot()["rows"]) == [
            ["m", 1, "champion", "", "labelled", 10],
            ["m", 1, "champion", "", "missing", 10],
        ]
    rows = {row.id: row for row in running.rows()}
    assert len(rows) == 20
    assert rows[UUID(NAMES[0].decode()).bytes].labels == (("label", 3.0),)
    assert rows[UUID(NAMES[1].decode()).bytes].labels == (("label", 2.0),)
    (output,) = rows[UUID(NAMES[1].decode()).bytes].output
    assert struct.unpack("<f", output.data) == (1.0,)
    assert await running.dead() == []


async def test_what_cannot_be_used_is_a_dead_letter_and_the_rest_goes_on(
    running: Running,
) -> None:
    """Semantics 15 and 19: with where it lay and why."""
    name = NAMES[0]
    where = partition_of(name, PARTITIONS)
    other = 1 - where
    headers = said(name, 1.0).headers
    future = tuple(
        (key, b"baton.label.v9" if key == "ce_type" else value)
        for key, value in headers
    )
    misplaced = said(NAMES[1], 1.0)
    elsewhere = 1 - partition_of(NAMES[1], PARTITIONS)
    async with running.joining() as joiner:
        await running.predicted()
        await running.log.append(PREDICTIONS, other, [Event(b"", b"\xff no block")])
        await running.labelled(
            Event(name, b"{", headers),
            Event(name, said(name, 1.0).value, future),
            said(name, 1.0, name="other"),
            said(name, 1.0, row=7),
            Event(b"no name of a prediction", None),
            said(name, 5.0, "good"),
            partition=where,
        )
        await running.labelled(misplaced, partition=elsewhere)
        await until(lambda: counts(joiner).get("applied") == 1)
        running.clock.ahead_ms = 700_000  # the orphan waits for ten minutes
        await until(lambda: counts(joiner).get("dead_orphan") == 1)
        found = []

        async def all_dead() -> None:
            while len(found) < 7:
                found[:] = await running.dead()
                await asyncio.sleep(0.02)

        await asyncio.wait_for(all_dead(), 20)
    said_of = {(one.topic, one.partition, one.offset): one for one in found}
    assert len(said_of) == 7
    reasons = [said_of[LABELS, where, offset].reason for offset in range(5)]
    assert reasons == [
        "unreadable",
        "unknown_version",
        "unknown_label",
        "no_such_row",
        "invalid",
    ]
    assert said_of[LABELS, where, 0].event.value == b"{"
    orphan = said_of[LABELS, elsewhere, 6 if elsewhere == where else 0]
    assert orphan.reason == "orphan"
    assert "murmur2_random" in orphan.detail
    (block_,) = [one for one in found if one.topic == PREDICTIONS]
    assert (block_.partition, block_.reason) == (other, "unreadable")
    right = [row for row in running.rows() if row.labels]
    assert [row.labels for row in right] == [(("label", 5.0),)]


async def test_what_could_not_be_told_is_told_after_a_restart(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state has it, the log has not: it is appended again, and joined once."""
    append = running.log.append
    refused = asyncio.Event()

    async def full(topic: str, partition: int, events: Sequence[Event]) -> None:
        if topic == DEAD_LETTERS:
            refused.set()
            raise LogUnavailable("no space left")
        await append(topic, partition, events)

    monkeypatch.setattr(running.log, "append", full)
    async with running.joining():
        await running.predicted()
        await running.labelled(
            Event(NAMES[0], b"{", said(NAMES[0], 1.0).headers), said(NAMES[0], 4.0)
        )
        await asyncio.wait_for(refused.wait(), 20)
    monkeypatch.undo()
    assert await running.dead() == []
    async with running.joining() as joiner:
        await until(lambda: counts(joiner).get("applied") == 1)
        running.clock.ahead_ms = 66_000
        await until(lambda: sum(r[-1] for r in joiner.health.snapshot()["rows"]) == 20)
    (dead,) = await running.dead()
    assert dead.reason == "unreadable"
    assert [row.labels for row in running.rows() if row.labels] == [(("label", 4.0),)]


@pytest.mark.parametrize("harm", ["rotten row", "rotten bytes", "lost page"])
async def test_a_file_that_is_found_damaged_at_work_is_made_anew(
    running: Running, harm: str
) -> None:
    """F20: it is not begun with again and again, and every label counts once."""
    async with running.joining() as joiner:
        await running.predicted()
        await running.labelled(*(said(name, 2.0) for name in NAMES[:10]))
        await until(lambda: counts(joiner) == {"applied": 10})
    folder = running.folder / "joins"
    for path in folder.glob("*.sqlite"):
        damage(path, harm)
    async with running.joining() as joiner:
        await running.labelled(*(said(name, 3.0) for name in NAMES[10:]))
        await until(lambda: counts(joiner) == {"applied": 20})
        running.clock.ahead_ms = 66_000
        await until(lambda: sum(r[-1] for r in joiner.health.snapshot()["rows"]) == 20)
    assert len(list(folder.glob("*.damaged-*"))) == PARTITIONS
    labels = [dict(row.labels)["label"] for row in running.rows()]
    assert sorted(labels) == [2.0] * 10 + [3.0] * 10


def damage(path: Path, harm: str) -> None:
    """Harm all requests in a file that was closed."""
    rot = {
        "rotten row": "substr(packed, 2) || x'00'",  # text, where bytes were
        "rotten bytes": "CAST(x'00' || substr(packed, 2) AS BLOB)",
    }
    with closing(sqlite3.connect(path)) as db:
        if harm in rot:
            db.execute(f"UPDATE part_blocks SET packed = {rot[harm]}")
            db.commit()
            return
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'part_blocks'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)

"""The file of the embedded event log: SQLite, owned by one thread of the controller.

An event is a row whose key is its partition and offset, with a checksum over what it
says (`log_rows`). A file that is damaged is set aside, and what can be read of it goes
into a new one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.feedback.log import TOPICS, Extent, LogUnavailable, Place
from gateway.feedback.log_rows import (
    MOST,
    SELECT,
    SHIFT,
    Row,
    is_whole,
    row_of,
    stored_from,
)
from gateway.feedback.salvage import salvaged
from gateway.feedback.types import Event, Stored
from gateway.logs import get_logger

_log = get_logger("event_log")

FOLDER, FILE = "events", "log.sqlite"
"""Where the log is in `state_dir`."""
_APPLICATION = 0x4261746C
"""SQLite's ``application_id``: "Batl"."""
SCHEMA = 1
_SETTINGS = (
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
    "PRAGMA auto_vacuum = INCREMENTAL",
)
_TABLES = (
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY, arrived_ms INTEGER NOT NULL, time_ms INTEGER NOT NULL,
        key BLOB NOT NULL, value BLOB, headers BLOB NOT NULL, crc INTEGER NOT NULL
    )""",
    # The next offset of each partition, since retention may leave no row that says it.
    """CREATE TABLE ends (
        slot INTEGER PRIMARY KEY, following INTEGER NOT NULL,
        arrived_ms INTEGER NOT NULL
    )""",
    "CREATE TABLE layout (partitions INTEGER NOT NULL)",
    """CREATE TABLE commits (
        consumers TEXT NOT NULL, slot INTEGER NOT NULL, following INTEGER NOT NULL,
        PRIMARY KEY (consumers, slot)
    ) WITHOUT ROWID""",
)
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
_EXPIRE = """
    DELETE FROM events WHERE id IN (
        SELECT id FROM events WHERE id >= ? AND id < ? AND arrived_ms < ?
        ORDER BY id LIMIT ?
    )
"""
_STEPS = 20
"""Part of the time that the log spans by which it shrinks when it is too large."""
_MOST_BYTES = 8 << 20
"""Events that are read at once, about."""
_CHUNK = 1000
"""Rows of a partition that retention drops at a time."""


class Limits(NamedTuple):
    """How much is kept.

    Attributes:
        age_ms: Events that are older are dropped.
        nbytes: Of the file; the oldest events are dropped before it grows beyond.
    """

    age_ms: int
    nbytes: int


class Recovered(NamedTuple):
    """What came of a damaged file.

    Attributes:
        aside: Where it lies now.
        events: That could be read.
    """

    aside: Path
    events: int


def _other(partitions: int, wanted: int) -> str:
    return (
        f"the event log has {partitions} partitions and feedback.partitions says "
        f"{wanted}: labels would no longer meet their predictions. Set it back, or "
        "move state_dir/events and state_dir/joins away: what waits for labels is "
        "then forgotten"
    )


def partitions_fault(state_dir: Path, partitions: int) -> str:
    """Return why the log in a folder cannot be used; empty if nothing is known."""
    path = state_dir / FOLDER / FILE
    if not path.exists():
        return ""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        ) as db:
            (found,) = db.execute("SELECT partitions FROM layout").fetchone()
    except (sqlite3.Error, TypeError):  # whoever opens it sees to that
        return ""
    return "" if found == partitions else _other(found, partitions)


class LogFile:
    """The file. Calls block on the disk; one thread at a time.

    All may raise `sqlite3.Error`; `is_damage` says whether `recover` is the way out.

    Args:
        path: Of the file; its folder must be there.
        partitions: Of every topic; has to be what it was made with.
        now_ms: The wall clock.

    Attributes:
        recovered: What was done about a damaged file; ``None`` where none was.
        damaged: Events passed over since their checksums did not match.

    Raises:
        LogUnavailable: It cannot be opened, or was made for other partitions.
    """

    def __init__(
        self,
        path: Path,
        partitions: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._path = path
        self._now_ms = now_ms
        self.partitions = partitions
        self.recovered: Recovered | None = None
        self.damaged = 0
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise LogUnavailable(f"the event log {path.name}: {error}") from error
            self._recover()
        else:
            self._know_ends()

    def _know_ends(self) -> None:
        self._ends: dict[int, int] = {}
        self._last_ms: dict[int, int] = {}
        for slot, following, last_ms in self._db.execute("SELECT * FROM ends"):
            self._ends[slot], self._last_ms[slot] = following, last_ms

    def append(self, batches: Sequence[tuple[Place, Sequence[Event]]]) -> None:
        """Add events in one transaction."""
        ends, last_ms = dict(self._ends), dict(self._last_ms)
        rows: list[Row] = []
        now = self._now_ms()
        for place, events in batches:
            slot = self._slot(place)
            at = ends.get(slot, 0)
            arrived = last_ms[slot] = max(now, last_ms.get(slot, 0))
            for event in events:
                rows.append(row_of(slot << SHIFT | at, arrived, event))
                at += 1
            ends[slot] = at
        marks = [(slot, ends[slot], last_ms[slot]) for slot in ends]
        with _transaction(self._db):
            self._db.executemany(_INSERT, rows)
            self._db.executemany("INSERT OR REPLACE INTO ends VALUES (?, ?, ?)", marks)
        self._ends, self._last_ms = ends, last_ms

    def read(self, place: Place, offset: int, most: int) -> list[Stored]:
        """Return up to `most` events from `offset` on that are whole, not too much."""
        first = self._slot(place) << SHIFT
        found: list[Stored] = []
        nbytes = 0
        while len(found) < most and nbytes < _MOST_BYTES:
            asked = (first + offset, first + MOST, most - len(found))
            rows = []
            for row in self._db.execute(SELECT, asked):
                rows.append(row)
                nbytes += len(row[4] or b"")
                if nbytes >= _MOST_BYTES:
                    break
            for row in rows:
                stored = stored_from(place, row, first)
                if stored is None:
                    self.damaged += 1
                    _log.error("damaged_event", place=place, offset=row[0] - first)
                else:
                    found.append(stored)
            if not rows:
                break
            offset = rows[-1][0] - first + 1
        return found

    def extent(self, place: Place) -> Extent:
        """Return what a partition holds."""
        slot = self._slot(place)
        end = self._ends.get(slot, 0)
        oldest = self._oldest(slot)
        return Extent(end if oldest is None else oldest[0] - (slot << SHIFT), end)

    def ends(self) -> dict[Place, int]:
        """Return the next offset of every partition; also from other threads."""
        return {
            Place(topic, partition): self._ends.get(
                TOPICS.index(topic) * self.partitions + partition, 0
            )
            for topic in TOPICS
            for partition in range(self.partitions)
        }

    def _oldest(self, slot: int) -> tuple[int, int] | None:
        """Return key and time of the first event of a partition."""
        found: tuple[int, int] | None = self._db.execute(
            "SELECT id, arrived_ms FROM events WHERE id >= ? AND id < ? ORDER BY id",
            (slot << SHIFT, (slot + 1) << SHIFT),
        ).fetchone()
        return found

    def _oldest_ms(self, slot: int) -> int | None:
        oldest = self._oldest(slot)
        return None if oldest is None else oldest[1]

    def commit(self, group: str, following: Mapping[Place, int]) -> None:
        """Remember a group's next offsets."""
        rows = [(group, self._slot(place), at) for place, at in following.items()]
        with _transaction(self._db):
            self._db.executemany(
                "INSERT OR REPLACE INTO commits VALUES (?, ?, ?)", rows
            )

    def committed(self, group: str) -> dict[Place, int]:
        """Return a group's next offsets, where it has any."""
        rows = self._db.execute(
            "SELECT slot, following FROM commits WHERE consumers = ?", (group,)
        )
        return {
            Place(TOPICS[slot // self.partitions], slot % self.partitions): following
            for slot, following in rows
        }

    def expire(self, limits: Limits) -> int:
        """Drop some of what is beyond the limits; return how many events.

        Bounded work: call it again for as long as it drops any.
        """
        now = self._now_ms()
        before = now - limits.age_ms
        if self.nbytes() > limits.nbytes:
            # What is oldest goes in every topic alike: labels are worth nothing without
            # the predictions of their time.
            oldest = min(self._oldest_ms(slot) or now for slot in self._ends)
            before = max(before, oldest + max(1, (now - oldest) // _STEPS))
        dropped = 0
        with _transaction(self._db):
            for slot in self._ends:
                first = slot << SHIFT
                asked = (first, first + MOST, before, _CHUNK)
                dropped += self._db.execute(_EXPIRE, asked).rowcount
        self._db.execute("PRAGMA incremental_vacuum").fetchall()
        return dropped

    def nbytes(self) -> int:
        """Return the bytes that events take, without what is free again."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- the file ---------------------------------------------------------------

    def _open(self, path: Path | None = None) -> sqlite3.Connection:
        path = path or self._path
        new = not path.exists()
        unclean = _beside(path, "-wal").exists()  # closing takes it away
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            if new:
                for statement in (*_SETTINGS, "VACUUM"):
                    db.execute(statement)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if not tables:
                with _transaction(db):
                    for statement in _TABLES:
                        db.execute(statement)
                    db.execute("INSERT INTO layout VALUES (?)", (self.partitions,))
            self._check(db, unclean=unclean)
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection, *, unclean: bool) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        if (application, schema) != (_APPLICATION, SCHEMA):
            raise LogUnavailable(
                f"{self._path.name} is not an event log of this release; move it away"
            )
        if unclean:
            (problem,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if problem != "ok":
                raise sqlite3.DatabaseError(f"malformed: {problem}")
        (partitions,) = db.execute("SELECT partitions FROM layout").fetchone()
        if partitions != self.partitions:
            raise LogUnavailable(_other(partitions, self.partitions))

    def recover(self) -> None:
        """Set the file aside and go on with what can be read of it.

        The new file takes the place of the old one in one step, once it is whole.
        """
        self._db.close()
        self._recover()

    def _recover(self) -> None:
        new = self._path.with_suffix(".recovered")
        for suffix in ("", "-wal", "-shm"):
            _beside(new, suffix).unlink(missing_ok=True)
        db = self._open(new)
        events = self._copy_into(db)
        db.close()
        aside = self._path.with_suffix(f".damaged-{self._now_ms()}")
        os.link(self._path, aside)
        for suffix in ("-wal", "-shm"):  # of the old file: no part of the new one
            _beside(self._path, suffix).unlink(missing_ok=True)
        new.replace(self._path)
        self.recovered = Recovered(aside, events)
        _log.error("event_log_was_damaged", kept_at=str(aside), recovered=events)
        self._db = self._open()
        self._know_ends()

    def _copy_into(self, db: sqlite3.Connection) -> int:
        """Copy the events that are whole, in one transaction; return how many."""
        ends: dict[int, tuple[int, int]] = {}
        events = 0
        with _transaction(db):
            for row in salvaged(self._path, len(TOPICS) * self.partitions):
                if not is_whole(row):
                    continue
                slot, offset = row[0] >> SHIFT, row[0] & (MOST - 1)
                db.execute(_INSERT, row)
                ends[slot] = offset + 1, row[1]
                events += 1
            marks = [(slot, *mark) for slot, mark in ends.items()]
            db.executemany("INSERT INTO ends VALUES (?, ?, ?)", marks)
        return events

    def _slot(self, place: Place) -> int:
        return TOPICS.index(place.topic) * self.partitions + place.partition


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _beside(path: Path, suffix: str) -> Path:
    return Path(f"{path}{suffix}")


def is_damage(error: sqlite3.Error) -> bool:
    """Tell a damaged file from a disk that is full or a file that is locked."""
    if isinstance(error, sqlite3.OperationalError):
        return False
    return "malformed" in str(error) or "not a database" in str(error)

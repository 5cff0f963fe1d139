"""The state of the join for one partition: a SQLite file, one transaction per batch.

A transaction holds the state, the next offset of each topic, the outcomes and the
outbox (dead letters to append). The offsets in here are the true ones: after a crash
reading goes on from them, and what was appended from the outbox but not struck off is
appended once more.

Layout: a pending request is one row, ``id -> due, packed``. What requests have in
common (model, version, policy, segments, shapes, ...) is written once, in `heads`, so a
row holds the number of a head, the bytes of the outputs and the labels. `packed` is
Python's marshal of plain values: exact and fast; a file is only read by the release
that wrote it (`SCHEMA`), anything else is set aside and made anew from the log.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gateway.feedback import packing
from gateway.feedback.health import Gauges
from gateway.feedback.join import Effects, Join, WorkingSet
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.types import DeadLetter, Label, Outcome, Prediction, Stored
from gateway.feedback_config import FeedbackConfig
from gateway.logs import get_logger

_log = get_logger("join")

SCHEMA = packing.FORMAT
_APPLICATION = 0x4261746A
"""SQLite's ``application_id``: "Batj"."""
_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE heads (number INTEGER PRIMARY KEY, packed BLOB NOT NULL UNIQUE)",
    """CREATE TABLE pending (
        id BLOB PRIMARY KEY, due_ms INTEGER NOT NULL, packed BLOB NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX pending_due ON pending (due_ms)",
    """CREATE TABLE dangling (
        id BLOB PRIMARY KEY, due_ms INTEGER NOT NULL, packed BLOB NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX dangling_due ON dangling (due_ms)",
    "CREATE TABLE outcomes (number INTEGER PRIMARY KEY AUTOINCREMENT, packed BLOB)",
    "CREATE TABLE outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, packed BLOB)",
)
_DUE = """
    SELECT id FROM (SELECT id, due_ms FROM pending WHERE due_ms < ?1
    UNION ALL SELECT id, due_ms FROM dangling WHERE due_ms < ?1)
    ORDER BY due_ms, id LIMIT ?2
"""
_AT_ONCE = 5000
"""Requests that are closed or forgotten in one transaction."""
Input = tuple[Stored, Sequence[Prediction] | Label | None]
"""An event and what it says; ``None`` where it could not be decoded."""


class Dead(NamedTuple):
    """A dead letter that waits to be appended.

    Attributes:
        number: For `Shard.sent`.
    """

    number: int
    letter: DeadLetter


class Shard:
    """One partition's join. Calls block on the disk; one thread at a time.

    Args:
        path: Of the file; its folder must be there.
        partition: Of both topics.
        config: Of all models.

    Attributes:
        offsets: Next offset to read, by topic; none for a topic never read.
        counts: Labels by what became of them, since offset 0.
    """

    def __init__(self, path: Path, partition: int, config: FeedbackConfig) -> None:
        self._path, self._partition, self._config = path, partition, config
        self.offsets: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._held = 0
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = path.with_suffix(f".damaged-{time.time_ns()}")
            for suffix in ("", "-wal", "-shm"):
                if (beside := Path(f"{path}{suffix}")).exists():
                    beside.rename(f"{aside}{suffix}")
            _log.error("join_was_damaged", partition=partition, kept_at=str(aside))
            self._db = self._open()
        self._load()

    def apply(
        self,
        inputs: Sequence[Input],
        *,
        dead: Sequence[DeadLetter] = (),
        caught_up_ms: Mapping[str, int] | None = None,
    ) -> Sequence[Outcome]:
        """Take in events and move time on, durably, and return the rows that came.

        Events that are in the state already (their offset says so) change nothing.

        Args:
            inputs: In the order of the log within each topic.
            dead: Of events of this batch that could not be decoded.
            caught_up_ms: For a topic read to its end, up to when it is known to hold
                nothing more (the wall clock, held back); leave it out while history
                is replayed.
        """
        offsets, times = dict(self.offsets), dict(self._times)
        fresh = []
        for stored, what in inputs:
            if stored.offset < offsets.get(stored.topic, 0):
                continue
            offsets[stored.topic] = stored.offset + 1
            times[stored.topic] = max(times.get(stored.topic, 0), stored.arrived_ms)
            fresh.append((stored, what))
        for topic, known_ms in (caught_up_ms or {}).items():
            times[topic] = max(times.get(topic, 0), known_ms)
        outcomes: list[Outcome] = []
        if offsets == self.offsets:
            self._times = times  # written with whatever comes next
        else:
            with self._transaction():
                effects = self._events(fresh)
                for letter in dead:
                    if letter.stored.offset >= self.offsets.get(letter.stored.topic, 0):
                        effects.dead.append(letter)
                        effects.counts[f"dead_{letter.reason}"] += 1
                held = self._write_effects(effects)
                self._write_meta(offsets, times, held)
            self.offsets, self._times, self._held = offsets, times, held
            self.counts = self._counts_after(effects)
            outcomes = effects.outcomes
        while more := self._expire():
            outcomes += more.outcomes
        return outcomes

    def outbox(self, most: int = 1000) -> list[Dead]:
        """Return the first dead letters that are not `sent`."""
        rows = self._db.execute("SELECT * FROM outbox ORDER BY number LIMIT ?", (most,))
        return [Dead(number, packing.dead_from(packed)) for number, packed in rows]

    def sent(self, upto: int) -> None:
        """Strike off dead letters up to a number: the log has them."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE number <= ?", (upto,))

    def outcomes(self, after: int = 0, most: int = 1000) -> list[tuple[int, Outcome]]:
        """Return rows that were emitted, with their numbers, from beyond `after`."""
        rows = self._db.execute(
            "SELECT * FROM outcomes WHERE number > ? ORDER BY number LIMIT ?",
            (after, most),
        )
        return [(number, packing.outcome_from(packed)) for number, packed in rows]

    def trim(self, most: int) -> None:
        """Drop rows that were emitted, the oldest first, until `most` are left."""
        (last,) = self._db.execute("SELECT max(number) FROM outcomes").fetchone()
        (first,) = self._db.execute("SELECT min(number) FROM outcomes").fetchone()
        if last is not None and first <= last - most:
            with self._transaction():
                self._db.execute(
                    "DELETE FROM outcomes WHERE number <= ?", (last - most,)
                )

    def gauges(self) -> Gauges:
        """Return what is kept; with millions of requests this takes a moment."""
        (pending,) = self._db.execute("SELECT count(*) FROM pending").fetchone()
        (oldest_ms,) = self._db.execute(
            "SELECT min(due_ms) FROM (SELECT min(due_ms) AS due_ms FROM pending "
            "UNION ALL SELECT min(due_ms) FROM dangling)"
        ).fetchone()
        return Gauges(pending, self._held, oldest_ms or 0)

    def fingerprint(self) -> str:
        """Return a hash of the state: equal after the same events, however cut."""
        digest = hashlib.sha256()
        state = self._state()
        for key in sorted(state.pending):
            digest.update(repr((key, packing.net(state.pending[key]))).encode())
        for key in sorted(state.dangling):
            digest.update(repr((key, state.dangling[key])).encode())
        # How often a row was corrected depends on when it was first emitted.
        counts = {name: n for name, n in self.counts.items() if name != "corrected"}
        digest.update(json.dumps([self.offsets, counts], sort_keys=True).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- a batch ----------------------------------------------------------------

    def _events(self, fresh: Sequence[Input]) -> Effects:
        keys: set[bytes] = set()
        for _, what in fresh:
            if isinstance(what, Label):
                keys.add(what.prediction_id)
            elif what is not None:
                keys.update(prediction.id for prediction in what)
        self._working = self._state(sorted(keys))
        self._join = Join(self._config, self._working)
        for stored, what in fresh:
            if isinstance(what, Label):
                self._join.label(stored, what)
            elif what is not None:
                for prediction in what:
                    self._join.predict(stored.arrived_ms, prediction)
        return self._join.effects

    def _expire(self) -> Effects | None:
        watermark = min(self._times.get(topic, 0) for topic in (PREDICTIONS, LABELS))
        found = self._db.execute(_DUE, (watermark, _AT_ONCE)).fetchall()
        if not found:
            return None
        keys = [key for (key,) in found]
        with self._transaction():
            self._working = self._state(keys)
            # Written back whatever becomes of them: with another configuration than
            # they were written with, they are due later.
            self._working.changed.update(keys)
            self._join = Join(self._config, self._working)
            self._join.advance(watermark, keys)
            effects = self._join.effects
            held = self._write_effects(effects)
            self._write_meta(self.offsets, self._times, held)
        self._held = held
        self.counts = self._counts_after(effects)
        return effects

    def _counts_after(self, effects: Effects) -> dict[str, int]:
        counts = dict(self.counts)
        for name, count in effects.counts.items():
            counts[name] = counts.get(name, 0) + count
        return counts

    def _state(self, keys: Sequence[bytes] | None = None) -> WorkingSet:
        state = WorkingSet(held=self._held)
        for key, packed in self._rows("pending", keys):
            state.pending[key] = packing.pending_from(key, packed, self._heads)
        for key, packed in self._rows("dangling", keys):
            state.dangling[key] = packing.held_from(packed)
        return state

    def _rows(
        self, table: str, keys: Sequence[bytes] | None
    ) -> Iterator[tuple[bytes, bytes]]:
        if keys is None:
            yield from self._db.execute(f"SELECT id, packed FROM {table}")  # noqa: S608
            return
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            yield from self._db.execute(
                f"SELECT id, packed FROM {table} WHERE id IN ({marks})",  # noqa: S608
                some,
            )

    def _write_effects(self, effects: Effects) -> int:
        state, db = self._working, self._db
        changed = sorted(state.changed)
        pending, dangling, gone, done = [], [], [], []
        for key in changed:
            kept = state.pending.get(key)
            if kept is not None:
                packed = packing.pack_pending(kept, self._head)
                pending.append((key, self._join.due_ms(kept), packed))
            else:
                gone.append((key,))
            held = state.dangling.get(key)
            if held:
                due_ms = self._join.waits_until_ms(held[0])
                dangling.append((key, due_ms, packing.pack_held(held)))
            else:
                done.append((key,))
        db.executemany("INSERT OR REPLACE INTO pending VALUES (?, ?, ?)", pending)
        db.executemany("INSERT OR REPLACE INTO dangling VALUES (?, ?, ?)", dangling)
        db.executemany("DELETE FROM pending WHERE id = ?", gone)
        if self._held or state.held:
            db.executemany("DELETE FROM dangling WHERE id = ?", done)
        db.executemany(
            "INSERT INTO outcomes (packed) VALUES (?)",
            [(packing.pack_outcome(row),) for row in effects.outcomes],
        )
        db.executemany(
            "INSERT INTO outbox (packed) VALUES (?)",
            [(packing.pack(letter),) for letter in effects.dead],
        )
        self._counted = self._counts_after(effects)
        return state.held

    def _write_meta(
        self, offsets: Mapping[str, int], times: Mapping[str, int], held: int
    ) -> None:
        rows = {
            "offsets": offsets,
            "times": times,
            "held": held,
            "counts": self._counted,
        }
        self._db.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in rows.items()],
        )

    def _head(self, head: packing.Head) -> int:
        number = self._numbers.get(head)
        if number is None:
            number = len(self._numbers)
            self._db.execute(
                "INSERT INTO heads VALUES (?, ?)", (number, packing.pack(head))
            )
            self._numbers[head] = number
            self._heads[number] = head
        return number

    # -- the file ---------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        unclean = Path(f"{self._path}-wal").exists()  # closing takes it away
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if not tables:
                db.execute("BEGIN IMMEDIATE")
                for statement in _TABLES:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
                db.execute(f"PRAGMA user_version = {SCHEMA}")
                db.execute(
                    "INSERT INTO meta VALUES ('partition', ?)",
                    (json.dumps(self._partition),),
                )
                db.execute("COMMIT")
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (schema,) = db.execute("PRAGMA user_version").fetchone()
            problem = "ok"
            if unclean:
                (problem,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if (application, schema, problem) != (_APPLICATION, SCHEMA, "ok"):
                raise sqlite3.DatabaseError(f"not a join of this release: {problem}")
        except BaseException:
            db.close()
            raise
        return db

    def _load(self) -> None:
        rows = self._db.execute("SELECT name, value FROM meta")
        meta = {name: json.loads(value) for name, value in rows}
        self.offsets = meta.get("offsets", {})
        self._times = meta.get("times", {})
        self.counts = meta.get("counts", {})
        self._held = meta.get("held", 0)
        self._know_heads()

    def _know_heads(self) -> None:
        self._heads: dict[int, packing.Head] = {
            number: packing.head_from(packed)
            for number, packed in self._db.execute("SELECT * FROM heads")
        }
        self._numbers = {head: number for number, head in self._heads.items()}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._know_heads()  # some may have been written in what is undone
            raise

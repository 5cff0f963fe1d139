"""The requests of a partition that are not plain, and labels that wait: tables.

A request is one row. What requests have in common (model, version, policy, segments,
shapes, ...) is written once, in `heads`, so a row holds the numbers of heads and the
bytes of the outputs. Its labels are a column of their own: a label neither reads nor
writes the answers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.feedback import packing
from gateway.feedback.join import Join
from gateway.feedback.pending import WorkingSet
from gateway.feedback.plain import Plain
from gateway.feedback.thinning import Thinning

TABLES = (
    "CREATE TABLE heads (number INTEGER PRIMARY KEY, packed BLOB NOT NULL UNIQUE)",
    """CREATE TABLE pending (
        id BLOB PRIMARY KEY, due_ms INTEGER NOT NULL, head INTEGER NOT NULL,
        time_ms INTEGER NOT NULL, delay_ms INTEGER NOT NULL, flags INTEGER NOT NULL,
        answers BLOB NOT NULL, labels BLOB
    ) WITHOUT ROWID""",
    "CREATE INDEX pending_due ON pending (due_ms)",
    """CREATE TABLE dangling (
        id BLOB PRIMARY KEY, due_ms INTEGER NOT NULL, packed BLOB NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX dangling_due ON dangling (due_ms)",
)
_AT_ONCE = 5000
"""Ids of one statement."""
_HEADS = 4096
"""Heads from which on those that no pending request has are dropped."""


class Requests:
    """Calls are part of the transaction that the caller began.

    Args:
        db: Has `TABLES`.
        plain: Has the other requests, and hands them over.

    Attributes:
        heads: What predictions have in common, by number.
        held: Labels that wait, in the whole partition.
        thinning: Says which requests are let in.
    """

    def __init__(
        self, db: sqlite3.Connection, plain: Plain, held: int, thinning: Thinning
    ) -> None:
        self._db = db
        self._plain = plain
        self.held = held
        self.thinning = thinning
        self._most_heads = _HEADS
        self.forget()

    def forget(self) -> None:
        """Drop what is in memory: the file may say something else."""
        self.heads: dict[int, packing.Head] = {
            number: packing.head_from(packed)
            for number, packed in self._db.execute("SELECT * FROM heads")
        }
        self._numbers = {head: number for number, head in self.heads.items()}

    def waiting(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of some ids that have labels and no prediction."""
        return {row[0] for row in self._rows("dangling", keys)} if self.held else set()

    def due(self, watermark_ms: int, most: int) -> list[bytes]:
        """Return the ids that are due first."""
        tables = ("pending", "dangling") if self.held else ("pending",)
        found = []
        for table in tables:
            found += self._db.execute(
                f"SELECT due_ms, id FROM {table} WHERE due_ms < ? "  # noqa: S608
                "ORDER BY due_ms, id LIMIT ?",
                (watermark_ms, most),
            ).fetchall()
        return [key for _, key in sorted(found)[:most]]

    def due_ms(self) -> int | None:
        """Return when the first is due; ``None`` without any."""
        (oldest_ms,) = self._db.execute(
            "SELECT min(due_ms) FROM (SELECT min(due_ms) AS due_ms FROM pending "
            "UNION ALL SELECT min(due_ms) FROM dangling)"
        ).fetchone()
        return None if oldest_ms is None else int(oldest_ms)

    def count(self) -> int:
        """Return how many requests are in here."""
        (count,) = self._db.execute("SELECT count(*) FROM pending").fetchone()
        return int(count)

    def load(self, keys: Sequence[bytes] | None = None) -> WorkingSet:
        """Return what there is of some ids; without any, all that are not plain."""
        state, self._dues = WorkingSet(held=self.held, thinning=self.thinning), {}
        self._were_plain: set[bytes] = set()
        if keys:
            plain = self._plain.look(keys)
            state.pending.update(plain)
            self._were_plain.update(plain)
        for row in self._rows("pending", keys):
            state.pending[row[0]] = packing.pending_from(row, self.heads)
            self._dues[row[0]] = row[1]
        if self.held:
            for key, _, packed in self._rows("dangling", keys):
                state.dangling[key] = packing.held_from(packed)
        return state

    def _rows(self, table: str, keys: Sequence[bytes] | None) -> Iterable[Any]:
        if keys is None:
            return self._db.execute(f"SELECT * FROM {table}")  # noqa: S608
        rows: list[Any] = []
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows += self._db.execute(
                f"SELECT * FROM {table} WHERE id IN ({marks})",  # noqa: S608
                some,
            ).fetchall()
        return rows

    def write(self, state: WorkingSet, join: Join) -> None:
        """Write down what changed of what was loaded last."""
        self._write_pending(state, join)
        if self.held or state.held:
            self._write_dangling(state, join)
        self.held = state.held

    def _write_pending(self, state: WorkingSet, join: Join) -> None:
        whole, moved, labelled, gone = [], [], [], []
        self._plain.leave(sorted(self._were_plain & state.changed))
        for key in sorted(state.changed):
            kept = state.pending.get(key)
            if kept is None:
                gone.append((key,))
                continue
            due_ms = join.due_ms(kept)
            if key in state.answered or key in self._were_plain:
                whole.append(packing.pack_pending(key, due_ms, kept, self._head))
                continue
            known = (packing.flags_of(kept), packing.pack_labels(kept), key)
            if due_ms == self._dues[key]:
                labelled.append(known)  # and the index stays as it is
            else:
                moved.append((due_ms, *known))
        for statement, rows in (
            ("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?, ?, ?, ?)", whole),
            ("UPDATE pending SET flags = ?, labels = ? WHERE id = ?", labelled),
            ("UPDATE pending SET due_ms = ?, flags = ?, labels = ? WHERE id = ?",
             moved),
            ("DELETE FROM pending WHERE id = ?", gone),
        ):  # fmt: skip
            self._db.executemany(statement, rows)

    def _write_dangling(self, state: WorkingSet, join: Join) -> None:
        waiting, done = [], []
        for key in sorted(state.changed):
            if held := state.dangling.get(key):
                due_ms = join.waits_until_ms(held[0])
                waiting.append((key, due_ms, packing.pack_held(held)))
            else:
                done.append((key,))
        self._db.executemany(
            "INSERT OR REPLACE INTO dangling VALUES (?, ?, ?)", waiting
        )
        self._db.executemany("DELETE FROM dangling WHERE id = ?", done)

    @property
    def has_many_heads(self) -> bool:
        """Whether there are twice as many as were left when some were dropped."""
        return len(self.heads) > self._most_heads

    def _head(self, head: packing.Head) -> int:
        number = self._numbers.get(head)
        if number is None:
            number = max(self.heads, default=0) + 1
            self._db.execute(
                "INSERT INTO heads VALUES (?, ?)", (number, packing.pack(head))
            )
            self._numbers[head] = number
            self.heads[number] = head
        return number

    def drop_heads(self) -> None:
        """Drop those that no request has."""
        used = set()
        for head, answers in self._db.execute("SELECT head, answers FROM pending"):
            used.add(head)
            used.update(packing.heads_in(answers))
        self._db.executemany(
            "DELETE FROM heads WHERE number = ?",
            [(number,) for number in self.heads if number not in used],
        )
        self.forget()
        self._most_heads = max(_HEADS, 2 * len(self.heads))

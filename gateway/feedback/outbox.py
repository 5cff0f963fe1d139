"""What a shard has to append to the log: it waits here until the log has it."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from gateway.feedback import packing
from gateway.feedback.pending import Effects
from gateway.feedback.types import DeadLetter, Event

TABLE = """CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, is_label INTEGER NOT NULL, packed BLOB
)"""


class Dead(NamedTuple):
    """A dead letter that waits to be appended.

    Attributes:
        number: Counts up with everything that waits.
    """

    number: int
    letter: DeadLetter


class Forward(NamedTuple):
    """A label that waits to be appended where its key belongs.

    Attributes:
        number: Counts up with everything that waits.
        event: Of the labels topic.
    """

    number: int
    event: Event


class Outbox:
    """A table of the shard's file. Transactions are the shard's."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def add(self, effects: Effects) -> None:
        """Take in what a batch brought about."""
        rows = [(0, packing.pack(letter)) for letter in effects.dead]
        rows += [(1, packing.pack(event)) for event in effects.forwarded]
        statement = "INSERT INTO outbox (is_label, packed) VALUES (?, ?)"
        self._db.executemany(statement, rows)

    def first(self, most: int) -> list[Dead | Forward]:
        """Return the first of what waits."""
        rows = self._db.execute("SELECT * FROM outbox ORDER BY number LIMIT ?", (most,))
        return [
            Forward(number, packing.event_from(packed))
            if is_label
            else Dead(number, packing.dead_from(packed))
            for number, is_label, packed in rows
        ]

    def strike(self, upto: int) -> None:
        """Strike off what the log has, up to a number."""
        self._db.execute("DELETE FROM outbox WHERE number <= ?", (upto,))

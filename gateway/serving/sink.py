"""Where prediction records go: offered, never awaited. Loop thread only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from gateway.serving.routing import Choice, Context
from gateway.traffic.table import Role


class Record(NamedTuple):
    """A prediction that an arm answered.

    Attributes:
        name: Its id, 36 ASCII characters.
        model: Name the client used.
        admitted_ns: When its request was admitted, monotonic.
        rows: Rows of the request.
        choice: The arm, and how it was chosen.
        context: What of the request took part in the choice.
    """

    name: bytes
    model: str
    admitted_ns: int
    rows: int
    choice: Choice
    context: Context


class Sink(Protocol):
    """Takes records without making anybody wait."""

    def offer(self, record: Record) -> None:
        """Take a record, or drop and count it."""


class MemorySink:
    """Keeps the last records of this process, until there is an event log.

    Args:
        capacity: Records kept; older ones make room and are counted.

    Attributes:
        offered: Records so far.
    """

    def __init__(self, capacity: int) -> None:
        self._records: deque[Record] = deque(maxlen=capacity)
        self.offered = 0

    @property
    def forgotten(self) -> int:
        """Records that made room for later ones."""
        return self.offered - len(self._records)

    def offer(self, record: Record) -> None:
        """Take a record."""
        self.offered += 1
        self._records.append(record)

    def last(self, model: str, count: int) -> Iterator[Record]:
        """Yield the last `count` decisions of a model, the latest first.

        What shadows made of them comes along, before them, and does not count.
        """
        for record in reversed(self._records):
            if not count:
                return
            if record.model == model:
                count -= record.choice.role is not Role.SHADOW
                yield record

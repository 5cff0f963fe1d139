"""What the event log carries. Pure.

Times are Unix milliseconds. `arrived_ms` is when the event log took an event in: it
never goes back within a partition, and it alone decides what came in time, so that a
replay decides the same.
"""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """What is appended to the event log.

    Attributes:
        key: What it is about, and what decided its partition; may be empty.
        value: ``None`` for a tombstone.
        headers: In order; names may repeat.
        time_ms: Given by the producer; 0 for none.
    """

    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    time_ms: int = 0


class Stored(NamedTuple):
    """An event that the log has.

    Attributes:
        offset: Grows within a partition; gaps are what was lost, expired or compacted.
        arrived_ms: When the log took it in; see the module.
        event: As it was appended.
    """

    topic: str
    partition: int
    offset: int
    arrived_ms: int
    event: Event

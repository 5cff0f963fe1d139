"""The event log, as the rest of the gateway sees it: Kafka, or the embedded one.

Three topics with the same number of partitions, so that what belongs together lies in
partitions of one number: predictions, labels, and the dead letters of both. Events of a
partition have offsets that grow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.errors import Code, GatewayError
from gateway.feedback.types import Event, Stored

PREDICTIONS = "predictions"
LABELS = "labels"
DEAD_LETTERS = "dlq"
TOPICS = (PREDICTIONS, LABELS, DEAD_LETTERS)


class LogUnavailable(GatewayError):
    """The event log cannot take or give events now; trying again may help."""

    code = Code.UNAVAILABLE
    label = "log_unavailable"


class EventsRefused(GatewayError):
    """The event log will not take these events, however often they come."""

    code = Code.FAILED_PRECONDITION
    label = "events_refused"


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class Extent(NamedTuple):
    """What a partition holds: offsets from `start` up to, not including, `end`."""

    start: int
    end: int


OnAssigned = Callable[[Collection[int]], Awaitable[Mapping[Place, int]]]
"""Told which partitions came to this consumer; returns where to begin reading, by
place. Those not named go on where the group's last commit was."""
OnRevoked = Callable[[Collection[int]], Awaitable[None]]
"""Told which are taken from it, while it may still commit what it has."""


class Consumer(Protocol):
    """Reads the predictions and labels of its share of the partitions."""

    async def start(self, assigned: OnAssigned, revoked: OnRevoked) -> None:
        """Join the group. Both callbacks run before anything else is read."""

    async def poll(self, most: int, timeout_s: float) -> Sequence[Stored]:
        """Return up to about `most` events, in order within each partition.

        Waits up to `timeout_s` for the first; returns none if nothing came.

        Raises:
            LogUnavailable: The log cannot be read now.
        """

    async def commit(self, following: Mapping[Place, int]) -> None:
        """Say which offset is the next to read, for whoever reads after this one."""

    def lag(self) -> Mapping[Place, int]:
        """Return how many events of each partition are not read yet.

        Partitions of which that is not known yet are left out.
        """

    async def stop(self) -> None:
        """Leave the group."""


class EventLog(Protocol):
    """Takes events and gives them back.

    Attributes:
        partitions: Of every topic.
    """

    partitions: int

    async def append(self, topic: str, partition: int, events: Sequence[Event]) -> None:
        """Add events to the end of a partition; they are durable on return.

        Their `time_ms` may be lost: Kafka's topics have its own time instead.

        Raises:
            EventsRefused: Some are not, and will not be; others may be.
            LogUnavailable: Some or all of them are not.
        """

    async def read(
        self, topic: str, partition: int, offset: int, most: int
    ) -> Sequence[Stored]:
        """Return up to `most` events from `offset` on; none at the end.

        An offset that is no longer held gives the first that is.
        """

    async def extent(self, topic: str, partition: int) -> Extent:
        """Return what a partition holds now."""

    def consumer(self, group: str) -> Consumer:
        """Return a consumer of predictions and labels; see `Consumer.start`."""

    async def close(self) -> None:
        """Let go of files and connections."""

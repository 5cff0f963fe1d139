"""Reading the event log on Kafka, as one of a group.

aiokafka moves partitions in a task of its own, while what was read before is still
being worked on. So every hand-over counts up an epoch, positions are those that were
given to the reader, and what was fetched in an earlier epoch is not given out. Commits
say where others may read on; what is true stands in the reader's own state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

from gateway.feedback.log import (
    LABELS,
    PREDICTIONS,
    LogUnavailable,
    OnAssigned,
    OnRevoked,
    Place,
)
from gateway.feedback.types import Event, Stored
from gateway.feedback_config import KafkaConfig
from gateway.logs import get_logger

_log = get_logger("event_log")

_STOP_S = 10.0
"""How long a consumer may take to leave its group."""


class KafkaConsumer:
    """Reads the predictions and labels of its share of the partitions.

    Args:
        config: Of the brokers.
        access: Arguments of every client.
        group: Whose members share the partitions.

    Attributes:
        restarts: How often it was stuck and made anew.
        failed_commits: Commits that the brokers refused; nothing is lost by that.
        skipped: Offsets that were not there to be read: expired or compacted.
    """

    def __init__(
        self, config: KafkaConfig, access: Mapping[str, Any], group: str
    ) -> None:
        self._config = config
        self._access = access
        self._group = group
        self._names = {config.topic_prefix + t: t for t in (PREDICTIONS, LABELS)}
        self._consumer: AIOKafkaConsumer | None = None
        self._assigned: OnAssigned | None = None
        self._revoked: OnRevoked | None = None
        self._following: dict[Place, int] = {}
        self._owned: set[int] = set()
        self._epoch = 0
        self._settled = False
        self._failure: BaseException | None = None
        self._moved_s = 0.0
        self._last_ms: dict[Place, int] = {}
        self.restarts = 0
        self.failed_commits = 0
        self.skipped = 0

    async def start(self, assigned: OnAssigned, revoked: OnRevoked) -> None:
        """Join the group; see `gateway.feedback.log.Consumer`."""
        self._assigned, self._revoked = assigned, revoked
        await self._join()

    async def _join(self) -> None:
        config = self._config
        consumer = AIOKafkaConsumer(
            **self._access,
            group_id=self._group,
            group_instance_id=config.instance or None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            # Partitions of one number go to one member, and there is no other way to
            # join them.
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=config.session_timeout_ms,
            heartbeat_interval_ms=max(300, config.session_timeout_ms // 5),
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=8 << 20,
        )
        self._consumer = consumer
        self._moved_s = time.monotonic()
        consumer.subscribe(list(self._names), listener=_Listener(self))
        try:
            await consumer.start()
        except KafkaError as error:
            await consumer.stop()
            raise LogUnavailable(f"Kafka: {error or type(error).__name__}") from error

    async def poll(self, most: int, timeout_s: float) -> Sequence[Stored]:
        """Return the next events."""
        consumer = self._the_consumer()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            await self._restart(f"{type(failure).__name__}: {failure}")
            return ()
        epoch = self._epoch
        try:
            found = await consumer.getmany(
                timeout_ms=int(timeout_s * 1000), max_records=most
            )
        except KafkaError as error:
            raise LogUnavailable(f"Kafka: {error or type(error).__name__}") from error
        if epoch != self._epoch or not self._settled:
            # Whatever this was, it is not what follows now. aiokafka also reads while
            # partitions change hands, from where the group was.
            self._seek(consumer, self._following)
            return ()
        events: list[Stored] = []
        for where, records in found.items():
            events += self._taken(where, records)
        now_s = time.monotonic()
        if events or not self._owned:
            self._moved_s = now_s
        elif now_s - self._moved_s > self._config.stuck_after_s:
            await self._look_whether_stuck(consumer)
        return events

    def _taken(
        self, where: TopicPartition, records: Sequence[ConsumerRecord[bytes, bytes]]
    ) -> list[Stored]:
        place = Place(self._names[where.topic], where.partition)
        expected = self._following.get(place, 0)
        self.skipped += max(0, records[0].offset - expected)
        self._following[place] = records[-1].offset + 1
        last_ms = self._last_ms.get(place, 0)
        found = []
        for record in records:
            last_ms = max(last_ms, record.timestamp)
            event = Event(
                record.key or b"",
                record.value,
                tuple(record.headers),
                record.timestamp,
            )
            found.append(Stored(*place, record.offset, last_ms, event))
        self._last_ms[place] = last_ms
        return found

    async def commit(self, following: Mapping[Place, int]) -> None:
        """Say where to read on; a refusal is counted, and harms nothing."""
        prefix = self._config.topic_prefix
        offsets = {
            TopicPartition(prefix + place.topic, place.partition): offset
            for place, offset in following.items()
            if place.partition in self._owned
        }
        if not offsets:
            return
        try:
            await self._the_consumer().commit(offsets)
        except KafkaError as error:  # a rebalance came in between, or no coordinator
            self.failed_commits += 1
            _log.info("commit_refused", reason=type(error).__name__)

    def lag(self) -> Mapping[Place, int]:
        """Return the events of each partition that were not read yet, where known."""
        consumer, prefix = self._the_consumer(), self._config.topic_prefix
        mine = consumer.assignment()
        found = {}
        for place, following in self._following.items():
            where = TopicPartition(prefix + place.topic, place.partition)
            # Before its first fetch nobody knows the end: that is not "nothing left".
            end = consumer.highwater(where) if where in mine else None
            if end is not None:
                found[place] = max(0, end - following)
        return found

    async def stop(self) -> None:
        """Leave the group."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        await self.give_up()
        try:
            async with asyncio.timeout(_STOP_S):
                await consumer.stop()
        except (TimeoutError, KafkaError) as error:
            _log.warning("consumer_left_without_word", reason=type(error).__name__)

    # -- hand-over, in aiokafka's task -------------------------------------------

    async def take(self, places: Sequence[TopicPartition]) -> None:
        """Begin with partitions that are ours now."""
        self._epoch += 1
        self._settled = False
        consumer = self._the_consumer()
        partitions = sorted({place.partition for place in places})
        assert self._assigned is not None
        try:
            starts = await self._assigned(partitions) if partitions else {}
            ends = await consumer.end_offsets(places) if places else {}
            committed = {where: await consumer.committed(where) for where in places}
        except Exception as error:  # aiokafka would log it and go on
            self._failure = error
            consumer.pause(*places)
            return
        self._owned = set(partitions)
        self._following = {}
        for where in places:
            place = Place(self._names[where.topic], where.partition)
            start = starts.get(place, committed[where] or 0)
            if start > ends[where]:  # the brokers lost what they had acknowledged
                _log.error("log_is_shorter", place=place, by=start - ends[where])
            self._following[place] = min(start, ends[where])
        self._seek(consumer, self._following)
        self._epoch += 1
        self._settled = True

    async def give_up(self) -> None:
        """Let go of all partitions; the reader may still commit."""
        self._epoch += 1
        self._settled = False
        owned = sorted(self._owned)
        try:
            if owned and self._revoked is not None:
                await self._revoked(owned)
        except Exception as error:  # likewise
            self._failure = error
        self._owned, self._following = set(), {}

    # -- being stuck -------------------------------------------------------------

    async def _look_whether_stuck(self, consumer: AIOKafkaConsumer) -> None:
        """Make the consumer anew if there is something to read that it does not read.

        aiokafka has been seen to stop for good after a broker's restart
        (aio-libs/aiokafka, issue 1154).
        """
        self._moved_s = time.monotonic()
        prefix = self._config.topic_prefix
        wanted = {
            TopicPartition(prefix + place.topic, place.partition): offset
            for place, offset in self._following.items()
        }
        try:
            async with asyncio.timeout(_STOP_S):
                ends = await consumer.end_offsets(list(wanted))
        except (TimeoutError, KafkaError):
            await self._restart("no answer")
            return
        if any(ends[where] > offset for where, offset in wanted.items()):
            await self._restart("nothing read")

    async def _restart(self, reason: str) -> None:
        self.restarts += 1
        _log.warning("consumer_made_anew", reason=reason)
        await self.stop()
        await self._join()

    def _seek(self, consumer: AIOKafkaConsumer, following: Mapping[Place, int]) -> None:
        mine = consumer.assignment()
        for place, offset in following.items():
            where = TopicPartition(
                self._config.topic_prefix + place.topic, place.partition
            )
            if where in mine:
                consumer.seek(where, offset)

    def _the_consumer(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise LogUnavailable("Kafka: not connected")
        return self._consumer


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes aiokafka's calls on; a consumer that was replaced gets none."""

    def __init__(self, owner: KafkaConsumer) -> None:
        self._owner = owner

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._owner.give_up()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        await self._owner.take(sorted(assigned))

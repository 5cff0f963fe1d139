"""Has what the event log holds joined, each partition by its shard.

A round: events are read; a shard takes its share in one transaction, with the offsets
that follow; its dead letters are appended, and labels that named the prediction by a
client's request id once more by its own; then the log is told where to read on. The
shards' offsets are the true ones. Whatever fails or dies in between, the next start
reads on from them, so that no event counts twice and none is left out. Only what
is appended here may be so twice: dead letters say where their events lie, and a label
that comes again changes nothing.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from gateway.errors import Code, GatewayError
from gateway.feedback import cloudevents, names
from gateway.feedback.columns import BadBlock, Block
from gateway.feedback.emitted import Emitted
from gateway.feedback.health import Health
from gateway.feedback.letters import encode_letter
from gateway.feedback.log import (
    DEAD_LETTERS,
    LABELS,
    PREDICTIONS,
    Consumer,
    EventLog,
    Place,
)
from gateway.feedback.outbox import Dead
from gateway.feedback.partition import partition_of
from gateway.feedback.shard import Input, Shard
from gateway.feedback.shard_file import is_damage, set_aside
from gateway.feedback.types import DeadLetter, Event, Reason, Stored
from gateway.feedback_config import FeedbackConfig
from gateway.logs import get_logger

_log = get_logger("join")

GROUP = "join"
"""Of the consumers on the embedded log; on Kafka, `KafkaConfig.group` is."""
_AT_ONCE = 5000
"""Events of one transaction: more makes none of them cheaper."""
_IDLE_S = 0.5
"""How long a round waits for events: time moves on without them."""
_PACE_S = 0.2
"""Between rounds where there is little to read: each costs a commit per partition, and
the cores are the fronts' and the workers'."""
_HOLD_BACK_MS = 5000
"""A topic read to its end holds nothing older than this, by the clock of the log."""
_LOOK_S = 10.0
"""Between counts of what is pending, which take time where that is much."""
_PAUSES_S = 1.0, 30.0
"""Before it is tried again: at first, and at most."""
_T = TypeVar("_T")


def collect_rarely() -> None:
    """Have this process look for garbage in cycles less often.

    Rows make many tuples and no cycles, and each look goes through all there is: with
    Python's own thresholds that is a tenth of what the join costs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class JoinedElsewhere(GatewayError):
    """A partition that this process does not join, now at least."""

    code: ClassVar[Code] = Code.FAILED_PRECONDITION
    label: ClassVar[str] = "joined_elsewhere"

    def __init__(self, partition: int) -> None:
        super().__init__(
            f"partition {partition} is not joined here: ask the controller that joins "
            "it (which one logs partitions_joined_here), or again in a moment"
        )


class Joiner:
    """Joins the partitions that the log gives to this process.

    Args:
        log: Events are read from it, and dead letters appended.
        folder: Of the shards' files; made if it is missing.
        config: Of all models.
        now_ms: Wall clock, Unix milliseconds.

    Attributes:
        health: What came of labels and predictions.
    """

    def __init__(
        self,
        log: EventLog,
        folder: Path,
        config: FeedbackConfig,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._log = log
        self._folder = folder
        self._config = config
        self._now_ms = now_ms
        self._thread = ThreadPoolExecutor(1, "join")
        self._shards: dict[int, Shard] = {}
        # Held while shards are at work: who takes one away waits for that. Never while
        # the log is read or told anything: that may wait for whoever takes them away.
        self._lock = asyncio.Lock()
        self._committed: dict[Place, int] = {}
        self.health = Health()

    async def run(self) -> None:
        """Join until cancelled; what fails is begun anew, from what shards have."""
        least, pause_s = _PAUSES_S[0], _PAUSES_S[0]
        try:
            while True:
                consumer = self._log.consumer(self._group())
                began = time.monotonic()
                try:
                    await self._consume(consumer)
                except (GatewayError, OSError, sqlite3.Error) as error:
                    reason = getattr(error, "message", str(error))
                    _log.error("join_interrupted", reason=reason, again_in_s=pause_s)
                except Exception:  # else nobody would join until the next start
                    _log.exception("join_failed", again_in_s=pause_s)
                finally:
                    with suppress(GatewayError, OSError):
                        await consumer.stop()
                    await self._close(tuple(self._shards))
                lasted = time.monotonic() - began > _PAUSES_S[1]
                pause_s = least if lasted else pause_s
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSES_S[1])
        finally:
            self._thread.shutdown()

    async def each(self, question: Callable[[Shard], _T]) -> dict[int, _T]:
        """Return what every shard answers, by partition; as `ask`, at once."""
        async with self._lock:
            shards = dict(self._shards)
            return await self._work(lambda: {n: question(s) for n, s in shards.items()})

    async def ask(self, partition: int, question: Callable[[Shard], _T]) -> _T:
        """Return what a shard answers, between two rounds: they wait meanwhile.

        Raises:
            JoinedElsewhere: The partition is another's.
        """
        async with self._lock:
            shard = self._shards.get(partition)
            if shard is None:
                raise JoinedElsewhere(partition)
            return await self._work(partial(question, shard))

    async def _look(self) -> None:
        """Have `health` say what partitions hold now, and drop what none need keep."""
        async with self._lock:
            for partition, shard in sorted(self._shards.items()):
                gauges = await self._at(partition, shard.gauges)
                self.health.holds(partition, gauges)
                await self._at(partition, partial(shard.thin, gauges.pending))
                trim = partial(shard.trim, self._config.max_outcomes)
                await self._at(partition, trim)

    def _group(self) -> str:
        kafka = self._config.kafka
        return GROUP if kafka is None else kafka.group

    async def _consume(self, consumer: Consumer) -> None:
        await consumer.start(self._assigned, self._revoked)
        looked_s = 0.0
        while True:
            if time.monotonic() - looked_s > _LOOK_S:
                await self._look()
                looked_s = time.monotonic()
            events = await consumer.poll(_AT_ONCE, _IDLE_S)
            following = await self._round(events, consumer.lag())
            if following != self._committed:
                await consumer.commit(following)
                self._committed = following
            if 0 < len(events) < _AT_ONCE:
                await asyncio.sleep(_PACE_S)

    async def _round(
        self, events: Sequence[Stored], behind: Mapping[Place, int]
    ) -> dict[Place, int]:
        """Join events and move time on; return what follows by place."""
        lag: Counter[int] = Counter()
        for place, left in behind.items():
            lag[place.partition] += left
        self.health.behind(lag)
        shares: defaultdict[int, list[Stored]] = defaultdict(list)
        for stored in events:
            shares[stored.partition].append(stored)
        until_ms = self._now_ms() - _HOLD_BACK_MS
        following = {}
        async with self._lock:
            for partition, shard in sorted(self._shards.items()):
                caught_up = {
                    topic: until_ms
                    for topic in (PREDICTIONS, LABELS)
                    if behind.get(Place(topic, partition)) == 0
                }
                share = shares.get(partition, ())
                join = partial(self._join, shard, share, caught_up)
                rows = await self._at(partition, join)
                self.health.rows(rows)
                self.health.counted(partition, shard.counts)
                await self._send(partition, shard)
                for topic, offset in shard.offsets.items():
                    following[Place(topic, partition)] = offset
        return following

    def _join(
        self, shard: Shard, events: Sequence[Stored], caught_up_ms: Mapping[str, int]
    ) -> Emitted:
        inputs: list[Input] = []
        dead: list[DeadLetter] = []
        for stored in events:
            try:
                inputs.append(self._decoded(stored))
            except cloudevents.Rejected as error:
                inputs.append((stored, None))
                letter = (error.reason, error.detail, stored.arrived_ms, 1)
                dead.append(DeadLetter(stored, *letter))
        return shard.apply(inputs, dead=dead, caught_up_ms=caught_up_ms)

    def _decoded(self, stored: Stored) -> Input:
        if stored.topic == LABELS:
            label = cloudevents.decode(stored.event, self._config.max_label_bytes)
            return stored, label
        try:
            block = Block(stored.event.value or b"")
            return stored, block if block.count else names.decode(block.value)
        except BadBlock as error:
            raise cloudevents.Rejected(Reason.UNREADABLE, str(error)) from None

    async def _send(self, partition: int, shard: Shard) -> None:
        """Append what a shard has to: dead letters, and labels under another key."""
        while waiting := await self._at(partition, shard.outbox):
            shares: defaultdict[Place, list[Event]] = defaultdict(list)
            for one in waiting:
                if isinstance(one, Dead):
                    place, event = Place(DEAD_LETTERS, partition), self._letter(one)
                else:
                    at = partition_of(one.event.key, self._log.partitions)
                    place, event = Place(LABELS, at), one.event
                shares[place].append(event)
            for place, events in shares.items():
                await self._log.append(*place, events)
            await self._at(partition, partial(shard.sent, waiting[-1].number))

    def _letter(self, dead: Dead) -> Event:
        letter = dead.letter
        stored = letter.stored
        if letter.reason is Reason.ORPHAN:
            belongs = partition_of(stored.event.key, self._log.partitions)
            if belongs != stored.partition:
                detail = (
                    f"its key belongs in partition {belongs}: have the producer use "
                    "Kafka's murmur2 (librdkafka: partitioner=murmur2_random)"
                )
                letter = letter._replace(detail=detail)
        return encode_letter(letter)

    # -- partitions come and go -------------------------------------------------------

    async def _assigned(self, partitions: Collection[int]) -> Mapping[Place, int]:
        """Open the shards of partitions; return where they read on."""
        starts = {}
        async with self._lock:
            for partition in partitions:
                shard = await self._at(partition, partial(self._open, partition))
                self._shards[partition] = shard
                for topic in (PREDICTIONS, LABELS):
                    starts[Place(topic, partition)] = shard.offsets.get(topic, 0)
        _log.info("partitions_joined_here", partitions=sorted(self._shards))
        return starts

    def _open(self, partition: int) -> Shard:
        self._folder.mkdir(parents=True, exist_ok=True)
        return Shard(self._path(partition), partition, self._config)

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition}.sqlite"

    async def _revoked(self, partitions: Collection[int]) -> None:
        async with self._lock:
            await self._close(partitions)

    async def _close(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            shard = self._shards.pop(partition, None)
            if shard is not None:
                self.health.forget(partition)
                await self._work(shard.close)
        self._committed = {}

    async def _at(self, partition: int, work: Callable[[], _T]) -> _T:
        """Have a shard do something; one that is damaged is made anew from the log."""
        try:
            return await self._work(work)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                await self._close((partition,))
                path = self._path(partition)
                await self._work(partial(set_aside, path, partition))
            raise

    async def _work(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work)

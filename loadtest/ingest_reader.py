"""Reads labels from Kafka as a controller does, in a process of its own, and times it.

Started by `loadtest.ingest`: ``python -m loadtest.ingest_reader JOB``, where JOB is a
`Job` as JSON. Prints a `Spent` as JSON once all events were read.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import uvloop

from gateway.feedback import cloudevents
from gateway.feedback.joiner import Joiner
from gateway.feedback.kafka import KafkaLog
from gateway.feedback.log import (
    LABELS,
    Consumer,
    EventLog,
    Extent,
    OnAssigned,
    OnRevoked,
    Place,
)
from gateway.feedback.types import Event, Stored
from gateway.feedback_config import FeedbackConfig
from gateway.logs import configure

_AT_ONCE = 5000
"""As `gateway.feedback.joiner` reads."""


class Job(NamedTuple):
    """What to do.

    Attributes:
        config: A `FeedbackConfig` as JSON.
        folder: Of the shards.
        depth: ``read``, ``decode`` (read and decode) or ``join`` (all there is).
        ends: Offset by topic and partition (``labels/0``) up to which to read.
        core: To stay on.
    """

    config: str
    folder: str
    depth: str
    ends: dict[str, int]
    core: int


class Spent(NamedTuple):
    """What that took.

    Attributes:
        labels: That were read.
        applied: Of these, those that met a prediction.
        cpu_s: Processor time of the whole process, from before it joined the group.
        loop_cpu_s: Of its event loop's thread.
        wall_s: From the first events to the last commit.
        rss_mb: Most memory that was resident.
    """

    labels: int
    applied: int
    cpu_s: float
    loop_cpu_s: float
    wall_s: float
    rss_mb: int


class _Watched:
    """A consumer that knows when all was committed."""

    def __init__(self, inner: Consumer, ends: Mapping[Place, int]) -> None:
        self._inner = inner
        self._left = dict(ends)
        self.began_s = 0.0
        self.labels = 0
        self.done = asyncio.Event()

    async def start(self, assigned: OnAssigned, revoked: OnRevoked) -> None:
        await self._inner.start(assigned, revoked)

    async def poll(self, most: int, timeout_s: float) -> Sequence[Stored]:
        events = await self._inner.poll(most, timeout_s)
        if events and not self.began_s:
            self.began_s = time.perf_counter()
        self.labels += sum(event.topic == LABELS for event in events)
        return events

    async def commit(self, following: Mapping[Place, int]) -> None:
        await self._inner.commit(following)
        self.reached(following)

    def reached(self, following: Mapping[Place, int]) -> None:
        for place, offset in following.items():
            if offset >= self._left.get(place, offset + 1):
                del self._left[place]
        if not self._left:
            self.done.set()

    def lag(self) -> Mapping[Place, int]:
        return self._inner.lag()

    async def stop(self) -> None:
        await self._inner.stop()


class _WatchedLog:
    """An event log whose one consumer is watched."""

    def __init__(self, inner: EventLog, ends: Mapping[Place, int]) -> None:
        self._inner = inner
        self._ends = ends
        self.partitions = inner.partitions
        self.watched: asyncio.Future[_Watched] = asyncio.Future()

    def consumer(self, group: str) -> _Watched:
        made = _Watched(self._inner.consumer(group), self._ends)
        self.watched.set_result(made)
        return made

    async def append(self, topic: str, partition: int, events: Sequence[Event]) -> None:
        await self._inner.append(topic, partition, events)

    async def read(
        self, topic: str, partition: int, offset: int, most: int
    ) -> Sequence[Stored]:
        return await self._inner.read(topic, partition, offset, most)

    async def extent(self, topic: str, partition: int) -> Extent:
        return await self._inner.extent(topic, partition)

    async def close(self) -> None:
        await self._inner.close()


async def _read(watched: _Watched, config: FeedbackConfig, *, decode: bool) -> None:
    """Read labels to the end, as the joiner does, and do no more than decode them."""

    async def assigned(partitions: Collection[int]) -> Mapping[Place, int]:
        return {Place(LABELS, partition): 0 for partition in partitions}

    async def revoked(partitions: Collection[int]) -> None:
        pass

    await watched.start(assigned, revoked)
    most = config.max_label_bytes
    while not watched.done.is_set():
        events = await watched.poll(_AT_ONCE, 0.5)
        if decode:
            for stored in events:
                if stored.topic == LABELS:
                    cloudevents.decode(stored.event, most)
        last = {(event.topic, event.partition): event.offset for event in events}
        watched.reached({Place(*where): offset + 1 for where, offset in last.items()})
    await watched.stop()


async def _run(job: Job) -> Spent:
    config = FeedbackConfig.model_validate_json(job.config)
    assert config.kafka is not None
    log = await KafkaLog.open(config.kafka, config.partitions)
    ends = {}
    for name, end in job.ends.items():
        topic, _, partition = name.partition("/")
        ends[Place(topic, int(partition))] = end
    watching = _WatchedLog(log, ends)
    cpu_s, loop_s, applied = time.process_time(), time.thread_time(), 0
    if job.depth == "join":
        joiner = Joiner(watching, Path(job.folder), config)
        joining = asyncio.create_task(joiner.run())
        watched = await watching.watched
        await watched.done.wait()
        applied = joiner.health.snapshot()["counts"].get("applied", 0)
    else:
        watched = watching.consumer(job.depth)
        await _read(watched, config, decode=job.depth == "decode")
    wall_s = time.perf_counter() - watched.began_s
    cpu_s, loop_s = time.process_time() - cpu_s, time.thread_time() - loop_s
    if job.depth == "join":
        joining.cancel()
        await asyncio.wait((joining,))
    await log.close()
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return Spent(watched.labels, applied, cpu_s, loop_s, wall_s, rss_mb)


def main() -> None:
    """Do the job of the command line."""
    configure("warning", "text", "reader")
    job = Job(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, {job.core})
    print(json.dumps(uvloop.run(_run(job))._asdict()))


if __name__ == "__main__":
    main()

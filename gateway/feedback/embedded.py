"""The event log without another server: a `LogFile`, for one event loop.

Appends that come while one is written share the next transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from gateway.feedback.log import (
    LABELS,
    PREDICTIONS,
    Extent,
    LogUnavailable,
    OnAssigned,
    OnRevoked,
    Place,
)
from gateway.feedback.log_file import LogFile, is_damage
from gateway.feedback.types import Event, Stored
from gateway.logs import get_logger

_log = get_logger("event_log")

_MAX_WAITING = 64 << 20
"""Bytes of appends that may wait for the disk."""
_T = TypeVar("_T")


class EmbeddedLog:
    """The event log on one `LogFile`, for one event loop.

    Args:
        file: Belongs to this from now on.
    """

    def __init__(self, file: LogFile) -> None:
        self.file = file
        self.partitions = file.partitions
        self.grown = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "event-log")
        self._waiting: list[_Append] = []
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, from the thread that the file belongs to.

        Raises:
            LogUnavailable: SQLite refused. A file that turns out to be damaged is
                recovered first, so that trying again helps.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            if is_damage(error):
                await loop.run_in_executor(self._thread, self.file.recover)
            raise LogUnavailable(
                f"the event log cannot be used: {error}; free space in state_dir or "
                "make it writable"
            ) from error

    async def append(self, topic: str, partition: int, events: Sequence[Event]) -> None:
        """Add events; see `gateway.feedback.log.EventLog`."""
        nbytes = sum(len(event.value or b"") for event in events)
        if self._waiting and self._waiting_bytes + nbytes > _MAX_WAITING:
            raise LogUnavailable("the event log is slower than what it is to take")
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._waiting.append(_Append(Place(topic, partition), events, done))
        self._waiting_bytes += nbytes
        if self._writer is None:
            self._writer = loop.create_task(self._write())
        await done

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            rows = [(one.place, one.events) for one in batch]
            failure: LogUnavailable | None = None
            try:
                await self.run(partial(self.file.append, rows))
            except LogUnavailable as error:
                failure = error
            except Exception:  # the edge: those who wait must hear of it
                _log.exception("append_failed")
                failure = LogUnavailable("the event log failed; its log says why")
            for one in batch:
                if one.done.done():
                    continue  # who waited went away
                if failure is None:
                    one.done.set_result(None)
                else:
                    one.done.set_exception(failure)
            self.grown.set()
        self._writer = None

    async def read(
        self, topic: str, partition: int, offset: int, most: int
    ) -> Sequence[Stored]:
        """Return events from `offset` on."""
        place = Place(topic, partition)
        return await self.run(lambda: self.file.read(place, offset, most))

    async def extent(self, topic: str, partition: int) -> Extent:
        """Return what a partition holds now."""
        return await self.run(lambda: self.file.extent(Place(topic, partition)))

    def consumer(self, group: str) -> EmbeddedConsumer:
        """Return a consumer; the log has one process, so it gets all partitions."""
        return EmbeddedConsumer(self, group)

    async def close(self) -> None:
        """Write what waits, and close the file."""
        if self._writer is not None:
            await self._writer
        await self.run(self.file.close)
        self._thread.shutdown()


class _Append(NamedTuple):
    place: Place
    events: Sequence[Event]
    done: asyncio.Future[None]


class EmbeddedConsumer:
    """Reads predictions and labels of all partitions; see `Consumer`."""

    def __init__(self, log: EmbeddedLog, group: str) -> None:
        self._log = log
        self._group = group
        self._following: dict[Place, int] = {}
        self._revoked: OnRevoked | None = None

    async def start(self, assigned: OnAssigned, revoked: OnRevoked) -> None:
        """Get every partition."""
        log = self._log
        self._revoked = revoked
        partitions = range(log.partitions)
        self._following = {
            Place(topic, partition): 0
            for topic in (PREDICTIONS, LABELS)
            for partition in partitions
        }
        self._following |= await log.run(lambda: log.file.committed(self._group))
        self._following |= await assigned(partitions)
        ends = log.file.ends()
        for place, following in self._following.items():
            if following > ends[place]:  # a damaged log lost its end
                _log.error("log_is_shorter", place=place, by=following - ends[place])
                self._following[place] = ends[place]

    async def poll(self, most: int, timeout_s: float) -> Sequence[Stored]:
        """Return the next events."""
        found = await self._read(most)
        if not found and timeout_s > 0:
            self._log.grown.clear()
            if not any(self.lag().values()):
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._log.grown.wait()
                except TimeoutError:
                    return ()
            found = await self._read(most)
        return found

    async def _read(self, most: int) -> list[Stored]:
        ends = self._log.file.ends()
        behind = [place for place, lag in self.lag().items() if lag]
        each = max(1, most // max(1, len(behind)))
        found: list[Stored] = []
        following: dict[Place, int] = {}
        for place in behind:
            events = await self._log.read(*place, self._following[place], each)
            # None are left where all up to that end is damaged or was dropped.
            following[place] = events[-1].offset + 1 if events else ends[place]
            found += events
        self._following |= following  # all of them or, if reading failed, none
        return found

    async def commit(self, following: Mapping[Place, int]) -> None:
        """Remember the next offsets."""
        await self._log.run(lambda: self._log.file.commit(self._group, following))

    def lag(self) -> Mapping[Place, int]:
        """Return the events of each partition that were not read yet."""
        ends = self._log.file.ends()
        return {p: ends[p] - following for p, following in self._following.items()}

    async def stop(self) -> None:
        """Give the partitions back."""
        if self._revoked is not None:
            await self._revoked(range(self._log.partitions))
            self._revoked = None

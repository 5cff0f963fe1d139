"""One front's connection to one worker: credits, slots, and the watchdog."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from gateway.catalogue import WorkerEntry
from gateway.logs import get_logger
from gateway.serving.batching import Batch, CloseReason
from gateway.serving.dispatch import Dispatcher
from gateway.serving.queues import VersionQueue
from workers import wire
from workers.arena import Arena
from workers.plain import plain_run, plain_tensor, result_head
from workers.wire import (
    CREDITS,
    Failure,
    FrameReader,
    Kind,
    Result,
    Run,
    WireTensor,
)

_log = get_logger("link")

_SECOND_LOOK_S = 0.01
"""Between the watchdog's first suspicion and its verdict."""
_JOIN_BYTES = 1 << 16
"""Frames up to this size are joined into one write; larger ones are not copied."""


@dataclass(slots=True)
class Outstanding:
    """A batch at the worker, the slot it holds, and since when."""

    queue: VersionQueue
    batch: Batch
    slot: int


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What links of a front share.

    Attributes:
        slot_bytes: Size of an arena slot; 0 for no shared memory.
        arena_min_bytes: Smallest batch that travels through the arena.
        hang_timeout_ns: Least time without an answer that counts as a hang.
        fronts: Fronts that share the worker, whose batches may run before ours.
    """

    slot_bytes: int
    arena_min_bytes: int
    hang_timeout_ns: int
    fronts: int


class WorkerLink(asyncio.Protocol):
    """A worker as the dispatcher sees it. Loop thread only.

    Args:
        worker: The worker, from the catalogue.
        dispatcher: Gets every outcome.
        settings: See `LinkSettings`.
        now_ns: Monotonic clock.
        on_lost: Called once when the connection is gone.
        on_hang: Called when the worker must be killed.
    """

    def __init__(
        self,
        worker: WorkerEntry,
        dispatcher: Dispatcher,
        settings: LinkSettings,
        *,
        now_ns: Callable[[], int],
        on_lost: Callable[[WorkerLink], None],
        on_hang: Callable[[WorkerLink], None],
    ) -> None:
        self.worker = worker
        self.handles = worker.handles
        self.shadow = worker.shadow
        self._dispatcher = dispatcher
        self._settings = settings
        self._now = now_ns
        self._on_lost = on_lost
        self._on_hang = on_hang
        self._reader = FrameReader()
        self._outstanding: dict[int, Outstanding] = {}
        self._slots = list(range(CREDITS))
        self._next_id = 1
        self._paused = False
        self._progress_ns = 0
        self._suspected_ns = 0
        self._watchdog: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._arena: Arena | None = None

    async def connect(self) -> None:
        """Connect, hand over the arena, and become a port of the dispatcher.

        Raises:
            OSError: The worker is not there.
        """
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, self.worker.path)
            if self._settings.slot_bytes:
                self._arena = Arena.create(self._settings.slot_bytes)
            hello = wire.encode_frame(Kind.HELLO, 0)
            fds = [self._arena.fd] if self._arena else []
            socket.send_fds(sock, [hello], fds)
            await loop.create_connection(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            if self._arena is not None:
                self._arena.close()
            raise

    def close(self) -> None:
        """Close the connection; what is outstanding counts as lost."""
        if self._transport is not None:
            self._transport.abort()

    # -- port of the dispatcher -------------------------------------------------

    @property
    def credits(self) -> int:
        """Batches the worker takes now."""
        if self._transport is None or self._paused:
            return 0
        return len(self._slots)

    def send(self, queue: VersionQueue, batch: Batch) -> None:
        """Send a batch; takes a credit."""
        assert self._transport is not None
        slot = self._slots.pop()
        id_ = self._next_id
        self._next_id += 1
        alone = batch.reason is CloseReason.RETRY and any(
            pending.attempts for pending in batch.requests
        )
        first = batch.requests[0].inputs
        if (
            len(first) == 1
            and not (alone or first[0][0])
            and queue.spec.max_batch_rows
            and batch.nbytes <= _JOIN_BYTES
            and (self._arena is None or batch.nbytes < self._settings.arena_min_bytes)
        ):  # the usual batch
            dims = (batch.rows, *first[0][1][1:])
            pieces = [pending.inputs[0][2] for pending in batch.requests]
            handle = queue.entry.handle
            data = plain_run(id_, handle, slot, dims, pieces, nbytes=batch.nbytes)
            self._sent(id_, Outstanding(queue, batch, slot))
            self._transport.write(data)
            return
        tensors = _tensors(queue, batch)
        run = Run(id_, queue.entry.handle, batch.rows, slot, tensors, alone)
        arena = None
        if self._arena is not None and batch.nbytes >= self._settings.arena_min_bytes:
            arena = self._arena.requests[slot]
        buffers = wire.encode_run(run, arena)
        self._sent(id_, Outstanding(queue, batch, slot))
        size = sum(len(buffer) for buffer in buffers)
        if size <= _JOIN_BYTES:
            self._transport.write(b"".join(buffers))
        else:
            self._transport.writelines(buffers)

    def _sent(self, id_: int, item: Outstanding) -> None:
        if not self._outstanding:
            self._progress_ns = self._now()
            if self._watchdog is None:
                self._watch()
        self._outstanding[id_] = item

    # -- asyncio.Protocol -------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the dispatcher's ports."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._dispatcher.ports.append(self)
        self._dispatcher.port_changed()

    def data_received(self, data: bytes) -> None:
        """Take frames from the worker."""
        if self._reader.empty and self._take_plain(data):
            return
        try:
            for frame in self._reader.feed(data):
                self._on_frame(frame)
        except wire.WireError as error:
            _log.error("worker_frame", worker=self.worker.index, reason=str(error))
            self.close()

    def _take_plain(self, data: bytes) -> bool:
        """Take what is the usual answer and nothing else."""
        plain = plain_tensor(data, Kind.RESULT, wire.RESULT_HEAD.size)
        item = None if plain is None else self._outstanding.pop(plain[0], None)
        if plain is None or item is None:
            return False
        id_, index, dims, begin, end = plain
        self._progress_ns = self._now()
        tensor = WireTensor(index, dims, (memoryview(data)[begin:end],))
        result = Result(id_, *result_head(data), [tensor])
        self._dispatcher.batch_done(item.queue, item.batch, result)
        self._slots.append(item.slot)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Give every outstanding batch back, saying which may have been running."""
        self._transport = None
        if self in self._dispatcher.ports:
            self._dispatcher.ports.remove(self)
        if self._watchdog is not None:
            self._watchdog.cancel()
        outstanding = tuple(self._outstanding.items())
        self._outstanding.clear()
        for position, (id_, item) in enumerate(outstanding):
            # Another front's batch may have run before all of ours: only the worker
            # knows. Where it cannot tell us, the oldest is suspected.
            ran = position == 0
            if self._arena is not None:
                ran = self._arena.started[item.slot] == id_
            self._dispatcher.batch_lost(item.queue, item.batch, ran=ran)
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        self._on_lost(self)

    def _on_frame(self, frame: wire.Frame) -> None:
        if frame.kind == Kind.PAUSE:
            self._paused = True
        elif frame.kind == Kind.RESUME:
            self._paused = False
            self._progress_ns = self._now()
            self._dispatcher.port_changed()
        else:
            item = self._outstanding.get(frame.id)
            if item is None:
                raise wire.WireError(f"an answer to batch {frame.id}, which is not out")
            self._progress_ns = self._now()
            if frame.kind == Kind.RESULT:
                arena = self._arena.responses[item.slot] if self._arena else None
                result = wire.decode_result(frame, arena)
                del self._outstanding[frame.id]  # once read: a broken answer is a loss
                self._dispatcher.batch_done(item.queue, item.batch, result)
            else:
                reason = bytes(frame.body).decode(errors="replace")
                failure = _failure(frame.flags)
                del self._outstanding[frame.id]
                self._dispatcher.batch_failed(item.queue, item.batch, failure, reason)
            self._slots.append(item.slot)

    # -- watchdog ---------------------------------------------------------------

    def _limit_ns(self) -> int:
        """Return how long without an answer is a hang.

        Batches of every front may run before ours, each as slow as the slowest
        seen; four times that again is slack for a noisy machine.
        """
        slowest = self._dispatcher.slowest_run_ns()
        before = CREDITS * self._settings.fronts
        return self._settings.hang_timeout_ns + (4 + before) * slowest

    def _watch(self) -> None:
        if self._watchdog is not None:
            return
        loop = asyncio.get_running_loop()
        due = (self._progress_ns + self._limit_ns()) / 1e9
        self._watchdog = loop.call_at(due, self._check)

    def _check(self) -> None:
        """Judge the worker, unless this process was itself held up.

        Timers that are due run before sockets are read: an overdue first look says
        nothing until what may lie in the socket has been read, so look twice.
        """
        self._watchdog = None
        if not self._outstanding:
            return
        if not self._paused and self._now() - self._progress_ns >= self._limit_ns():
            if self._suspected_ns != self._progress_ns:
                self._suspected_ns = self._progress_ns
                loop = asyncio.get_running_loop()
                self._watchdog = loop.call_later(_SECOND_LOOK_S, self._check)
                return
            _log.error("worker_hangs", worker=self.worker.index, pid=self.worker.pid)
            self._on_hang(self)
            self.close()
            return
        if self._paused:
            self._progress_ns = self._now()
        self._watch()


def _failure(code: int) -> Failure:
    try:
        return Failure(code)
    except ValueError:
        raise wire.WireError(f"a failure of unknown kind {code}") from None


def _tensors(queue: VersionQueue, batch: Batch) -> list[WireTensor]:
    """Lay the rows of all requests one after the other, input by input."""
    first = batch.requests[0]
    batches = queue.spec.max_batch_rows > 0
    tensors = []
    for position, (index, dims, data) in enumerate(first.inputs):
        if len(batch.requests) == 1:
            tensors.append(WireTensor(index, dims, (data,)))
            continue
        assert batches
        pieces = [pending.inputs[position][2] for pending in batch.requests]
        tensors.append(WireTensor(index, (batch.rows, *dims[1:]), pieces))
    return tensors

"""Blocks from fronts into the event log: the controller's side of `log.sock`.

What arrives while the log writes is written together next. A front is told once the log
has its blocks; while the log takes none, nothing more is read, and fronts keep theirs.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from typing import NamedTuple, cast

from gateway.feedback.blocks import predictions_in
from gateway.feedback.frames import (
    ACKNOWLEDGED,
    BLOCK_HEADER,
    FRAME,
    MAX_BLOCK_BYTES,
    WRITER_BYTES,
)
from gateway.feedback.log import (
    PREDICTIONS,
    EventLog,
    EventsRefused,
    LogUnavailable,
)
from gateway.feedback.types import Event
from gateway.logs import get_logger

_log = get_logger("receiver")

_MAX_WAITING = 4 << 20
"""Bytes of one front that wait for the log before no more are read."""
_MAX_WRITERS = 1024
"""Writers whose last block is remembered; fronts come and go."""
_PAUSE_S = 0.5
"""Between attempts on a log that is unavailable."""
_GRACE_S = 3.0
"""For what is being written when this stops; it comes again otherwise."""


class Receiver:
    """Appends blocks to the event log and tells their fronts.

    Args:
        log: Where they go.

    Attributes:
        repeated: Blocks that came again although the log had them.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._last: dict[bytes, int] = {}
        self._turns: dict[bytes, asyncio.Lock] = {}
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.repeated = 0

    async def start(self, sock: socket.socket) -> None:
        """Listen on a Unix socket that is bound; it belongs to this from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self, self._connections), sock=sock
        )

    async def stop(self) -> None:
        """Finish what is being written, and hang up."""
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*[each.end() for each in tuple(self._connections)])

    def turn(self, writer: bytes) -> asyncio.Lock:
        """Return what a connection of a writer holds while it appends.

        One that is gone may still append when the writer's next is there.
        """
        if writer not in self._turns:
            if len(self._turns) >= _MAX_WRITERS:
                oldest = next(iter(self._turns))
                del self._turns[oldest]
                self._last.pop(oldest, None)
            self._turns[writer] = asyncio.Lock()
        return self._turns[writer]

    async def take(self, writer: bytes, frames: list[Frame]) -> int:
        """Append the blocks of a writer that the log does not have.

        Returns:
            Predictions among them that the log refused; they are lost.
        """
        last = self._last.get(writer, 0)
        new = [frame for frame in frames if frame.sequence > last]
        self.repeated += len(frames) - len(new)
        shares: defaultdict[int, list[Event]] = defaultdict(list)
        for frame in new:
            mark = writer + frame.sequence.to_bytes(8, "big")
            event = Event(b"", frame.block, ((BLOCK_HEADER, mark),))
            shares[frame.partition].append(event)
        appending = [self._append(*share) for share in shares.items()]
        refused = sum(await asyncio.gather(*appending))
        if new:
            self._last[writer] = new[-1].sequence
        return refused

    async def _append(self, partition: int, events: list[Event]) -> int:
        """Append blocks of a partition; returns predictions that were refused."""
        while True:
            try:
                await self._log.append(PREDICTIONS, partition, events)
            except EventsRefused as error:
                reason = error.message
            except LogUnavailable as error:
                _log.warning("event_log_unavailable", reason=error.message)
                await asyncio.sleep(_PAUSE_S)
                continue
            except Exception as error:  # the edge: coming again would end as it did
                _log.exception("append_failed")
                reason = repr(error)
            else:
                return 0
            if len(events) > 1:  # those that are in the log already count once there
                return sum([await self._append(partition, [one]) for one in events])
            lost = predictions_in(events[0].value or b"")
            _log.error("block_refused", predictions=lost, reason=reason)
            return lost

    def fits(self, partition: int) -> bool:
        """Return whether the log has such a partition."""
        return partition < self._log.partitions


class Frame(NamedTuple):
    """A block as it came."""

    sequence: int
    partition: int
    block: bytes


class _Connection(asyncio.Protocol):
    """One front."""

    _transport: asyncio.Transport

    def __init__(self, receiver: Receiver, living: set[_Connection]) -> None:
        self._receiver = receiver
        self._living = living
        self._writer = b""
        self._received = bytearray()
        self._frames: list[Frame] = []
        self._waiting = 0
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the writer's id."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none
        self._living.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it; what is being written goes on, what waits comes again."""
        self._living.discard(self)
        self._frames = []

    async def end(self) -> None:
        """Hang up once what is being written is written."""
        self._frames = []
        self._transport.pause_reading()
        work = self._work
        if work is not None:
            await asyncio.wait((work,), timeout=_GRACE_S)
            work.cancel()
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take whole frames."""
        received = self._received
        received += data
        if not self._writer:
            if len(received) < WRITER_BYTES:
                return
            self._writer = bytes(received[:WRITER_BYTES])
            del received[:WRITER_BYTES]
        start = 0
        while len(received) - start >= FRAME.size:
            size, sequence, partition = FRAME.unpack_from(received, start)
            if size > MAX_BLOCK_BYTES or not self._receiver.fits(partition):
                _log.error("not_a_block", nbytes=size, partition=partition)
                self._transport.abort()
                return
            end = start + FRAME.size + size
            if len(received) < end:
                break
            block = bytes(received[start + FRAME.size : end])
            self._frames.append(Frame(sequence, partition, block))
            self._waiting += size
            start = end
        del received[:start]
        if self._waiting >= _MAX_WAITING:
            self._transport.pause_reading()
        if self._frames and self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            async with self._receiver.turn(self._writer):
                while self._frames:
                    frames, self._frames, self._waiting = self._frames, [], 0
                    refused = await self._receiver.take(self._writer, frames)
                    if not self._transport.is_closing():
                        last = frames[-1].sequence
                        self._transport.write(ACKNOWLEDGED.pack(last, refused))
                        self._transport.resume_reading()
        except Exception:  # the front sends it all again, on another connection
            _log.exception("blocks_not_appended")
            self._transport.abort()
        finally:
            self._work = None

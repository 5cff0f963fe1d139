"""A front's predictions on their way to the event log. Loop thread only.

Offered ones are gathered into blocks; blocks stay here until the controller says that
the log has them. A controller that is away, or slow, costs memory up to a bound and
then blocks, which are counted; it never makes an answer wait.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from gateway.feedback import names
from gateway.feedback.block_writer import BlockWriter
from gateway.feedback.blocks import COLUMNS, Form, Offered
from gateway.feedback.frames import ACKNOWLEDGED, FRAME, WRITER_BYTES
from gateway.feedback_config import FeedbackConfig

MAX_DATA_BYTES = 256 << 10
"""Tensors that wait for a block's other predictions, at most, about: a block fits what
Kafka's brokers take as one message."""
_NO_DATA = Form((), ())
_FIRST_DELAY_S = 0.05
_LAST_DELAY_S = 1.0


class _Block(NamedTuple):
    """A block that is not acknowledged."""

    sequence: int
    records: int
    frame: bytes


class Ring:
    """Builds blocks, keeps them, and sends them.

    Args:
        config: Says how large blocks and ring are.
        path: The controller's socket.
        now_ns: Monotonic clock, by which requests were admitted.

    Attributes:
        counts: ``offered``, ``dropped``, ``refused`` (by the log, for good),
            ``stripped`` (without their outputs, which were too large) and ``unnamed``
            predictions (whose request ids a full ring did not take);
            ``blocks``, ``bytes``, and ``resent`` blocks.
        unacknowledged: Predictions in blocks that the log does not have yet.
    """

    def __init__(
        self, config: FeedbackConfig, path: Path, now_ns: Callable[[], int]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._path = str(path)
        self._now = now_ns
        self._full = config.block_rows * COLUMNS
        self._write = BlockWriter(config.partitions).write
        self.writer = os.urandom(WRITER_BYTES)
        self.counts: Counter[str] = Counter()
        self.unacknowledged = 0
        self._open: list[object] = []
        self._open_bytes = 0
        self._armed = False
        self._sequence = 0
        self._kept: deque[_Block] = deque()
        self._kept_bytes = 0
        self._unsent: deque[_Block] = deque()
        self._sent = 0
        self._link: _Link | None = None
        self._empty = asyncio.Event()
        self._sending = self._loop.create_task(self._stay_connected())

    def offer(self, answer: Offered, nbytes: int) -> None:
        """Take a prediction with data of `nbytes`, or drop it; never waits."""
        if nbytes > MAX_DATA_BYTES:
            answer, nbytes = (*answer[:7], _NO_DATA, b"", answer[9]), 0
            self.counts["stripped"] += 1
        waiting = self._open
        waiting += answer
        self._open_bytes += nbytes
        if len(waiting) >= self._full or self._open_bytes >= MAX_DATA_BYTES:
            self.flush()
        elif not self._armed:
            self._armed = True
            self._loop.call_later(self._config.block_ms / 1000, self._late)

    def _late(self) -> None:
        self._armed = False
        self.flush()

    def flush(self) -> None:
        """Make blocks of what was offered."""
        answers, self._open, self._open_bytes = self._open, [], 0
        if not answers:
            return
        self.counts["offered"] += len(answers) // COLUMNS
        epoch_ns = time.time_ns() - self._now()
        for share in self._write(answers, epoch_ns):
            self._keep(*share)
        if self._config.by_request_id:
            for named in names.shared(answers, self._config.partitions):
                if not self._keep(named.partition, 0, named.block):
                    self.counts["unnamed"] += named.named
        self._send()

    def _keep(self, place: int, records: int, block: bytes) -> bool:
        if self._kept_bytes + len(block) > self._config.ring_bytes:
            self.counts["dropped"] += records
            return False
        self._sequence += 1
        frame = FRAME.pack(len(block), self._sequence, place) + block
        kept = _Block(self._sequence, records, frame)
        self._kept.append(kept)
        self._kept_bytes += len(block)
        self._unsent.append(kept)
        self.unacknowledged += records
        self.counts["blocks"] += 1
        self.counts["bytes"] += len(block)
        self._empty.clear()
        return True

    # -- the controller ---------------------------------------------------------

    async def _stay_connected(self) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            create = self._loop.create_unix_connection
            try:
                _, link = await create(partial(_Link, self), self._path)
            except OSError:
                delay_s = min(2 * delay_s, _LAST_DELAY_S)
            else:
                await link.lost.wait()
                delay_s = _FIRST_DELAY_S
            await asyncio.sleep(delay_s)

    def connected(self, link: _Link) -> None:
        """Send what the log may not have, the oldest first."""
        self._link = link
        self._unsent = deque(self._kept)
        self._send()

    def disconnected(self) -> None:
        """Keep everything until there is another connection."""
        self._link = None

    def _send(self) -> None:
        link, unsent = self._link, self._unsent
        while link is not None and unsent and not link.paused:
            block = unsent.popleft()
            self.counts["resent"] += block.sequence <= self._sent
            self._sent = max(self._sent, block.sequence)
            link.transport.write(block.frame)

    def resumed(self) -> None:
        """Go on sending: the connection takes more."""
        self._send()

    def acknowledged(self, sequence: int, refused: int) -> None:
        """Let go of a block and all before it; some predictions were refused."""
        self.counts["refused"] += refused
        kept = self._kept
        while kept and kept[0].sequence <= sequence:
            block = kept.popleft()
            self._kept_bytes -= len(block.frame) - FRAME.size
            self.unacknowledged -= block.records
        if not kept:
            self._empty.set()

    async def close(self, patience_s: float) -> int:
        """Send what there is, wait for the log to have it, and let go.

        Returns:
            Predictions that it does not have, as far as is known; they are counted
            as dropped.
        """
        self.flush()
        if self._kept:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), patience_s)
        self._sending.cancel()
        if self._link is not None:
            self._link.transport.close()
        lost, self.unacknowledged = self.unacknowledged, 0
        self.counts["dropped"] += lost
        return lost


class _Link(asyncio.Protocol):
    """One connection to the controller."""

    transport: asyncio.Transport

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._received = b""
        self.paused = False
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce the writer, and send what waits."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none
        self.transport.write(self._ring.writer)
        self._ring.connected(self)

    def data_received(self, data: bytes) -> None:
        """Take acknowledgements."""
        received = self._received + data
        whole = len(received) - len(received) % ACKNOWLEDGED.size
        self._received = received[whole:]
        for sequence, refused in ACKNOWLEDGED.iter_unpack(received[:whole]):
            self._ring.acknowledged(sequence, refused)

    def pause_writing(self) -> None:
        """Wait: the controller is slow."""
        self.paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        self._ring.resumed()

    def connection_lost(self, error: Exception | None) -> None:
        """Say so."""
        self._ring.disconnected()
        self.lost.set()

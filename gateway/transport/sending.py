"""The sending half of an HTTP/2 connection: windows, and what waits for them. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

from gateway.rpc import Buffer
from gateway.transport import frames
from gateway.transport.frames import (
    DEFAULT_WINDOW,
    MIN_FRAME_BYTES,
    ErrorCode,
    HeaderBlock,
)
from gateway.transport.streams import Stream

EMPTY_TABLE = b"\x20"
"""Dynamic table size update to 0 (RFC 7541, 6.3): we never use the table, and a peer
that made it smaller waits to hear so (4.2)."""
_EARNED_PER_CALL = 4
_EARNED_PER_MESSAGE = 2
"""grpcio answers each small message of a stream with two WINDOW_UPDATEs. What leaves
a queue bit by bit earns by its size alone (CVE-2019-9511)."""
_DATA_HEADS = [
    size.to_bytes(3, "big") + bytes((frames.DATA, 0))
    for size in range(MIN_FRAME_BYTES + 1)
]
"""Length, type and flags of DATA frames by size: a look-up costs a fifth of making
one."""
_WIDE_BYTES = 1 << 16
"""Bodies from this size on are not copied into one piece with their frames."""


class Sender:
    """What leaves on one connection.

    Args:
        wake: Called when `out` gets something while it was empty.

    Attributes:
        streams: Open streams by number.
        out: Bytes to write, in order; the owner takes them with `take`.
        blocked: Streams that wait for the connection's window, in turn.
        send_window: Bytes of DATA the peer takes now, over all streams.
        initial_window: The part of a stream's window that SETTINGS decides.
        peer_frame: Largest frame payload the peer takes.
        progress: Grows with everything that is sent for a call; it is the credit for
            frames that bring none, see `gateway.transport.control`.
        table_update: Goes before the next header block.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.streams: dict[int, Stream] = {}
        self.out: list[bytes | memoryview] = []
        self.blocked: dict[int, Stream] = {}
        self.send_window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.peer_frame = MIN_FRAME_BYTES
        self.progress = 0
        self.table_update = b""

    def write(self, data: bytes) -> None:
        """Append to what leaves, and wake the owner if nothing did before."""
        if not self.out:
            self._wake()
        self.out.append(data)

    def take(self) -> list[bytes | memoryview]:
        """Take everything that is to be written."""
        out, self.out = self.out, []
        return out

    def respond(
        self,
        stream: Stream,
        head: HeaderBlock,
        parts: Sequence[Buffer],
        size: int,
        tail: HeaderBlock,
    ) -> None:
        """Send a whole response in one step and close the stream.

        Args:
            stream: An open stream on which nothing was sent yet.
            head: Response headers.
            parts: Body in pieces, in order.
            size: Bytes of all of them.
            tail: Trailers.
        """
        if (
            size > self.send_window
            or size > self.initial_window + stream.send_delta
            or size > MIN_FRAME_BYTES
            or self.table_update
            or self.streams.pop(stream.id, None) is None
        ):
            self.send_headers(stream, head)
            self.send_data(stream, parts, size)
            self.finish(stream, tail)
            return
        wire_id = stream.wire_id
        self.send_window -= size
        self.progress += _EARNED_PER_CALL
        out = self.out
        if not out:
            self._wake()
        out.append(
            b"".join(
                (
                    head.head,
                    wire_id,
                    head.data,
                    _DATA_HEADS[size],
                    wire_id,
                    *parts,
                    tail.last,
                    wire_id,
                    tail.data,
                )
            )
        )
        if not stream.remote_closed:
            self._leave_early(stream)

    def send_headers(
        self, stream: Stream, block: HeaderBlock, *, end: bool = False
    ) -> None:
        """Send a header block; `end`: it is all there is."""
        if stream.id not in self.streams:
            return
        if self.table_update:
            block = HeaderBlock(self.table_update + block.data)
            self.table_update = b""
        for piece in block.frames(stream.id, end=end):
            self.write(piece)
        if end:
            self._close(stream)

    def send_data(self, stream: Stream, parts: Sequence[Buffer], size: int) -> None:
        """Send body bytes, now as far as the windows allow, the rest later.

        Args:
            stream: An open stream.
            parts: The bytes in pieces, in order.
            size: Bytes of all of them.
        """
        if stream.id not in self.streams or not size:
            return
        self.progress += _EARNED_PER_MESSAGE + (size >> 10)
        if (
            stream.queue is None
            and size <= self.send_window
            and size <= self.initial_window + stream.send_delta
            and size <= MIN_FRAME_BYTES
        ):
            self.send_window -= size
            stream.send_delta -= size
            out = self.out
            if not out:
                self._wake()
            out.append(b"".join((_DATA_HEADS[size], stream.wire_id, *parts)))
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append(b"".join(parts))
        stream.queued_bytes += size
        self.send_queued(stream)

    def finish(self, stream: Stream, tail: HeaderBlock | None) -> None:
        """Close the stream after all that is queued; with trailers, or without."""
        if stream.id not in self.streams:
            return
        if stream.queue:
            stream.ending = True
            stream.trailers = tail
        elif tail is not None:
            self.send_headers(stream, tail, end=True)
        else:
            self.write(frames.frame(frames.DATA, frames.END_STREAM, stream.id))
            self._close(stream)

    def send_queued(self, stream: Stream) -> None:
        """Send what waits on a stream as far as the windows allow."""
        queue = stream.queue
        while queue:
            data = queue[0]
            room = min(
                self.send_window,
                self.initial_window + stream.send_delta,
                self.peer_frame,
            )
            if room <= 0:
                if self.send_window <= 0:
                    self.blocked[stream.id] = stream
                else:  # its own window will wake it
                    self.blocked.pop(stream.id, None)
                stream.on_progress()
                return
            size = min(room, len(data))
            piece = data if size == len(data) else memoryview(data)[:size]
            if size == len(data):
                queue.popleft()
            else:
                queue[0] = memoryview(data)[size:]
            stream.queued_bytes -= size
            self.send_window -= size
            stream.send_delta -= size
            head = size.to_bytes(3, "big") + b"\0\0" + stream.wire_id
            if size < _WIDE_BYTES:
                self.write(head + bytes(piece))
            else:
                self.write(head)
                self.out.append(piece)
        stream.queue = None
        self.blocked.pop(stream.id, None)
        if stream.ending:
            self.finish(stream, stream.trailers)
        else:
            stream.on_progress()

    def send_blocked(self) -> None:
        """Let the streams that wait have a turn; the connection's window has grown."""
        for stream_id in tuple(self.blocked):
            if self.send_window <= 0:
                return
            stream = self.blocked.pop(stream_id, None)
            if stream is not None:
                self.send_queued(stream)

    def _close(self, stream: Stream) -> None:
        """Forget a stream that we have ended."""
        self.streams.pop(stream.id, None)
        self.blocked.pop(stream.id, None)
        self.progress += _EARNED_PER_CALL
        if not stream.remote_closed:
            self._leave_early(stream)

    def _leave_early(self, stream: Stream) -> None:
        """Tell the peer to stop sending what nobody reads (RFC 9113, 8.1)."""
        self.forget(stream.id)
        self.write(frames.reset(stream.id, ErrorCode.NO_ERROR))

    @abstractmethod
    def forget(self, stream_id: int) -> None:
        """Expect late frames of a stream that ended here first."""

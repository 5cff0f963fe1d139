"""Flow control of what is sent: frames go out as far as the server has room.

Source: RFC 9113 section 5.2 and 6.9. Loop thread only.
"""

from __future__ import annotations

from collections import deque

from loadtest.requests import DATA, END_STREAM, frame_head

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384

Bytes = bytes | memoryview


class _Stream:
    """What of a stream waits for room, and how much room the stream has."""

    __slots__ = ("ends", "queue", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.queue: deque[memoryview] = deque()
        self.ends = False


class Outgoing:
    """The sending side of one connection.

    Attributes:
        out: Pieces of frames to write next.
        window: Room of the connection.
        frame: Longest payload of a frame.
        stream_window: Room of a new stream.
        streams: Streams that have not sent all yet.
    """

    __slots__ = ("frame", "out", "stream_window", "streams", "window")

    def __init__(self) -> None:
        self.out: list[Bytes] = []
        self.window = DEFAULT_WINDOW
        self.frame = DEFAULT_FRAME
        self.stream_window = DEFAULT_WINDOW
        self.streams: dict[int, _Stream] = {}

    def open(self, stream: int) -> None:
        """Begin a stream that sends message by message."""
        self.streams[stream] = _Stream(self.stream_window)

    def send(self, stream: int, body: bytes, *, ends: bool) -> None:
        """Send on an open stream, or as soon as there is room."""
        state = self.streams.get(stream)
        if state is None or state.ends:
            return
        size = len(body)
        if (
            not ends
            and not state.queue
            and state.window >= size <= self.frame
            and self.window >= size
        ):
            state.window -= size
            self.window -= size
            self.out += (frame_head(DATA, 0, size), stream.to_bytes(4, "big"), body)
            return
        state.queue.append(memoryview(body))
        state.ends = ends
        self.pump()

    def resize(self, stream_window: int) -> None:
        """Take the server's new size of stream windows, open streams included."""
        for state in self.streams.values():
            state.window += stream_window - self.stream_window
        self.stream_window = stream_window

    def more(self, stream: int, size: int) -> None:
        """Take room that the server gives: to a stream, or (0) to all."""
        if not stream:
            self.window += size
        elif stream in self.streams:
            self.streams[stream].window += size
        self.pump()

    def pump(self) -> None:
        """Send what waits, stream by stream in turn, as far as there is room."""
        waiting = deque(item for item in self.streams.items() if item[1].queue)
        while waiting:
            stream, state = waiting.popleft()
            chunk = state.queue[0]
            size = min(len(chunk), state.window, self.window, self.frame)
            if size <= 0 < len(chunk):
                continue
            if size == len(chunk):
                state.queue.popleft()
            else:
                state.queue[0] = chunk[size:]
            state.window -= size
            self.window -= size
            last = state.ends and not state.queue
            head = frame_head(DATA, END_STREAM if last else 0, size)
            self.out += (head, stream.to_bytes(4, "big"), chunk[:size])
            if last:
                del self.streams[stream]
            elif state.queue:
                waiting.append((stream, state))

"""An open call, as a connection and its owner know it."""

from __future__ import annotations

from collections import deque


class Call:
    """An open call.

    Attributes:
        start_ns: When it started, or was to start.
        received: Bytes of DATA so far.
        reported: Of these, what the server got room for again.
        times: For the owner of a stream: when its unanswered messages were sent.
        streaming: Messages are handed over one by one.
        body: DATA so far, where it is wanted; else None.
    """

    __slots__ = (
        "body",
        "received",
        "reported",
        "start_ns",
        "stream",
        "streaming",
        "times",
    )

    def __init__(self, stream: int, start_ns: int) -> None:
        self.stream = stream
        self.start_ns = start_ns
        self.received = self.reported = 0
        self.streaming = False
        self.body: bytearray | None = None
        self.times: deque[int] = deque()

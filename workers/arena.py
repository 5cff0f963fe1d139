"""Shared memory of one front-worker pair, for batches too large for the socket.

The front creates an anonymous memory file, passes its descriptor with HELLO, and
both ends map it. It has a request slot and a response slot for every credit of
the link, so whoever holds the credit owns the slots: there is nothing to lock
and nothing to free. The pages go with the last process that maps them: no name
in a file system, no leak after a kill -9.
"""

from __future__ import annotations

import mmap
import os

from workers.wire import CREDITS


class Arena:
    """`CREDITS` request slots, `CREDITS` response slots of equal size, a page of words.

    Attributes:
        fd: The memory file's descriptor, valid until `close`.
        requests: One writable view per slot.
        responses: One writable view per slot.
        started: Per slot the id of the last run the worker started from it. It tells
            the front, once the worker is dead, which batches may be what killed it.
    """

    def __init__(self, fd: int, slot_bytes: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _size(slot_bytes))
        view = memoryview(self._map)
        slots = [
            view[i * slot_bytes : (i + 1) * slot_bytes] for i in range(2 * CREDITS)
        ]
        self.requests = slots[:CREDITS]
        self.responses = slots[CREDITS:]
        words = 2 * CREDITS * slot_bytes
        self.started = view[words : words + 8 * CREDITS].cast("Q")

    @classmethod
    def create(cls, slot_bytes: int) -> Arena | None:
        """Make an arena; ``None`` where the system has no anonymous memory files.

        Pages are allocated when first written, so an unused arena costs nothing.
        """
        if not hasattr(os, "memfd_create"):
            return None
        slot_bytes += -slot_bytes % mmap.PAGESIZE
        fd = os.memfd_create("baton-arena", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _size(slot_bytes))
            return cls(fd, slot_bytes)
        except OSError:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int) -> Arena:
        """Map an arena received from its creator; its size comes with it."""
        return cls(fd, (os.fstat(fd).st_size - mmap.PAGESIZE) // (2 * CREDITS))

    def close(self) -> None:
        """Close the descriptor. The mapping goes when its last view does."""
        os.close(self.fd)


def _size(slot_bytes: int) -> int:
    return 2 * CREDITS * slot_bytes + mmap.PAGESIZE

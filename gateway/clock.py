"""Time as the gateway uses it: monotonic integers, and ids that carry wall time."""

from __future__ import annotations

import os
import time

now_ns = time.monotonic_ns
"""The one clock for durations and deadlines."""

_RANDOM_BYTES = 10
_POOL_BYTES = 4096


class PredictionIds:
    """Mints UUIDv7 strings (RFC 9562, section 5.7), ordered by millisecond.

    Random bits come from the operating system, a block at a time: one system call
    for some 400 ids. Not thread-safe: one per event loop.
    """

    __slots__ = ("_pool", "_position")

    def __init__(self) -> None:
        self._pool = b""
        self._position = 0

    def mint(self) -> str:
        """Return a new id in the canonical 36-character form."""
        position = self._position
        if position + _RANDOM_BYTES > len(self._pool):
            self._pool = os.urandom(_POOL_BYTES)
            position = 0
        self._position = position + _RANDOM_BYTES
        random = self._pool[position : self._position]
        return uuid7(time.time_ns() // 1_000_000, random)


def uuid7(unix_ms: int, random: bytes) -> str:
    """Build a UUIDv7. Pure.

    Args:
        unix_ms: Milliseconds since the Unix epoch, below 2**48.
        random: 10 random bytes, of which 74 bits are used.

    Returns:
        The canonical form: version 7, variant 0b10.
    """
    high = (random[0] & 0x0F) | 0x70
    variant = (random[2] & 0x3F) | 0x80
    text = f"{unix_ms:012x}{high:02x}{random[1]:02x}{variant:02x}{random[3:10].hex()}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

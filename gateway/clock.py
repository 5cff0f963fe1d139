"""Time as the gateway uses it: monotonic integers, and ids that carry wall time."""

from __future__ import annotations

import os
import time

import numpy as np

now_ns = time.monotonic_ns
"""The one clock for durations and deadlines."""

_BLOCK = 512
"""Ids whose random parts are made at a time: one system call, a few array
operations."""
_SUFFIX = 23
"""Characters of an id behind its time: ``-7xxx-yxxx-xxxxxxxxxxxx``."""
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_VARIANTS = np.frombuffer(b"89ab", np.uint8)
_PLACES = np.array([2, 3, 4, *range(7, 10), *range(11, 23)])
"""Where a suffix has random digits, beside the variant at 6."""


class PredictionIds:
    """Mints UUIDv7s (RFC 9562, section 5.7), ordered by millisecond.

    Not thread-safe: one per event loop.
    """

    __slots__ = ("_ms", "_pool", "_position", "_time")

    def __init__(self) -> None:
        self._pool = b""
        self._position = 0
        self._ms = -1
        self._time = b""

    def mint(self) -> bytes:
        """Return a new id in the canonical 36-character form, as ASCII."""
        return self.mint_all(1)[0]

    def mint_all(self, count: int) -> list[bytes]:
        """Return as many new ids, of this instant; cheaper than one by one."""
        size = count * _SUFFIX
        if self._position + size > len(self._pool):
            self._pool = suffixes(os.urandom(max(_BLOCK, count) * 10))
            self._position = 0
        start = self._position
        self._position = start + size
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._ms = ms
            self._time = time_part(ms)
        pool, first = self._pool, self._time
        return [
            first + pool[at : at + _SUFFIX]
            for at in range(start, start + size, _SUFFIX)
        ]


def time_part(unix_ms: int) -> bytes:
    """Return the first 13 characters of a UUIDv7: `unix_ms`, below 2**48."""
    text = f"{unix_ms:012x}"
    return f"{text[:8]}-{text[8:]}".encode()


def suffixes(random: bytes) -> bytes:
    """Format the rest of UUIDv7s, 23 characters each, one after the other. Pure.

    Args:
        random: 10 bytes for each, of which 74 bits are used.

    Returns:
        Version 7, variant 0b10, and random digits.
    """
    source = np.frombuffer(random, np.uint8).reshape(-1, 10)
    nibbles = np.empty((len(source), 20), np.uint8)
    nibbles[:, ::2] = source >> 4
    nibbles[:, 1::2] = source & 15
    out = np.empty((len(source), _SUFFIX), np.uint8)
    out[:] = np.frombuffer(b"-7???-????-????????????", np.uint8)
    out[:, _PLACES] = _DIGITS[nibbles[:, :18]]
    out[:, 6] = _VARIANTS[nibbles[:, 18] & 3]
    return out.tobytes()

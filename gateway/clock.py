"""Time as the gateway uses it: monotonic integers, and ids that carry wall time."""

from __future__ import annotations

import os
import time

now_ns = time.monotonic_ns
"""The one clock for durations and deadlines."""

_ID_DIGITS = 19
"""Hexadecimal digits of randomness in an id: 74 bits, and the variant's two."""
_POOL_BYTES = 4096
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class PredictionIds:
    """Mints UUIDv7 strings (RFC 9562, section 5.7), ordered by millisecond.

    Random bits come from the operating system, a block at a time: one system call
    for some 400 ids. Not thread-safe: one per event loop.
    """

    __slots__ = ("_ms", "_pool", "_position", "_time")

    def __init__(self) -> None:
        self._pool = ""
        self._position = 0
        self._ms = -1
        self._time = ""

    def mint(self) -> str:
        """Return a new id in the canonical 36-character form."""
        start = self._position
        end = start + _ID_DIGITS
        if end > len(self._pool):
            self._pool = os.urandom(_POOL_BYTES).hex()
            start, end = 0, _ID_DIGITS
        self._position = end
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._ms = ms
            text = f"{ms:012x}"
            self._time = f"{text[:8]}-{text[8:]}"
        return _format(self._time, self._pool[start:end])


def uuid7(unix_ms: int, digits: str) -> str:
    """Build a UUIDv7. Pure.

    Args:
        unix_ms: Milliseconds since the Unix epoch, below 2**48.
        digits: 19 random hexadecimal digits in lower case; of the fourth, two bits
            are used.

    Returns:
        The canonical form: version 7, variant 0b10.
    """
    text = f"{unix_ms:012x}"
    return _format(f"{text[:8]}-{text[8:]}", digits)


def _format(time_part: str, digits: str) -> str:
    variant = _VARIANT[digits[3]]
    return f"{time_part}-7{digits[:3]}-{variant}{digits[4:7]}-{digits[7:]}"

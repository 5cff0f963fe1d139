"""A timer of microseconds for an event loop whose own timers count milliseconds.

Source: timerfd_create(2). Python has it from 3.13 on.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

CLOCK_MONOTONIC = 1
ABSOLUTE = 1
"""TFD_TIMER_ABSTIME."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    """``struct itimerspec``: interval, then first expiry."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """Calls back at instants of ``time.monotonic_ns``. Loop thread only.

    Raises:
        OSError: If the system has no timer file descriptors.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = _libc.timerfd_create(CLOCK_MONOTONIC, flags)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _Spec()
        self._reference = ctypes.byref(self._spec)
        self._callback = callback
        asyncio.get_running_loop().add_reader(self._fd, self._fire)

    def set(self, instant_ns: int) -> None:
        """Fire once at an instant, at once if it is past."""
        self._spec.value_s, self._spec.value_ns = divmod(instant_ns, 1_000_000_000)
        _libc.timerfd_settime(self._fd, ABSOLUTE, self._reference, None)

    def close(self) -> None:
        """Give the timer back."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _fire(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._callback()

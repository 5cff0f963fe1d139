"""Starts a command that ends with its parent, on one core if asked.

Usage: ``tether.py PARENT_PID CORE|any COMMAND...``. It runs between fork and exec
of a server, so that not even a killed demo leaves a server behind, and needs no
code in a forked copy of a threaded process (``preexec_fn``).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h; the setting survives exec."""


def main(arguments: Sequence[str]) -> None:
    """Bind this process to its parent and core, and become the command.

    Args:
        arguments: Pid of the parent, core number or ``any``, then the command.
    """
    parent, core, *command = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(parent):  # it died before the line above
        sys.exit(1)
    if core != "any":
        os.sched_setaffinity(0, {int(core)})
    os.execvp(command[0], command)  # noqa: S606  # no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])

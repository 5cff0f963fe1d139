"""The canary: loads a version in a process of its own, before any worker does.

``python -m workers.check`` reads a `LoadOrder` as JSON from standard input and
prints a `LoadReport` as one line of JSON. A model that crashes onnxruntime or eats
the machine's memory takes only this process with it: no report is the report.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback

from workers.process import die_with_parent
from workers.spec import (
    LOAD_ORDER,
    LOAD_REPORT,
    LoadOrder,
    LoadReport,
    SessionSettings,
)

INTERNAL_ERROR = "loading failed with an internal error; the server's log says why"
"""All that clients learn of an exception nobody foresaw."""


def check(order: LoadOrder) -> LoadReport:
    """Load, probe and warm up a version, and let it go.

    Returns:
        The report; a failure is inside it, in one line.
    """
    from workers.session import open_version
    from workers.signature import LoadRefused

    try:
        loaded = open_version(order)
    except LoadRefused as refused:
        return LoadReport(order.handle, error=str(refused))
    except Exception:  # the edge: whatever it is, the version is not to load
        traceback.print_exc()
        return LoadReport(order.handle, error=INTERNAL_ERROR)
    loaded.close()
    return loaded.report


def check_device(device_id: int) -> str:
    """Return why a GPU cannot be used here; empty if nothing speaks against it."""
    from workers.session import require_cuda
    from workers.signature import LoadRefused

    try:
        require_cuda(SessionSettings(device="cuda", device_id=device_id))
    except LoadRefused as refused:
        return str(refused)
    return ""


def main() -> None:
    """Answer the order on standard input; nothing but the report goes to stdout.

    With ``--device N``, check a GPU instead: the reason against it goes to stdout,
    and the exit code is 1. With ``--parent PID``, do not outlive that process.
    """
    if sys.argv[1:2] == ["--parent"]:
        die_with_parent(int(sys.argv[2]))
    if sys.argv[1:2] == ["--device"]:
        reason = check_device(int(sys.argv[2]))
        sys.stdout.write(reason)
        sys.exit(1 if reason else 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.dup(1)
    os.dup2(2, 1)  # native libraries print where they like
    report = check(LOAD_ORDER.validate_json(sys.stdin.buffer.read()))
    with os.fdopen(answer, "wb") as stdout:
        stdout.write(LOAD_REPORT.dump_json(report) + b"\n")


if __name__ == "__main__":
    main()

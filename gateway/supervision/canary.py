"""The canary: a version is first loaded in a process that nobody depends on."""

from __future__ import annotations

import asyncio
import os
import signal

from gateway.supervision.children import module
from workers.spec import LOAD_ORDER, LOAD_REPORT, LoadOrder, LoadReport


async def canary(order: LoadOrder, timeout_s: float) -> LoadReport:
    """Load a version in a process of its own.

    Returns:
        Its report; a crash, a time-out or nonsense is an error in the report.
    """
    process = await asyncio.create_subprocess_exec(
        *module("workers.check"),
        "--parent",
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await asyncio.wait_for(
            process.communicate(LOAD_ORDER.dump_json(order)), timeout_s
        )
    except TimeoutError:
        reason = f"loading took longer than {timeout_s:g} s"
        return LoadReport(order.handle, error=reason)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    code = process.returncode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        reason = f"the file crashed onnxruntime ({name}) in the canary process"
        return LoadReport(order.handle, error=reason)
    if code:
        return LoadReport(order.handle, error=f"the canary process left with {code}")
    return LOAD_REPORT.validate_json(output)

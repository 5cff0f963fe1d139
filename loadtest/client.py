"""The built-in load client: a closed loop of grpc.aio calls on raw bytes."""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np
import uvloop

from loadtest.load import Load, Sample
from loadtest.wire import channel

CALL_TIMEOUT_S = 30.0


def run(job: Path) -> str:
    """Send the load described by a file.

    Returns:
        The `Sample` as JSON.
    """
    load = Load(**json.loads(job.read_text()))
    message = Path(load.message).read_bytes()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return json.dumps(asdict(runner.run(_measure(load, message))))


async def _measure(load: Load, message: bytes) -> Sample:
    durations, bad = array("q"), array("q", [0])
    channels = [channel(load.port) for _ in range(load.connections)]
    await asyncio.gather(*(each.channel_ready() for each in channels))
    cpu, started = time.process_time(), time.monotonic()
    end_ns = time.monotonic_ns() + round(load.seconds * 1e9)

    async def loop(call: Callable[[], Awaitable[bool]]) -> None:
        while (start_ns := time.monotonic_ns()) < end_ns:
            try:
                good = await call()
            except grpc.aio.AioRpcError:
                good = False
            now_ns = time.monotonic_ns()
            if not good:
                bad[0] += 1
            elif now_ns <= end_ns:
                durations.append(now_ns - start_ns)

    async with asyncio.TaskGroup() as group:
        for each in channels:
            one_call = _call(each, load, message)
            for _ in range(load.calls):
                group.create_task(loop(one_call))
    share = (time.process_time() - cpu) / (time.monotonic() - started)
    await asyncio.gather(*(each.close() for each in channels))
    took = np.array(durations, np.int64) if durations else np.zeros(1, np.int64)
    requests = len(durations) * load.messages
    return Sample(
        requests=requests,
        requests_per_s=requests / load.seconds,
        p50_ms=float(np.percentile(took, 50)) / 1e6,
        p99_ms=float(np.percentile(took, 99)) / 1e6,
        bad=bad[0],
        client_share=share,
    )


def _call(
    connection: grpc.aio.Channel, load: Load, message: bytes
) -> Callable[[], Awaitable[bool]]:
    """Return a call that tells whether all its answers have the right length."""
    if load.messages == 1:
        unary = connection.unary_unary(load.path)

        async def call_once() -> bool:
            answer = await unary(message, timeout=CALL_TIMEOUT_S)
            return len(answer) == load.reply_bytes

        return call_once
    stream = connection.stream_stream(load.path)

    async def call_stream() -> bool:
        call = stream(timeout=CALL_TIMEOUT_S)
        for _ in range(load.messages):
            await call.write(message)
        await call.done_writing()
        good = 0
        async for answer in call:
            good += len(answer) == load.reply_bytes
        return good == load.messages

    return call_stream

"""Load as clients of grpcio send it: a deadline on every call, few calls at a time.

Unlike a load generator's, their headers differ from call to call (``grpc-timeout``),
so that this is what a call costs a server in practice.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from array import array
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np
import uvloop

from loadtest.load import Load, Sample
from loadtest.wire import CHANNEL_OPTIONS, channel

TIMEOUT_S = 10.0


def run(job: Path, *, synchronous: bool) -> str:
    """Send the load described by a file.

    Args:
        job: A `Load` as JSON; its connections are channels.
        synchronous: From threads; else with asyncio.

    Returns:
        The `Sample` as JSON.
    """
    load = Load(**json.loads(job.read_text()))
    message = Path(load.message).read_bytes()
    tally = _Tally(load)
    cpu, started = time.process_time(), time.monotonic()
    if synchronous:
        _from_threads(load, message, tally)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_from_tasks(load, message, tally))
    share = (time.process_time() - cpu) / (time.monotonic() - started)
    return json.dumps(asdict(tally.sample(share)))


class _Tally:
    """Durations of good calls, and how many others there were."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._end_ns = time.monotonic_ns() + round(load.seconds * 1e9)
        self._durations_ns = array("q")
        self._bad = 0

    @property
    def over(self) -> bool:
        return time.monotonic_ns() >= self._end_ns

    def add(self, started_ns: int, answer: bytes | None) -> None:
        if answer is None or len(answer) != self._load.reply_bytes:
            self._bad += 1
        else:
            self._durations_ns.append(time.monotonic_ns() - started_ns)

    def sample(self, client_share: float) -> Sample:
        took_ns = np.array(self._durations_ns or [0], np.int64)
        return Sample(
            requests=len(self._durations_ns),
            requests_per_s=len(self._durations_ns) / self._load.seconds,
            p50_ms=float(np.percentile(took_ns, 50)) / 1e6,
            p99_ms=float(np.percentile(took_ns, 99)) / 1e6,
            bad=self._bad,
            client_share=client_share,
        )


def _from_threads(load: Load, message: bytes, tally: _Tally) -> None:
    address = f"127.0.0.1:{load.port}"
    channels = [
        grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        for _ in range(load.connections)
    ]

    def loop(call: grpc.UnaryUnaryMultiCallable) -> None:
        while not tally.over:
            started_ns, answer = time.monotonic_ns(), None
            with suppress(grpc.RpcError):  # no answer is counted as such
                answer = call(message, timeout=TIMEOUT_S)
            tally.add(started_ns, answer)

    threads = [
        threading.Thread(target=loop, args=(each.unary_unary(load.path),))
        for each in channels
        for _ in range(load.calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in channels:
        each.close()


async def _from_tasks(load: Load, message: bytes, tally: _Tally) -> None:
    channels = [channel(load.port) for _ in range(load.connections)]

    async def loop(call: grpc.aio.UnaryUnaryMultiCallable) -> None:
        while not tally.over:
            started_ns, answer = time.monotonic_ns(), None
            with suppress(grpc.aio.AioRpcError):  # no answer is counted as such
                answer = await call(message, timeout=TIMEOUT_S)
            tally.add(started_ns, answer)

    async with asyncio.TaskGroup() as group:
        for each in channels:
            for _ in range(load.calls):
                group.create_task(loop(each.unary_unary(load.path)))
    await asyncio.gather(*(each.close() for each in channels))

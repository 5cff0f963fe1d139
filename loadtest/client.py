"""The load client: one process, one loop, connections of `loadtest.http2`."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import uvloop

from loadtest.drivers import ClosedLoop, Driver, Idle, Streams
from loadtest.load import Load, LoadFailed, Sample
from loadtest.open_loop import OpenLoop
from loadtest.record import Record
from loadtest.requests import Request

SPARE_FILES = 64
"""File descriptors besides connections."""
GC_THRESHOLDS = (50_000, 20, 100)
"""Calls make no cycles, but many objects: collect less often than by default."""


def run(job: Path) -> str:
    """Send the load described by a file.

    Returns:
        The `Sample` as JSON.

    Raises:
        LoadFailed: If the load cannot be sent; the text says why.
    """
    load = Load(**json.loads(job.read_text()))
    allow_files(load.connections + load.idle + SPARE_FILES)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return json.dumps(asdict(runner.run(measure(load))))


def allow_files(count: int) -> None:
    """Let this process have so many files open.

    Raises:
        LoadFailed: If the hard limit is below that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise LoadFailed(
            f"{count} open files are needed and {hard} allowed: raise the hard limit"
            f" (ulimit -Hn {count}) or use fewer connections"
        )
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _request(load: Load) -> Request:
    return Request(
        authority=f"{load.host}:{load.port}",
        path=load.path,
        message=Path(load.message).read_bytes(),
        messages=load.messages,
        deadline_us=round(load.deadline_ms * 1e3),
        varied=load.vary_timeout,
        scheme="https" if load.authorities else "http",
    )


def _lines(load: Load) -> TextIO:
    return Path(load.lines).open("w", encoding="utf-8")


def _driver(load: Load, request: Request, record: Record) -> Driver:
    if load.schedule:
        return OpenLoop(load, request, record)
    return (Streams if load.outstanding else ClosedLoop)(load, request, record)


async def measure(load: Load) -> Sample:
    """Send a load from this loop.

    Raises:
        LoadFailed: If the load cannot be sent; the text says why.
    """
    request = _request(load)
    with ExitStack() as stack:
        lines = stack.enter_context(_lines(load)) if load.lines else None
        record = Record(round(load.deadline_ms * 1e6), lines)
        idle = Idle(load, request, Record())
        if load.idle:
            await idle.open()
        active = _driver(load, request, record)
        await active.open()
        cpu, started = time.process_time(), time.monotonic()
        await active.run()
        share = (time.process_time() - cpu) / (time.monotonic() - started)
        idle_lost = load.idle - len(idle.connections)
        idle.close()
    if active.problems:
        raise LoadFailed("; ".join(active.problems))
    return _sample(load, record, active, share, idle_lost)


def _sample(
    load: Load, record: Record, active: Driver, share: float, idle_lost: int
) -> Sample:
    requests = record.all.total * load.messages
    p50, p90, p99, p999, most = record.all.percentiles_ms((50, 90, 99, 99.9, 100))
    return Sample(
        requests=requests,
        requests_per_s=requests / load.seconds,
        p50_ms=p50,
        p99_ms=p99,
        bad=record.bad,
        client_share=share,
        p90_ms=p90,
        p999_ms=p999,
        max_ms=most,
        good=record.good * load.messages,
        offered=record.offered,
        statuses=dict(record.statuses),
        lag_p99_ms=record.lag.percentile_ms(99),
        reconnects=active.reconnects,
        idle_lost=idle_lost,
        histogram=record.all.encode(),
    )

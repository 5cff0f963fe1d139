"""Load generators: h2load where it is installed, else a client of our own.

Both are closed loops in a process of their own: every connection keeps its number
of calls open for the whole time. A call is one request, or one stream that sends
its messages and reads as many answers.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from loadtest.processes import ROOT, tethered

SPARE_S = 40.0
"""Time a generator may take on top of its measurement before it is killed."""
OK_STATUS = 200
FRAME_BYTES = 5
"""gRPC puts a flag and a length before each message."""

_DATA = re.compile(r"traffic: .*\((\d+)\) data")
_FAILED = re.compile(r"(\d+) failed, (\d+) errored, (\d+) timeout")


class LoadFailed(Exception):
    """A generator gave no numbers; the message says what it printed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a generator is to send.

    Attributes:
        port: Of the server, on this machine.
        path: Full name of the method.
        message: File with one serialised request.
        messages: Requests of one call; more than one makes it a stream.
        reply_bytes: Length of one right answer; 0 if right answers differ in it.
        connections: Connections to open.
        calls: Calls open at a time on each connection.
        seconds: Length of the measurement.
        host: Of the server.
        outstanding: Messages each stream keeps unanswered; then a call is a stream
            without end, and times are those of messages. 0 for calls that end.
        schedule: Stretches of an open loop (seconds, calls per second at the
            beginning and at the end); empty for a closed loop.
        poisson: Open loop: random arrivals instead of even ones.
        max_inflight: Open loop: calls open at a time; those due beyond are counted
            as OVERFLOW and not sent.
        deadline_ms: Time limit of a call, sent along and enforced; 0 for none.
        vary_timeout: Let the time limit that is sent differ from call to call.
        idle: Further connections that make no calls.
        check_every: Compare each so many answers with `expected_reply`; 0 for none.
        expected_reply: File with the right answer.
        cancel_share: Part of the calls that is cancelled (RST_STREAM).
        drop_share: Part of the calls whose connection is dropped.
        cancel_within_ms: Latest time for that after the start of a call.
        seed: Of arrivals and cancellations.
        lines: File that gets one JSON object per second; empty for none.
        authorities: File with certificates to trust; empty for no TLS.
        content_type: Of an HTTP/1.1 request; empty for gRPC.
    """

    port: int
    path: str
    message: str
    messages: int
    reply_bytes: int
    connections: int
    calls: int
    seconds: float
    host: str = "127.0.0.1"
    outstanding: int = 0
    schedule: tuple[tuple[float, float, float], ...] = ()
    poisson: bool = False
    max_inflight: int = 10_000
    deadline_ms: float = 0
    vary_timeout: bool = False
    idle: int = 0
    check_every: int = 0
    expected_reply: str = ""
    cancel_share: float = 0
    drop_share: float = 0
    cancel_within_ms: float = 10
    seed: int = 0
    lines: str = ""
    authorities: str = ""
    content_type: str = ""

    def expected(self) -> bytes:
        """Return a right answer; empty if it is not known."""
        if not self.expected_reply:
            return b""
        return Path(self.expected_reply).read_bytes()


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of one measurement.

    Attributes:
        requests: Requests answered.
        requests_per_s: Per second of the measurement.
        p50_ms: Median time of a call.
        p99_ms: 99th percentile of the time of a call.
        bad: Calls that failed or brought too little.
        client_share: CPU time of the generator per second.
        p90_ms: 90th percentile.
        p999_ms: 99.9th percentile.
        max_ms: Longest time.
        good: Requests answered within the deadline.
        offered: Calls that were due (open loop).
        statuses: Ends of calls that are no right answers, by name.
        lag_p99_ms: Open loop: by how much calls were sent too late; what the
            generator itself adds to the times.
        reconnects: Connections opened in place of lost ones.
        idle_lost: Idle connections that did not last.
        histogram: All times, encoded as HdrHistogram does, in us.
    """

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    bad: int
    client_share: float
    p90_ms: float = 0
    p999_ms: float = 0
    max_ms: float = 0
    good: int = 0
    offered: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    lag_p99_ms: float = 0
    reconnects: int = 0
    idle_lost: int = 0
    histogram: str = ""


Generator = Callable[[Load, int | None], Sample]
"""Sends a load from a core (``None`` for any)."""


def h2load_version() -> str | None:
    """Return what h2load calls itself, or ``None`` if it is not installed."""
    if shutil.which("h2load") is None:
        return None
    done = subprocess.run(
        ["h2load", "--version"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def h2load(load: Load, core: int | None) -> Sample:
    """Measure with h2load.

    It does not know gRPC: a refused call is a "success" to it, but brings no
    DATA, so wrong answers show in the bytes received.

    Raises:
        LoadFailed: If it gave no numbers.
    """
    message = Path(load.message).read_bytes()
    frame = b"\0" + len(message).to_bytes(4, "big") + message
    body, log = Path(load.message + ".body"), Path(load.message + ".log")
    body.write_bytes(message if load.content_type else frame * load.messages)
    log.unlink(missing_ok=True)
    command = ["h2load", "-t", "1", "-c", str(load.connections), "-m", str(load.calls)]
    command += ["-D", f"{round(load.seconds * 1000)}ms", "-d", str(body)]
    if load.content_type:
        command += ["--h1", "-H", f"content-type: {load.content_type}"]
    else:
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command += ["--log-file", str(log), f"http://127.0.0.1:{load.port}{load.path}"]
    before, started = _children_cpu(), time.monotonic()
    output = finish(tethered(command, core), load.seconds + SPARE_S)
    share = (_children_cpu() - before) / (time.monotonic() - started)
    return _parse(output, log.read_text() if log.exists() else "", load, share)


def _parse(output: str, log: str, load: Load, share: float) -> Sample:
    """Return the sample in what h2load printed and logged.

    Source: its manual; a log line is start (us), HTTP status (-1 for failed) and
    duration (us), one per call.
    """
    rows = np.array([line.split() for line in log.splitlines()], np.int64)
    data, failed = _DATA.search(output), _FAILED.search(output)
    if data is None or failed is None or not len(rows):
        raise LoadFailed(f"h2load gave no numbers: {output[-500:]}")
    took_us = rows[rows[:, 1] == OK_STATUS, 2]
    framing = 0 if load.content_type else FRAME_BYTES
    expected = load.messages * (framing + load.reply_bytes)
    answered = min(len(took_us), int(data[1]) // max(1, expected))
    if not answered:
        raise LoadFailed("no call brought an answer of the expected length")
    requests = answered * load.messages
    return Sample(
        requests=requests,
        requests_per_s=requests / load.seconds,
        p50_ms=float(np.percentile(took_us, 50)) / 1e3,
        p99_ms=float(np.percentile(took_us, 99)) / 1e3,
        bad=len(rows) - answered,
        client_share=share,
    )


def builtin(load: Load, core: int | None) -> Sample:
    """Measure with `loadtest.client`.

    Raises:
        LoadFailed: If it gave no numbers.
    """
    return by_program([sys.executable, "-m", "loadtest", "client"], load, core)


def by_program(program: list[str], load: Load, core: int | None) -> Sample:
    """Measure with a program that reads a `Load` and prints a `Sample`, as JSON.

    Args:
        program: Its command line; the name of the file with the load follows.
        load: What it is to send.
        core: Its only core; ``None`` for any.

    Raises:
        LoadFailed: If it gave no numbers.
    """
    job = Path(load.message + ".job")
    job.write_text(json.dumps(asdict(load)))
    output = finish(tethered([*program, str(job)], core), load.seconds + SPARE_S)
    try:
        sample = Sample(**json.loads(output.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise LoadFailed(f"the client gave no numbers: {output[-500:]}") from error
    if not sample.requests:
        raise LoadFailed(f"no answer in time; {sample.bad} bad calls")
    return sample


def finish(command: list[str], timeout_s: float) -> str:
    """Run a tethered program to its end and return what it printed.

    Raises:
        LoadFailed: If it fails or does not end in time.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[4]} did not end in time") from error
    if done.returncode:
        raise LoadFailed(f"the load client failed: {done.stderr[-500:]}")
    return done.stdout


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

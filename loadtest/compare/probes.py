"""How a case is measured: each kind gives values for one server and one round."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import psutil

from loadtest import bare, load
from loadtest.client import allow_files
from loadtest.compare.cases import Case, Client, Kind
from loadtest.compare.contestants import Contestant, Place
from loadtest.compare.targets import Values
from loadtest.compare.verify import SAMPLE, verify
from loadtest.dialects import GRPC, STREAM
from loadtest.echo import REPLY_BYTES
from loadtest.load import Generator, Load, LoadFailed
from loadtest.models import row_shape
from loadtest.peers.install import go_client
from loadtest.processes import cpu_seconds

WARM_S = 0.5
SLOW_CALLS = 16
"""Calls open to the slow neighbour."""
SPARE_FILES = 500
OVERLOAD, OVERLOAD_DEADLINE_MS, OVERLOAD_INFLIGHT = 10, 200, 4000
"""Files a process has open beside its connections."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""A client's first bytes: the magic and empty SETTINGS (RFC 9113, section 3.4)."""
CONNECT_S = 30.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What measures.

    Attributes:
        place: Where the servers run.
        seconds: Length of one measurement.
        load_core: The only core of the client; ``None`` for any.
        all_cores: Of this machine.
    """

    place: Place
    seconds: float
    load_core: int | None
    all_cores: tuple[int, ...]

    def prepare(self, case: Case, server: Contestant, *, model: str = "") -> Load:
        """Verify a server's answers and return its load.

        Raises:
            WrongAnswer: If an answer is not ONNX Runtime's.
        """
        name = model or case.model
        dialect = STREAM if case.outstanding else server.dialect
        file = self.place.folder / f"{server.name}-{name}-{case.name}"
        if server.answers:
            message, reply_bytes = verify(
                server.server.port,
                dialect,
                self.place.model_file(name),
                rows=case.rows,
                # A queue that is to overflow under load takes one at a time.
                sample=1 if case.kind == "rejects" else SAMPLE,
            )
        else:
            message, reply_bytes = _example(case), REPLY_BYTES
        file.write_bytes(message)
        by_http1 = bool(dialect.content_type)
        return Load(
            port=server.server.port,
            path=dialect.path,
            message=str(file),
            messages=1,
            outstanding=case.outstanding,
            reply_bytes=reply_bytes,
            connections=case.connections * case.calls if by_http1 else case.connections,
            calls=1 if by_http1 else case.calls,
            seconds=self.seconds,
            content_type=dialect.content_type,
        )

    def ceiling(self, case: Case) -> Values:
        """Measure bare ONNX Runtime on the cores a server of this case may use."""
        cores: list[int | None] = [self.place.core]
        if case.setup.cores != 1:
            cores = [*self.all_cores[: case.setup.workers]]
        model = self.place.model_file(case.model)
        return {"rate": bare.measure(model, cores=cores, seconds=self.seconds)}

    def core_for_load(self, case: Case) -> int | None:
        """Return the only core of the client of a case; ``None`` for any."""
        return self.load_core if case.setup.cores == 1 else None


def _example(case: Case) -> bytes:
    return GRPC.encode(
        case.model, np.zeros((case.rows, *row_shape(case.model)), np.float32)
    )


def generator(client: Client) -> Generator:
    """Return what sends a load.

    Raises:
        NotInstalled: If it is not there and cannot be built.
    """
    if client == "own":
        return load.builtin
    if client == "h2load":
        return load.h2load if load.h2load_version() else load.builtin
    if client == "grpc-go":
        return partial(load.by_program, [str(go_client())])
    kind = "--sync" if client == "grpcio-sync" else "--aio"
    return partial(load.by_program, [sys.executable, "-m", "loadtest", "stock", kind])


def _warm(generate: Generator, ready: Load, core: int | None) -> None:
    """Send the load for a moment; slow servers have no answer yet by then."""
    with suppress(LoadFailed):
        generate(replace(ready, seconds=WARM_S), core)


def closed(tools: Tools, case: Case, server: Contestant, ready: Load) -> Values:
    """Keep a number of calls open all the time."""
    generate, core = generator(case.client), tools.core_for_load(case)
    _warm(generate, ready, core)
    family = server.server.family()
    before = cpu_seconds(family)
    sample = generate(ready, core)
    used_s = cpu_seconds(family) - before
    return {
        "rate": sample.requests_per_s * case.rows,
        "p50_ms": sample.p50_ms,
        "p99_ms": sample.p99_ms,
        "cpu_us": used_s / sample.requests * 1e6,
        "client_share": sample.client_share,
        "bad": sample.bad,
    }


def rejects(tools: Tools, case: Case, server: Contestant, ready: Load) -> Values:
    """Send far more than the queue takes; count what a refusal costs the front.

    What the workers use goes to the few that are answered, and is left out.
    """
    generate, core = generator(case.client), tools.core_for_load(case)
    _warm(generate, ready, core)
    fronts = [each for each in server.server.family() if not _is_worker(each)]
    before = cpu_seconds(fronts)
    sample = generate(ready, core)
    used_s = cpu_seconds(fronts) - before
    if sample.bad < sample.requests:
        raise LoadFailed(f"only {sample.bad} of {sample.requests} calls were refused")
    return {
        "rate": sample.bad / tools.seconds,
        "cpu_us": used_s / (sample.bad + sample.requests) * 1e6,
        "client_share": sample.client_share,
    }


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "workers" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def idle(tools: Tools, case: Case, server: Contestant, ready: Load) -> Values:
    """Open connections that say hello and nothing more; see what memory they take."""
    allow_files(case.connections + SPARE_FILES)
    before = _memory(server)
    with ExitStack() as stack:
        for _ in range(case.connections):
            address = ("127.0.0.1", ready.port)
            connection = socket.create_connection(address, CONNECT_S)
            stack.enter_context(connection)
            connection.sendall(PREFACE)
            if not connection.recv(1):
                raise LoadFailed("the server closed an idle connection")
        return {"memory_mb": (_memory(server) - before) / 1e6}


def _memory(server: Contestant) -> int:
    """Return the resident bytes of a server's processes."""
    return sum(each.memory_info().rss for each in server.server.family())


def half_load(tools: Tools, case: Case, server: Contestant, ready: Load) -> Values:
    """Find the capacity, then send half of it at random times, come what may.

    Times count from when a call was due, so that a stall is seen by every call that
    it delayed.
    """
    capacity = load.builtin(ready, tools.load_core)
    rate = capacity.requests_per_s / 2
    schedule = ((tools.seconds, rate, rate),)
    opened = replace(ready, schedule=schedule, poisson=True)
    sample = load.builtin(opened, tools.load_core)
    return {
        "rate": sample.requests_per_s,
        "p50_ms": sample.p50_ms,
        "p99_ms": sample.p99_ms,
        "client_share": sample.client_share,
        "bad": sample.bad,
    }


def overload(tools: Tools, case: Case, server: Contestant, ready: Load) -> Values:
    """Find the capacity, then ask for ten times as much within a deadline."""
    limited = replace(ready, deadline_ms=OVERLOAD_DEADLINE_MS)
    peak = load.builtin(limited, tools.load_core)
    rate = OVERLOAD * peak.requests_per_s
    schedule = ((tools.seconds, rate, rate),)
    flood = replace(
        limited, schedule=schedule, poisson=True, max_inflight=OVERLOAD_INFLIGHT
    )
    sample = load.builtin(flood, tools.load_core)
    return {
        "rate": sample.good / tools.seconds,
        "p99_ms": sample.p99_ms,
        "goodput_share": sample.good / max(1, peak.good),
        "client_share": sample.client_share,
    }


def neighbour(tools: Tools, case: Case, server: Contestant, ready: Load) -> Values:
    """Measure a model alone, then beside a slow one under load."""
    generate = generator(case.client)
    slow_case = replace(case, connections=1, calls=SLOW_CALLS)
    slow = tools.prepare(slow_case, server, model=case.setup.models[1])
    slow = replace(slow, seconds=tools.seconds + 2 * WARM_S)
    _warm(generate, ready, tools.load_core)
    alone = generate(ready, tools.load_core)
    with ThreadPoolExecutor(1) as pool:
        noise = pool.submit(generate, slow, tools.load_core)
        beside = generate(ready, tools.load_core)
        noise.result()
    return {
        "rate": beside.requests_per_s,
        "p50_ms": beside.p50_ms,
        "p99_ms": beside.p99_ms,
        "p99_rise": beside.p99_ms / alone.p99_ms - 1,
        "client_share": beside.client_share,
        "bad": beside.bad,
    }


Probe = Callable[[Tools, Case, Contestant, Load], Values]
PROBES: dict[Kind, Probe] = {
    "closed": closed,
    "rejects": rejects,
    "idle": idle,
    "neighbour": neighbour,
    "half-load": half_load,
    "overload": overload,
}

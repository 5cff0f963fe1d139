"""The table of cases: what is measured, of whom, and what Baton is to reach.

Names are stable: documents and CI refer to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from loadtest.compare.targets import OURS, Target
from loadtest.peers.catalogue import PEERS

TWIN = "twin"
"""Baton on grpcio's transport."""
NAIVE = "naive"
"""What a user writes instead: `loadtest.naive_server` on uvloop."""
ORT = "ort"
"""Bare ONNX Runtime: ``session.run`` at its best batch, nothing around it."""
ECHO = "echo"
"""A server that moves the bytes of requests and answers, and does nothing else."""
TWO_FRONTS = "two-fronts"
"""Baton with a second front."""

Client = Literal["h2load", "own", "grpcio-sync", "grpcio-aio", "grpc-go"]
Kind = Literal["closed", "idle", "rejects", "neighbour", "half-load", "overload"]

UNARY = (OURS, TWIN, NAIVE, *PEERS)
STREAMS = (OURS, TWIN, NAIVE)


@dataclass(frozen=True, slots=True)
class Setup:
    """How the servers of a case are set up.

    Attributes:
        models: That are served. A peer serves the first alone.
        workers: Of Baton; processes of bare ONNX Runtime.
        cores: A server may use: 1, or 0 for all.
        needs_cores: Of the machine, below which the case means nothing.
        max_queue_requests: Of Baton; 0 for its default.
    """

    models: tuple[str, ...]
    workers: int = 1
    cores: int = 1
    needs_cores: int = 1
    max_queue_requests: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured.

    Attributes:
        name: Stable.
        setup: How the servers are set up.
        servers: Who is measured.
        targets: What Baton is to reach.
        connections: To each gRPC server; HTTP/1.1 servers get as many connections
            as there are calls open at a time.
        calls: Open at a time on each connection.
        rows: Of one message.
        outstanding: Messages each stream keeps unanswered; 0 for single calls.
        client: Sends the load.
        kind: How it is measured.
        short: Part of the short form.
    """

    name: str
    setup: Setup
    servers: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    connections: int = 4
    calls: int = 16
    rows: int = 1
    outstanding: int = 0
    client: Client = "h2load"
    kind: Kind = "closed"
    short: bool = False

    @property
    def model(self) -> str:
        """The model that is asked."""
        return self.setup.models[0]


M1, M4, M5 = Setup(("M1",)), Setup(("M4",)), Setup(("M5",))
CPU_LESS = (Target("cpu_us", 15, 6, against=NAIVE),)

CASES: tuple[Case, ...] = (
    Case(
        "m1-unary-c1",
        M1,
        UNARY,
        (Target("p50_ms", 0.20, 0.30),),
        connections=1,
        calls=1,
        short=True,
    ),
    Case("m1-unary-c16", M1, UNARY, calls=4),
    Case(
        "m1-unary-c64",
        M1,
        UNARY,
        (
            Target("rate", 30, 15, against=NAIVE),
            Target("rate", 20, 10, against="pytriton"),
            Target("rate", 50, 20, against="mlserver"),
            Target("rate", 3, 1.5, against="mosec"),
            Target("p99_ms", 1.0, 2.0),
        ),
        short=True,
    ),
    Case("m1-unary-c256", M1, UNARY, connections=8, calls=32),
    Case(
        "m1-unary-64x1",
        M1,
        UNARY,
        (Target("rate", 2, 1.2, against="mosec"),),
        connections=64,
        calls=1,
    ),
    Case("stock-grpcio-sync", M1, STREAMS, CPU_LESS, 1, 32, client="grpcio-sync"),
    Case(
        "stock-grpcio-aio",
        M1,
        STREAMS,
        CPU_LESS,
        connections=1,
        calls=32,
        client="grpcio-aio",
        short=True,
    ),
    Case("stock-grpc-go", M1, STREAMS, CPU_LESS, 1, 32, client="grpc-go"),
    Case(
        "m1-stream-1row",
        M1,
        STREAMS,
        (Target("rate", 12, 6, against=NAIVE),),
        connections=4,
        calls=4,
        outstanding=16,
        client="own",
    ),
    Case(
        "m1-stream-32rows",
        M1,
        STREAMS,
        (Target("rate", 1e6, 0.4e6),),
        connections=4,
        calls=4,
        rows=32,
        outstanding=16,
        client="own",
        short=True,
    ),
    Case(
        "open-half-load",
        M1,
        STREAMS,
        (Target("p99_ms", 1.0, 2.0),),
        client="own",
        kind="half-load",
    ),
    Case(
        "idle-10k",
        M1,
        STREAMS,
        (Target("memory_mb", 100),),
        connections=10_000,
        calls=1,
        kind="idle",
    ),
    Case(
        "m5-unary-c64",
        M5,
        (*UNARY, ORT),
        (
            Target("rate", 0.95, 0.80, against=ORT),
            Target("rate", 8, 6, against=NAIVE),
            Target("rate", 2, 1.7, against="pytriton"),
            Target("rate", 1.1, 1.0, against="mosec"),
        ),
        short=True,
    ),
    Case("m5-unary-c256", M5, (*UNARY, ORT), connections=8, calls=32),
    *(
        Case(
            f"{model.lower()}-two-workers",
            Setup((model,), workers=2, cores=0, needs_cores=2),
            (OURS, ORT),
            (Target("rate", 0.90, 0.80, against=ORT),),
            connections=8,
            calls=32,
        )
        for model in ("M4", "M5")
    ),
    *(
        Case(
            name,
            # slow enough for a client to ask ten times as much
            Setup(("M4",), cores=cores, needs_cores=2),
            STREAMS,
            targets,
            client="own",
            kind="overload",
        )
        for name, cores, targets in (
            ("overload-10x", 0, (Target("goodput_share", 0.90),)),
            ("overload-10x-one-core", 1, ()),  # a front that refuses takes from M4
        )
    ),
    Case(
        "large-tensors",
        Setup(("image",)),
        (OURS, TWIN, NAIVE, ECHO),
        (Target("rate", 0.80, against=ECHO),),
        connections=4,
        calls=4,
    ),
    Case(
        "two-fronts",
        Setup(("M1",), workers=2, cores=0, needs_cores=6),
        (OURS, TWO_FRONTS),
        connections=32,
        calls=16,
    ),
    Case(
        "rejects",
        Setup(("M4",), max_queue_requests=1),
        (OURS, TWIN),
        (Target("cpu_us", 20),),
        connections=8,
        calls=32,
        client="own",
        kind="rejects",
    ),
    Case(
        "neighbour",
        Setup(("M1", "M4"), workers=2, cores=0, needs_cores=6),
        (OURS,),
        (Target("p99_rise", 0.10),),
        connections=4,
        calls=4,
        kind="neighbour",
    ),
)
SHORT_SERVERS = (OURS, NAIVE, ORT)


def chosen(
    names: tuple[str, ...], servers: tuple[str, ...], *, short: bool
) -> list[Case]:
    """Return cases by name and with some of their servers alone.

    Args:
        names: Of cases; none for all.
        servers: Names of servers; none for all.
        short: The short form alone.

    Raises:
        ValueError: If a name is unknown.
    """
    known = {case.name for case in CASES}
    if unknown := set(names) - known:
        listed = ", ".join(case.name for case in CASES)
        raise ValueError(f"no such case: {', '.join(sorted(unknown))} (of {listed})")
    everyone = dict.fromkeys(server for case in CASES for server in case.servers)
    if unknown := set(servers) - set(everyone):
        listed = ", ".join(everyone)
        raise ValueError(f"no such server: {', '.join(sorted(unknown))} (of {listed})")
    wanted = servers or (SHORT_SERVERS if short else tuple(everyone))
    found = []
    for case in CASES:
        if (names and case.name not in names) or (short and not case.short):
            continue
        kept = tuple(name for name in case.servers if name in wanted)
        if kept:
            found.append(replace(case, servers=kept))
    return found

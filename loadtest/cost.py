"""What the load client itself costs, beside h2load, on a server of canned answers.

A client must cost less than what it measures, or it measures itself.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from loadtest.canned import REPLY
from loadtest.load import Generator, Load, Sample, builtin, h2load, h2load_version
from loadtest.machine import choose_cores, machine
from loadtest.measure import spread
from loadtest.processes import free_ports, running
from loadtest.results import PLAIN_WIDTH
from loadtest.wire import SERVICE

READY_S = 20.0
ROW_BYTES, ROWS_BYTES = 153, 153 + 31 * 120
"""Serialised requests with one row and with 32 rows of 30 float32."""


def _cases(load: Load, folder: Path) -> dict[str, tuple[Generator, Load]]:
    rows = folder / "rows"
    rows.write_bytes(bytes(ROWS_BYTES))
    limited = replace(load, deadline_ms=1000)
    stream = replace(
        load, path=f"{SERVICE}/ModelStreamInfer", connections=4, calls=4, outstanding=16
    )
    cases: dict[str, tuple[Generator, Load]] = {
        "calls, 4 connections x 16": (builtin, load),
        "calls, 64 connections x 1": (
            builtin,
            replace(load, connections=64, calls=1),
        ),
        "calls, 4 x 16, time limits that vary": (
            builtin,
            replace(limited, vary_timeout=True),
        ),
        "messages of 1 row, 16 streams x 16": (builtin, stream),
        "messages of 32 rows, 16 streams x 16": (
            builtin,
            replace(stream, message=str(rows)),
        ),
        "calls, open loop of 10,000/s": (
            builtin,
            replace(load, schedule=((load.seconds, 1e4, 1e4),), poisson=True),
        ),
    }
    if h2load_version():
        cases["h2load, 4 connections x 16"] = (h2load, load)
        cases["h2load, 64 connections x 1"] = (
            h2load,
            replace(load, connections=64, calls=1),
        )
    return cases


def run(*, seconds: float, runs: int, as_json: bool) -> None:
    """Measure and print the cost of all kinds of load, in alternating rounds.

    Raises:
        LoadFailed: If a load gives no numbers.
    """
    server_core, core = choose_cores(sorted(os.sched_getaffinity(0)))
    found: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(prefix="baton-cost-") as name:
        folder = Path(name)
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "loadtest", "canned", "--port", str(port)]
        with running(command, port=port, log=folder / "log", core=server_core):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(READY_S)
            message = folder / "row"
            message.write_bytes(bytes(ROW_BYTES))
            load = Load(
                port=port,
                path=f"{SERVICE}/ModelInfer",
                message=str(message),
                messages=1,
                reply_bytes=len(REPLY),
                connections=4,
                calls=16,
                seconds=seconds,
            )
            for _ in range(runs):
                for title, (generate, each) in _cases(load, folder).items():
                    found.setdefault(title, []).append(generate(each, core))
    table = Table(title="Cost of the load client, one core", title_justify="left")
    table.add_column("load")
    for title in ("per s", "client us each", "min", "max", "client", "bad"):
        table.add_column(title, justify="right")
    rows = []
    for title, samples in found.items():
        cost = spread([s.client_share / s.requests_per_s * 1e6 for s in samples])
        rate = spread([s.requests_per_s for s in samples]).median
        share = spread([s.client_share for s in samples]).median
        bad = sum(s.bad for s in samples)
        rows.append({"load": title, "per_s": rate, "us": cost.median, "bad": bad})
        table.add_row(
            title,
            f"{rate:,.0f}",
            *(f"{value:.2f}" for value in (cost.median, cost.low, cost.high)),
            f"{share:.0%}",
            str(bad),
        )
    Console(width=PLAIN_WIDTH).print(table)
    if as_json:
        print(json.dumps({"machine": machine(), "rows": rows}), flush=True)

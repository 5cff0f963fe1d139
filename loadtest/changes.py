"""What a change of one model costs beside few models and beside many.

A change is an import of a new model with five versions, and a table that makes all of
them arms, which loads them: on a whole gateway with a worker that has every version in
ONNX Runtime and a front that was asked for each. Only the canary is spared, which is a
process of 0.4 s for each version whatever else is there: the first one's report stands
for all, as all models here have the same tensors.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from gateway.admin_client import AdminClient
from gateway.app import Gateway
from gateway.config_file import load_config
from gateway.logs import configure
from gateway.protocol import inference_pb2 as pb
from loadtest import baton
from loadtest.experiment import wait_for_admin
from loadtest.models import FEATURES, INPUT, LAYERS, perceptron
from loadtest.processes import Server
from loadtest.wire import CHANNEL_OPTIONS, SERVICE, infer_request
from workers.spec import LoadOrder, LoadReport

SIZES = (10, 100, 1000)
"""Models that are there when the last of the measured changes is made."""
CHANGES = 10
"""That are measured at each size."""
ARMS = 5
IDLE_S = 4.0
READY_S = 60.0
ROLES = {"gateway.front": "front", "gateway.controller": "controller"}
"""Of the processes whose time is counted, by module; the rest is the worker."""


class SparingGateway(Gateway):
    """A gateway that lets one canary speak for all."""

    _report: LoadReport | None = None

    async def _canary(self, order: LoadOrder) -> LoadReport:
        if self._report is None:
            self._report = await super()._canary(order)
        return replace(self._report, handle=order.handle)


def serve(config_file: Path) -> int:
    """Serve as ``baton serve`` does, with few canaries."""
    config = load_config(config_file, {})
    configure(config.log.level, config.log.format, "supervisor")
    run_dir = Path(tempfile.mkdtemp(prefix="baton-"))
    try:
        return asyncio.run(SparingGateway(config, run_dir).run())
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


class Bench:
    """A gateway that gets more and more models.

    Args:
        folder: For the files of models.
        server: The gateway.
        admin: Its admin plane.
    """

    def __init__(self, folder: Path, server: Server, admin: AdminClient) -> None:
        self._folder = folder
        self._server = server
        self._admin = admin
        self._model = perceptron("M1", LAYERS["M1"], seed=1)
        roles = ["champion"] + ["challenger"] * (ARMS - 1)
        self._table = {
            "arms": [
                {"version": version, "role": role, "share": 1 / ARMS}
                for version, role in enumerate(roles, 1)
            ],
            "policy": {"kind": "fixed"},
        }
        self.names: list[str] = []

    def add(self, count: int) -> None:
        """Import so many models and let their versions answer."""
        for _ in range(count):
            name = f"model-{len(self.names):04}"
            source = self._write(name)
            change = self._admin.change(name, "to have more models")
            self._admin.import_(change, str(source), {})
            self._admin.set_traffic(self._admin.change(name, "all answer"), self._table)
            shutil.rmtree(source)
            self.names.append(name)

    def _write(self, name: str) -> Path:
        source = self._folder / name
        for version in range(1, ARMS + 1):
            self._model.producer_version = f"{name} {version}"  # no two are one file
            file = source / str(version) / "model.onnx"
            file.parent.mkdir(parents=True)
            file.write_bytes(self._model.SerializeToString())
        return source

    def ask_all(self, names: Sequence[str]) -> None:
        """Ask models and each version, so that fronts have what they keep for them."""
        address = f"127.0.0.1:{self._server.port}"
        row = np.ones((1, FEATURES), np.float32)
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            ask = channel.unary_unary(
                f"{SERVICE}/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            for name in names:
                for version in ("", *map(str, range(1, ARMS + 1))):
                    request = infer_request(name, INPUT, row, request_id="1")
                    request.model_version = version
                    ask(request, timeout=10)

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that each kind of process has used."""
        first, *others = self._server.family()
        used = {"supervisor": _used_s(first)}
        for process in others:
            command = process.cmdline()
            role = next((ROLES[word] for word in command if word in ROLES), "worker")
            used[role] = used.get(role, 0.0) + _used_s(process)
        return used

    def idle_percent(self) -> float:
        """Return how much of a core all processes use while nothing happens."""
        before, begun = sum(self.cpu_s().values()), time.monotonic()
        time.sleep(IDLE_S)
        used_s = sum(self.cpu_s().values()) - before
        return 100 * used_s / (time.monotonic() - begun)

    def measure(self) -> dict[str, float]:
        """Return milliseconds per change: on the wall, and of the processes."""
        before, begun = self.cpu_s(), time.monotonic()
        self.add(CHANGES)
        wall_s, after = time.monotonic() - begun, self.cpu_s()
        row = {"wall": wall_s} | {role: after[role] - before[role] for role in after}
        return {name: 1000 * value / CHANGES for name, value in row.items()}


def _used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(sizes: Sequence[int] = SIZES) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield, for each number of models, what a change costs and what rest does."""
    with tempfile.TemporaryDirectory(prefix="baton-changes-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        socket = folder / "state" / "admin.sock"
        with (
            baton.serving(folder, module="loadtest.changes") as server,
            AdminClient(f"unix:{socket}") as admin,
        ):
            server.wait_ready(READY_S)
            wait_for_admin(admin)
            bench = Bench(folder, server, admin)
            for size in sizes:
                asked = len(bench.names)
                bench.add(size - CHANGES - asked)
                bench.ask_all(bench.names[asked:])
                idle = bench.idle_percent()
                yield size, bench.measure() | {"idle_percent": idle}
                bench.ask_all(bench.names[-CHANGES:])


def run(as_json: bool) -> int:
    """Measure and print."""
    found = dict(measure())
    if as_json:
        print(json.dumps(found))
        return 0
    table = Table(title=f"ms per new model with {ARMS} versions, mean of {CHANGES}")
    for name in ("models", *found[SIZES[0]]):
        table.add_column(name.replace("_", " "), justify="right")
    for size, row in found.items():
        table.add_row(str(size), *(f"{value:.1f}" for value in row.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[-1])))

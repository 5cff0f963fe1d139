"""Load, faults and figures for the adversity tests: real sockets, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from onnx import helper
from onnx.numpy_helper import from_array
from prometheus_client.parser import text_string_to_metric_families

from gateway.client_config import channel_options, target
from gateway.protocol import inference_pb2 as pb
from tests.gateway_process import SERVICE, GatewayProcess
from tests.onnx_models import FLOAT, INT64, build, info

REPEAT = int(os.environ.get("ADVERSITY_REPEAT", "1"))
"""How much longer than by default the storms last; `make adversity` sets more."""
SEED = int(os.environ.get("ADVERSITY_SEED", "42"))
LATE_S = 0.050
"""An outcome may come this long after the deadline (contract R1)."""

_serials = count(1)


# -- models -----------------------------------------------------------------------


def slow_identity(steps: int) -> bytes:
    """``x`` INT64 [N, 2] to ``y``, the same; a run takes `steps` turns of a Loop.

    A turn costs some 3 us whatever the batch size, so batching pays and a kill
    lands in the middle of a run.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["again"]),
            helper.make_node("Sin", ["state"], ["next"]),
        ],
        "body",
        [
            info("turn", INT64, []),
            info("more", helper.TensorProto.BOOL, []),
            info("state", FLOAT, ["N", 2]),
        ],
        [
            info("again", helper.TensorProto.BOOL, []),
            info("next", FLOAT, ["N", 2]),
        ],
    )
    return build(
        [
            helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
            helper.make_node("Loop", ["steps", "go", "f"], ["z"], body=body),
            helper.make_node("Mul", ["z", "nothing"], ["gone"]),
            helper.make_node("Cast", ["gone"], ["none"], to=INT64),
            helper.make_node("Add", ["x", "none"], ["y"]),
        ],
        [info("x", INT64, ["N", 2])],
        [info("y", INT64, ["N", 2])],
        [
            from_array(np.array(steps, np.int64), "steps"),
            from_array(np.array(True), "go"),
            from_array(np.array(0, np.float32), "nothing"),
        ],
    )


def put_model(
    repository: Path, name: str, model: bytes, *, version: int = 1, config: str = ""
) -> Path:
    """Write ``<name>/<version>/model.onnx`` whole or not at all, and a config."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    new = folder / "model.onnx.new"
    new.write_bytes(model)
    new.replace(path)
    if config:
        (repository / name / "config.pbtxt").write_text(config)
    return path


# -- requests ---------------------------------------------------------------------


def identity_request(model: str, rows: int) -> tuple[bytes, bytes]:
    """Return a request whose rows nobody else sends, and its one right answer."""
    first = [next(_serials) for _ in range(rows)]
    raw = np.array([[serial, serial * 7919] for serial in first], np.int64).tobytes()
    request = pb.ModelInferRequest(model_name=model, id=str(first[0]))
    request.inputs.add(name="x", datatype="INT64", shape=[rows, 2])
    request.raw_input_contents.append(raw)
    return request.SerializeToString(), raw


def infer_method(channel: grpc.aio.Channel) -> Any:
    """Return ModelInfer, bytes in and response out."""
    return channel.unary_unary(
        SERVICE + "ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
    )


@dataclass(slots=True)
class Outcome:
    """What became of one request."""

    code: grpc.StatusCode
    details: str
    started_s: float
    ended_s: float


@dataclass
class Load:
    """Asks for answers until stopped, checks each, and notes every outcome.

    Args:
        addresses: Servers.
        models: Models like `slow_identity`, asked in turn at random.
        concurrency: Requests in flight.
        timeout_s: Deadline the client sets; ``None`` leaves it to the server.
        max_rows: Largest request.
        rng: Decides sizes, models and pauses.
        pause_s: Mean pause of each asker between two requests.
        service_config: Whether to use the recommended retries and health checks.
    """

    addresses: Sequence[str]
    models: Sequence[str]
    concurrency: int
    timeout_s: float | None
    rng: random.Random
    max_rows: int = 4
    pause_s: float = 0.0
    service_config: bool = True
    channels: int = 1
    outcomes: list[Outcome] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    rows_ok: int = 0
    sent: int = 0

    async def __aenter__(self) -> Load:
        options = channel_options(service_config=self.service_config)
        # Otherwise channels with equal options share their connections.
        options.append(("grpc.use_local_subchannel_pool", 1))
        self._channels = [
            grpc.aio.insecure_channel(target(self.addresses), options=options)
            for _ in range(self.channels)
        ]
        self._stopping = asyncio.Event()
        self._tasks = [
            asyncio.create_task(
                self._ask_forever(infer_method(self._channels[i % self.channels]))
            )
            for i in range(self.concurrency)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        for channel in self._channels:
            await channel.close()

    async def _ask_forever(self, method: Any) -> None:
        while not self._stopping.is_set():
            await self._ask(method)
            if self.pause_s:
                pause = self.rng.expovariate(1 / self.pause_s)
                try:
                    await asyncio.wait_for(self._stopping.wait(), pause)
                except TimeoutError:
                    continue

    async def _ask(self, method: Any) -> None:
        rows = self.rng.randint(1, self.max_rows)
        request, right = identity_request(self.rng.choice(self.models), rows)
        started = time.monotonic()
        self.sent += 1
        code, details = grpc.StatusCode.OK, ""
        try:
            response = await method(request, timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        else:
            self.rows_ok += rows
            if response.raw_output_contents[0] != right:
                self.wrong.append(response.id)
        self.outcomes.append(Outcome(code, details, started, time.monotonic()))

    def stop(self) -> None:
        """Ask for no more; what is in flight is still awaited at the end."""
        self._stopping.set()

    def codes(self) -> Counter[str]:
        """Return how many requests ended with each status."""
        return Counter(outcome.code.name for outcome in self.outcomes)

    def failures(self) -> list[str]:
        """Return what went wrong, a line each, and wrong answers first."""
        first = self.outcomes[0].started_s if self.outcomes else 0.0
        return [f"wrong answer to {id_}" for id_ in self.wrong] + [
            f"+{o.started_s - first:.2f} s, after {o.ended_s - o.started_s:.3f} s: "
            f"{o.code.name} {o.details}"
            for o in self.outcomes
            if o.code is not grpc.StatusCode.OK
        ]

    async def answered(self, more: int, timeout_s: float = 30.0) -> None:
        """Wait until so many more requests have been answered with OK."""
        goal = self.codes()["OK"] + more
        await until(lambda: self.codes()["OK"] >= goal, timeout_s)

    async def for_s(self, seconds: float) -> None:
        """Wait until the load has lasted so much longer (a duration is the input)."""
        end = time.monotonic() + seconds
        await until(lambda: time.monotonic() >= end, seconds + 30)


class Canary:
    """How late this loop, and thus this client, runs what is due: its own slack."""

    def __init__(self) -> None:
        self._lags: list[tuple[float, float]] = []

    async def __aenter__(self) -> Canary:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + 0.005
            await asyncio.sleep(0.005)
            now = time.monotonic()
            self._lags.append((now, now - due))

    def slack_s(self, start_s: float, end_s: float) -> float:
        """Return the worst lag between two instants, and just beyond."""
        near = [lag for at, lag in self._lags if start_s <= at <= end_s + 0.1]
        return max(near, default=0.0)

    def worst_lateness_s(self, load: Load, deadline_s: float) -> float:
        """Return by how much the latest outcome missed, less what is our own fault."""
        worst = -deadline_s
        for outcome in load.outcomes:
            due = outcome.started_s + deadline_s
            late = outcome.ended_s - due
            if late > 0:
                late -= self.slack_s(outcome.started_s, outcome.ended_s)
            worst = max(worst, late)
        return worst


def quiet_port(rng: random.Random, number: int = 1) -> int:
    """Return the first of `number` free TCP ports that no client is given by chance.

    A gateway that is started again needs its port back; below Linux's ephemeral
    range no outgoing connection can have taken it.
    """
    while True:
        first = rng.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + number):
                    sock = stack.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


# -- waiting and looking ----------------------------------------------------------


async def until(
    condition: Callable[[], Any], timeout_s: float = 20.0, every_s: float = 0.02
) -> Any:
    """Return the first truthy value of `condition`; the loop goes on meanwhile."""
    give_up = time.monotonic() + timeout_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < give_up, "never came true"
        await asyncio.sleep(every_s)


def metrics(gateway: GatewayProcess) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Scrape: sample name to its label sets and values."""
    with urllib.request.urlopen(gateway.metrics_url, timeout=10) as response:
        text = response.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(gateway: GatewayProcess, name: str, **labels: str) -> float:
    """Return the sum of a metric over the samples that carry `labels`."""
    return sum(
        value
        for have, value in metrics(gateway).get(name, [])
        if labels.items() <= have.items()
    )


async def nothing_in_flight(gateway: GatewayProcess) -> None:
    """Wait until the gateway says that it holds no request and no byte."""

    def idle() -> bool:
        found = metrics(gateway)
        values = [
            value
            for name in ("baton_inflight_requests", "baton_inflight_bytes")
            for _, value in found.get(name, [])
        ]
        assert min(values, default=0) >= 0, f"negative in-flight: {values}"
        return bool(values) and not any(values)

    await until(lambda: asyncio.to_thread(idle))


def workers_in_use(gateway: GatewayProcess) -> list[int]:
    """Return the workers that some front has given its shared memory to."""

    def arenas(pid: int) -> int:
        found = 0
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found += "baton-arena" in os.readlink(link)
        return found

    return [pid for pid in gateway.pids("workers") if arenas(pid)]


async def serving_workers(gateway: GatewayProcess, number: int) -> list[int]:
    """Wait until fronts use so many workers; return their pids."""

    def there() -> list[int]:
        pids = workers_in_use(gateway)
        return pids if len(pids) == number else []

    pids: list[int] = await until(there)
    return pids


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def own_bytes(pids: Sequence[int]) -> int:
    """Return the memory that processes have to themselves, added up.

    Without what they share: arenas are bounded, and fill as larger batches come.
    """
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids)


async def load_model(
    gateway: GatewayProcess, name: str, config: dict[str, Any] | None = None
) -> tuple[grpc.StatusCode, str]:
    """Call RepositoryModelLoad from a thread; return how it ended."""
    request = pb.RepositoryModelLoadRequest(model_name=name)
    if config is not None:
        request.parameters["config"].string_param = json.dumps(config)
    return await _admin(
        gateway, "RepositoryModelLoad", request, pb.RepositoryModelLoadResponse
    )


async def unload_model(
    gateway: GatewayProcess, name: str
) -> tuple[grpc.StatusCode, str]:
    """Call RepositoryModelUnload from a thread; return how it ended."""
    request = pb.RepositoryModelUnloadRequest(model_name=name)
    return await _admin(
        gateway, "RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse
    )


async def _admin(
    gateway: GatewayProcess, method: str, request: Any, response: Any
) -> tuple[grpc.StatusCode, str]:
    try:
        await asyncio.to_thread(gateway.call, method, request, response, 60.0)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def show(figures: str) -> None:
    """Show the figures of a run, whatever pytest captures: they are the report."""
    sys.stdout.write(f"\n{figures}\n")

"""What it costs to choose between arms: the request path with and without a table.

No sockets and no workers: requests are admitted, which is where arms are chosen, and
dropped again outside of the measured time. Variants take turns, so that a machine
that slows down slows all of them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns

from rich.console import Console
from rich.table import Table

from gateway.catalogue import (
    BatchPolicy,
    Catalogue,
    ModelEntry,
    QueuePolicy,
    State,
    VersionEntry,
)
from gateway.clock import now_ns
from gateway.feedback.ring import Ring
from gateway.feedback_config import FeedbackConfig
from gateway.protocol.inference_pb2 import ModelInferRequest
from gateway.serving.admission import Admission
from gateway.serving.answers import AnswerLog
from gateway.serving.dispatch import Dispatcher
from gateway.serving.infer import InferService, UnaryExchange
from gateway.serving.rows import BatchRows
from gateway.serving.shadow import Shadows
from gateway.serving.sink import MemorySink
from gateway.serving.state import FrontState
from gateway.traffic.table import (
    Arm,
    ModelTraffic,
    Policy,
    PolicyKind,
    Role,
    Source,
    Weights,
)
from loadtest.models import CLASSES, FEATURES, INPUT, OUTPUT
from workers.spec import ModelSpec, TensorSpec
from workers.wire import WireTensor

CALLS = 2000
"""Requests of one measurement."""
ARMS = 5
MANY = 1000
"""Models of the variant that has many."""
NO_TABLE = "no table"
BY_NUMBER = f"{MANY} models, versions by number"
"""Clients name one of five versions: as many plans and queues as five arms have."""
NAME = b"0" * 36


class _Call:
    """A call whose user differs from one to the next."""

    deadline_ns = 0

    def __init__(self, user: str) -> None:
        self._user = user

    def metadata(self, key: str) -> str | None:
        return self._user if key == "x-user" else None


@dataclass(frozen=True)
class Variant:
    """One way to have traffic.

    Attributes:
        name: For the report.
        traffic: Table of every model; ``None`` for none.
        models: Number of models, which take turns.
        parameter: The user comes as a parameter of the request.
        by_number: Requests name a version.
        against: The variant it is compared with; empty for none.
    """

    name: str
    traffic: ModelTraffic | None
    models: int = 1
    parameter: bool = False
    by_number: bool = False
    against: str = NO_TABLE


def _table(kind: PolicyKind, unit: Source | None = None) -> ModelTraffic:
    roles = [Role.CHAMPION] + [Role.CHALLENGER] * (ARMS - 1)
    arms = tuple(Arm(n, role, 1 / ARMS) for n, role in enumerate(roles, 1))
    return ModelTraffic(1, arms, Policy(kind), unit=unit)


FIXED = _table(PolicyKind.FIXED)
VARIANTS = (
    Variant(NO_TABLE, None, against=""),
    Variant("fixed split", FIXED),
    Variant("bandit", _table(PolicyKind.THOMPSON)),
    Variant(
        "sticky by metadata", _table(PolicyKind.STICKY, Source("metadata", "x-user"))
    ),
    Variant(
        "sticky by parameter",
        _table(PolicyKind.STICKY, Source("parameter", "user")),
        parameter=True,
    ),
    Variant(BY_NUMBER, None, MANY, by_number=True, against=""),
    Variant(f"{MANY} models, fixed split", FIXED, MANY, against=BY_NUMBER),
)


def _message(model: str, version: str, user: str | None) -> bytes:
    request = ModelInferRequest(model_name=model, model_version=version, id="request")
    if user is not None:
        request.parameters["user"].string_param = user
    request.inputs.add(name=INPUT, datatype="FP32", shape=[1, FEATURES])
    request.raw_input_contents.append(bytes(4 * FEATURES))
    return request.SerializeToString()


class Bench:
    """A front's part that admits, with one variant in force. Needs a running loop."""

    def __init__(self, variant: Variant) -> None:
        loop = asyncio.get_running_loop()
        spec = ModelSpec(
            (TensorSpec(INPUT, "FP32", (FEATURES,)),),
            (TensorSpec(OUTPUT, "FP32", (CLASSES,)),),
            64,
        )
        names = [f"m{number:04}" for number in range(variant.models)]
        handles = iter(range(1, 1 + ARMS * len(names)))

        def version(number: int) -> VersionEntry:
            return VersionEntry(
                version=number,
                state=State.READY,
                handle=next(handles),
                spec=spec,
                batching=BatchPolicy(max_rows=64, max_bytes=16 << 20),
                queue=QueuePolicy(max_requests=1 << 20),
            )

        models = {
            name: ModelEntry(name, {n: version(n) for n in range(1, ARMS + 1)})
            for name in names
        }
        catalogue = Catalogue(revision=1, ready=True, models=models)
        if variant.traffic is not None:
            catalogue = replace(
                catalogue, traffic=dict.fromkeys(names, variant.traffic)
            )
        state = FrontState()
        state.swap(catalogue)
        admission = Admission(1 << 40, 25)
        self._dispatcher = Dispatcher(
            loop, now_ns, admission, max_attempts=2, pushback_ms=25
        )
        self._infer = InferService(
            state,
            self._dispatcher,
            admission,
            now_ns=now_ns,
            default_timeout_ns=30_000_000_000,
            max_stream_inflight=256,
            max_stream_bytes=4 << 20,
            sink=MemorySink(1 << 12),
            shadows=Shadows(
                loop,
                self._dispatcher,
                admission,
                MemorySink(1 << 12),
                now_ns=now_ns,
                max_bytes=1 << 30,
            ),
        )
        if variant.traffic is not None and variant.traffic.policy.learns:
            weights = Weights(1, (0.1, 0.3, 0.2, 0.25, 0.15))
            for name in names:
                self._infer.routers.reweigh(name, weights)
        self._log_answers(spec)
        users = [f"user-{number:06}" for number in range(CALLS)]
        self._calls = [_Call(user) for user in users]
        seed = random.Random(1)
        self._messages = [
            _message(
                names[n % len(names)],
                str(seed.randint(1, ARMS)) if variant.by_number else "",
                user if variant.parameter else None,
            )
            for n, user in enumerate(users)
        ]

    def _log_answers(self, spec: ModelSpec) -> None:
        """Have answers made into blocks, which nobody takes."""
        self._names = self._infer.ids.mint_all(CALLS)
        self._ring = Ring(
            FeedbackConfig(enabled=True, ring_bytes=1 << 30),
            Path("nobody-listens"),
            now_ns,
        )
        self._log = AnswerLog(self._ring, now_ns)
        batch = WireTensor(0, (64, CLASSES), [bytearray(64 * 4 * CLASSES)])
        self._rows = BatchRows(spec, [batch], 64)

    def round(self) -> tuple[float, float, float]:
        """Return nanoseconds to admit a request, to note who answered it, to log it."""
        infer, exchanges = self._infer, []
        begun = perf_counter_ns()
        for call, message in zip(self._calls, self._messages, strict=True):
            exchanges.append(infer.begin(UnaryExchange, message, 0, call))
        admitted = perf_counter_ns() - begun
        noted = 0
        if exchanges[0].choice is not None:
            begun = perf_counter_ns()
            for exchange in exchanges:
                infer.record(exchange, self._rows, 0, NAME)
            noted = perf_counter_ns() - begun
        begun = perf_counter_ns()
        for exchange, name in zip(exchanges, self._names, strict=True):
            self._log.answered(exchange, self._rows, 0, name)
        self._ring.flush()
        logged = perf_counter_ns() - begun
        for exchange in exchanges:
            exchange.cancel()
        self._dispatcher.pump()
        return admitted / CALLS, noted / CALLS, logged / CALLS


def _rounds(
    benches: dict[str, Bench], rounds: int
) -> Iterator[tuple[str, tuple[float, float, float]]]:
    for number in range(rounds):
        order = list(benches)
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            yield name, benches[name].round()


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return, by variant, microseconds per request.

    ``admit``: from message to queue; ``adds``: what of that the table adds; ``note``:
    the prediction's record; ``log``: its way into a block that waits for the event
    log. Medians over rounds; differences round by round.
    """
    benches = {variant.name: Bench(variant) for variant in VARIANTS}
    for bench in benches.values():
        for _ in range(4 * ARMS):
            bench.round()
    gc.collect()
    gc.freeze()
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in benches}
    for name, pair in _rounds(benches, rounds):
        taken[name].append(pair)
    found = {}
    middle: Callable[[Iterator[float]], float] = statistics.median
    for variant in VARIANTS:
        pairs = taken[variant.name]
        row = {
            "admit_us": middle(a for a, _, _ in pairs) / 1000,
            "note_us": middle(n for _, n, _ in pairs) / 1000,
            "log_us": middle(g for _, _, g in pairs) / 1000,
        }
        if variant.against:
            other = taken[variant.against]
            both = zip(pairs, other, strict=True)
            row["adds_us"] = middle(a[0] - b[0] for a, b in both) / 1000
        found[variant.name] = row
    return found


def run(rounds: int, as_json: bool) -> int:
    """Measure and print."""
    found = asyncio.run(measure(rounds))
    if as_json:
        print(
            json.dumps(
                {n: {k: round(v, 3) for k, v in r.items()} for n, r in found.items()}
            )
        )
        return 0
    table = Table(title=f"us per request, {ARMS} arms, medians of {rounds} rounds")
    for name in ("variant", "admit", "the table adds", "record", "event log"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for name, row in found.items():
        adds = f"{row['adds_us']:.2f}" if "adds_us" in row else ""
        note = f"{row['note_us']:.2f}" if row["note_us"] else ""
        table.add_row(
            name, f"{row['admit_us']:.2f}", adds, note, f"{row['log_us']:.2f}"
        )
    Console().print(table)
    return 0

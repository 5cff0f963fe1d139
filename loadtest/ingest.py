"""How fast labels come in from a real Kafka broker: read, decoded, joined, committed.

Run it with ``python -m loadtest.ingest [--labels 200000] [--form json] [--json]``.

A reader (`loadtest.ingest_reader`) takes the same labels from the broker three times:
it only reads them, it decodes them as well, and it joins them as a controller does. The
differences say what each of that costs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import typer

from gateway.clock import PredictionIds
from gateway.feedback import block_writer, blocks, cloudevents
from gateway.feedback.kafka import KafkaLog
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.partition import partitions_of
from gateway.feedback.types import Event, Label, LabelKind
from gateway.feedback_config import FeedbackConfig
from gateway.protocol import outcomes_pb2 as pb
from loadtest.ingest_reader import Job, Spent

FORMS = ("json", "structured", "protobuf")
PARTITIONS = 4
_BLOCK = 500
_DEPTHS = ("read", "decode", "join")
_TIMEOUT_S = 600.0
_LAYOUT = (blocks.TensorLayout("probabilities", "FP32", (3,)),)
_OUTPUT = bytes(12)


class _Choice:
    """A version that answers everything."""

    version, role, policy = 3, "champion", "rule"
    propensity, revision, snapshot = 1.0, 1, 0


_CHOICE = _Choice()


def _in_form(event: Event, form: str) -> Event:
    """Return a label of `cloudevents.encode` in another form."""
    if form == "json":
        return event
    headers = dict(event.headers)
    assert event.value is not None
    body = json.loads(event.value)
    if form == "protobuf":
        data = pb.LabelData(
            prediction_id=body["prediction_id"],
            row=body["row"],
            label_name=body["label_name"],
            seq=body["seq"],
            weight=body["weight"],
            number=body["value"],
        )
        headers["content-type"] = b"application/protobuf"
        return event._replace(
            value=data.SerializeToString(), headers=tuple(headers.items())
        )
    whole = {
        name.removeprefix("ce_"): value.decode()
        for name, value in headers.items()
        if name.startswith("ce_")
    }
    return event._replace(
        value=json.dumps(whole | {"data": body}).encode(),
        headers=(("content-type", b"application/cloudevents+json"),),
    )


def _label(name: bytes, number: int, now_ms: int, form: str) -> Event:
    key = UUID(name.decode()).bytes
    kind = LabelKind.VALUE
    event_id = f"{number:032x}"
    label = Label(
        event_id, "loadtest", key, None, 0, "label", kind, 1.0, 0, now_ms, 1.0
    )
    return _in_form(cloudevents.encode(label), form)


def block_of(names: list[bytes], now_ms: int) -> bytes:
    """Return a block of predictions with these ids, of this instant."""
    admitted_ns = now_ms * 1_000_000
    return block_writer.encode(
        [
            blocks.Answer(
                name, "demo", admitted_ns, 900, 1, _CHOICE, ("", -1, ("eu", "web")),
                _LAYOUT, (_OUTPUT,), b"",
            )
            for name in names
        ]
    )  # fmt: skip


class _Topics:
    """The topics of one measurement, in a name of their own."""

    def __init__(self, log: KafkaLog, form: str) -> None:
        self._log = log
        self._form = form
        self._names: list[bytes] = []

    async def predict(self, count: int) -> None:
        """Append so many predictions in blocks."""
        ids = PredictionIds()
        for _ in range(0, count, 20_000):
            names = ids.mint_all(min(20_000, count - len(self._names)))
            self._names += names
            shares: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
            for name, place in zip(
                names, partitions_of(names, PARTITIONS), strict=True
            ):
                shares[place].append(name)
            now_ms = time.time_ns() // 1_000_000
            for partition, share in enumerate(shares):
                made = [
                    Event(b"", block_of(share[at : at + _BLOCK], now_ms))
                    for at in range(0, len(share), _BLOCK)
                ]
                await self._log.append(PREDICTIONS, partition, made)

    async def label(self) -> None:
        """Append a label of each, in no order."""
        names = self._names
        random.Random(1).shuffle(names)
        now_ms = time.time_ns() // 1_000_000
        for at in range(0, len(names), 5000):
            some = names[at : at + 5000]
            shares: list[list[Event]] = [[] for _ in range(PARTITIONS)]
            places = partitions_of(some, PARTITIONS)
            for number, (name, place) in enumerate(zip(some, places, strict=True), at):
                shares[place].append(_label(name, number, now_ms, self._form))
            for partition, share in enumerate(shares):
                await self._log.append(LABELS, partition, share)

    async def ends(self, topic: str) -> dict[str, int]:
        """Return where each partition ends."""
        return {
            f"{topic}/{p}": end
            for p in range(PARTITIONS)
            if (end := (await self._log.extent(topic, p)).end)
        }


def _read(
    config: FeedbackConfig, folder: Path, depth: str, ends: dict[str, int]
) -> Spent:
    core = max(os.sched_getaffinity(0))
    job = Job(config.model_dump_json(), str(folder), depth, ends, core)
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.ingest_reader", json.dumps(job._asdict())],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    )
    return Spent(**json.loads(done.stdout))


async def _measure(
    bootstrap: str, labels: int, form: str, rounds: int, folder: Path
) -> dict[str, Any]:
    config = FeedbackConfig.model_validate(
        {
            "enabled": True,
            "partitions": PARTITIONS,
            "kafka": {
                "bootstrap_servers": bootstrap.split(","),
                "topic_prefix": f"loadtest.{uuid4().hex[:8]}.",
                "group": f"loadtest-{uuid4().hex[:8]}",
            },
            "default": {
                "labels": {"label": {"type": "number"}},
                "window_s": 3600,
                "lateness_s": 3600,
            },
        }
    )
    assert config.kafka is not None
    log = await KafkaLog.open(config.kafka, PARTITIONS)
    try:
        topics = _Topics(log, form)
        await topics.predict(labels)
        ends = await topics.ends(PREDICTIONS)
        shards = folder / "predicted"
        joined = await asyncio.to_thread(_read, config, shards, "join", ends)
        await topics.label()
        ends = await topics.ends(LABELS)
    finally:
        await log.close()
    took: dict[str, list[Spent]] = {depth: [] for depth in _DEPTHS}
    for turn in range(rounds):
        for depth in _DEPTHS:
            copy = folder / f"{depth}-{turn}"
            shutil.copytree(shards, copy)
            spent = await asyncio.to_thread(_read, config, copy, depth, ends)
            assert spent.labels == labels, (depth, spent)
            assert spent.applied == (labels if depth == "join" else 0), spent
            took[depth].append(spent)
            shutil.rmtree(copy)
    return _summary(took, labels, joined)


def _summary(
    took: dict[str, list[Spent]], labels: int, predicted: Spent
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "labels": labels,
        "predict_us": round(predicted.cpu_s / labels * 1e6, 2),
    }
    before = 0.0
    for depth, all_spent in took.items():
        cpu_us = statistics.median(s.cpu_s for s in all_spent) / labels * 1e6
        found[f"{depth}_us"] = round(cpu_us - before, 2)
        before = cpu_us
    best = took["join"]
    found["labels_per_cpu_s"] = round(1e6 / before)
    found["labels_per_s"] = round(labels / statistics.median(s.wall_s for s in best))
    found["rss_mb"] = max(s.rss_mb for s in best)
    return found


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    from deploy.kafka.broker import Cluster

    with Cluster(folder / "kafka", heap_mb=512) as cluster:
        yield cluster.bootstrap


def run(
    *,
    labels: Annotated[
        int, typer.Option(min=1000, help="And as many predictions.")
    ] = 200_000,
    form: Annotated[str, typer.Option(help="json, structured or protobuf.")] = "json",
    rounds: Annotated[int, typer.Option(min=1, help="Over the same labels.")] = 3,
    bootstrap: Annotated[
        str, typer.Option(help="Servers of a broker; else one is started.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Read, decode and join `labels` from a broker, and print what it took."""
    if form not in FORMS:
        raise typer.BadParameter(f"--form: one of {', '.join(FORMS)}")
    with tempfile.TemporaryDirectory(prefix="baton-load-") as scratch:
        folder = Path(scratch)
        with nullcontext(bootstrap) if bootstrap else _broker(folder) as servers:
            found = asyncio.run(_measure(servers, labels, form, rounds, folder))
    for name, value in found.items():
        print(f"{name:20} {value:>12}")
    if as_json:
        print(json.dumps(found))


if __name__ == "__main__":
    typer.run(run)

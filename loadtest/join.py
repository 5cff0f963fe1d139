"""What the join of a partition costs: time per label, bytes per pending prediction.

Run it with ``python -m loadtest.join [--predictions 100000] [--json]``.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple
from uuid import UUID

import typer

from gateway.feedback.block_writer import encode
from gateway.feedback.blocks import Answer, TensorLayout
from gateway.feedback.columns import Block
from gateway.feedback.joiner import collect_rarely
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.shard import Input, Shard
from gateway.feedback.types import Event, Label, LabelKind, Stored
from gateway.feedback_config import FeedbackConfig, JoinConfig, LabelConfig

_BATCH = 5000
_T0 = 1_700_000_000_000
_EVENT = Event(b"", b"")


class _Chosen(NamedTuple):
    version: int = 3
    role: str = "champion"
    policy: str = "rule"
    propensity: float = 1.0
    revision: int = 1
    snapshot: int = 0


_CHOSEN = _Chosen()
_LAYOUT = (TensorLayout("probabilities", "FP32", (3,)),)
_CONTEXT = "unit", 17, ("eu", "web")
_DATA = struct.pack("<3f", 1, 0, 0)


def _inputs(first: int, block_rows: int) -> tuple[list[Stored], list[Input]]:
    """Return a batch of predictions, in blocks, and a label for each."""
    made, labels = [], []
    for number in range(first, first + _BATCH):
        at = _T0 + number // 10
        # The low half of a UUIDv7 is random.
        spread = number * 0x9E3779B97F4A7C15 & (1 << 64) - 1
        key = at.to_bytes(6) + b"\x70\x00" + spread.to_bytes(8)
        name = str(UUID(bytes=key)).encode()
        made.append(
            Answer(
                name, "demo", at * 1_000_000, 900, 1, _CHOSEN, _CONTEXT, _LAYOUT,
                (_DATA,), b"",
            )
        )  # fmt: skip
        label = Label(
            str(number), "load", key, None, 0, "label", LabelKind.VALUE, 1.0, 0, at, 1.0
        )
        labels.append((Stored(LABELS, 0, number, at + 1000, _EVENT), label))
    blocks = []
    for at in range(0, _BATCH, block_rows):
        block = made[at : at + block_rows]
        arrived = block[-1].admitted_ns // 1_000_000
        offset = (first + at) // block_rows
        event = Event(b"", encode(block))
        blocks.append(Stored(PREDICTIONS, 0, offset, arrived, event))
    return blocks, list(labels)


def _shuffled(batches: list[list[Input]]) -> list[list[Input]]:
    """Return the same labels in a random order, seeded."""
    said = [what for batch in batches for _, what in batch]
    random.Random(1).shuffle(said)
    stored = [stored for batch in batches for stored, _ in batch]
    mixed = list(zip(stored, said, strict=True))
    return [mixed[at : at + _BATCH] for at in range(0, len(mixed), _BATCH)]


def run(
    *,
    predictions: Annotated[int, typer.Option(min=_BATCH)] = 100_000,
    block_rows: Annotated[int, typer.Option(min=1, max=_BATCH)] = 125,
    shuffled: Annotated[bool, typer.Option()] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Join `predictions`, each with one label, and print what it took."""
    config = FeedbackConfig(
        default=JoinConfig(labels={"label": LabelConfig(type="number")})
    )
    spent = {"predict": 0.0, "label": 0.0, "close": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.db"
        shard = Shard(path, 0, config)
        batches = [
            _inputs(first, block_rows) for first in range(0, predictions, _BATCH)
        ]
        labels = [labels for _, labels in batches]
        if shuffled:
            labels = _shuffled(labels)
        collect_rarely()  # as the controller does
        for blocks, _ in batches:
            start = time.process_time()
            shard.apply([(one, Block(one.event.value or b"")) for one in blocks])
            spent["predict"] += time.process_time() - start
        shard.close()
        nbytes = path.stat().st_size
        shard = Shard(path, 0, config)
        for some in labels:
            start = time.process_time()
            shard.apply(some)
            spent["label"] += time.process_time() - start
        start = time.process_time()
        end = _T0 + 2 * 3_600_000
        emitted = 0
        while rows := shard.apply([], caught_up_ms={PREDICTIONS: end, LABELS: end}):
            emitted += len(rows)
        spent["close"] = time.process_time() - start
        shard.close()
    count = len(batches) * _BATCH
    assert emitted == count
    micros = {name: round(s / count * 1e6, 2) for name, s in spent.items()}
    result = {
        "predictions": count,
        "bytes_per_pending": round(nbytes / count, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "labels_per_s": round(count / sum(spent.values())),
        **{f"{name}_us": each for name, each in micros.items()},
    }
    for name, value in result.items():
        print(f"{name:20} {value:>12}")
    if as_json:
        print(json.dumps(result))


if __name__ == "__main__":
    typer.run(run)

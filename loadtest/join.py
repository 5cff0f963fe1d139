"""What the join of a partition costs: time per label, bytes per pending prediction.

Run it with ``python -m loadtest.join [--predictions 100000] [--json]``.
"""

from __future__ import annotations

import gc
import json
import struct
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.shard import Input, Shard
from gateway.feedback.types import Event, Label, LabelKind, Prediction, Stored, Tensor
from gateway.feedback_config import FeedbackConfig, JoinConfig, LabelConfig

_BATCH = 5000
_T0 = 1_700_000_000_000
_EVENT = Event(b"", b"")


def _inputs(first: int) -> tuple[list[Input], list[Input]]:
    """Return a batch of predictions, 500 to a block, and a label for each."""
    made, labels = [], []
    for number in range(first, first + _BATCH):
        at = _T0 + number // 10
        # The low half of a UUIDv7 is random.
        spread = number * 0x9E3779B97F4A7C15 & (1 << 64) - 1
        key = at.to_bytes(6) + b"\x70\x00" + spread.to_bytes(8)
        output = Tensor("probabilities", "FP32", (1, 3), struct.pack("<3f", 1, 0, 0))
        one = Prediction(
            key, at, "demo", 3, "champion", "rule", 1.0, 1, 0, "unit", 17,
            ("eu", "web"), 1, (output,), (), 900, "", "",
        )  # fmt: skip
        made.append(one)
        label = Label(
            str(number), "load", key, None, 0, "label", LabelKind.VALUE, 1.0, 0, at, 1.0
        )
        labels.append((Stored(LABELS, 0, number, at + 1000, _EVENT), label))
    blocks: list[Input] = []
    for at in range(0, _BATCH, 500):
        block = made[at : at + 500]
        arrived = block[-1].time_ms
        stored = Stored(PREDICTIONS, 0, (first + at) // 500, arrived, _EVENT)
        blocks.append((stored, block))
    return blocks, list(labels)


def run(
    *,
    predictions: Annotated[int, typer.Option(min=_BATCH)] = 100_000,
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
        batches = [_inputs(first) for first in range(0, predictions, _BATCH)]
        gc.freeze()  # else each collection goes through all that is still to come
        for blocks, _ in batches:
            start = time.perf_counter()
            shard.apply(blocks)
            spent["predict"] += time.perf_counter() - start
        shard.close()
        nbytes = path.stat().st_size
        shard = Shard(path, 0, config)
        for _, labels in batches:
            start = time.perf_counter()
            shard.apply(labels)
            spent["label"] += time.perf_counter() - start
        start = time.perf_counter()
        end = _T0 + 2 * 3_600_000
        emitted = 0
        while rows := shard.apply([], caught_up_ms={PREDICTIONS: end, LABELS: end}):
            emitted += len(rows)
        spent["close"] = time.perf_counter() - start
        shard.close()
    count = len(batches) * _BATCH
    assert emitted == count
    micros = {name: round(s / count * 1e6, 2) for name, s in spent.items()}
    result = {
        "predictions": count,
        "bytes_per_pending": round(nbytes / count, 1),
        "labels_per_s": round(count / sum(spent.values())),
        **{f"{name}_us": each for name, each in micros.items()},
    }
    for name, value in result.items():
        print(f"{name:20} {value:>12}")
    if as_json:
        print(json.dumps(result))


if __name__ == "__main__":
    typer.run(run)

"""Ten million predictions that wait on disk: what memory, disk and time that takes.

Run it with ``python -m loadtest.pending [--predictions 10000000] [--json]``.

One partition takes in all predictions in blocks, is closed and opened again, gets
labels of random ones, and emits all rows when time has moved on. Memory is the most
that was resident until then, of the whole process (``ru_maxrss``), which keeps as many
ids in memory as there may be (`gateway.feedback.slots.MOST_CACHED`).
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gateway.feedback.columns import Block
from gateway.feedback.joiner import collect_rarely
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.shard import Shard
from gateway.feedback.types import Event, Label, LabelKind, Stored
from gateway.feedback_config import FeedbackConfig, JoinConfig, LabelConfig
from gateway.protocol import records_pb2 as pb
from loadtest.ingest import block_of

_ROWS = 500
_BATCH = 5000
_PER_MS = 10
_T0 = 1_700_000_000_000
_EVENT = Event(b"", b"")
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd: no number gives another's product


def _ids(numbers: np.ndarray) -> np.ndarray:
    """Return UUIDv7s of these numbers, [n, 16] bytes."""
    made = np.empty((len(numbers), 16), np.uint8)
    times = (_T0 + numbers // _PER_MS).astype(">u8")
    made[:, :6] = times.view(np.uint8).reshape(-1, 8)[:, 2:]
    made[:, 6:8] = 0x70, 0
    spread = (numbers.astype(np.uint64) * _SPREAD).astype(">u8")
    made[:, 8:] = spread.view(np.uint8).reshape(-1, 8)
    return made


def _blocks(first: int, template: pb.Block) -> Iterator[tuple[Stored, Block]]:
    for start in range(first, first + _BATCH, _ROWS):
        numbers = np.arange(start, start + _ROWS)
        template.ids = _ids(numbers).tobytes()
        times = _T0 + numbers // _PER_MS
        times[1:] -= times[:-1].copy()
        template.after_ms[:] = times.tolist()
        at = _T0 + (start + _ROWS) // _PER_MS
        stored = Stored(PREDICTIONS, 0, start // _ROWS, at, _EVENT)
        yield stored, Block(template.SerializeToString())


def _labels(numbers: list[int], offset: int) -> list[tuple[Stored, Label]]:
    found = []
    ids = _ids(np.array(numbers))
    for place, number in enumerate(numbers):
        at = _T0 + number // _PER_MS
        label = Label(
            str(number), "load", ids[place].tobytes(), None, 0, "label",
            LabelKind.VALUE, 1.0, 0, at, 1.0,
        )  # fmt: skip
        found.append((Stored(LABELS, 0, offset + place, at + 1000, _EVENT), label))
    return found


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _measure(path: Path, predictions: int, labels: int) -> dict[str, Any]:
    config = FeedbackConfig(
        partitions=1,  # which has all the memory that there is for ids
        default=JoinConfig(labels={"label": LabelConfig(type="number")}),
    )
    names = [b"00000000-0000-7000-8000-000000000000"] * _ROWS
    template = pb.Block.FromString(block_of(names, _T0))
    found: dict[str, Any] = {"predictions": predictions, "rss_mib_before": _peak_mib()}
    shard, spent = Shard(path, 0, config), 0.0
    for first in range(0, predictions, _BATCH):
        made = list(_blocks(first, template))
        start = time.process_time()
        shard.apply(made)
        spent += time.process_time() - start
    shard.close()
    found |= {
        "predict_us": round(spent / predictions * 1e6, 2),
        "bytes_per_pending": round(path.stat().st_size / predictions, 1),
        "rss_mib_predicted": _peak_mib(),
    }
    start = time.perf_counter()
    shard = Shard(path, 0, config)
    assert shard.gauges().pending == predictions
    found["open_s"] = round(time.perf_counter() - start, 2)
    chosen, spent = random.Random(1).sample(range(predictions), labels), 0.0
    for first in range(0, labels, _BATCH):
        said = _labels(chosen[first : first + _BATCH], first)
        start = time.process_time()
        shard.apply(said)
        spent += time.process_time() - start
    assert shard.counts["applied"] == labels
    found |= {"label_us": round(spent / labels * 1e6, 2)}
    found["rss_mib_labelled"] = _peak_mib()
    end, emitted, start = _T0 + 4 * 3_600_000, 0, time.process_time()
    while rows := shard.apply([], caught_up_ms={PREDICTIONS: end, LABELS: end}):
        emitted += len(rows)
    assert emitted == predictions
    spent = time.process_time() - start
    shard.close()
    found["close_us"] = round(spent / predictions * 1e6, 2)
    found["rss_mib_closed"] = _peak_mib()
    return found


def run(
    *,
    predictions: Annotated[int, typer.Option(min=_BATCH)] = 10_000_000,
    labels: Annotated[int, typer.Option(min=1, help="Of random ones.")] = 200_000,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Have a partition hold `predictions`, and print what it took."""
    predictions -= predictions % _BATCH
    collect_rarely()  # as the controller does
    with tempfile.TemporaryDirectory(prefix="baton-load-") as folder:
        path = Path(folder) / "0.db"
        found = _measure(path, predictions, min(labels, predictions))
    for name, value in found.items():
        print(f"{name:20} {value:>12}")
    if as_json:
        print(json.dumps(found))


if __name__ == "__main__":
    typer.run(run)

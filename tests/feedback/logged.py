"""Predictions as a front appends them, and what was joined of them."""

from __future__ import annotations

import json
import sqlite3
import struct
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from gateway.feedback.block_writer import encode
from gateway.feedback.blocks import NO_CONTEXT, Answer, TensorLayout

_LAYOUT = (TensorLayout("y", "FP32", (1,)),)


class Chosen(NamedTuple):
    """A choice, as traffic makes it."""

    version: int = 1
    role: str = "champion"
    propensity: float = 1.0
    policy: str = "fixed"
    revision: int = 1
    snapshot: int = 0


_CHOSEN = Chosen()


def block(names: Sequence[bytes], time_ms: int, model: str = "m") -> bytes:
    """Return a block of predictions of one row: version 1 of a model said 1."""
    data = struct.pack("<f", 1.0)
    return encode(
        [
            Answer(
                name,
                model,
                time_ms * 1_000_000,
                900,
                1,
                _CHOSEN,
                NO_CONTEXT,
                _LAYOUT,
                (data,),
                b"",
            )
            for name in names
        ]
    )


def emitted(state: Path) -> int:
    """Return how many rows the shards of a gateway have emitted; it may be running."""
    total = 0
    for path in (state / "joins").glob("*.sqlite"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            (count,) = db.execute(
                "SELECT coalesce(sum(rows), 0) FROM outcomes"
            ).fetchone()
            total += count
    return total


def all_closed(state: Path) -> bool:
    """Return whether every request that a gateway has read is emitted."""
    shards = [looked_at(path) for path in (state / "joins").glob("*.sqlite")]
    return all(shard is not None and not shard[1] for shard in shards)


def looked_at(path: Path) -> tuple[dict[str, int], int] | None:
    """Return a shard's offsets, and how many of its requests are not emitted yet."""
    soon_ms = time.time_ns() // 1_000_000 + 600_000  # those that are closed wait longer
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        try:
            (offsets,) = db.execute(
                "SELECT value FROM meta WHERE name = 'offsets'"
            ).fetchone() or ("{}",)
            (open_,) = db.execute(
                "SELECT (SELECT count(*) FROM pending WHERE due_ms < ?)"
                " + (SELECT count(*) FROM parts WHERE NOT closed)",
                (soon_ms,),
            ).fetchone()
        except sqlite3.OperationalError:  # it is being made
            return None
    return json.loads(offsets), open_

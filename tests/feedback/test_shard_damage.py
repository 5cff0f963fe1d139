"""F20: a partition's file that is torn, cut or rotten. The log has what it held."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gateway.feedback import shard_file
from gateway.feedback.checked import Damaged
from gateway.feedback.log import PREDICTIONS
from gateway.feedback.shard import Input, Shard
from gateway.feedback.types import Outcome
from gateway.feedback_config import FeedbackConfig
from tests.feedback import histories
from tests.feedback.test_shard import CHILD, END, many

TIMES = 12 * int(os.environ.get("ADVERSITY_REPEAT", "1"))
PAGE = 4096


def cut(path: Path, rng: random.Random) -> None:
    """Lose the end of a file."""
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def tear(path: Path, rng: random.Random) -> None:
    """Lose a page of a file."""
    pages = max(1, path.stat().st_size // PAGE)
    with path.open("r+b") as file:
        file.seek(rng.randrange(pages) * PAGE)
        file.write(bytes(PAGE))


def flip(path: Path, rng: random.Random) -> None:
    """Change some bits of a file."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 16])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def killed(path: Path, batches: int) -> None:
    """Leave the file of a shard that was killed after so many batches."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    for _ in range(batches):
        assert child.stdout.readline() != "done\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


def joined(
    path: Path, config: FeedbackConfig, inputs: Sequence[Input]
) -> tuple[str, list[Outcome]]:
    """Return state and rows after the whole log: at the second try, if need be."""
    with suppress(sqlite3.DatabaseError):
        return joined_at_once(path, config, inputs)
    shard_file.set_aside(path, 0)  # as the joiner does
    return joined_at_once(path, config, inputs)


def joined_at_once(
    path: Path, config: FeedbackConfig, inputs: Sequence[Input]
) -> tuple[str, list[Outcome]]:
    shard = Shard(path, 0, config)
    try:
        shard.apply(inputs)
        state = shard.fingerprint()
        shard.apply([], caught_up_ms=END)
        return state, sorted(row for _, row in shard.outcomes(most=10_000))
    finally:
        shard.close()


@pytest.mark.parametrize(
    ("suffix", "harm"),
    [("", cut), ("", tear), ("-wal", cut), ("-wal", tear), ("-wal", flip)],
)
def test_a_torn_file_ends_as_if_nothing_had_happened(
    tmp_path: Path, suffix: str, harm: Callable[[Path, random.Random], None]
) -> None:
    config, inputs = many()
    right = joined(tmp_path / "right.db", config, inputs)
    assert len(right[1]) == 2000
    rng, ends = random.Random(f"{suffix}{harm.__name__}"), Counter[str]()
    for time in range(TIMES):
        if time % 4 == 0:
            (base := tmp_path / f"base-{time}").mkdir()
            # By the 70th some of it has gone from the write-ahead log into the file.
            killed(base / "0.db", rng.choice([3, 30, 70]))
        folder = tmp_path / "harmed"
        shutil.copytree(base, folder)
        harm(folder / f"0.db{suffix}", rng)
        assert joined(folder / "0.db", config, inputs) == right, time
        aside = any(folder.glob("0.damaged-*"))
        ends["made anew" if aside else "gone on"] += 1
        shutil.rmtree(folder)
    print(f"F20: {suffix or 'file'} {harm.__name__}: {dict(ends)}")  # noqa: T201
    assert ends["gone on"]


def blobs(db: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield table, key and name of the columns that hold bytes which are no key."""
    tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    for (table,) in tables.fetchall():
        columns = db.execute(f"PRAGMA table_info({table})").fetchall()
        keys = [name for _, name, _, _, _, key in columns if key]
        for _, name, kind, _, _, key in columns:
            if keys and kind == "BLOB" and not key:
                yield table, keys[0], name


def test_bytes_that_rot_are_found(tmp_path: Path) -> None:
    """SQLite has no checksums for what lies in the file: rows have their own."""
    config, inputs = many()
    shard = Shard(tmp_path / "whole.db", 0, config)
    shard.apply(inputs[:1500])
    at = inputs[1499][0].arrived_ms
    two_rows = [histories.prediction(9000 + n, at, rows=2) for n in range(20)]
    block = histories.block(two_rows)
    shard.apply([(histories.stored(PREDICTIONS, 9000, at), block)])
    shard.apply([], caught_up_ms=dict.fromkeys(END, inputs[300][0].arrived_ms + 10_000))
    shard.close()
    rng, found = random.Random(2), Counter[str]()
    with closing(sqlite3.connect(tmp_path / "whole.db")) as db:
        places = list(blobs(db))
    for table, key, name in places * 5:
        path = tmp_path / "0.db"
        shutil.copy(tmp_path / "whole.db", path)
        with closing(sqlite3.connect(path)) as db, db:
            row = db.execute(
                f"SELECT {key}, {name} FROM {table} WHERE length({name}) > 0 "
                "ORDER BY random() LIMIT 1"
            ).fetchone()
            if row is None:
                continue
            content = bytearray(row[1])
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            db.execute(
                f"UPDATE {table} SET {name} = ? WHERE {key} = ?",
                (bytes(content), row[0]),
            )
        with pytest.raises(Damaged):
            read_all(path, config)
        found[f"{table}.{name}"] += 1
    assert found.keys() >= {
        "pending.answers", "outcomes.packed", "part_blocks.packed", "notes.packed"
    }  # fmt: skip


def read_all(path: Path, config: FeedbackConfig) -> None:
    shard = Shard(path, 0, config)
    try:
        shard.fingerprint()
        shard.outcomes(most=10_000)
        shard.outbox()
    finally:
        shard.close()

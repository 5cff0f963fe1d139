"""The file of `gateway.feedback.shard`: its tables, and whether it is whole."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

from gateway.feedback import aliases, outbox, requests, slots
from gateway.feedback.checked import Damaged
from gateway.feedback.packing import FORMAT
from gateway.logs import get_logger

_log = get_logger("join")

_CACHE_KIB = 8192
_APPLICATION = 0x4261746A
"""SQLite's ``application_id``: "Batj"."""
_DAMAGE = (sqlite3.DatabaseError, sqlite3.IntegrityError, Damaged)
_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # A block of them, by the number of its last.
    "CREATE TABLE outcomes (last INTEGER PRIMARY KEY, rows INTEGER, packed BLOB)",
    outbox.TABLE,
    *requests.TABLES,
    *slots.TABLES,
    *aliases.TABLES,
)


def opened(path: Path, partition: int) -> sqlite3.Connection:
    """Return the file, made anew if it is missing, damaged or of another release."""
    try:
        return _whole(path, partition)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
    set_aside(path, partition)
    return _whole(path, partition)


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return whether a file is not what was written; a full disk is no such error."""
    if isinstance(error, sqlite3.OperationalError):
        # Python's own: a column that was bytes claims to be text.
        return not hasattr(error, "sqlite_errorcode")
    return type(error) in _DAMAGE


def set_aside(path: Path, partition: int) -> None:
    """Keep a damaged file, which nobody has open, and forget an earlier one."""
    for earlier in path.parent.glob(f"{path.stem}.damaged-*"):
        earlier.unlink()
    aside = path.with_suffix(f".damaged-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm"):
        if (beside := Path(f"{path}{suffix}")).exists():
            beside.rename(f"{aside}{suffix}")
    _log.error("join_was_damaged", partition=partition, kept_at=str(aside))


def _whole(path: Path, partition: int) -> sqlite3.Connection:
    unclean = Path(f"{path}-wal").exists()  # closing takes it away
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            db.execute("BEGIN IMMEDIATE")
            for statement in _TABLES:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute(
                "INSERT INTO meta VALUES ('partition', ?)",
                (json.dumps(partition),),
            )
            db.execute("COMMIT")
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        problem = "ok"
        if unclean:
            (problem,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if (application, schema, problem) != (_APPLICATION, FORMAT, "ok"):
            raise sqlite3.DatabaseError(f"not a join of this release: {problem}")
    except BaseException:
        db.close()
        raise
    return db

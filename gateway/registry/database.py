"""The registry's SQLite file: its tables, and transactions that are all or nothing.

A row of state is JSON and names the audit entry that wrote it. Kill -9 leaves the last
committed transaction; a disk that is full refuses the next one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import RegistryUnavailable
from gateway.registry.audit import Entry, Head, StateRow, Verdict, verify

SCHEMA = 1
"""Version of the tables below, kept in SQLite's ``user_version``."""
_APPLICATION = 0x4261746F
"""SQLite's ``application_id``: "Bato"."""
_BUSY_MS = 5000
"""How long a write waits for another process that reads or checkpoints the file."""
_TABLES = (
    """CREATE TABLE audit (
        seq INTEGER PRIMARY KEY, body BLOB NOT NULL, hash TEXT NOT NULL UNIQUE
    )""",
    """CREATE TABLE models (
        model TEXT PRIMARY KEY, body BLOB NOT NULL,
        seq INTEGER NOT NULL REFERENCES audit (seq)
    ) WITHOUT ROWID""",
    """CREATE TABLE versions (
        model TEXT NOT NULL, version INTEGER NOT NULL CHECK (version > 0),
        body BLOB NOT NULL, seq INTEGER NOT NULL REFERENCES audit (seq),
        PRIMARY KEY (model, version),
        FOREIGN KEY (model) REFERENCES models (model)
    ) WITHOUT ROWID""",
    """CREATE TABLE revisions (
        model TEXT NOT NULL, revision INTEGER NOT NULL CHECK (revision > 0),
        body BLOB NOT NULL, seq INTEGER NOT NULL REFERENCES audit (seq),
        PRIMARY KEY (model, revision),
        FOREIGN KEY (model) REFERENCES models (model)
    ) WITHOUT ROWID""",
    """CREATE TABLE operations (
        id TEXT PRIMARY KEY, seq INTEGER NOT NULL UNIQUE REFERENCES audit (seq)
    ) WITHOUT ROWID""",
    # REPLACE would delete without asking the triggers below.
    """CREATE TRIGGER audit_grows_at_its_end BEFORE INSERT ON audit
        WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit)
        BEGIN SELECT RAISE(ABORT, 'the audit log grows at its end only'); END""",
    *(
        f"""CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, '{table}: rows are kept as they are'); END"""
        for table, verb in (
            ("audit", "UPDATE"),
            ("audit", "DELETE"),
            ("revisions", "UPDATE"),
            ("revisions", "DELETE"),
            ("operations", "UPDATE"),
            ("operations", "DELETE"),
            ("versions", "DELETE"),
        )
    ),
)
_STATE = """
    SELECT model, 'model' AS key, body, seq FROM models
    UNION ALL SELECT model, 'version/' || version, body, seq FROM versions
    UNION ALL SELECT model, 'traffic/' || revision, body, seq FROM revisions
"""


class Database:
    """One connection to the file. Calls block on the disk; threads take turns."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file, and make it where it is not there.

        Args:
            path: Of the file; its folder must be there.
            read_only: Change nothing, not even the tables.

        Raises:
            RegistryUnavailable: It cannot be opened, is of a newer Baton, or is not
                a registry.
        """
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        with self._told():
            if read_only:
                uri = f"{path.absolute().as_uri()}?mode=ro"
                connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            else:
                connection = sqlite3.connect(path, check_same_thread=False)
            self._connection = connection
            try:
                connection.isolation_level = None
                _prepare(connection, path, read_only=read_only)
            except BaseException:
                connection.close()
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that sees one state of the file throughout."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Give a connection whose changes are all on disk after the block, or none.

        Raises:
            RegistryUnavailable: They could not be written; nothing was changed.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        """Close the file; what was committed stays."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            connection = self._connection
            if connection is None:
                raise RegistryUnavailable("the registry is closed; open it again")
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RegistryUnavailable(
                f"the registry {self.path.name} cannot be used: {error}; nothing was "
                "changed; free space in state_dir, make it writable, or restore it"
            ) from error


def verify_database(database: Database, expect: str | None = None) -> Verdict:
    """Check the audit log of a registry and its state against it.

    Args:
        database: The registry.
        expect: A hash kept elsewhere, or how it begins; the log must hold it.
    """
    with database.read() as connection:
        log = "SELECT seq, body, CAST(hash AS BLOB) FROM audit ORDER BY seq"
        state = (
            StateRow(str(model), str(key), _bytes(body), int(seq))
            for model, key, body, seq in connection.execute(_STATE)
        )
        operations = dict(connection.execute("SELECT id, seq FROM operations"))
        return verify(connection.execute(log), state, operations, expect=expect)


def read_head(connection: sqlite3.Connection) -> Head:
    """Return the last entry's number and hash."""
    last = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1"
    row = connection.execute(last).fetchone()
    return Head(*row) if row else Head()


def append(connection: sqlite3.Connection, entry: Entry) -> None:
    """Write an entry behind the last one, within a transaction."""
    row = entry.seq, entry.body, entry.hash
    connection.execute("INSERT INTO audit VALUES (?, ?, ?)", row)


def _prepare(connection: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if found > SCHEMA:
        raise RegistryUnavailable(
            f"{path} is a registry of a newer Baton (schema {found}; this one reads "
            f"{SCHEMA}); run the newer one, or restore a copy from before it"
        )
    if not empty and application != _APPLICATION:
        raise RegistryUnavailable(
            f"{path} is not a registry; move it away, or choose another state_dir"
        )
    if read_only:
        return
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if empty:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")


def _bytes(value: object) -> bytes:
    """Return a column as bytes, whatever somebody made of it."""
    return value if isinstance(value, bytes) else repr(value).encode()

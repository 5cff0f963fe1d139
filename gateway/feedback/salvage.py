"""What can still be read of a damaged log file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gateway.feedback.log_rows import MOST, SELECT, SHIFT, Row


def salvaged(path: Path, slots: int) -> Iterator[Row]:
    """Yield the rows of a damaged file that can be read, partition by partition."""
    _lengthen(path)
    db = sqlite3.connect(path)
    try:
        for slot in range(slots):
            first = slot << SHIFT
            with contextlib.suppress(sqlite3.DatabaseError):
                yield from db.execute(SELECT, (first, first + MOST, MOST))
    finally:
        db.close()


def _lengthen(path: Path) -> None:
    """Give a file that was cut its length again: SQLite reads nothing of shorter ones.

    Page size and number of pages are at bytes 16 and 28 of the header
    (https://www.sqlite.org/fileformat2.html#the_database_header).
    """
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3"):
        return
    page = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    size = (65536 if page == 1 else page) * pages
    if path.stat().st_size < size:
        os.truncate(path, size)

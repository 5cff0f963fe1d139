"""Bytes that end with their checksum, and plain values as such bytes.

SQLite has checksums in its write-ahead log, but none in the file itself.
"""

from __future__ import annotations

import marshal
import sqlite3
import zlib
from typing import Any

_SUM = 4
"""Bytes of a CRC-32."""


class Damaged(sqlite3.DatabaseError):
    """What the file holds is not what was written into it."""


def sealed(value: bytes) -> bytes:
    """Return bytes with their checksum."""
    return value + zlib.crc32(value).to_bytes(_SUM)


def unsealed(value: bytes) -> bytes:
    """Return what `sealed` was given."""
    if not isinstance(value, bytes):  # a rotten header of a row has it another type
        raise Damaged("a row is not of bytes")
    content = value[:-_SUM]
    if zlib.crc32(content) != int.from_bytes(value[-_SUM:]):
        raise Damaged("a row is not what was written")
    return content


def dumped(value: object, version: int = 2) -> bytes:
    """Return a plain value as bytes, by Python's marshal.

    Version 2 has no back references: equal values give equal bytes.
    """
    return sealed(marshal.dumps(value, version))  # type: ignore[arg-type]


def loaded(packed: bytes) -> Any:  # noqa: ANN401
    """Return what `dumped` was given."""
    return marshal.loads(unsealed(packed))  # noqa: S302  # only what `dumped` wrote

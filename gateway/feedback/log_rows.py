"""Events as rows of the embedded log: headers packed, all under a checksum. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from gateway.feedback.log import Place
from gateway.feedback.types import Event, Stored

Row = tuple[int, int, int, bytes, bytes | None, bytes, int]
"""Key, `arrived_ms`, `time_ms`, the event's key, value and headers, checksum."""
SHIFT = 40
"""A row's key is ``slot << 40 | offset``: the rows of a partition lie in order."""
MOST = 1 << SHIFT
SELECT = "SELECT * FROM events WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"


def row_of(key: int, arrived_ms: int, event: Event) -> Row:
    """Return the row of an event."""
    headers = _packed(event.headers)
    row = (key, arrived_ms, event.time_ms, event.key, event.value, headers, 0)
    return (*row[:6], _crc(row))


def is_whole(row: Row) -> bool:
    """Return whether a row says what it said when it was written."""
    try:
        return _crc(row) == row[6]
    except TypeError:  # what a damaged page holds may be anything
        return False


def _crc(row: Row) -> int:
    key, arrived_ms, time_ms, name, value, headers, _ = row
    crc = crc32(b"%d %d %d %d" % (key, arrived_ms, time_ms, value is None))
    return crc32(headers, crc32(value or b"", crc32(name, crc)))


def stored_from(place: Place, row: Row, first: int) -> Stored | None:
    """Return the event of a row, or ``None`` if its checksum does not match.

    Args:
        place: Where it lies.
        row: As read.
        first: Key of offset 0 there.
    """
    if not is_whole(row):
        return None
    key, arrived_ms, time_ms, name, value, headers, _ = row
    event = Event(name, value, _unpacked(headers), time_ms)
    return Stored(place.topic, place.partition, key - first, arrived_ms, event)


def _packed(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """Return headers as lengths (4 bytes, little-endian) and bytes in turn."""
    parts = []
    for name, value in headers:
        for part in (name.encode(), value):
            parts += [len(part).to_bytes(4, "little"), part]
    return b"".join(parts)


def _unpacked(packed: bytes) -> tuple[tuple[str, bytes], ...]:
    if not packed:
        return ()
    parts, at = [], 0
    while at < len(packed):
        size = int.from_bytes(packed[at : at + 4], "little")
        parts.append(packed[at + 4 : at + 4 + size])
        at += 4 + size
    names = [name.decode() for name in parts[::2]]
    return tuple(zip(names, parts[1::2], strict=True))

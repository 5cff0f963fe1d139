"""Rows that the join emitted, column by column. Pure."""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gateway.feedback.checked import dumped, loaded
from gateway.feedback.types import Outcome, Status, Tensor

OUTPUT, STATUS = map(Outcome._fields.index, ("output", "status"))
Columns = list[Sequence[Any]]
"""As in `Outcome`, but tensors are plain tuples and the status is its text."""


class Emitted:
    """Some rows, in the order in which they came.

    Args:
        columns: Of one length.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    @classmethod
    def of(cls, rows: Sequence[Outcome]) -> Emitted:
        """Return rows that there are one by one."""
        if not rows:
            return cls([()] * len(Outcome._fields))
        columns: Columns = list(zip(*rows, strict=True))
        columns[OUTPUT] = [tuple([t[:] for t in output]) for output in columns[OUTPUT]]
        columns[STATUS] = [status.value for status in columns[STATUS]]
        return cls(columns)

    def column(self, name: str) -> Sequence[Any]:
        """Return the column of a field of `Outcome`."""
        return self.columns[Outcome._fields.index(name)]

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Outcome]:
        """Return the rows one by one."""
        columns = list(self.columns)
        columns[OUTPUT] = [
            tuple([Tensor(*tensor) for tensor in output]) for output in columns[OUTPUT]
        ]
        columns[STATUS] = [Status(status) for status in columns[STATUS]]
        return map(Outcome, *columns)

    def blocks(self, most: int) -> Iterator[Emitted]:
        """Return them in blocks of so many rows."""
        for at in range(0, len(self), most):
            yield Emitted([column[at : at + most] for column in self.columns])

    def pack(self) -> bytes:
        """Return them as bytes; a column of equal values is one value."""
        packed = [
            (column[0],) if _is_one(column) else list(column) for column in self.columns
        ]
        return dumped((len(self), packed), marshal.version)


def _is_one(column: Sequence[Any]) -> bool:
    first = column[0]
    if isinstance(first, tuple):  # 1.0 and True are equal, and not the same label
        return len(set(map(id, column))) == 1
    return column.count(first) == len(column)


def joined(parts: Iterable[Emitted]) -> Emitted:
    """Return the rows of all of them, in order."""
    columns: list[list[Any]] = [[] for _ in Outcome._fields]
    for part in parts:
        for whole, column in zip(columns, part.columns, strict=True):
            whole.extend(column)
    return Emitted([*columns])


def unpacked(packed: bytes) -> Emitted:
    """Return what `Emitted.pack` made bytes of."""
    rows, columns = loaded(packed)
    return Emitted(
        [each * rows if isinstance(each, tuple) else each for each in columns]
    )

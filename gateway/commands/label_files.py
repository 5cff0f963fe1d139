"""Labels as people have them, in files and on the command line, as messages."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from gateway.logs import escape
from gateway.protocol import outcomes_pb2 as pb

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class BadFile(ValueError):
    """A file cannot be read as what it is said to be; says how it can."""


class Refusal(NamedTuple):
    """A label that was not taken.

    Attributes:
        line: Of the file, from 1.
        reason: One of the reasons of dead letters.
        detail: For people.
    """

    line: int
    reason: str
    detail: str


class Unless(NamedTuple):
    """What holds of a label unless it says otherwise.

    Attributes:
        source: Who says so.
        time_ms: When it became true, Unix milliseconds.
    """

    source: str
    time_ms: int


Line = tuple[int, pb.LabelEvent | Refusal]


def from_jsonl(lines: Iterable[str], unless: Unless) -> Iterator[Line]:
    """Yield the labels of a file with a JSON object on each line that is not empty."""
    for number, text in enumerate(lines, 1):
        if text.strip():
            yield _line(number, unless, partial(_object, text))


def from_csv(lines: Iterable[str], unless: Unless) -> Iterator[Line]:
    """Yield the labels of a CSV file whose first line names the columns.

    Raises:
        BadFile: A column is none of `_COLUMNS`.
    """
    rows = csv.reader(lines)
    names = [name.strip() for name in next(rows, [])]
    if unknown := [name for name in names if name not in _COLUMNS]:
        text = f"column {escape(unknown[0])!r} is none of {', '.join(_COLUMNS)}"
        raise BadFile(text)
    for cells in rows:
        if cells:
            row = dict(zip(names, cells, strict=False))
            wrong = "" if len(cells) == len(names) else f"has {len(cells)} cells"
            yield _line(rows.line_num, unless, partial(_cells, row, wrong))


def message(fields: dict[str, Any], unless: Unless) -> pb.LabelEvent:
    """Return the message for a label; the service checks what it says.

    Args:
        fields: As in a line of JSON; ``value`` may be ``number``, ``truth``, ``text``
            or ``vector`` instead. Without ``id`` it is a hash of them, so that a label
            sent twice counts once.
        unless: What holds unless they say otherwise.

    Raises:
        ValueError, TypeError, ArithmeticError: They are no label.
    """
    text = json.dumps(fields, sort_keys=True)
    data = dict(fields)
    event = pb.LabelEvent(
        id=data.pop("id", hashlib.sha256(text.encode()).hexdigest()[:32]),
        source=data.pop("source", unless.source),
        kind=str(data.pop("kind", "value")).upper(),
        time_ms=data.pop("time_ms", unless.time_ms),
    )
    value = data.pop("value", None)
    for name, kind in _KINDS.items():
        if type(value) in kind:
            data[name] = value
    if data.get("vector") is not None:
        data["vector"] = pb.Vector(values=data["vector"])
    event.data.CopyFrom(pb.LabelData(**data))
    return event


_KINDS: dict[str, tuple[type, ...]] = {
    "truth": (bool,),
    "number": (int, float),
    "text": (str,),
    "vector": (list,),
}


def _line(number: int, unless: Unless, fields: Callable[[], dict[str, Any]]) -> Line:
    try:
        return number, message(fields(), unless)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        text = escape(" ".join(str(error).split()))
        return number, Refusal(number, "invalid", f"{text}; see --help")


def _object(text: str) -> dict[str, Any]:
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("must be a JSON object")
    return fields


def _cells(row: dict[str, str], wrong: str) -> dict[str, Any]:
    if wrong:
        raise ValueError(f"{wrong}, the first line another number")
    fields = {}
    for name, cell in row.items():
        if cell:
            try:
                fields[name] = _COLUMNS[name](cell)
            except (ValueError, KeyError):
                raise ValueError(f"{name}: {cell[:40]!r} cannot be read") from None
    return fields


def vector(text: str) -> list[float]:
    """Return the numbers in a text, with spaces, commas or semicolons between."""
    return [float(part) for part in re.split(r"[\s,;]+", text.strip())]


_COLUMNS: dict[str, Callable[[str], object]] = {
    "prediction_id": str,
    "request_id": str,
    "model": str,
    "value": str,
    "number": float,
    "truth": lambda text: _TRUTHS[text.lower()],
    "vector": vector,
    "label_name": str,
    "row": int,
    "seq": int,
    "weight": float,
    "kind": str,
    "time_ms": int,
    "source": str,
    "id": str,
}

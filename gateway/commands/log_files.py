"""Files that ``baton log export`` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES
from gateway.call import nested, widened
from gateway.commands.log_objects import Values, line, objects, row_objects

if TYPE_CHECKING:
    import pyarrow as pa


class _Source(NamedTuple):
    """What is written.

    Attributes:
        objects: Makes objects of an event or a row.
        size: Bytes that one of these has, for what holds no arrays.
    """

    objects: Callable[[Any, Values], Iterator[dict[str, Any]]]
    size: Callable[[Any], int]


Write = Callable[[Any], tuple[int, int]]
"""Writes what an event or a joined row says; returns how many rows that is, and how
many of them could not be decoded."""
_EVENTS = _Source(objects, lambda stored: len(stored.event.value or b""))
_ROWS = _Source(row_objects, lambda row: row.ByteSize())
_REAL = ("FP16", "FP32", "FP64", "BF16")
_VALUE = ("label_name", "number", "truth", "text", "vector")
_GROUP_ROWS = 16_384
_GROUP_BYTES = 16 << 20
"""Of values: what is held until a row group is written."""


class MissingPackage(Exception):
    """A package is not installed; says how it will be."""


@contextmanager
def writer(path: Path, kind: str, topic: str) -> Iterator[Write]:
    """Make a file and give a function that writes into it.

    Args:
        path: Of the file.
        kind: ``jsonl`` or ``parquet``.
        topic: Whose events they will be, or ``rows``.

    Raises:
        MissingPackage: Parquet needs one.
        OSError: The file cannot be written.
    """
    source = _ROWS if topic == "rows" else _EVENTS
    if kind == "jsonl":
        with path.open("w", encoding="utf-8") as out:

            def write(one: object) -> tuple[int, int]:
                rows = errors = 0
                for thing in source.objects(one, nested):
                    out.write(line(thing) + "\n")
                    rows += 1
                    errors += "error" in thing
                return rows, errors

            yield write
        return
    with _Parquet(path, topic, source) as made:
        yield made.write


class _Parquet:
    """A Parquet file, one row group in memory.

    Outputs and inputs of predictions are lists of structs whose values, row-major, are
    in one of ``integers``, ``numbers`` and ``texts``; UINT64 is in ``texts``, for int64
    does not hold it. Likewise a label's value is in ``number``, ``truth``, ``text`` or
    ``vector``. The event of what could not be decoded is JSON.
    """

    def __init__(self, path: Path, topic: str, source: _Source) -> None:
        try:
            import pyarrow as pa
            from pyarrow.parquet import ParquetWriter
        except ImportError as error:
            raise MissingPackage(
                "Parquet needs pyarrow: install the extra `parquet`, which in a "
                "checkout is `pip install '.[parquet]'`; or export --format jsonl"
            ) from error
        self._source = source
        self._make = pa.Table.from_pylist
        self._schema = _schema(pa, topic)
        self._out = ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> _Parquet:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._out.close()

    def write(self, one: object) -> tuple[int, int]:
        """Write what an event or a row says; see `Write`."""
        rows = errors = 0
        for thing in self._source.objects(one, self._cells):
            self._rows.append(_row(thing))
            rows += 1
            errors += "error" in thing
            if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
                self._flush()
        # What has no arrays counts by the size of what it came in.
        self._bytes += self._source.size(one)
        return rows, errors

    def _flush(self) -> None:
        if self._rows:
            self._out.write_table(self._make(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    def _cells(self, array: NDArray[np.generic], datatype: str) -> dict[str, object]:
        cell: dict[str, object] = {"datatype": datatype, "shape": list(array.shape)}
        if datatype == "BYTES":
            elements = array.ravel().tolist()
            cell["texts"] = [one.decode(errors="backslashreplace") for one in elements]
        elif datatype == "UINT64":
            cell["texts"] = [str(one) for one in array.ravel().tolist()]
        elif datatype in _REAL:
            wide = widened(array, DATATYPES[datatype])
            cell["numbers"] = wide.ravel().astype(np.float64)
        else:
            cell["integers"] = array.ravel().astype(np.int64)
        self._bytes += 8 * array.size
        return cell


def _schema(pa: Any, topic: str) -> pa.Schema:  # noqa: ANN401 - a module
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    time = pa.timestamp("ms", tz="UTC")
    tensor = {"name": text, "datatype": text, "shape": pa.list_(whole)}
    tensor |= {"integers": pa.list_(whole), "numbers": pa.list_(real)}
    tensor |= {"texts": pa.list_(text)}
    label = {"id": text, "source": text, "kind": text, "prediction_id": text}
    label |= {"tenant": text, "model": text, "request_id": text}
    label |= {"row": whole, "label_name": text, "number": real, "truth": pa.bool_()}
    label |= {"text": text, "vector": pa.list_(real), "seq": whole, "weight": real}
    label |= {"time_ms": time}
    columns = {"partition": pa.int32(), "offset": whole, "arrived_ms": time}
    tensors = pa.list_(pa.struct(tensor))
    answer = {"id": text, "time_ms": time, "model": text, "version": whole}
    answer |= {"role": text, "policy": text, "propensity": real, "revision": whole}
    answer |= {"snapshot": whole, "unit": text, "bucket": pa.int32()}
    answer |= {"segments": pa.list_(text), "outputs": tensors}
    if topic == "predictions":
        columns |= answer | {"rows": whole, "latency_us": whole, "request_id": text}
        columns |= {"inputs": tensors}
    elif topic == "rows":
        value = {name: label[name] for name in _VALUE}
        columns = {"partition": pa.int32(), "number": whole, **answer, "row": whole}
        columns |= {"cohort_ms": time, "labels": pa.list_(pa.struct(value))}
        columns |= {"label_ms": time, "status": text, "weight": real}
        columns |= {"sign": pa.int8(), "revision_of_row": whole}
        columns |= {"provisional": pa.bool_()}
    elif topic == "labels":
        columns |= label
    else:
        origin = {"topic": text, "partition": pa.int32(), "offset": whole}
        columns |= {"reason": text, "detail": text, "origin": pa.struct(origin)}
        columns |= {"label": pa.struct(label)}
    return pa.schema(columns | {"error": text, "event": text})


def _row(thing: dict[str, Any]) -> dict[str, Any]:
    """Return an object as the schema has it."""
    for side in ("outputs", "inputs"):
        if side in thing:
            tensors = thing[side].items()
            thing[side] = [{"name": name, **(cell or {})} for name, cell in tensors]
    if "event" in thing:
        thing["event"] = line(thing["event"])
    if "labels" in thing:
        named = thing["labels"].items()
        thing["labels"] = [
            {"label_name": name, "value": value} for name, value in named
        ]
    for label in (thing, thing.get("label", {}), *thing.get("labels", ())):
        match label.get("value"):
            case bool(truth):
                label["truth"] = truth
            case float(number):
                label["number"] = number
            case str(text):
                label["text"] = text
            case tuple(vector):
                label["vector"] = vector
    return thing

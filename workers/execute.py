"""Runs into arrays, arrays into results: one run of the model for many batches.

Pure apart from the model itself: no sockets, no onnxruntime.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES
from featurizer.encode import decode_array, encode_array
from workers.plain import QuickRun
from workers.spec import LoadReport, ModelSpec, TensorSpec
from workers.wire import ROW_OFFSETS, Buffer, Failure, Result, Run, WireTensor

Array = NDArray[np.generic]


class RunError(Exception):
    """A run that gave no result; the message is fit for a client."""

    failure = Failure.MODEL_FAILED


class Loaded(Protocol):
    """A version ready to run, as `workers.session` makes it."""

    @property
    def spec(self) -> ModelSpec:
        """The tensors of the version."""

    @property
    def report(self) -> LoadReport:
        """What came of the load."""

    def run(self, arrays: list[Array | None], rows: int) -> list[Array]:
        """Run one batch: an array per input, ``None`` where absent; see `execute`."""

    def quick(self) -> QuickRun | None:
        """Return the short way for the usual run, where the version allows it."""

    def close(self) -> None:
        """Free the version's memory."""


def execute(loaded: Loaded, runs: Sequence[Run]) -> list[Result]:
    """Run the model once for all of `runs` and cut the outputs apart.

    Args:
        loaded: The version.
        runs: Batches of one version and one inner shape. More than one only where
            the version batches; rows together within its limit.

    Returns:
        A result per run, in order. The nanoseconds are those of the whole run; the
        first result alone counts the execution.

    Raises:
        RunError: The model failed, or its outputs do not fit its spec.
    """
    started = time.monotonic_ns()
    spec = loaded.spec
    rows = sum(run.rows for run in runs)
    arrays = _gather(spec, runs)
    ready = time.monotonic_ns()
    outputs = loaded.run(arrays, rows)
    done = time.monotonic_ns()
    tensors = _scatter(spec, outputs, [run.rows for run in runs])
    encoded = time.monotonic_ns()
    return [
        Result(
            id=run.id,
            input_ns=ready - started,
            infer_ns=done - ready,
            output_ns=encoded - done,
            executions=0 if index else 1,
            batch_rows=rows,
            tensors=tensors[index],
        )
        for index, run in enumerate(runs)
    ]


def _gather(spec: ModelSpec, runs: Sequence[Run]) -> list[Array | None]:
    """Return one array per input of the spec: the rows of all runs, in order."""
    arrays: list[Array | None] = [None] * len(spec.inputs)
    for position, first in enumerate(runs[0].tensors):
        datatype = spec.inputs[first.index].datatype
        parts = [
            decode_array(run.tensors[position].data[0], datatype, tensor.dims)
            for run in runs
            for tensor in (run.tensors[position],)
        ]
        if len(parts) > 1:
            array: Array = np.concatenate(parts)
        else:
            array = parts[0]
            if not array.flags.aligned:  # a view into the middle of a read
                array = array.copy()
        arrays[first.index] = array
    return arrays


def _scatter(
    spec: ModelSpec, outputs: list[Array], rows: list[int]
) -> list[list[WireTensor]]:
    """Return the tensors of each run: its rows of every output."""
    per_run: list[list[WireTensor]] = [[] for _ in rows]
    for index, (tensor, array) in enumerate(zip(spec.outputs, outputs, strict=True)):
        if spec.max_batch_rows == 0:
            per_run[0].append(_whole(index, tensor, array))
            continue
        if array.ndim == 0 or array.shape[0] != sum(rows):
            raise RunError(
                f"output '{tensor.name}' has shape {list(array.shape)} for a batch of "
                f"{sum(rows)} rows: the model does not keep rows apart"
            )
        start = 0
        for run, count in enumerate(rows):
            per_run[run].append(_rows(index, tensor, array[start : start + count]))
            start += count
    return per_run


def _raw(tensor: TensorSpec, array: Array) -> Buffer:
    dtype = DATATYPES[tensor.datatype].numpy
    if array.dtype != dtype:
        raise RunError(
            f"output '{tensor.name}' has type {array.dtype}, not {tensor.datatype}"
        )
    if array.flags.c_contiguous and array.size and array.ndim:
        return array.data.cast("B")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _whole(index: int, tensor: TensorSpec, array: Array) -> WireTensor:
    if tensor.datatype == "BYTES":
        data: Buffer = encode_array(array, "BYTES")
    else:
        data = _raw(tensor, array)
    return WireTensor(index, array.shape, (data,))


def _rows(index: int, tensor: TensorSpec, array: Array) -> WireTensor:
    if tensor.datatype != "BYTES":
        return WireTensor(index, array.shape, (_raw(tensor, array),))
    rows = [encode_array(row, "BYTES") for row in array.reshape(len(array), -1)]
    offsets = np.zeros(len(rows) + 1, dtype="<u8")
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return WireTensor(
        index, array.shape, (offsets.tobytes(), b"".join(rows)), ROW_OFFSETS
    )

"""Runs made while a version loads: does it batch, and how long does it take.

The model is a function here (`RunFunction`), so nothing depends on onnxruntime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES
from featurizer.encode import EncodingError, decode_array
from workers.arrays import Array, batch_buckets
from workers.execute import RunError
from workers.signature import Graph, LoadRefused, make_spec, open_ranks
from workers.spec import LoadOrder, ModelSpec, TensorSpec, Warmup, WarmupInput
from workers.wire import Failure

RunFunction = Callable[[list[Array | None], int], list[Array]]
"""Runs one batch: an array per input, rows; an array per output."""

_FILLS = (1, 8, 16, 32)
"""Sizes tried for variable inner dimensions: 1 suits most; convolutions and
windows need more than their kernel."""
_PROBE_ROWS = 3
MAX_WARM_ROWS = 1024
"""Largest synthetic batch: a declared limit may be any number."""
_TOLERANCE = {"FP16": 1e-2, "BF16": 5e-2}
"""Relative, some four units in the last place; 1e-3 for the wider floats."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What the probe decided.

    Attributes:
        spec: The spec to serve.
        fill: Size for variable inner dimensions at which synthetic rows run; 0 if
            none was found.
        notes: Why the version does not batch, and the like.
    """

    spec: ModelSpec
    fill: int
    notes: tuple[str, ...] = ()


def settle(
    order: LoadOrder, graph: Graph, runner: Callable[[ModelSpec], RunFunction]
) -> Settled:
    """Decide the spec of a version.

    A declared limit holds. Without one, a version batches if the first dimension of
    all its tensors is variable and a probe finds that rows do not see each other.

    Args:
        order: What was declared; a spec in it is final.
        graph: The model's borders.
        runner: Makes the model runnable under a spec.

    Raises:
        LoadRefused: Declaration and graph disagree.
    """
    if order.spec is not None:
        fill, _, _ = _single(order.spec, runner(order.spec))
        return Settled(order.spec, fill)
    limit = order.max_batch_rows
    if limit is not None or order.default_max_batch_rows == 0:
        spec = make_spec(order, graph, limit or 0)
        settled = _complete(order, graph, spec, runner)
        if not limit or limit < _PROBE_ROWS or not settled.fill:
            return settled
        reason = _why_not_batched(settled.spec, runner(settled.spec), settled.fill)
        if not reason:
            return settled
        note = f"its configuration batches it, although {reason}"
        return replace(settled, notes=(*settled.notes, note))
    try:
        spec = make_spec(order, graph, order.default_max_batch_rows)
        settled = _complete(order, graph, spec, runner)
        reason = "; ".join(settled.notes)
        if settled.fill:
            reason = _why_not_batched(settled.spec, runner(spec), settled.fill)
        if not reason:
            return settled
    except LoadRefused as refused:
        reason = str(refused)
    spec = make_spec(order, graph, 0)
    settled = _complete(order, graph, spec, runner)
    return replace(settled, notes=(f"requests are not batched: {reason}",))


def _complete(
    order: LoadOrder,
    graph: Graph,
    spec: ModelSpec,
    runner: Callable[[ModelSpec], RunFunction],
) -> Settled:
    """Run one synthetic row; it also shows the ranks the graph leaves open."""
    fill, outputs, reason = _single(spec, runner(spec))
    if not fill:
        return Settled(spec, 0, (f"no run on synthetic data succeeded: {reason}",))
    unknown = open_ranks(order, graph)
    batch_dims = 1 if spec.max_batch_rows else 0
    seen = tuple(
        replace(tensor, dims=(-1,) * (array.ndim - batch_dims))
        if tensor.name in unknown
        else tensor
        for tensor, array in zip(spec.outputs, outputs, strict=True)
    )
    return Settled(replace(spec, outputs=seen), fill)


def _single(spec: ModelSpec, run: RunFunction) -> tuple[int, list[Array], str]:
    """Find a fill at which one synthetic row runs; else the last reason."""
    variable = any(-1 in tensor.dims for tensor in spec.inputs)
    reason = ""
    for fill in _FILLS if variable else _FILLS[:1]:
        try:
            return fill, run([*synthetic(spec, 1, fill)], 1), ""
        except RunError as error:
            reason = str(error)
    return 0, [], reason


def synthetic(spec: ModelSpec, rows: int, fill: int) -> list[Array]:
    """Make seeded random inputs.

    Args:
        spec: The version's tensors.
        rows: Size of the batch dimension, where the version has one.
        fill: Size of every variable dimension.

    Returns:
        An array per input: N(0, 1) for floats, 0 or 1 for all else (small numbers
        are what indices, flags and categories have in common).
    """
    random = np.random.default_rng(rows)
    leading = (rows,) if spec.max_batch_rows else ()
    return [
        _random(
            tensor.datatype,
            leading + tuple(fill if dim == -1 else dim for dim in tensor.dims),
            random,
        )
        for tensor in spec.inputs
    ]


def _random(
    datatype: str, shape: tuple[int, ...], random: np.random.Generator
) -> Array:
    dtype = DATATYPES[datatype].numpy
    if datatype in {"FP16", "FP32", "FP64"}:
        return np.asarray(random.standard_normal(shape)).astype(dtype)
    if datatype == "BF16":  # the upper half of a float32
        bits = np.asarray(random.standard_normal(shape, dtype=np.float32))
        return (bits.view(np.uint32) >> 16).astype(np.uint16)
    ones = np.asarray(random.integers(0, 2, shape))
    if datatype == "BYTES":
        return np.where(ones, b"1", b"0").astype(object)
    return ones.astype(dtype)


def _why_not_batched(spec: ModelSpec, run: RunFunction, fill: int) -> str:
    """Compare rows run together with the same rows run alone; empty if equal."""
    inputs = synthetic(spec, _PROBE_ROWS, fill)
    try:
        together = run([*inputs], _PROBE_ROWS)
        alone = [
            run([array[row : row + 1] for array in inputs], 1)
            for row in range(_PROBE_ROWS)
        ]
    except RunError as error:
        return f"a batch of {_PROBE_ROWS} rows failed: {error}"
    for index, tensor in enumerate(spec.outputs):
        for row, single in enumerate(alone):
            part = together[index][row : row + 1]
            if not _agree(tensor.datatype, part, single[index]):
                return (
                    f"output '{tensor.name}' differs for a row run alone and in a "
                    f"batch, so the model mixes rows"
                )
    return ""


def _agree(datatype: str, left: Array, right: Array) -> bool:
    if left.shape != right.shape:
        return False
    if datatype == "BF16":
        left, right = _widen(left), _widen(right)
    if left.dtype.kind != "f":
        return bool(np.array_equal(left, right))
    relative = _TOLERANCE.get(datatype, 1e-3)
    absolute = max(1e-5, relative * 1e-2)
    return bool(
        np.allclose(
            left.astype(np.float64),
            right.astype(np.float64),
            rtol=relative,
            atol=absolute,
            equal_nan=True,
        )
    )


def _widen(bits: Array) -> NDArray[np.float32]:
    """Turn BF16 bit patterns into the floats they stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def warm_up(
    settled: Settled, warmups: Sequence[Warmup], run: RunFunction
) -> tuple[int, tuple[str, ...]]:
    """Make the declared runs, then two synthetic runs of every batch size.

    Args:
        settled: The spec and how synthetic data runs.
        warmups: The declared runs; each must succeed.
        run: The model.

    Returns:
        Nanoseconds of the slowest run after the first of its shape, 0 if there was
        none; and notes.

    Raises:
        LoadRefused: A declared run failed, an output has another type than the
            spec says, or a batch size within the limit runs out of memory.
    """
    spec = settled.spec
    slowest = 0
    for warmup in warmups:
        inputs = _declared(spec, warmup)
        try:
            taken = _timed(spec, inputs, max(warmup.rows, 1), max(warmup.count, 1), run)
        except RunError as error:
            raise LoadRefused(f"warm-up '{warmup.name}' failed: {error}") from None
        slowest = max(slowest, taken)
    if not settled.fill:
        return slowest, ()
    for rows in batch_buckets(spec.max_batch_rows):
        if rows > MAX_WARM_ROWS:
            return slowest, (f"not warmed up beyond {MAX_WARM_ROWS} rows",)
        arrays: list[Array | None] = [*synthetic(spec, rows, settled.fill)]
        try:
            slowest = max(slowest, _timed(spec, arrays, rows, 2, run))
        except RunError as error:
            if error.failure == Failure.OUT_OF_MEMORY:
                raise LoadRefused(
                    f"a batch of {rows} rows runs out of memory; lower max_batch_rows "
                    f"or give the version more memory ({error})"
                ) from None
            note = f"a synthetic warm-up of {rows} rows failed: {error}"
            return slowest, (note,)
    return slowest, ()


def _timed(
    spec: ModelSpec,
    inputs: list[Array | None],
    rows: int,
    count: int,
    run: RunFunction,
) -> int:
    """Run `count` times; the slowest after the first, in nanoseconds."""
    slowest = 0
    for turn in range(count):
        started = time.monotonic_ns()
        outputs = run(inputs, rows)
        if turn:
            slowest = max(slowest, time.monotonic_ns() - started)
        _check_types(spec, outputs)
    return slowest


def _check_types(spec: ModelSpec, outputs: list[Array]) -> None:
    for tensor, array in zip(spec.outputs, outputs, strict=True):
        if array.dtype != DATATYPES[tensor.datatype].numpy:
            raise LoadRefused(
                f"output '{tensor.name}' came out as {array.dtype}, not as "
                f"{tensor.datatype}"
            )


def _declared(spec: ModelSpec, warmup: Warmup) -> list[Array | None]:
    """Fill the inputs of a declared run; one row, repeated, as Triton does."""
    where = f"warm-up '{warmup.name}'"
    unknown = warmup.inputs.keys() - {tensor.name for tensor in spec.inputs}
    if unknown:
        raise LoadRefused(f"{where} names unknown input '{min(unknown)}'")
    if warmup.rows > max(spec.max_batch_rows, 1):
        raise LoadRefused(
            f"{where} has {warmup.rows} rows, above the limit of {spec.max_batch_rows}"
        )
    arrays: list[Array | None] = []
    for tensor in spec.inputs:
        filler = warmup.inputs.get(tensor.name)
        if filler is not None:
            row = _filled(tensor, filler, where)
            if spec.max_batch_rows:
                row = np.repeat(row[np.newaxis], max(warmup.rows, 1), axis=0)
            arrays.append(row)
        elif tensor.optional:
            arrays.append(None)
        else:
            raise LoadRefused(f"{where} lacks input '{tensor.name}'")
    return arrays


def _filled(tensor: TensorSpec, filler: WarmupInput, where: str) -> Array:
    """Make one row of one input."""
    fits = len(filler.dims) == len(tensor.dims) and all(
        there in (-1, here)
        for here, there in zip(filler.dims, tensor.dims, strict=True)
    )
    if filler.datatype != tensor.datatype or not fits:
        raise LoadRefused(
            f"{where}: input '{tensor.name}' is {filler.datatype}{list(filler.dims)}, "
            f"the model takes {tensor.datatype}{list(tensor.dims)}"
        )
    if filler.source == "random":
        return _random(filler.datatype, filler.dims, np.random.default_rng(0))
    if filler.source == "zero":
        empty = b"" if filler.datatype == "BYTES" else 0
        return np.full(filler.dims, empty, dtype=DATATYPES[filler.datatype].numpy)
    try:
        raw = Path(filler.path).read_bytes()
        return decode_array(raw, filler.datatype, filler.dims)
    except (OSError, EncodingError) as error:
        raise LoadRefused(f"{where}: input '{tensor.name}': {error}") from None

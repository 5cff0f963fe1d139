"""One run for many batches: each gets the bytes it would have got alone."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES
from featurizer.encode import encode_array
from gateway.serving.rows import BatchRows
from workers import wire
from workers.execute import RunError, execute
from workers.spec import LoadReport, ModelSpec, TensorSpec
from workers.wire import Result, Run, WireTensor

Array = NDArray[np.generic]
Model = Callable[[list[Array | None], int], list[Array]]


class FakeVersion:
    """A version whose model is a function."""

    def __init__(self, spec: ModelSpec, model: Model) -> None:
        self.spec = spec
        self.report = LoadReport(1, spec=spec)
        self.rows: list[int] = []
        self._model = model

    def run(self, arrays: list[Array | None], rows: int) -> list[Array]:
        self.rows.append(rows)
        return self._model(arrays, rows)

    def close(self) -> None:
        """Nothing to free."""


def identity(arrays: list[Array | None], rows: int) -> list[Array]:
    return [array for array in arrays if array is not None]


def spec_of(datatype: str, dims: tuple[int, ...], limit: int = 64) -> ModelSpec:
    return ModelSpec(
        (TensorSpec("x", datatype, dims),), (TensorSpec("y", datatype, dims),), limit
    )


def raw_values(draw: st.DrawFn, datatype: str, shape: tuple[int, ...]) -> bytes:
    """Draw the raw bytes of a tensor."""
    count = int(np.prod(shape))
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
        array = np.empty(count, dtype=object)
        array[:] = elements
        return encode_array(array, "BYTES")
    if datatype == "BOOL":
        flags = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return np.array(flags, dtype="?").tobytes()
    size = count * DATATYPES[datatype].size
    return draw(st.binary(min_size=size, max_size=size))


@st.composite
def batches(draw: st.DrawFn) -> tuple[ModelSpec, list[Run], list[list[int]]]:
    """Draw runs of one version, each of several requests' rows."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    dims = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    runs, requests = [], []
    for id_ in range(draw(st.integers(1, 4))):
        rows = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        shape = (sum(rows), *dims)
        raw = raw_values(draw, datatype, shape)
        runs.append(Run(id_, 5, sum(rows), 0, [WireTensor(0, shape, (raw,))]))
        requests.append(rows)
    return spec_of(datatype, dims), runs, requests


def travelled(result: Result) -> Result:
    """Return a result as the front reads it."""
    (frame,) = wire.FrameReader().feed(b"".join(wire.encode_result(result)))
    return wire.decode_result(frame)


def per_request(spec: ModelSpec, result: Result, rows: list[int]) -> list[bytes]:
    """Return the first output's bytes of each request of a batch."""
    batch, start, out = BatchRows(spec, travelled(result).tensors, sum(rows)), 0, []
    dims = spec.outputs[0].dims
    assert batch.shapes == (dims if batch.plain else (sum(rows), *dims),)
    assert (batch.plain is None) == (spec.outputs[0].datatype == "BYTES")
    for count in rows:
        (tensor,) = batch.cut(start, start + count)
        assert tensor.dims == (count, *dims)
        out.append(bytes(tensor.data))
        if batch.plain is not None:
            ((data, size),) = batch.plain
            assert data[start * size : (start + count) * size] == tensor.data
        start += count
    return out


class TestMergedRuns:
    @given(batches())
    def test_every_request_gets_the_bytes_it_sent(
        self, drawn: tuple[ModelSpec, list[Run], list[list[int]]]
    ) -> None:
        spec, runs, requests = drawn
        version = FakeVersion(spec, identity)
        results = execute(version, runs)
        assert [result.id for result in results] == [run.id for run in runs]
        for run, result, rows in zip(runs, results, requests, strict=True):
            answers = per_request(spec, result, rows)
            assert b"".join(answers) == bytes(run.tensors[0].data[0])

    @given(batches())
    def test_it_is_the_same_as_each_alone(
        self, drawn: tuple[ModelSpec, list[Run], list[list[int]]]
    ) -> None:
        spec, runs, requests = drawn
        version = FakeVersion(spec, identity)
        for run, together, rows in zip(
            runs, execute(version, runs), requests, strict=True
        ):
            (alone,) = execute(version, [run])
            assert per_request(spec, alone, rows) == per_request(spec, together, rows)

    @given(batches())
    def test_it_is_one_execution_of_all_rows(
        self, drawn: tuple[ModelSpec, list[Run], list[list[int]]]
    ) -> None:
        spec, runs, _ = drawn
        version = FakeVersion(spec, identity)
        results = execute(version, runs)
        total = sum(run.rows for run in runs)
        assert version.rows == [total]
        assert [result.executions for result in results] == [1] + [0] * (len(runs) - 1)
        assert {result.batch_rows for result in results} == {total}
        assert min(min(r.input_ns, r.infer_ns, r.output_ns) for r in results) >= 0

    def test_inputs_arrive_by_their_index_and_absent_ones_as_none(self) -> None:
        seen: list[list[Array | None]] = []

        def model(arrays: list[Array | None], rows: int) -> list[Array]:
            seen.append(arrays)
            return [np.zeros((rows,), "<f4")]

        optional = TensorSpec("b", "FP32", (1,), optional=True)
        inputs = (TensorSpec("a", "INT64", ()), optional, TensorSpec("c", "FP32", ()))
        spec = ModelSpec(inputs, (TensorSpec("y", "FP32", ()),), 8)
        last = WireTensor(2, (1,), (np.float32(2).tobytes(),))
        runs = [
            Run(id_, 1, 1, 0, [last, WireTensor(0, (1,), (np.int64(id_).tobytes(),))])
            for id_ in (7, 8)
        ]
        execute(FakeVersion(spec, model), runs)
        first, absent, third = seen[0]
        assert absent is None
        assert first is not None
        assert first.tolist() == [7, 8]
        assert third is not None
        assert third.tolist() == [2, 2]

    @given(st.integers(0, 15))
    def test_arrays_are_aligned_wherever_the_bytes_lie(self, shift: int) -> None:
        def model(arrays: list[Array | None], rows: int) -> list[Array]:
            assert all(array is not None and array.flags.aligned for array in arrays)
            return identity(arrays, rows)

        raw = np.arange(4, dtype="<f8").tobytes()
        view = memoryview(bytes(shift) + raw)[shift:]
        run = Run(1, 1, 4, 0, [WireTensor(0, (4,), (view,))])
        (result,) = execute(FakeVersion(spec_of("FP64", ()), model), [run])
        assert bytes(result.tensors[0].data[0]) == raw

    def test_outputs_that_are_not_contiguous_are_sent_in_order(self) -> None:
        def transposed(arrays: list[Array | None], rows: int) -> list[Array]:
            return [np.arange(6, dtype="<i4").reshape(2, 3).T]

        run = Run(1, 1, 3, 0, [WireTensor(0, (3, 2), (bytes(24),))])
        (result,) = execute(FakeVersion(spec_of("INT32", (2,)), transposed), [run])
        sent = np.frombuffer(result.tensors[0].data[0], "<i4")
        assert sent.tolist() == [0, 3, 1, 4, 2, 5]


class TestUnbatched:
    @given(st.data())
    def test_the_whole_output_is_sent(self, data: st.DataObject) -> None:
        datatype = data.draw(st.sampled_from(sorted(DATATYPES)))
        shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
        raw = data.draw(st.composite(raw_values)(datatype, shape))
        spec = spec_of(datatype, shape, limit=0)
        run = Run(1, 1, 1, 0, [WireTensor(0, shape, (raw,))])
        (result,) = execute(FakeVersion(spec, identity), [run])
        (tensor,) = BatchRows(spec, travelled(result).tensors, 1).cut(0, 1)
        assert (tensor.dims, bytes(tensor.data)) == (shape, raw)

    def test_strings_of_the_model_are_sent_as_utf8(self) -> None:
        def model(arrays: list[Array | None], rows: int) -> list[Array]:
            return [np.array(["é", b"\0"], dtype=object)]

        run = Run(1, 1, 1, 0, [WireTensor(0, (1,), (bytes(4),))])
        version = FakeVersion(spec_of("FP32", (1,), limit=0), model)
        version.spec = ModelSpec(
            version.spec.inputs, (TensorSpec("y", "BYTES", (2,)),), 0
        )
        (result,) = execute(version, [run])
        sent = bytes(result.tensors[0].data[0])
        assert (
            sent == struct.pack("<I", 2) + "é".encode() + struct.pack("<I", 1) + b"\0"
        )


class TestWrongOutputs:
    @pytest.mark.parametrize("shape", [(), (2, 2), (4, 2), (0, 2)])
    def test_another_number_of_rows_is_a_failure(self, shape: tuple[int, ...]) -> None:
        version = FakeVersion(
            spec_of("FP32", (2,)), lambda *_: [np.zeros(shape, "<f4")]
        )
        run = Run(1, 1, 3, 0, [WireTensor(0, (3, 2), (bytes(24),))])
        with pytest.raises(RunError, match="rows apart"):
            execute(version, [run])

    @pytest.mark.parametrize("limit", [0, 4])
    def test_another_type_is_a_failure(self, limit: int) -> None:
        version = FakeVersion(
            spec_of("FP32", (2,), limit), lambda *_: [np.zeros((3, 2), "<f8")]
        )
        run = Run(1, 1, 3, 0, [WireTensor(0, (3, 2), (bytes(24),))])
        with pytest.raises(RunError, match="float64"):
            execute(version, [run])

    def test_the_models_own_error_is_passed_on(self) -> None:
        def broken(arrays: list[Array | None], rows: int) -> list[Array]:
            raise RunError("division by zero")

        run = Run(1, 1, 1, 0, [WireTensor(0, (1, 2), (bytes(8),))])
        with pytest.raises(RunError, match="zero") as caught:
            execute(FakeVersion(spec_of("FP32", (2,)), broken), [run])
        assert caught.value.failure is wire.Failure.MODEL_FAILED

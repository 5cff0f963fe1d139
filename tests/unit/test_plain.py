"""The short way of the usual batch ends where the long way does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import wire
from workers.execute import execute
from workers.plain import (
    QuickRun,
    is_plain,
    plain_result,
    plain_run,
    plain_tensor,
    result_head,
    run_head,
)
from workers.spec import LoadReport, ModelSpec, TensorSpec
from workers.wire import FrameReader, Kind, Result, Run, WireTensor

SPEC = ModelSpec(
    (TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (2,)),), max_batch_rows=8
)
RUN, RESULT = wire.RUN_HEAD.size, wire.RESULT_HEAD.size
ids = st.integers(1, 1 << 40)
pieces = st.lists(st.binary(max_size=40), min_size=1, max_size=5)
inner = st.lists(st.integers(0, 1 << 30), max_size=4)


class Doubler:
    """A version that adds the first two features and doubles the third."""

    spec = SPEC
    report = LoadReport(1, spec=SPEC)

    def call(self, array: Any) -> Any:
        if np.isnan(array).any():
            raise ValueError("a NaN")
        return np.stack([array[:, 0] + array[:, 1], 2 * array[:, 2]], axis=1)

    def run(self, arrays: list[Any], rows: int) -> list[Any]:
        return [self.call(arrays[0])]

    def quick(self) -> QuickRun:
        return QuickRun(self.call, SPEC)

    def close(self) -> None:
        raise AssertionError("nobody closes it")


@given(st.tuples(ids, ids), st.integers(1, 64), st.integers(0, 1), inner, pieces)
def test_a_plain_run_has_the_bytes_of_any_run(
    names: tuple[int, int], rows: int, slot: int, dims: list[int], data: list[bytes]
) -> None:
    id_, handle = names
    shape = (rows, *dims)
    nbytes = sum(map(len, data))
    short = plain_run(id_, handle, slot, shape, data, nbytes=nbytes)
    run = Run(id_, handle, rows, slot, [WireTensor(0, shape, data)])
    assert short == b"".join(wire.encode_run(run))
    found = plain_tensor(short, Kind.RUN, RUN)
    assert found is not None
    assert found[:3] == (id_, 0, shape)
    assert short[found[3] : found[4]] == b"".join(data)
    assert run_head(short) == (handle, rows, slot, False)


@given(ids, st.tuples(ids, ids, ids), st.integers(1, 64), inner, st.binary(max_size=99))
def test_a_plain_result_has_the_bytes_of_any_result(
    id_: int, times: tuple[int, int, int], rows: int, dims: list[int], data: bytes
) -> None:
    shape = (rows, *dims)
    short = plain_result(id_, times, rows, shape, data)
    result = Result(id_, *times, 1, rows, [WireTensor(0, shape, (data,))])
    assert short == b"".join(wire.encode_result(result))
    assert plain_tensor(short, Kind.RESULT, RESULT) is not None
    assert result_head(short) == (*times, 1, rows)


@given(st.data())
def test_whatever_else_is_left_to_the_long_way(data: st.DataObject) -> None:
    """Cut, extended, or with another header: never taken for something it is not."""
    frame = plain_run(7, 1, 0, (2, 3), [bytes(24)], nbytes=24)
    for end in range(len(frame)):
        assert plain_tensor(frame[:end], Kind.RUN, RUN) is None
    assert plain_tensor(frame + b"\0", Kind.RUN, RUN) is None
    assert plain_tensor(frame + frame, Kind.RUN, RUN) is None
    assert plain_tensor(frame, Kind.RESULT, RUN) is None
    changed = bytearray(frame)
    changed[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    found = plain_tensor(bytes(changed), Kind.RUN, RUN)
    if found is not None:
        (read,) = FrameReader().feed(bytes(changed))
        try:
            run = wire.decode_run(read)
        except wire.WireError:  # a slot that does not exist: the caller looks
            assert run_head(bytes(changed))[2] >= wire.CREDITS
            return
        tensor = run.tensors[0]
        assert found[:3] == (run.id, tensor.index, tensor.dims)
        assert bytes(changed[found[3] : found[4]]) == tensor.data[0]


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_quick_run_answers_as_execute_does(rows: int, seed: int) -> None:
    array = np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)
    frame = plain_run(5, 1, 0, (rows, 3), [array.tobytes()], nbytes=array.nbytes)
    found = plain_tensor(frame, Kind.RUN, RUN)
    assert found is not None
    short = Doubler().quick().run(frame, found, rows)
    assert short is not None
    (read,) = FrameReader().feed(short)
    (long,) = execute(Doubler(), [wire.decode_run(next(FrameReader().feed(frame)))])
    result = wire.decode_result(read)
    assert result.id == long.id
    assert (result.executions, result.batch_rows) == (1, rows)
    assert result.tensors[0].dims == long.tensors[0].dims
    assert result.tensors[0].data[0] == bytes(long.tensors[0].data[0])


@pytest.mark.parametrize(
    ("rows", "dims", "value"),
    [
        (2, (2, 3), np.nan),  # the model fails
        (3, (2, 3), 1.0),  # it answers another number of rows
        (2, (6,), 1.0),  # a shape it does not take
        (2, (2, 4), 1.0),  # more elements than bytes
    ],
)
def test_what_fails_is_left_to_execute(
    rows: int, dims: tuple[int, ...], value: float
) -> None:
    data = np.full(6, value, np.float32).tobytes()
    frame = plain_run(5, 1, 0, dims, [data], nbytes=len(data))
    found = plain_tensor(frame, Kind.RUN, RUN)
    assert found is not None
    assert Doubler().quick().run(frame, found, rows) is None


def test_only_a_plain_version_is_plain() -> None:
    def spec(inputs: int, outputs: int, rows: int, kind: str) -> ModelSpec:
        return ModelSpec(
            tuple(TensorSpec(f"x{i}", "FP32", (3,)) for i in range(inputs)),
            tuple(TensorSpec(f"y{i}", kind, (3,)) for i in range(outputs)),
            rows,
        )

    assert is_plain(spec(1, 1, 4, "FP32"))
    assert not is_plain(spec(2, 1, 4, "FP32"))
    assert not is_plain(spec(1, 2, 4, "FP32"))
    assert not is_plain(spec(1, 1, 0, "FP32"))
    assert not is_plain(spec(1, 1, 4, "BYTES"))
    assert not is_plain(ModelSpec(SPEC.outputs, (TensorSpec("y", "BF16", ()),), 4))

"""The borders of a model, read from its file, are those that ONNX Runtime tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from tests import onnx_models
from workers.borders import read_borders
from workers.session import _describe
from workers.verify import verify_model

MODELS = [
    onnx_models.logistic_regression,
    lambda: onnx_models.identity("BYTES"),
    lambda: onnx_models.identity("FP16", ("N", "M", 3)),
    lambda: onnx_models.identity("INT64", ()),
    onnx_models.two_by_two,
    onnx_models.no_batch_axis,
    onnx_models.optional_input,
    onnx_models.with_default,
    onnx_models.loops,
]


@pytest.mark.parametrize("make", MODELS)
def test_the_file_says_what_onnxruntime_says(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make())
    verify_model(path, max_bytes=1 << 20)
    graph, open_ranks = read_borders(path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert graph == _describe(session)
    assert open_ranks == frozenset()


def test_a_rank_that_is_left_open_is_no_scalar(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.unknown_rank_out())
    graph, open_ranks = read_borders(path)
    assert open_ranks == {"y"}
    assert graph.outputs[0].shape == ()


def test_what_is_no_tensor_is_named_by_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.zipmap())
    assert read_borders(path)[0].outputs[0].onnx_type == "sequence"

"""Seeded test models of known cost, and the repository they are saved in.

All take ``x`` float32 (rows, 30) and give ``probabilities`` float32 (rows, 2), so
that requests are the same whatever a model costs.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

INPUT = "x"
OUTPUT = "probabilities"
FEATURES = 30
CLASSES = 2
OPSET = 17
IR_VERSION = 9

LAYERS: dict[str, tuple[int, ...]] = {
    "M1": (FEATURES, CLASSES),
    "M2": (FEATURES, 256, 256, CLASSES),
    "M5": (FEATURES, *(1024,) * 9, CLASSES),
}
"""Widths: M1 logistic regression, M2 small network, M5 33 MB of weights (eight
layers of 1024x1024), where a batch costs little more than a row."""


def model_file(repository: Path, name: str) -> Path:
    """Return where version 1 of a model lies in Triton's layout."""
    return repository / name / "1" / "model.onnx"


def write_model(repository: Path, name: str, payload: bytes) -> Path:
    """Save a model as version 1 in Triton's layout and return its file."""
    path = model_file(repository, name)
    path.parent.mkdir(parents=True)
    path.write_bytes(payload)
    return path


def perceptron(name: str, widths: tuple[int, ...], *, seed: int) -> ModelProto:
    """Return a network of dense layers with ReLU between and Softmax at the end.

    Args:
        name: Name of the graph.
        widths: Units of each layer, input and output included.
        seed: Of the weights.
    """
    generator = np.random.default_rng(seed)
    nodes: list[NodeProto] = []
    weights: dict[str, NDArray[np.float32]] = {}
    value = INPUT
    for index, (rows, columns) in enumerate(itertools.pairwise(widths)):
        scaled = generator.standard_normal((rows, columns)) / np.sqrt(rows)
        weights[f"W{index}"] = scaled.astype(np.float32)
        weights[f"b{index}"] = np.zeros(columns, np.float32)
        inputs = [value, f"W{index}", f"b{index}"]
        nodes.append(helper.make_node("Gemm", inputs, [f"z{index}"]))
        value = f"z{index}"
        if index < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [value], [f"h{index}"]))
            value = f"h{index}"
    nodes.append(helper.make_node("Softmax", [value], [OUTPUT], axis=1))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", widths[0]])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", widths[-1]])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    checker.check_model(model)
    return model


def write_models(repository: Path, names: tuple[str, ...], *, seed: int = 0) -> None:
    """Build test models and save them in a repository."""
    for name in names:
        model = perceptron(name, LAYERS[name], seed=seed)
        write_model(repository, name, model.SerializeToString())

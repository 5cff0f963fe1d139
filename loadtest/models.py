"""Seeded test models of known cost, and the repository they are saved in.

All but ``image`` take ``x`` float32 (rows, 30) and give ``probabilities`` float32
(rows, 2), so that requests are the same whatever a model costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
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
TOKENS, TOKEN_WIDTH, TOKEN_LAYERS = 16, 512, 12
IMAGE = (3, 224, 224)

Shape = Sequence[int | str]

LAYERS: dict[str, tuple[int, ...]] = {
    "M1": (FEATURES, CLASSES),
    "M2": (FEATURES, 256, 256, CLASSES),
    "M5": (FEATURES, *(1024,) * 9, CLASSES),
}
"""Widths: M1 logistic regression, M2 small network, M5 33 MB of weights (eight
layers of 1024x1024), where a batch costs little more than a row."""


MAX_BATCH_ROWS = {"M1": 1024, "M5": 128}
"""Largest batches where Baton's default, 64 rows, is not the model's best: a row of M1
costs next to nothing, and M5 is fastest at 128. A `config.pbtxt` as any user's."""


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
    return _model(name, nodes, weights, ["N", widths[0]], ["N", widths[-1]])


def _model(
    name: str,
    nodes: Sequence[NodeProto],
    arrays: Mapping[str, NDArray[np.float32] | NDArray[np.int64]],
    taken: Shape,
    given: Shape,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, given)],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    checker.check_model(model)
    return model


def token_mixer(name: str, *, seed: int) -> ModelProto:
    """Return 12 residual layers of 512x512 over 16 tokens: bound by arithmetic.

    A batch of it costs as much as its rows one by one, so that nothing is gained by
    batching and everything by keeping the worker busy.
    """
    generator = np.random.default_rng(seed)

    def weights(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        values = generator.standard_normal((rows, columns)).astype(np.float32)
        return values * np.float32(scale / math.sqrt(rows))

    arrays: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "W": weights(FEATURES, TOKENS * TOKEN_WIDTH),
        "shape": np.array([-1, TOKENS, TOKEN_WIDTH], np.int64),
        "V": weights(TOKEN_WIDTH, CLASSES),
    }
    nodes = [
        helper.make_node("MatMul", [INPUT, "W"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["h0"]),
    ]
    for index in range(TOKEN_LAYERS):
        arrays[f"W{index}"] = weights(TOKEN_WIDTH, TOKEN_WIDTH, 0.5)
        nodes += [
            helper.make_node("MatMul", [f"h{index}", f"W{index}"], [f"m{index}"]),
            helper.make_node("Relu", [f"m{index}"], [f"r{index}"]),
            helper.make_node("Add", [f"r{index}", f"h{index}"], [f"h{index + 1}"]),
        ]
    last = f"h{TOKEN_LAYERS}"
    nodes += [
        helper.make_node("ReduceMean", [last], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "V"], ["z"]),
        helper.make_node("Softmax", ["z"], [OUTPUT], axis=1),
    ]
    return _model(name, nodes, arrays, ["N", FEATURES], ["N", CLASSES])


def image_mean(name: str, *, seed: int) -> ModelProto:
    """Return the mean of each channel of a 600 KB image: bound by moving bytes."""
    del seed  # it has no weights
    node = helper.make_node("ReduceMean", [INPUT], [OUTPUT], axes=[2, 3], keepdims=0)
    return _model(name, [node], {}, ["N", *IMAGE], ["N", IMAGE[0]])


def build(name: str, *, seed: int = 0) -> ModelProto:
    """Return a test model by its name."""
    if name == "M4":
        return token_mixer(name, seed=seed)
    if name == "image":
        return image_mean(name, seed=seed)
    return perceptron(name, LAYERS[name], seed=seed)


def row_shape(name: str) -> tuple[int, ...]:
    """Return the shape of one row of a model's input."""
    return IMAGE if name == "image" else (FEATURES,)


def write_models(repository: Path, names: tuple[str, ...], *, seed: int = 0) -> None:
    """Build test models and save them in a repository."""
    for name in names:
        path = write_model(repository, name, build(name, seed=seed).SerializeToString())
        rows = MAX_BATCH_ROWS.get(name)
        if rows is not None:
            config = f"max_batch_size: {rows}\ndynamic_batching {{ }}\n"
            path.parents[1].joinpath("config.pbtxt").write_text(config)

"""Tiny ONNX models for tests, built node by node; each function returns the file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.numpy_helper import from_array

Shape = Sequence[int | str | None] | None

CODES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}
"""ONNX element types by protocol name."""

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def info(name: str, code: int, shape: Shape) -> ValueInfoProto:
    """Describe a tensor; a string or ``None`` is a variable dimension."""
    return helper.make_tensor_value_info(name, code, shape)


def build(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
) -> bytes:
    """Serialise a graph of opset 21."""
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def logistic_regression(features: int = 30, classes: int = 2) -> bytes:
    """``x`` FP32 [N, features] to ``probabilities`` FP32 [N, classes]."""
    random = np.random.default_rng(7)
    weights = random.standard_normal((features, classes)).astype(np.float32)
    bias = random.standard_normal(classes).astype(np.float32)
    return build(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
            helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
        ],
        [info("x", FLOAT, ["N", features])],
        [info("probabilities", FLOAT, ["N", classes])],
        [from_array(weights, "w"), from_array(bias, "b")],
    )


def identity(datatype: str, shape: Shape = ("N", 2)) -> bytes:
    """``x`` to ``y``, both of `datatype` and `shape`."""
    code = CODES[datatype]
    return build(
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", code, shape)],
        [info("y", code, shape)],
    )


def bf16_doubler(inside: str = "BF16", outside: str = "BF16") -> bytes:
    """``x`` of BF16 `inside` to ``y`` = 2x of `outside`, through Cast nodes."""
    return build(
        [
            helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
            helper.make_node("Add", ["f", "f"], ["d"]),
            helper.make_node("Cast", ["d"], ["y"], to=CODES[outside]),
        ],
        [info("x", CODES[inside], ["N", 4])],
        [info("y", CODES[outside], ["N", 4])],
    )


def two_by_two() -> bytes:
    """``a``, ``b`` FP32 [N, 3] to ``sum`` FP32 [N, 3] and ``total`` FP32 [N, 1]."""
    return build(
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("ReduceSum", ["sum", "axes"], ["total"], keepdims=1),
        ],
        [info("a", FLOAT, ["N", 3]), info("b", FLOAT, ["N", 3])],
        [info("sum", FLOAT, ["N", 3]), info("total", FLOAT, ["N", 1])],
        [from_array(np.array([1], np.int64), "axes")],
    )


def variable_inner(window: int = 1) -> bytes:
    """``x`` FP32 [N, 1, length] to ``y``: a convolution over `window` elements."""
    kernel = np.ones((1, 1, window), np.float32)
    return build(
        [helper.make_node("Conv", ["x", "k"], ["y"])],
        [info("x", FLOAT, ["N", 1, "length"])],
        [info("y", FLOAT, ["N", 1, "shorter"])],
        [from_array(kernel, "k")],
    )


def no_batch_axis() -> bytes:
    """``x`` FP32 [3, 4], fixed, to ``y`` = -x."""
    return build(
        [helper.make_node("Neg", ["x"], ["y"])],
        [info("x", FLOAT, [3, 4])],
        [info("y", FLOAT, [3, 4])],
    )


def mixes_rows() -> bytes:
    """``x`` FP32 [N, 2] to ``y``: softmax over the rows of the batch."""
    return build(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [info("x", FLOAT, ["N", 2])],
        [info("y", FLOAT, ["N", 2])],
    )


def optional_input() -> bytes:
    """``x`` optional FP32 [N] to ``y`` BOOL []: whether it was given."""
    tensor = helper.make_tensor_type_proto(FLOAT, ["N"])
    return build(
        [helper.make_node("OptionalHasElement", ["x"], ["y"])],
        [helper.make_value_info("x", helper.make_optional_type_proto(tensor))],
        [info("y", TensorProto.BOOL, [])],
    )


def drops_rows() -> bytes:
    """``x`` FP32 [N, 2] to ``y`` FP32 [M, 2]: the rows whose first element is > 0."""
    return build(
        [
            helper.make_node("Gather", ["x", "first"], ["column"], axis=1),
            helper.make_node("Greater", ["column", "zero"], ["keep"]),
            helper.make_node("Compress", ["x", "keep"], ["y"], axis=0),
        ],
        [info("x", FLOAT, ["N", 2])],
        [info("y", FLOAT, ["M", 2])],
        [
            from_array(np.array(0, np.int64), "first"),
            from_array(np.array(0, np.float32), "zero"),
        ],
    )


def zipmap() -> bytes:
    """A classifier as skl2onnx exports it by default: a sequence of maps out."""
    mapping = helper.make_map_type_proto(
        INT64, helper.make_tensor_type_proto(FLOAT, [])
    )
    output = helper.make_value_info("m", helper.make_sequence_type_proto(mapping))
    return build(
        [
            helper.make_node("Softmax", ["x"], ["p"], axis=1),
            helper.make_node(
                "ZipMap", ["p"], ["m"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
            ),
        ],
        [info("x", FLOAT, ["N", 2])],
        [output],
    )


def divides() -> bytes:
    """``a``, ``b`` INT64 [N] to ``q`` = a / b; fails on zero."""
    return build(
        [helper.make_node("Div", ["a", "b"], ["q"])],
        [info("a", INT64, ["N"]), info("b", INT64, ["N"])],
        [info("q", INT64, ["N"])],
    )


def allocates() -> bytes:
    """``n`` INT64 [1], fixed, to ``y`` FP32 [n]: as much memory as asked for."""
    return build(
        [helper.make_node("ConstantOfShape", ["n"], ["y"])],
        [info("n", INT64, [1])],
        [info("y", FLOAT, ["size"])],
    )


def with_default() -> bytes:
    """``x`` FP32 [N] times ``w`` FP32 [1], which has an initialiser of 2."""
    return build(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [info("x", FLOAT, ["N"]), info("w", FLOAT, [1])],
        [info("y", FLOAT, ["N"])],
        [from_array(np.array([2], np.float32), "w")],
    )


def unknown_rank_out() -> bytes:
    """``x`` FP32 [N, 3] to ``y``, the same, of which the graph gives no shape."""
    return build(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Compress", ["s", "all"], ["shape"]),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        [info("x", FLOAT, ["N", 3])],
        [info("y", FLOAT, None)],
        [from_array(np.array([True, True]), "all")],
    )


def loops() -> bytes:
    """``steps`` INT64 [] times the sine of ``x`` FP32 [1, 1]: as long as asked."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["again"]),
            helper.make_node("Sin", ["state"], ["next"]),
        ],
        "body",
        [
            info("turn", INT64, []),
            info("more", TensorProto.BOOL, []),
            info("state", FLOAT, [1, 1]),
        ],
        [info("again", TensorProto.BOOL, []), info("next", FLOAT, [1, 1])],
    )
    return build(
        [helper.make_node("Loop", ["steps", "go", "x"], ["y"], body=body)],
        [info("steps", INT64, []), info("x", FLOAT, [1, 1])],
        [info("y", FLOAT, [1, 1])],
        [from_array(np.array(True), "go")],
    )

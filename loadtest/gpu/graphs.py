"""Graphs of the size of ResNet-50 and BERT-base, with seeded random weights.

Nothing is downloaded: what a graph costs does not depend on its weights. Inputs and
outputs are float32 or int64 in either precision, so that requests are the same.

Sources: He et al., "Deep Residual Learning for Image Recognition" (table 1, 50
layers; batch normalisation folded into the convolutions, as for serving); Devlin et
al., "BERT" (BASE: 12 layers of width 768 with 12 heads).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

OUTPUT = "scores"
OPSET, IR_VERSION = 17, 9
IMAGE_CLASSES, TEXT_CLASSES = 1000, 2
RESIDUAL_SCALE = 0.2
"""Of the last convolution of a block, so that sums stay small in half precision."""
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}

Array = NDArray[np.float32] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the graphs are.

    Attributes:
        image: Height and width of an image of three channels.
        channels: Of the first convolution.
        blocks: Bottleneck blocks of each of the four stages.
        layers: Of the encoder.
        width: Of the encoder.
        heads: Of its attention.
        tokens: Of a sequence.
        vocabulary: Different tokens.
    """

    image: int = 224
    channels: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    layers: int = 12
    width: int = 768
    heads: int = 12
    tokens: int = 128
    vocabulary: int = 30_522


FULL = Sizes()
TINY = Sizes(
    image=32,
    channels=8,
    blocks=(1, 1, 1, 1),
    layers=2,
    width=32,
    heads=2,
    tokens=16,
    vocabulary=100,
)


class _Graph:
    """Nodes and weights in the making; every value has a name of its own."""

    def __init__(self, precision: str, seed: int) -> None:
        self.nodes: list[NodeProto] = []
        self.arrays: dict[str, NDArray[np.generic]] = {}
        self.type = TYPES[precision]
        self._dtype = np.float16 if precision == "fp16" else np.float32
        self._generator = np.random.default_rng(seed)

    def add(self, kind: str, *inputs: str, **attributes: int | Sequence[int]) -> str:
        """Add a node and return the name of its output."""
        output = f"v{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [output])
        node.attribute.extend(
            helper.make_attribute(name, value) for name, value in attributes.items()
        )
        self.nodes.append(node)
        return output

    def weights(self, *shape: int, inputs: int, scale: float = 1.0) -> str:
        """Add random weights for sums over `inputs` values."""
        values = self._generator.standard_normal(shape, np.float32)
        return self.constant(values * np.float32(scale / np.sqrt(inputs)))

    def constant(self, values: NDArray[np.float32] | float) -> str:
        """Add a constant in the graph's precision."""
        return self._keep(np.asarray(values).astype(self._dtype))

    def shape(self, *sizes: int) -> str:
        """Add a shape; 0 keeps a dimension."""
        return self._keep(np.array(sizes, np.int64))

    def _keep(self, values: NDArray[np.generic]) -> str:
        name = f"w{len(self.arrays)}"
        self.arrays[name] = values
        return name

    def finish(
        self, name: str, taken: tuple[str, int, list[int]], last: str, classes: int
    ) -> bytes:
        """Return the model with an input (name, type, row shape), serialised."""
        cast = helper.make_node("Cast", [last], [OUTPUT], to=TensorProto.FLOAT)
        self.nodes.append(cast)
        key, kind, row = taken
        given: list[str | int | None] = ["N", classes]
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(key, kind, ["N", *row])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, given)],
            [numpy_helper.from_array(each, key) for key, each in self.arrays.items()],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model: ModelProto = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION
        )
        checker.check_model(model)
        return model.SerializeToString()


def resnet(sizes: Sizes, precision: str, *, seed: int = 0) -> bytes:
    """Return a network like ResNet-50: ``image`` float32 (N, 3, height, width)."""
    graph = _Graph(precision, seed)

    def convolve(
        value: str, sizes: tuple[int, int, int], stride: int = 1, scale: float = 1.0
    ) -> str:
        taken, given, size = sizes
        kernel = graph.weights(
            given, taken, size, size, inputs=taken * size * size, scale=scale
        )
        bias = graph.constant(np.zeros(given, np.float32))
        pads, strides = [size // 2] * 4, [stride] * 2
        return graph.add("Conv", value, kernel, bias, pads=pads, strides=strides)

    def block(value: str, taken: int, inner: int, stride: int) -> str:
        given, gain = 4 * inner, float(np.sqrt(2))
        branch = graph.add("Relu", convolve(value, (taken, inner, 1), 1, gain))
        branch = graph.add("Relu", convolve(branch, (inner, inner, 3), stride, gain))
        branch = convolve(branch, (inner, given, 1), 1, RESIDUAL_SCALE)
        if taken != given or stride != 1:
            value = convolve(value, (taken, given, 1), stride)
        return graph.add("Relu", graph.add("Add", value, branch))

    channels = sizes.channels
    value = graph.add("Cast", "image", to=graph.type)
    value = graph.add("Relu", convolve(value, (3, channels, 7), 2))
    value = graph.add(
        "MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    for stage, count in enumerate(sizes.blocks):
        inner = sizes.channels << stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            value = block(value, channels, inner, stride)
            channels = 4 * inner
    value = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    last = graph.weights(channels, IMAGE_CLASSES, inputs=channels)
    value = graph.add("MatMul", value, last)
    value = graph.add("Softmax", value, axis=1)
    row = [3, sizes.image, sizes.image]
    taken = ("image", TensorProto.FLOAT, row)
    return graph.finish("resnet", taken, value, IMAGE_CLASSES)


def bert(sizes: Sizes, precision: str, *, seed: int = 0) -> bytes:
    """Return an encoder like BERT-base: ``tokens`` int64 (N, tokens)."""
    graph, width = _Graph(precision, seed), sizes.width
    head = width // sizes.heads

    def linear(value: str, taken: int, given: int) -> str:
        product = graph.add("MatMul", value, graph.weights(taken, given, inputs=taken))
        return graph.add("Add", product, graph.constant(np.zeros(given, np.float32)))

    def normalise(value: str) -> str:
        scale = graph.constant(np.ones(width, np.float32))
        bias = graph.constant(np.zeros(width, np.float32))
        return graph.add("LayerNormalization", value, scale, bias, axis=-1)

    def split(value: str, order: Sequence[int]) -> str:
        shape = graph.shape(0, sizes.tokens, sizes.heads, head)
        return graph.add("Transpose", graph.add("Reshape", value, shape), perm=order)

    def attend(value: str) -> str:
        query = split(linear(value, width, width), (0, 2, 1, 3))
        key = split(linear(value, width, width), (0, 2, 3, 1))
        values = split(linear(value, width, width), (0, 2, 1, 3))
        products = graph.add("MatMul", query, key)
        scaled = graph.add("Mul", products, graph.constant(1 / np.sqrt(head)))
        mixed = graph.add("MatMul", graph.add("Softmax", scaled, axis=-1), values)
        merged = graph.add("Transpose", mixed, perm=(0, 2, 1, 3))
        merged = graph.add("Reshape", merged, graph.shape(0, sizes.tokens, width))
        return linear(merged, width, width)

    def gelu(value: str) -> str:
        scaled = graph.add("Mul", value, graph.constant(1 / np.sqrt(2)))
        raised = graph.add("Add", graph.add("Erf", scaled), graph.constant(1.0))
        halved = graph.add("Mul", value, graph.constant(0.5))
        return graph.add("Mul", halved, raised)

    table = graph.weights(sizes.vocabulary, width, inputs=1)
    places = graph.weights(sizes.tokens, width, inputs=1)
    value = normalise(graph.add("Add", graph.add("Gather", table, "tokens"), places))
    for _ in range(sizes.layers):
        value = normalise(graph.add("Add", value, attend(value)))
        wide = gelu(linear(value, width, 4 * width))
        value = normalise(graph.add("Add", value, linear(wide, 4 * width, width)))
    pooled = graph.add("ReduceMean", value, axes=[1], keepdims=0)
    value = graph.add("Softmax", linear(pooled, width, TEXT_CLASSES), axis=1)
    taken = ("tokens", TensorProto.INT64, [sizes.tokens])
    return graph.finish("bert", taken, value, TEXT_CLASSES)


def images(sizes: Sizes, rows: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return images, float32, shape (rows, 3, height, width)."""
    shape = (rows, 3, sizes.image, sizes.image)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def sentences(sizes: Sizes, rows: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return token numbers, int64, shape (rows, tokens)."""
    shape = (rows, sizes.tokens)
    return np.random.default_rng(seed).integers(0, sizes.vocabulary, shape)


@dataclass(frozen=True, slots=True)
class Kind:
    """A graph and what it is asked.

    Attributes:
        build: Makes the model from sizes and precision.
        input: Name of its input.
        rows: Makes rows from sizes and a count.
    """

    build: Callable[[Sizes, str], bytes]
    input: str
    rows: Callable[[Sizes, int], Array]


KINDS: Mapping[str, Kind] = {
    "resnet50": Kind(resnet, "image", images),
    "bert-base": Kind(bert, "tokens", sentences),
}

"""What a model file takes and gives, read from the file alone.

ONNX Runtime says the same of a loaded model (`workers.signature`); this is for those
who must know before they load it, or never load it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from featurizer.datatypes import DATATYPES
from workers.onnx_subset_pb2 import ModelProto, TypeProto, ValueInfoProto
from workers.signature import Graph, Port

_ONNX_NAMES = {entry.onnx_code: entry.onnx_name for entry in DATATYPES.values()}


def read_borders(path: Path) -> tuple[Graph, frozenset[str]]:
    """Return the borders of the graph in a file that `workers.verify` let through.

    Returns:
        The borders, and the names of tensors whose rank the file leaves open; ports
        alone do not tell them from scalars.
    """
    graph = ModelProto.FromString(path.read_bytes()).graph
    initial = {tensor.name for tensor in graph.initializer}
    initial |= {sparse.values.name for sparse in graph.sparse_initializer}
    weights = [one for one in graph.input if one.name in initial]
    inputs = [one for one in graph.input if one.name not in initial]
    borders = [*graph.input, *graph.output]
    return (
        Graph(
            inputs=tuple(_port(one) for one in inputs),
            defaults=tuple(replace(_port(one), has_default=True) for one in weights),
            outputs=tuple(_port(one) for one in graph.output),
        ),
        frozenset(one.name for one in borders if not _tensor(one).HasField("shape")),
    )


def _port(value: ValueInfoProto) -> Port:
    kind = value.type.WhichOneof("value") or "tensor_type"
    tensor = _tensor(value)
    if kind in ("tensor_type", "optional_type"):
        name = f"tensor({_ONNX_NAMES.get(tensor.elem_type, tensor.elem_type)})"
    else:
        name = kind.removesuffix("_type")
    optional = kind == "optional_type"
    return Port(
        value.name,
        f"optional({name})" if optional else name,
        tuple(
            dim.dim_value if dim.HasField("dim_value") else -1
            for dim in tensor.shape.dim
        ),
        has_default=optional,
    )


def _tensor(value: ValueInfoProto) -> TypeProto.Tensor:
    if value.type.HasField("optional_type"):
        return value.type.optional_type.elem_type.tensor_type
    return value.type.tensor_type

"""What a graph takes and gives, against what was declared: one `ModelSpec`.

Pure: the graph is described by `workers.session`, nothing is run here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from featurizer.datatypes import BY_ONNX_TYPE
from workers.spec import DeclaredTensor, LoadOrder, ModelSpec, TensorSpec


class LoadRefused(Exception):
    """Raised when a version cannot be served; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph as onnxruntime describes it.

    Attributes:
        name: Name in the graph.
        onnx_type: Such as ``tensor(float)``.
        shape: -1 where variable. Empty for a scalar, and also for a tensor of
            unknown rank: onnxruntime does not tell them apart.
        has_default: A run may leave it out.
    """

    name: str
    onnx_type: str
    shape: tuple[int, ...]
    has_default: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """The borders of a graph.

    Attributes:
        inputs: Inputs without an initialiser.
        defaults: Inputs with an initialiser. They are served only if declared: to
            most exporters they are weights.
        outputs: All outputs.
    """

    inputs: tuple[Port, ...]
    defaults: tuple[Port, ...]
    outputs: tuple[Port, ...]


def make_spec(order: LoadOrder, graph: Graph, max_batch_rows: int) -> ModelSpec:
    """Fit the declaration, or for want of one the graph, to a batch limit.

    Args:
        order: The declared tensors, if any.
        graph: The model's borders.
        max_batch_rows: Above 0, the first dimension of every tensor is the batch.

    Returns:
        The spec. Where the declaration and the graph leave an output's rank open,
        its dims are empty (see `open_ranks`).

    Raises:
        LoadRefused: A tensor is missing, of another type or shape, not a tensor at
            all, or cannot batch.
    """
    batches = max_batch_rows > 0
    if order.inputs:
        found = _find(order.inputs, graph.inputs + graph.defaults, "input")
        declared = {one.name for one in order.inputs}
        for port in graph.inputs:
            if port.name not in declared and not port.has_default:
                raise LoadRefused(
                    f"the model needs input '{port.name}', which is not declared"
                )
        inputs = [_match(one, port, "input", batches) for one, port in found]
    else:
        inputs = [_derive(port, "input", batches) for port in graph.inputs]
    if order.outputs:
        found = _find(order.outputs, graph.outputs, "output")
        outputs = [_match(one, port, "output", batches) for one, port in found]
    else:
        outputs = [_derive(port, "output", batches) for port in graph.outputs]
    if batches and not inputs:
        raise LoadRefused("a model without inputs has no batch dimension")
    return ModelSpec(tuple(inputs), tuple(outputs), max_batch_rows)


def open_ranks(order: LoadOrder, graph: Graph) -> frozenset[str]:
    """Return the outputs whose rank neither declaration nor graph gives."""
    declared = {one.name for one in order.outputs}
    return frozenset(
        port.name
        for port in graph.outputs
        if not port.shape and port.name not in declared
    )


def _find(
    declared: tuple[DeclaredTensor, ...], ports: tuple[Port, ...], role: str
) -> list[tuple[DeclaredTensor, Port]]:
    """Pair each declared tensor with its port."""
    by_name = {port.name: port for port in ports}
    for one in declared:
        if one.name not in by_name:
            have = ", ".join(f"'{name}'" for name in by_name) or "none"
            raise LoadRefused(f"the model has no {role} '{one.name}'; it has {have}")
    return [(one, by_name[one.name]) for one in declared]


def _datatype(port: Port, role: str) -> str:
    """Return the protocol name of a port's element type."""
    onnx_type = port.onnx_type
    if role == "input" and onnx_type.startswith("optional("):
        onnx_type = onnx_type.removeprefix("optional(").removesuffix(")")
    entry = BY_ONNX_TYPE.get(onnx_type)
    if entry is not None:
        return entry.name
    hint = ""
    if "map(" in onnx_type:
        hint = (
            "; export the classifier with zipmap off (skl2onnx: "
            "options={'zipmap': False}), which gives a plain tensor"
        )
    raise LoadRefused(
        f"{role} '{port.name}' has type {onnx_type}, which the protocol cannot "
        f"carry{hint}"
    )


def _inner(port: Port, role: str, batches: bool) -> tuple[int, ...]:
    """Return a port's dims without the batch dimension, which must be variable."""
    if not batches:
        return port.shape
    if not port.shape:
        if role == "output":
            return ()
        raise LoadRefused(f"input '{port.name}' has no batch dimension")
    if port.shape[0] != -1:
        raise LoadRefused(
            f"the first dimension of {role} '{port.name}' is fixed at {port.shape[0]}, "
            "so it is no batch dimension"
        )
    return port.shape[1:]


def _derive(port: Port, role: str, batches: bool) -> TensorSpec:
    datatype = _datatype(port, role)
    return TensorSpec(
        port.name, datatype, _inner(port, role, batches), optional=port.has_default
    )


def _match(
    declared: DeclaredTensor, port: Port, role: str, batches: bool
) -> TensorSpec:
    """Check one declared tensor against its port."""
    name = declared.name
    datatype = _datatype(port, role)
    if declared.datatype != datatype:
        raise LoadRefused(
            f"{role} '{name}' is declared {declared.datatype}, in the model it is "
            f"{datatype}"
        )
    if declared.optional and not port.has_default:
        raise LoadRefused(
            f"{role} '{name}' is declared optional, but the model has no default for it"
        )
    _check_reshape(declared, role)
    wanted = declared.dims if declared.reshape is None else declared.reshape
    if port.shape:  # else a scalar or any rank: only a run can tell
        _check_dims(wanted, _inner(port, role, batches), name, role)
    return TensorSpec(
        name, datatype, declared.dims, declared.optional, model_dims=declared.reshape
    )


def _check_dims(
    declared: tuple[int, ...], graph: tuple[int, ...], name: str, role: str
) -> None:
    """Accept what the graph accepts: a fixed dimension of it must be met exactly."""
    if len(declared) == len(graph) and all(
        there in (-1, here) for here, there in zip(declared, graph, strict=True)
    ):
        return
    raise LoadRefused(
        f"{role} '{name}' is declared with dims {list(declared)}, in the model it has "
        f"{list(graph)} (-1 is variable; a batch dimension is not counted)"
    )


def _check_reshape(declared: DeclaredTensor, role: str) -> None:
    reshape = declared.reshape
    if reshape is None:
        return
    if -1 in reshape + declared.dims:
        raise LoadRefused(
            f"{role} '{declared.name}': a reshape needs fixed dimensions, not -1"
        )
    if math.prod(reshape) != math.prod(declared.dims):
        raise LoadRefused(
            f"{role} '{declared.name}': dims {list(declared.dims)} and reshape "
            f"{list(reshape)} hold different numbers of elements"
        )

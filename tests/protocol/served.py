"""The model repository that the protocol tests serve, and requests to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
from numpy.typing import NDArray
from onnx import helper
from prometheus_client.parser import text_string_to_metric_families

from featurizer.datatypes import DATATYPES
from featurizer.encode import decode_array, encode_array
from gateway.protocol import inference_pb2 as pb
from tests import onnx_models
from tests.gateway_process import SERVICE, GatewayProcess

MAX_MESSAGE_BYTES = 32 << 20
"""Limit of the gateway under test."""
LIMITED = """
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
dynamic_batching {
  preferred_batch_size: [ 4 ]
  priority_levels: 3
  default_priority_level: 2
}
"""
UNSHARED = """
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
FREE = """
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
"""
WEIGHTED = """
max_batch_size: 0
input [
  { name: "x" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "w" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
ALL = "version_policy { all { } }\n"


def add_model(
    root: Path, name: str, versions: Mapping[int, bytes] | bytes, config: str = ""
) -> None:
    """Write a model into the repository `root`."""
    if isinstance(versions, bytes):
        versions = {1: versions}
    for version, model in versions.items():
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
    if config:
        (root / name / "config.pbtxt").write_text(config)


def negation(width: int) -> bytes:
    """``x`` FP32 [N, width] to ``y`` = -x: tells versions apart from `identity`."""
    return onnx_models.build(
        [helper.make_node("Neg", ["x"], ["y"])],
        [onnx_models.info("x", onnx_models.FLOAT, ["N", width])],
        [onnx_models.info("y", onnx_models.FLOAT, ["N", width])],
    )


def write_repository(root: Path) -> None:
    """Write every model that the tests call."""
    identity = onnx_models.identity
    for datatype in DATATYPES:
        add_model(root, f"identity_{datatype}", identity(datatype))
    add_model(root, "pair", onnx_models.two_by_two())
    add_model(root, "variable", onnx_models.variable_inner())
    add_model(root, "fixed", onnx_models.no_batch_axis())
    add_model(root, "scalar", identity("FP32", ()))
    add_model(root, "free", identity("FP32", ("A", "B")), FREE)
    add_model(root, "texts", identity("BYTES", ("N", "length")))
    add_model(root, "weighted", onnx_models.with_default(), WEIGHTED)
    add_model(root, "both", {1: identity("FP32"), 2: negation(2)}, ALL)
    add_model(root, "latest", {1: identity("FP32"), 3: negation(2)})
    add_model(root, "limited", identity("FP32"), LIMITED)
    add_model(root, "unshared", identity("FP32"), UNSHARED)
    add_model(root, "slow", onnx_models.loops())
    add_model(root, "divides", onnx_models.divides())
    add_model(root, "changing", identity("FP32"))
    add_model(root, "broken", b"this is no model")


def infer_request(
    model: str,
    tensors: Mapping[str, tuple[str, NDArray[Any]]],
    *,
    version: str = "",
    id: str = "",
    outputs: Sequence[str] = (),
    **parameters: int | str | bool | float,
) -> pb.ModelInferRequest:
    """Build a request with raw contents from arrays by input name."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    for name, (datatype, array) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(encode_array(array, datatype))
    for output in outputs:
        request.outputs.add(name=output)
    for name, value in parameters.items():
        parameter = request.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        else:
            parameter.string_param = value
    return request


def floats(model: str, array: Any, **more: Any) -> pb.ModelInferRequest:
    """Build a request with one FP32 input ``x``."""
    array = np.asarray(array, np.float32)
    return infer_request(model, {"x": ("FP32", array)}, **more)


def slow_request(steps: int, **more: Any) -> pb.ModelInferRequest:
    """Build a request that keeps a worker busy for `steps` turns of a loop."""
    tensors = {
        "steps": ("INT64", np.array(steps, np.int64)),
        "x": ("FP32", np.ones((1, 1), np.float32)),
    }
    return infer_request("slow", tensors, **more)


def arrays(response: pb.ModelInferResponse) -> dict[str, NDArray[Any]]:
    """Decode the raw outputs of a response by name, in the order they came."""
    assert len(response.outputs) == len(response.raw_output_contents)
    return {
        tensor.name: decode_array(raw, tensor.datatype, tuple(tensor.shape))
        for tensor, raw in zip(
            response.outputs, response.raw_output_contents, strict=True
        )
    }


def sample(datatype: str, shape: tuple[int, ...], seed: int = 7) -> NDArray[Any]:
    """Return an array of any bit patterns that `datatype` may have."""
    random = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if datatype == "BYTES":
        texts = ["", "plain", "with\0nul", "\N{SNOWMAN}", "é" * 50]
        array = np.empty(count, object)
        array[:] = [texts[index % len(texts)].encode() for index in range(count)]
        return array.reshape(shape)
    if datatype == "BOOL":
        return random.integers(0, 2, shape).astype(bool)
    dtype = DATATYPES[datatype].numpy
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return random.integers(low, high, shape, dtype=dtype, endpoint=True)


def metric(running: GatewayProcess, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that carry `labels`; 0 where none do."""
    with urlopen(running.metrics_url, timeout=10) as response:
        text = response.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def in_flight(running: GatewayProcess, model: str) -> float:
    """Return the requests of a model in flight now, not a second ago."""
    running.statistics(model)  # makes every front report
    return metric(running, "baton_inflight_requests", model=model)


def unary(running: GatewayProcess, method: str) -> Any:
    """Return ModelInfer or another method as bytes in, bytes out."""
    return running.channel.unary_unary(SERVICE + method)


def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """Return status and details that `call` fails with."""
    try:
        response = call()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"succeeded: {response}")

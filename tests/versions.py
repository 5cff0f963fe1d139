"""Versions of one model that say in their answers which of them gave it."""

from __future__ import annotations

import numpy as np
from onnx import helper
from onnx.numpy_helper import from_array

from gateway.protocol import inference_pb2 as pb
from tests.onnx_models import FLOAT, build, info


def says(number: float) -> bytes:
    """``x`` FLOAT [N, 2] to ``y`` FLOAT [N, 1]: `number`, whatever comes in."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "number"], ["y"]),
    ]
    constants = [
        from_array(np.array([1], np.int64), "axes"),
        from_array(np.array(0, np.float32), "zero"),
        from_array(np.array(number, np.float32), "number"),
    ]
    shape = ["N", 2]
    return build(
        nodes, [info("x", FLOAT, shape)], [info("y", FLOAT, ["N", 1])], constants
    )


def ask(model: str, version: str = "", **parameters: str) -> pb.ModelInferRequest:
    """Return a request of one row."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id="1")
    for name, value in parameters.items():
        request.parameters[name].string_param = value
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.zeros((1, 2), np.float32).tobytes())
    return request


def answer(response: pb.ModelInferResponse) -> float:
    """Return the one number in an answer."""
    return float(np.frombuffer(response.raw_output_contents[0], np.float32)[0])

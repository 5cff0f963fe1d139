"""The client's side of the protocol: requests, answers, channels."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gateway.protocol import inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"

CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # one connection per channel
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerated differences of float32 results computed in other company."""

DTYPES: Mapping[str, np.dtype[np.float32 | np.int64]] = MappingProxyType(
    {"FP32": np.dtype(np.float32), "INT64": np.dtype(np.int64)}
)
"""Datatypes of the models in this package."""


class BadAnswer(Exception):
    """An answer that does not say what the protocol promises."""


def infer_request(
    model: str, tensor: str, rows: NDArray[np.float32], *, request_id: str
) -> pb.ModelInferRequest:
    """Return a request for `rows`.

    Args:
        model: Name of the model.
        tensor: Name of its only input.
        rows: float32, shape (rows, features).
        request_id: Comes back in the answer.
    """
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    request.inputs.add(name=tensor, datatype="FP32", shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    return request


def tensors(
    response: pb.ModelInferResponse,
) -> dict[str, NDArray[np.float32 | np.int64]]:
    """Return the outputs of an answer by name.

    Raises:
        BadAnswer: If datatype, shape and bytes do not fit together.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise BadAnswer("outputs and raw_output_contents differ in number")
    found: dict[str, NDArray[np.float32 | np.int64]] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        dtype = DTYPES.get(output.datatype)
        if dtype is None:
            raise BadAnswer(f"output {output.name} is {output.datatype}")
        try:
            array = np.frombuffer(raw, dtype)
            found[output.name] = array.reshape(output.shape)
        except ValueError as error:
            raise BadAnswer(f"output {output.name}: {error}") from error
    return found


def close(reply: bytes, expected: bytes, *, streamed: bool) -> bool:
    """Say whether two serialised answers have the same tensors, up to rounding.

    Args:
        reply: An answer of ModelInfer, or one message of ModelStreamInfer.
        expected: The right one.
        streamed: They are of ModelStreamInfer.
    """
    try:
        mine, theirs = (_answer(each, streamed) for each in (reply, expected))
    except (DecodeError, BadAnswer):
        return False
    return mine.keys() == theirs.keys() and all(
        mine[name].shape == theirs[name].shape
        and np.allclose(mine[name], theirs[name], RELATIVE, ABSOLUTE)
        for name in mine
    )


def _answer(
    message: bytes, streamed: bool
) -> dict[str, NDArray[np.float32 | np.int64]]:
    if streamed:
        return tensors(pb.ModelStreamInferResponse.FromString(message).infer_response)
    return tensors(pb.ModelInferResponse.FromString(message))


def channel(port: int) -> grpc.aio.Channel:
    """Return a channel with a connection of its own to a server of this machine."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)

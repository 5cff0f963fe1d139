"""Ray Serve: gRPC through its proxy, batching in one replica."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import grpc
import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from gateway.protocol import inference_pb2 as pb
from loadtest.peers import MAX_BATCH, MAX_WAIT_MS
from loadtest.sessions import open_session

Array = NDArray[np.float32]
SERVICE = "inference.GRPCInferenceService"
STORE_BYTES = 200_000_000


def add_to_server(servicer: object, server: grpc.Server) -> None:
    """Register the method, as generated code would; Ray's proxy calls this."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.ModelInfer,  # type: ignore[attr-defined]  # Ray's stand-in
        pb.ModelInferRequest.FromString,
        pb.ModelInferResponse.SerializeToString,
    )
    methods = {"ModelInfer": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, methods),)
    )


@serve.deployment(max_ongoing_requests=2000, ray_actor_options={"num_cpus": 1})
class Scorer:
    """One ONNX model."""

    def __init__(self, model: str) -> None:
        self._session = open_session(Path(model))

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=MAX_WAIT_MS / 1000)
    async def _scores(self, rows: list[Array]) -> list[Array]:
        scores = self._session.run(None, {"x": np.concatenate(rows)})[0]
        return [scores[index : index + 1] for index in range(len(rows))]

    async def ModelInfer(  # noqa: N802  # the method's name on the wire
        self, request: pb.ModelInferRequest
    ) -> pb.ModelInferResponse:
        """Answer a request of one row."""
        shape = tuple(request.inputs[0].shape)
        row = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        scores = await self._scores(row)
        response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name="probabilities", datatype="FP32", shape=scores.shape)
        response.raw_output_contents.append(scores.tobytes())
        return response


def main(model: str, port: int, http_port: int) -> None:
    """Serve one model file until SIGTERM."""
    paths = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    ray.init(
        address="local",
        num_cpus=4,  # proxy, controller and replica, wherever they are pinned
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=STORE_BYTES,
        runtime_env={"env_vars": paths},
    )
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=http_port),
        grpc_options=gRPCOptions(
            port=port,
            grpc_servicer_functions=["loadtest.peers.ray_server.add_to_server"],
        ),
    )
    application = Scorer.bind(model)  # type: ignore[attr-defined]
    serve.run(application, name="app", route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

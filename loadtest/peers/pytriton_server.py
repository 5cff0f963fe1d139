"""PyTriton: NVIDIA Triton with its Python backend, dynamic batching, gRPC."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from loadtest.peers import MAX_BATCH
from loadtest.sessions import open_session

Array = NDArray[np.float32]


def serve(model: str, port: int, http_port: int) -> None:
    """Serve one model file under the name of its folder's folder."""
    session = open_session(Path(model))

    @batch
    def infer(x: Array) -> dict[str, Array]:
        return {"probabilities": session.run(None, {"x": x})[0]}

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=port,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=model.split("/")[-3],
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(30,))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(2,))],
            config=ModelConfig(
                batching=True,
                max_batch_size=MAX_BATCH,
                # Measured faster than any wait: batches fill while it is busy.
                batcher=DynamicBatcher(max_queue_delay_microseconds=0),
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""MLServer: gRPC, adaptive batching, in one process.

With ``parallel_workers`` of 1 or more its worker calls ``asyncio.get_event_loop``
without a loop, which current uvloop releases refuse; so it runs in process.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from loadtest.peers import MAX_BATCH, MAX_WAIT_MS
from loadtest.sessions import open_session


class Scorer(MLModel):
    """One ONNX model."""

    async def load(self) -> bool:
        """Open the model."""
        self._session = open_session(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score a batch of rows, float32, shape (rows, features)."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        feeds = {payload.inputs[0].name: rows.astype(np.float32, copy=False)}
        scores = self._session.run(None, feeds)[0]
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("probabilities", scores)],
        )


async def serve(model: str, port: int, http_port: int, metrics_port: int) -> None:
    """Serve one model file under the name of its folder's folder."""
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=http_port,
        grpc_port=port,
        metrics_port=metrics_port,
        parallel_workers=0,
    )
    model_settings = ModelSettings(
        name=model.split("/")[-3],
        implementation=Scorer,
        parameters=ModelParameters(uri=model),
        max_batch_size=MAX_BATCH,
        max_batch_time=MAX_WAIT_MS / 1000,
    )
    await MLServer(settings).start([model_settings])


if __name__ == "__main__":
    file, *ports = sys.argv[1:5]
    asyncio.run(serve(file, *map(int, ports)))

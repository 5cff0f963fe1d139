"""LitServe: HTTP and JSON on FastAPI, batching in a worker process."""

from __future__ import annotations

import sys
from pathlib import Path

import litserve
import numpy as np
from numpy.typing import NDArray

from loadtest.peers import MAX_BATCH, MAX_WAIT_MS
from loadtest.sessions import open_session

Array = NDArray[np.float32]


class Scorer(litserve.LitAPI):
    """Scores rows given as ``{"x": [...]}``."""

    def setup(self, device: str) -> None:
        """Open the model in the worker."""
        self._session = open_session(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, list[float]]) -> Array:
        """Return the row of a request."""
        return np.asarray(request["x"], np.float32)

    def batch(self, inputs: list[Array]) -> Array:
        """Stack rows."""
        return np.stack(inputs)

    def predict(self, x: Array) -> Array:
        """Score a batch, float32, shape (rows, features)."""
        scores: Array = self._session.run(None, {"x": x})[0]
        return scores

    def unbatch(self, output: Array) -> list[Array]:
        """Cut a batch's scores into rows."""
        return list(output)

    def encode_response(self, output: Array) -> dict[str, list[float]]:
        """Return the reply to one row."""
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    api = Scorer(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_MS / 1000)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, timeout=60
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
        access_log=False,
    )

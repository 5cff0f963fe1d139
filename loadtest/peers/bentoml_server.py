"""BentoML: HTTP and JSON, adaptive batching."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bentoml
import numpy as np

from loadtest.peers import MAX_BATCH
from loadtest.sessions import open_session


@bentoml.service(
    workers=1,
    traffic={"timeout": 60, "max_concurrency": 2000},
    metrics={"enabled": False},
)
class Scorer:
    """Scores rows given as ``{"x": [[...], ...]}``."""

    def __init__(self) -> None:
        self._session = open_session(Path(os.environ["PEER_MODEL"]))

    # The latency is a bound above which it refuses; a tight one fails calls.
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=2000)
    def infer(self, x: np.ndarray) -> np.ndarray:
        """Score a batch."""
        feeds = {"x": x.astype(np.float32, copy=False)}
        scores: np.ndarray = self._session.run(None, feeds)[0]
        return scores


if __name__ == "__main__":
    os.environ["PEER_MODEL"], port = sys.argv[1:3]
    command = [sys.executable, "-m", "bentoml", "serve"]
    command += ["loadtest.peers.bentoml_server:Scorer"]
    command += ["--host", "127.0.0.1", "--port", port]
    os.execv(command[0], command)  # noqa: S606  # its own command line is the server

"""Mosec: a Rust HTTP front, Python workers; a request is the bytes of one row."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from loadtest.peers import MAX_BATCH, MAX_WAIT_MS
from loadtest.sessions import open_session

Row = NDArray[np.float32]


class Scorer(Worker):
    """Scores a batch of rows."""

    def __init__(self) -> None:
        super().__init__()
        self._session = open_session(Path(os.environ["PEER_MODEL"]))

    def deserialize(self, data: bytes) -> Row:
        """Return the row in a request's body."""
        return np.frombuffer(data, np.float32)

    def serialize(self, data: Row) -> bytes:
        """Return a reply's body."""
        return data.tobytes()

    def forward(self, data: list[Row]) -> list[Row]:
        """Score a batch."""
        return list(self._session.run(None, {"x": np.stack(data)})[0])


if __name__ == "__main__":
    # Its workers are spawned: they read the model's path from the environment.
    os.environ["PEER_MODEL"], port = sys.argv[1:3]
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--timeout", "20000"]
    server = Server()
    server.append_worker(
        Scorer, num=1, max_batch_size=MAX_BATCH, max_wait_time=MAX_WAIT_MS
    )
    server.run()

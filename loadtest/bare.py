"""Bare ONNX Runtime: rows a second of ``session.run``, nothing around it."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from loadtest.load import SPARE_S, LoadFailed, finish
from loadtest.models import INPUT, row_shape
from loadtest.processes import tethered
from loadtest.sessions import open_session

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def rates(model: Path, *, seconds: float) -> dict[int, float]:
    """Return rows per second by batch size, on one thread of this process.

    Args:
        model: Its file, in a repository in Triton's layout.
        seconds: For all batch sizes together.
    """
    session = open_session(model)
    shape = row_shape(model.parent.parent.name)
    generator = np.random.default_rng(0)
    found = {}
    for batch in BATCHES:
        rows = generator.standard_normal((batch, *shape)).astype(np.float32)
        feeds = {INPUT: rows}
        session.run(None, feeds)
        runs, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / len(BATCHES):
            session.run(None, feeds)
            runs += 1
        found[batch] = runs * batch / elapsed
    return found


def measure(model: Path, *, cores: list[int | None], seconds: float) -> float:
    """Return the rows per second of the best batch size, over all cores.

    A process of one thread runs on each core, all at the same time.

    Args:
        model: Its file.
        cores: One process on each; ``None`` for any core.
        seconds: Length of the measurement.

    Raises:
        LoadFailed: If a process gives no numbers.
    """
    program = [sys.executable, "-m", "loadtest", "ort", str(model)]
    program += ["--seconds", str(seconds)]

    def one(core: int | None) -> dict[str, float]:
        output = finish(tethered(program, core), seconds + SPARE_S)
        try:
            numbers: dict[str, float] = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise LoadFailed(f"ONNX Runtime gave no numbers: {output}") from error
        return numbers

    with ThreadPoolExecutor(len(cores)) as pool:
        found = list(pool.map(one, cores))
    return max(sum(each[str(batch)] for each in found) for batch in BATCHES)

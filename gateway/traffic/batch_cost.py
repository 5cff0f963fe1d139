"""What an experiment does to batches, before it starts. Pure.

Requests of different versions cannot share a batch, so every arm makes batches smaller
and rows dearer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gateway.errors import InvalidRequest

_ROUNDS = 10_000
"""At most; near saturation, batches settle slowly."""
_SETTLED = 1e-9


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Of one arm.

    Attributes:
        rows: Expected rows of a batch.
        row_us: Microseconds of a worker per row.
    """

    rows: float
    row_us: float


@dataclass(frozen=True, slots=True)
class ExperimentCost:
    """Of all arms together.

    Attributes:
        arms: In the order of the shares.
        utilisation: Fraction of the workers' time that is used; 1 or more: they cannot
            keep up.
    """

    arms: tuple[BatchCost, ...]
    utilisation: float


def expected_cost(
    rows_per_s: float,
    shares: Sequence[float],
    run_us: Mapping[int, float],
    *,
    workers: int = 1,
) -> ExperimentCost:
    """Estimate each arm's batch size and cost per row.

    A batch leaves when a worker is free, so it holds what came since the arm's last
    one left. With every arm having its turn once in a cycle of C seconds::

        rows_k = min(largest, max(1, rows_per_s * share_k * C))
        C      = sum over arms of run(rows_k) / workers

    Solved by going round from batches of one row. run() is the measured table, straight
    between its points. It is a mean-value estimate: arrivals are taken as even and as
    single rows, the arms as equally dear, and the way to the worker as free. So it
    tells what splitting costs against not splitting (give it ``[1.0]``), not a latency.

    Args:
        rows_per_s: Of the model.
        shares: Of its arms; they sum to 1.
        run_us: Measured microseconds of a run by rows of the batch; the largest batch
            is the last.
        workers: That serve it.

    Raises:
        InvalidRequest: An argument cannot be.
    """
    sizes = sorted(run_us)
    times = [run_us[size] for size in sizes]
    if not sizes or sizes[0] < 1 or min(times) <= 0:
        raise InvalidRequest("run_us: microseconds above 0 by rows from 1 on")
    if not rows_per_s > 0 or workers < 1:
        raise InvalidRequest("rows_per_s is above 0, and there is a worker")
    rates = rows_per_s * np.asarray(shares, np.float64)
    if not len(rates) or rates.min() < 0 or abs(rates.sum() / rows_per_s - 1) > 1e-6:
        raise InvalidRequest("shares: not negative, and they sum to 1")
    rows = np.ones(len(rates))
    for _ in range(_ROUNDS):
        runs = np.interp(rows, sizes, times) * (rates > 0)
        before = rows
        rows = np.clip(rates * runs.sum() / 1e6 / workers, 1, sizes[-1])
        if np.abs(rows - before).max() < _SETTLED:
            break
    row_us = np.interp(rows, sizes, times) / rows
    arms = tuple(
        BatchCost(float(r), float(us)) for r, us in zip(rows, row_us, strict=True)
    )
    return ExperimentCost(arms, float((rates * row_us).sum() / 1e6 / workers))

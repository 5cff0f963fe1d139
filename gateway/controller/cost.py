"""What a split will do to batches, from what was counted so far. Pure."""

from __future__ import annotations

from typing import Any

from gateway.traffic.batch_cost import expected_cost
from gateway.traffic.table import ModelTraffic

Statistics = list[tuple[str, int, dict[str, Any]]]
"""Model, version and counters of everything served; see `VersionStatistics`."""


def cost_notes(
    model: str,
    traffic: ModelTraffic,
    before: Statistics,
    after: Statistics,
    *,
    seconds: float,
    workers: int,
) -> list[str]:
    """Say what each arm's batches and rows will cost, for people.

    Args:
        model: Its name.
        traffic: The table to come.
        before: Counters at the beginning of a short time.
        after: At its end.
        seconds: Its length.
        workers: That serve the model.
    """
    arms = [arm for arm in traffic.arms if arm.share > 0]
    rate = (_rows(model, after) - _rows(model, before)) / seconds
    run_us = _run_us(model, after)
    if not arms:
        return []
    if rate <= 0 or not run_us:
        return ["no requests now: what the split costs cannot be estimated"]
    alone = expected_cost(rate, [1.0], run_us, workers=workers)
    split = expected_cost(rate, [arm.share for arm in arms], run_us, workers=workers)
    notes = [
        f"at {rate:.0f} rows/s, unsplit: {alone.arms[0].rows:.1f} rows a batch, "
        f"{alone.arms[0].row_us:.1f} us a row, workers {alone.utilisation:.0%} busy"
    ]
    for arm, cost in zip(arms, split.arms, strict=True):
        what = f"{cost.rows:.1f} rows a batch, {cost.row_us:.1f} us a row"
        notes.append(f"arm {arm.version}: {what}")
    notes.append(f"split: workers {split.utilisation:.0%} busy")
    return notes


def _rows(model: str, statistics: Statistics) -> int:
    return sum(counts["rows"] for name, _, counts in statistics if name == model)


def _run_us(model: str, statistics: Statistics) -> dict[int, float]:
    """Return mean microseconds of a run by its rows, over all versions."""
    sums: dict[int, list[int]] = {}
    for name, _, counts in statistics:
        if name != model:
            continue
        for rows, (runs, *parts) in counts["runs"].items():
            known = sums.setdefault(int(rows), [0, 0])
            known[0] += runs
            known[1] += sum(parts)
    return {
        rows: nanoseconds / runs / 1000
        for rows, (runs, nanoseconds) in sums.items()
        if runs and nanoseconds
    }

"""How far two versions' answers to the same rows agree. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-6
"""Difference of scores that still counts as the same number."""


class Agreement(NamedTuple):
    """Sums over compared rows; they add up over batches, fronts and time.

    Attributes:
        rows: Rows compared.
        agreed: Rows whose decision was the same in every output: the largest score
            of a row of several, the side of one half of a single score between 0 and
            1, the number within `TOLERANCE` of another single score, the value of
            anything that is no score.
        score_rows: Rows with scores that are finite in both answers.
        score_difference: Sum over those of the mean absolute difference of scores.
    """

    rows: int = 0
    agreed: int = 0
    score_rows: int = 0
    score_difference: float = 0.0

    def plus(self, other: Agreement) -> Agreement:
        """Return the sums over both."""
        return Agreement(
            self.rows + other.rows,
            self.agreed + other.agreed,
            self.score_rows + other.score_rows,
            self.score_difference + other.score_difference,
        )


def compare(
    ours: Sequence[NDArray[np.generic]], theirs: Sequence[NDArray[np.generic]]
) -> Agreement:
    """Compare outputs of the same rows.

    Args:
        ours: Per output, shape (rows, ...), any dtype.
        theirs: The same outputs of the other version.

    Returns:
        The sums; of no rows where the outputs differ in number, shape or kind.
    """
    pairs = list(zip(ours, theirs, strict=False))
    if len(ours) != len(theirs) or any(
        a.shape != b.shape or a.dtype.kind != b.dtype.kind for a, b in pairs
    ):
        return Agreement()
    rows = len(ours[0]) if ours else 0
    same = np.ones(rows, bool)
    differences = np.zeros(rows)
    scored: list[NDArray[np.bool_]] = []
    for a, b in pairs:
        a, b = a.reshape(rows, -1), b.reshape(rows, -1)  # noqa: PLW2901 - rows stay
        if a.dtype.kind != "f":
            same &= np.asarray((a == b).all(1), bool)
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.asarray(np.isfinite(np.hstack((x, y))).all(axis=1))
        gap = np.abs(np.where(finite[:, None], x - y, 0.0))
        same &= finite & _same_decision(x, y, gap)
        if x.shape[1]:
            differences += gap.mean(1)
            scored.append(finite)
    compared = np.any(scored, axis=0) if scored else np.zeros(rows, bool)
    difference = np.where(compared, differences, 0.0).sum()
    return Agreement(rows, int(same.sum()), int(compared.sum()), float(difference))


def _same_decision(
    x: NDArray[np.float64], y: NDArray[np.float64], gap: NDArray[np.float64]
) -> NDArray[np.bool_]:
    if x.shape[1] > 1:
        return np.asarray(x.argmax(1) == y.argmax(1))
    if not x.shape[1]:
        return np.ones(len(x), bool)
    one, other = x[:, 0], y[:, 0]
    scores = (one >= 0) & (one <= 1) & (other >= 0) & (other <= 1)
    sides = (one >= 0.5) == (other >= 0.5)
    return np.where(scores, sides, gap[:, 0] <= TOLERANCE)

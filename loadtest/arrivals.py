"""When the calls of an open loop are due. Pure.

A schedule is a row of stretches; within one the rate goes evenly from one value to
another. With L(t) the calls due up to t, constant arrivals come where L(t) is a whole
number, and Poisson arrivals where it is the sum of independent exponential steps of
mean 1 (time rescaling: Cinlar, Introduction to Stochastic Processes, 1975, ch. 4.7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 1024
"""Arrivals computed at a time."""


class Stretch(NamedTuple):
    """A stretch of a schedule.

    Attributes:
        seconds: Its length.
        begin: Calls per second at its beginning.
        end: Calls per second at its end.
    """

    seconds: float
    begin: float
    end: float


def offered(schedule: Sequence[Stretch]) -> float:
    """Return how many calls a schedule makes, on average."""
    return sum(s.seconds * (s.begin + s.end) / 2 for s in schedule)


def times(
    schedule: Sequence[Stretch], *, poisson: bool, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Return when calls are due, in chunks.

    Args:
        schedule: At least one stretch; rates are not negative.
        poisson: Random arrivals; else even ones.
        seed: Of the random ones.

    Yields:
        int64, shape (calls,): nanoseconds after the beginning, ascending.
    """
    generator = np.random.default_rng(seed)
    ends = np.cumsum([s.seconds * (s.begin + s.end) / 2 for s in schedule])
    starts_s = np.cumsum([0.0, *(s.seconds for s in schedule)])
    done = 0.0
    while True:
        steps = generator.exponential(size=CHUNK) if poisson else np.ones(CHUNK)
        due = done + np.cumsum(steps)
        done = float(due[-1])
        inside = due[due <= ends[-1] * (1 + 1e-12)]
        if len(inside):
            yield _inverse(inside, schedule, ends, starts_s)
        if len(inside) < CHUNK:
            return


def _inverse(
    due: NDArray[np.float64],
    schedule: Sequence[Stretch],
    ends: NDArray[np.float64],
    starts_s: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return when so many calls are due (the inverse of L), in nanoseconds.

    Within a stretch L(t) = b t + a t^2 / 2; its root is taken in the form that is
    exact for a = 0 and for b = 0: t = 2 L / (b + sqrt(b^2 + 2 a L)).
    """
    which = np.minimum(np.searchsorted(ends, due), len(schedule) - 1)
    seconds, begin, end = (
        np.array(column)[which] for column in zip(*schedule, strict=True)
    )
    left = due - np.concatenate(([0.0], ends))[which]
    slope = (end - begin) / seconds
    root = np.sqrt(np.maximum(begin**2 + 2 * slope * left, 0))
    denominator = np.maximum(begin + root, 1e-12)
    within = np.clip(2 * left / denominator, 0, seconds)
    found: NDArray[np.int64] = np.rint((starts_s[which] + within) * 1e9).astype(
        np.int64
    )
    return found

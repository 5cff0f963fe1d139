"""What discounted rewards say about arms, and which arm is probably best. Pure.

Everything is known from three sums per arm: of the rewards' number, of the rewards
and of their squares, each discounted. Arrays have the arms on their last axis, and any
axes before it (segments, simulation runs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NODES = 257
"""Of the quadrature."""
_REACH = 6.0
"""Standard deviations around an arm's mean that the nodes cover."""
_PER_ARM = 65
"""Candidates for nodes around each arm."""
_MEAN, _VARIANCE = 0.5, 1 / 12
"""Of a reward nothing is known about: uniform in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Discounted sums over the rewards of arms.

    Attributes:
        values: Of 1, of the rewards (in [0, 1] each) and of their squares; float64,
            shape (3, ..., arms).
    """

    values: Array

    @property
    def count(self) -> Array:
        """Number of rewards; shape (..., arms)."""
        return np.asarray(self.values[0])

    @property
    def total(self) -> Array:
        """Sum of the rewards; shape (..., arms)."""
        return np.asarray(self.values[1])

    @property
    def squares(self) -> Array:
        """Sum of the squares of the rewards; shape (..., arms)."""
        return np.asarray(self.values[2])

    def scaled(self, factor: Array) -> Sums:
        """Return sums that count for `factor` (at least 0) of themselves."""
        return Sums(self.values * factor)


def certainty(sums: Sums, pending: Array) -> Array:
    """Return what part of an arm's evidence counts while rewards are still to come.

    The variance of an arm's mean grows by 1 + pending / count: what came back stands
    for all that was sent. An allocation stays spread while labels are late, rather
    than running for a whole delay on what the first of them said. It is not free: with
    labels 500 requests late, the simulation of an abrupt change (`make regret`) loses
    a tenth more with it than without.

    Args:
        sums: Shape (..., arms).
        pending: Pulls without a reward, of the same shape.

    Returns:
        count / (count + pending), 1 where both are 0.
    """
    everything = sums.count + pending
    return np.divide(
        sums.count, everything, where=everything > 0, out=np.ones_like(everything)
    )


def beta_parameters(sums: Sums) -> tuple[Array, Array]:
    """Return (alpha, beta), from the prior Beta(1, 1).

    A reward r in [0, 1] counts as r of a success and 1 - r of a failure.
    """
    return 1 + sums.total, 1 + np.maximum(sums.count - sums.total, 0)


def normal_parameters(sums: Sums) -> tuple[Array, Array]:
    """Return mean and standard deviation of the posterior of each arm's mean.

    Mean and variance of the rewards are unknown: Normal-inverse-gamma, with a prior
    worth one uniform reward (kappa 1, a 2, b 1/12). The marginal of the mean is a
    Student t, taken as the normal with its mean and variance. Not the plug-in
    variance: after two equal rewards that is 0, and exploration would end.

    Source: Murphy, "Conjugate Bayesian analysis of the Gaussian distribution" (2007),
    section 3.
    """
    kappa = 1 + sums.count
    mean = (_MEAN + sums.total) / kappa
    spread = sums.squares + _MEAN**2 - kappa * mean**2
    b = _VARIANCE + np.maximum(spread, 0) / 2
    a = 2 + sums.count / 2
    return mean, np.sqrt(b / ((a - 1) * kappa))


def probability_best(sums: Sums, posterior: str) -> Array:
    """Return the probability that each arm's mean is the largest.

    The integral of f_k times the product of the other arms' F_j, as a Stieltjes sum
    over 257 nodes. They lie where arms that can still be best have their mass, so that
    two well-known arms are told apart beside one nothing is known of.

    Args:
        sums: Shape (..., arms).
        posterior: ``beta`` or ``gaussian``.

    Returns:
        Shape (..., arms); sums to 1 over the arms.
    """
    from scipy.special import betainc, ndtr  # late: it is 0.1 s of every start

    if posterior == "beta":
        alpha, beta = beta_parameters(sums)
        size = alpha + beta
        mean = alpha / size
        deviation = np.sqrt(mean * (1 - mean) / (size + 1))
    else:
        mean, deviation = normal_parameters(sums)
    nodes = _nodes(mean, deviation)[..., None, :]
    if posterior == "beta":
        below = betainc(alpha[..., None], beta[..., None], np.clip(nodes, 0, 1))
    else:
        below = ndtr((nodes - mean[..., None]) / deviation[..., None])
    # What lies beyond the nodes belongs to the outermost of them.
    below[..., 0], below[..., -1] = 0, 1
    others = _product_of_others(below)
    best = (np.diff(below) * (others[..., 1:] + others[..., :-1])).sum(-1)
    return np.asarray(best / best.sum(-1, keepdims=True))


def _nodes(mean: Array, deviation: Array) -> Array:
    """Return nodes, ascending, shape (..., `NODES`)."""
    reach = np.linspace(-_REACH, _REACH, _PER_ARM)
    around = mean[..., None] + deviation[..., None] * reach
    # Below the lowest value that one of the arms may have, no arm is the best.
    lowest = around[..., 0].max(-1)[..., None]
    candidates = np.sort(around.reshape(*around.shape[:-2], -1))
    last = candidates.shape[-1] - 1
    first = np.maximum((candidates <= lowest).sum(-1, keepdims=True) - 1, 0)
    places = first + (last - first) * np.linspace(0, 1, NODES)
    left = np.minimum(places.astype(np.intp), last - 1)
    before = np.take_along_axis(candidates, left, -1)
    after = np.take_along_axis(candidates, left + 1, -1)
    return np.asarray(before + (after - before) * (places - left))


def _product_of_others(below: Array) -> Array:
    """Return, for each arm (axis -2), the product over all the other arms."""
    ones = np.ones_like(below[..., :1, :])
    up = np.cumprod(np.concatenate([ones, below[..., :-1, :]], -2), -2)
    down = np.concatenate([below[..., 1:, :], ones], -2)
    down = np.flip(np.cumprod(np.flip(down, -2), -2), -2)
    return np.asarray(up * down)

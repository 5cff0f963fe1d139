"""The limits of a policy that learns, all held at once. Pure.

The weights of the arms are a point of a simplex; floors, caps and ceilings make a box
around the points that are allowed. What a policy would like is brought to the nearest
allowed point, in the sense of relative entropy: arms between their limits keep the
proportions they had, so what a capped arm gives up goes to those that are next best
and not to all alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.traffic.table import ModelTraffic, Role

Array = NDArray[np.float64]

_LEAST = 1e-9
"""Of a wish: an arm nobody wishes for can still take what others must give up."""
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Limits:
    """Least and largest weight of each arm; some weights that sum to 1 are between.

    Attributes:
        low: Shape (arms,).
        high: The same, nowhere below `low`.
    """

    low: Array
    high: Array

    def hold(self, weights: Sequence[float]) -> bool:
        """Return whether weights keep to them, but for rounding."""
        return bool(
            np.all(np.subtract(self.low, weights) <= _ROUNDING)
            and np.all(np.subtract(weights, self.high) <= _ROUNDING)
        )


def limits(traffic: ModelTraffic, rewards: Mapping[int, int]) -> Limits:
    """Return the limits of the arms of a table that was checked.

    An arm with fewer than ``min_rewards`` rewards may not exceed its share, unless
    its floor does. While a challenger is such an arm, the champion has at least
    ``champion_min``. The champion may take what no challenger may, beyond its own
    limits: traffic has to go somewhere.

    Args:
        traffic: Has at least one arm.
        rewards: That each version has had.
    """
    policy, arms = traffic.policy, traffic.arms
    new = {a.version for a in arms if rewards.get(a.version, 0) < policy.min_rewards}
    low = np.full(len(arms), policy.floor)
    high = np.full(len(arms), policy.cap)
    champion = -1
    for place, arm in enumerate(arms):
        if arm.role is Role.CHAMPION:
            champion = place
        else:
            high[place] = min(high[place], policy.challenger_ceiling)
        if arm.version in new:
            high[place] = min(high[place], arm.share)
    high = np.maximum(high, low)
    if new - {arms[champion].version}:
        low[champion] = max(low[champion], policy.champion_min)
    left = 1 - (high.sum() - high[champion])
    high[champion] = max(high[champion], low[champion], left)
    return Limits(low, high)


def project(wish: Array, within: Limits) -> Array:
    """Return the allowed weights nearest to a wish.

    They minimise the relative entropy sum w log(w / wish), which makes them
    clip(c * wish, low, high) for the one c with which they sum to 1.

    Args:
        wish: Not negative; shape (arms,).
        within: Not empty.
    """
    wish = np.maximum(wish, _LEAST)
    low, high = within.low, within.high
    # The sum grows with c, straight between the points where an arm meets a limit.
    knots = np.unique(np.concatenate([low / wish, high / wish]))
    sums = np.clip(knots[:, None] * wish, low, high).sum(1)
    at = min(int(np.searchsorted(sums, 1 - _ROUNDING)), len(knots) - 1)
    middle = (knots[max(at - 1, 0)] + knots[at]) / 2 * wish
    free = (low < middle) & (middle < high)
    factor = knots[at]
    if at and free.any():
        held = np.clip(middle, low, high)[~free].sum()
        factor = (1 - held) / wish[free].sum()
    return np.asarray(np.clip(factor * wish, low, high))


def shape(
    wish: Array, within: Limits, in_force: Sequence[float], max_step: float
) -> tuple[float, ...]:
    """Return the weights to come: within the limits, and near those in force.

    Where allowed weights are within `max_step` of those in force, the nearest of them
    to the wish is taken. Where none are (the limits changed, an arm is new), the step
    goes straight towards the allowed weights nearest to those in force, and as far as
    `max_step` lets any arm go; limits are met after as few refreshes as steps of
    that size allow.

    Args:
        wish: What the policy would have; not negative, shape (arms,).
        within: The limits.
        in_force: Weights now; they sum to 1.
        max_step: Largest change of any weight, above 0.
    """
    now = np.array(in_force)
    low = np.maximum(within.low, now - max_step)
    high = np.minimum(within.high, now + max_step)
    if (
        np.all(low <= high + _ROUNDING)
        and low.sum() <= 1 + _ROUNDING
        and high.sum() >= 1 - _ROUNDING
    ):
        weights = project(wish, Limits(np.minimum(low, high), high))
    else:
        way = project(now, within) - now
        weights = now + way * min(1, max_step / np.abs(way).max())
    return tuple(weights.tolist())

"""The distribution over arms now in force, and the draw from it. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

_NEVER = 2.0
"""An end no draw reaches; draws are below 1."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an arm is drawn from. Made with `among`.

    Attributes:
        propensities: Probability of each arm; they sum to 1. Empty where no arm may
            be drawn.
        ends: Where each arm's interval of [0, 1) ends, in the same order.
    """

    propensities: tuple[float, ...] = ()
    ends: tuple[float, ...] = ()

    @classmethod
    def among(cls, weights: Sequence[float]) -> Allocation:
        """Return the distribution that keeps the proportions of the weights.

        Give the weights of those arms that may be drawn: what the others had goes to
        them in proportion, and the propensities say so.

        Args:
            weights: Not negative; their sum need not be 1. If it is 0, no arm may be
                drawn, for nobody decided that one should.
        """
        total = math.fsum(weights)
        if not total > 0:
            return cls()
        shares = tuple(weight / total for weight in weights)
        ends = list(accumulate(shares))
        # Sums of fractions may end below 1: what lies above belongs to the last arm
        # that has a weight, never to one that has none.
        last = max(index for index, share in enumerate(shares) if share)
        ends[last:] = [_NEVER] * len(ends[last:])
        return cls(shares, tuple(ends))

    def draw(self, number: float) -> tuple[int, float]:
        """Choose an arm.

        Args:
            number: Uniform in [0, 1).

        Returns:
            Its index and its propensity.
        """
        index = bisect_right(self.ends, number)
        return index, self.propensities[index]

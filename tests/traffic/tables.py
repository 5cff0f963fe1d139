"""Traffic tables and rewards for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from gateway.traffic.policies import Learnt
from gateway.traffic.posteriors import Sums
from gateway.traffic.table import Arm, ModelTraffic, Policy, PolicyKind, Role, Source


def table(*shares: float, **policy: Any) -> ModelTraffic:
    """A table of versions 1, 2, ..., the first the champion, with Thompson sampling."""
    roles = [Role.CHAMPION] + [Role.CHALLENGER] * (len(shares) - 1)
    arms = map(Arm, range(1, len(shares) + 1), roles, shares)
    segments = (Source("parameter", "region"),) if policy.get("contextual") else ()
    made = Policy(**{"kind": PolicyKind.THOMPSON, **policy})
    return ModelTraffic(arms=tuple(arms), policy=made, segments=segments)


def taught(traffic: ModelTraffic) -> Learnt:
    """What is known of a table's arms before the first reward."""
    learnt = Learnt()
    learnt.keep(arm.version for arm in traffic.arms)
    return learnt


def sums(count: Any, mean: Any, deviation: Any = None) -> Sums:
    """Sums of rewards with this mean and deviation (``None``: each is 0 or 1)."""
    count, mean = np.asarray(count, float), np.asarray(mean, float)
    squares = mean if deviation is None else np.square(deviation) + mean**2
    return Sums(np.stack([count, count * mean, count * squares]))

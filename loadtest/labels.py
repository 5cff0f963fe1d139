"""Late labels: what each prediction was worth, until the policy is told.

A server knows its decisions and their propensities, its client what came of them; the
prediction's id joins the two. Loop thread only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.protocol import admin_pb2 as pb

CAPACITY = 1 << 16
"""Predictions whose worth is kept; older ones make room."""


class Labels:
    """Rewards by prediction, waiting for their decisions.

    Attributes:
        told: By version: rewards that were joined with a decision.
        earned: By version: their sum.
    """

    def __init__(self) -> None:
        self._rewards: dict[str, float] = {}
        self.told: defaultdict[int, int] = defaultdict(int)
        self.earned: defaultdict[int, float] = defaultdict(float)

    def note(self, prediction: str, reward: float) -> None:
        """Keep what a prediction was worth, between 0 and 1."""
        self._rewards[prediction] = reward
        if len(self._rewards) > CAPACITY:
            del self._rewards[next(iter(self._rewards))]

    def forget(self) -> None:
        """Begin anew: what was worth something until now is of no interest."""
        self._rewards.clear()

    def join(
        self, decisions: Iterable[Mapping[str, Any]]
    ) -> list[pb.RewardRequest.Item]:
        """Return the rewards of decisions that are known, each once.

        Args:
            decisions: As the Admin service lists them, latest first.
        """
        found = []
        for one in decisions:
            if one["role"] == "shadow":  # copies bear the id of their original
                continue
            reward = self._rewards.pop(one["prediction_id"], None)
            if reward is None:
                continue
            self.told[one["version"]] += 1
            self.earned[one["version"]] += reward
            found.append(
                pb.RewardRequest.Item(
                    version=one["version"],
                    reward=reward,
                    propensity=one["propensity"],
                    time=one["time"],
                    segments=one["segments"],
                    policy=one["policy"],
                )
            )
        found.reverse()  # as they were made: what comes last counts most
        return found

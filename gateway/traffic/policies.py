"""Policies that learn: from rewards to the weights of arms. Pure.

Rewards are noted one by one; now and then, off the path of requests, new weights are
worked out from all of them. What was learnt fades by the policy's discount with every
reward of the model, whichever arm it came from: arms that get little traffic become
uncertain again and are looked at again. What fades is worked out when it is looked at,
so a reward costs the same with any number of arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import TypeAdapter

from gateway.errors import InvalidRequest
from gateway.traffic.posteriors import (
    Array,
    Sums,
    beta_parameters,
    certainty,
    probability_best,
)
from gateway.traffic.shaping import limits, shape
from gateway.traffic.table import ModelTraffic, Policy, PolicyKind, Weights

MAX_CONTEXTS = 64
"""Combinations of segments that have a posterior of their own."""
_MAKE_ROOM_EVERY = 1000
"""Rewards of a model after which another combination may get a place."""


@dataclass(slots=True)
class Evidence:
    """Discounted sums of the rewards of an arm.

    Attributes:
        count: Of rewards.
        total: Of the rewards.
        squares: Of their squares.
        event: Number of the model's reward that they are discounted to.
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    event: int = 0

    def fade(self, event: int, discount: float) -> None:
        """Discount to a later reward of the model."""
        factor = discount ** (event - self.event)
        self.count *= factor
        self.total *= factor
        self.squares *= factor
        self.event = event

    def add(self, reward: float) -> None:
        """Add a reward at the present event."""
        self.count += 1
        self.total += reward
        self.squares += reward * reward


@dataclass(slots=True)
class Former:
    """What was known under an earlier decision, for the day it comes back.

    Attributes:
        weights: In force at its end; ``None``: the shares of the table.
        rewards: By version.
        arms: By version, discounted to that moment.
        contexts: By joined segment values, then by version.
    """

    weights: Weights | None
    rewards: dict[int, int]
    arms: dict[int, Evidence]
    contexts: dict[str, dict[int, Evidence]] = field(default_factory=dict)


@dataclass(slots=True)
class Learnt:
    """What the rewards of a model have taught. Plain data; see `LEARNT`.

    Attributes:
        events: Rewards of the model so far.
        rewards: The same by version, not discounted.
        arms: By version.
        contexts: By joined segment values, then by version; at most `MAX_CONTEXTS`.
            Their rewards are part of `arms` as well.
        turned_away: Rewards of contexts without a place, since one was dropped.
    """

    events: int = 0
    rewards: dict[int, int] = field(default_factory=dict)
    arms: dict[int, Evidence] = field(default_factory=dict)
    contexts: dict[str, dict[int, Evidence]] = field(default_factory=dict)
    turned_away: int = 0

    def keep(self, versions: Iterable[int], back: Former | None = None) -> None:
        """Forget all arms but these.

        Args:
            versions: Those that are new begin with nothing.
            back: Or, of those that come back, with this; it has faded since.
        """
        kept = set(versions)
        rewards = {**back.rewards, **self.rewards} if back else self.rewards
        arms = {**back.arms, **self.arms} if back else self.arms
        self.rewards = {v: rewards.get(v, 0) for v in kept}
        self.arms = {v: arms.get(v) or Evidence(event=self.events) for v in kept}
        for context, known in (back.contexts if back else {}).items():
            if context in self.contexts or len(self.contexts) < MAX_CONTEXTS:
                self.contexts[context] = {**known, **self.contexts.get(context, {})}
        for context, known in self.contexts.items():
            self.contexts[context] = {v: e for v, e in known.items() if v in kept}

    def observe(
        self, version: int, reward: float, policy: Policy, context: str = ""
    ) -> bool:
        """Note a reward.

        Args:
            version: The arm that answered.
            reward: In [0, 1].
            policy: Says how what was learnt fades.
            context: Joined segment values of the request; empty for none.

        Returns:
            Whether it counts: false for a version that is no arm (any more).

        Raises:
            InvalidRequest: The reward is no number between 0 and 1.
        """
        if not 0 <= reward <= 1:
            raise InvalidRequest(
                f"a reward is a number between 0 and 1, not {reward}; scale it"
            )
        if version not in self.arms:
            return False
        self.events += 1
        self.rewards[version] += 1
        arm = self.arms[version]
        arm.fade(self.events, policy.discount)
        arm.add(reward)
        if policy.contextual and context:
            self._observe_context(version, reward, policy.discount, context)
        return True

    def sums(self, versions: Sequence[int], discount: float) -> Sums:
        """Return what is known of arms now; shape (arms,)."""
        return Sums(self._sums([self.arms], versions, discount).values[:, 0])

    def context_sums(self, versions: Sequence[int], discount: float) -> Sums:
        """Return the same in each context, as they come; shape (contexts, arms)."""
        return self._sums(list(self.contexts.values()), versions, discount)

    def _sums(
        self,
        rows: Sequence[Mapping[int, Evidence]],
        versions: Sequence[int],
        discount: float,
    ) -> Sums:
        # Reading changes nothing: a replay of the rewards ends in the same bits,
        # whenever weights were worked out in between.
        known = np.zeros((3, len(rows), len(versions)))
        for row, arms in enumerate(rows):
            for place, version in enumerate(versions):
                arm = arms.get(version)
                if arm is not None:
                    faded = discount ** (self.events - arm.event)
                    sums = arm.count, arm.total, arm.squares
                    known[:, row, place] = np.multiply(sums, faded)
        return Sums(known)

    def _observe_context(
        self, version: int, reward: float, discount: float, context: str
    ) -> None:
        if self.turned_away and self.events % _MAKE_ROOM_EVERY == 0:
            self._make_room(discount)
        arms = self.contexts.get(context)
        if arms is None:
            if len(self.contexts) >= MAX_CONTEXTS:
                self.turned_away += 1
                return
            arms = self.contexts[context] = {}
        arm = arms.get(version)
        if arm is None:
            arm = arms[version] = Evidence(event=self.events)
        arm.fade(self.events, discount)
        arm.add(reward)

    def _make_room(self, discount: float) -> None:
        """Drop the context used least; all it taught goes on counting for all.

        Now and then, not with every reward: a key with ever new values must not cost
        more than one without. And by the count of rewards, so that replays agree.
        """
        used = self.context_sums(list(self.arms), discount).count.sum(-1)
        del self.contexts[list(self.contexts)[int(used.argmin())]]
        self.turned_away = 0


LEARNT = TypeAdapter(Learnt)
"""Reads and writes a `Learnt` as JSON, to the bit."""


def refresh(
    traffic: ModelTraffic,
    learnt: Learnt,
    in_force: Weights | None,
    pending: Mapping[int, float] | None = None,
) -> Weights:
    """Work out the weights to come.

    Args:
        traffic: A checked table with arms.
        learnt: From their rewards.
        in_force: Weights now; ``None`` for the shares of the table.
        pending: By version, requests whose rewards are still to come; ``None`` to go by
            the rewards that came alone (see `certainty`).

    Returns:
        Weights with the next snapshot number. The shares, as snapshot 0, where the
        policy does not learn; those in force where it is frozen.
    """
    policy = traffic.policy
    shares = tuple(arm.share for arm in traffic.arms)
    if in_force is None or len(in_force.weights) != len(shares):
        in_force = Weights(0, shares)
    if not policy.learns:
        return Weights(0, shares)
    if traffic.frozen:
        return in_force
    versions = [arm.version for arm in traffic.arms]
    known = learnt.sums(versions, policy.discount)
    late = np.array([(pending or {}).get(version, 0.0) for version in versions])
    sure = certainty(known, late)
    within = limits(traffic, learnt.rewards)
    wish = np.array(shares)
    if known.count.any():  # until the first reward, shares are all that is known
        wish = wished(policy, known.scaled(sure))
    weights = shape(wish, within, in_force.weights, policy.max_step)
    segments = {}
    if policy.contextual and learnt.contexts:
        apart = learnt.context_sums(versions, policy.discount)
        drawn = drawn_together(apart, known, policy.shrinkage)
        wishes = wished(policy, drawn.scaled(sure))
        for context, wish in zip(learnt.contexts, wishes, strict=True):
            now = in_force.segments.get(context, in_force.weights)
            segments[context] = shape(wish, within, now, policy.max_step)
    return Weights(in_force.snapshot + 1, weights, segments)


def limited(
    traffic: ModelTraffic, learnt: Learnt, in_force: Weights | None
) -> Weights | None:
    """Bring weights within the limits of a table that they were not made for.

    They come as near as the step limit allows (`gateway.traffic.shaping.shape`).

    Args:
        traffic: A checked table with arms, whose policy learns.
        learnt: From their rewards.
        in_force: Weights now; ``None`` for the shares of the table.

    Returns:
        `in_force` where the limits hold, else weights with the next snapshot number.
    """
    shares = tuple(arm.share for arm in traffic.arms)
    now = in_force or Weights(0, shares)
    within, max_step = limits(traffic, learnt.rewards), traffic.policy.max_step
    if all(map(within.hold, (now.weights, *now.segments.values()))):
        return in_force

    def near(weights: tuple[float, ...]) -> tuple[float, ...]:
        return shape(np.array(weights), within, weights, max_step)

    segments = {context: near(those) for context, those in now.segments.items()}
    return Weights(now.snapshot + 1, near(now.weights), segments)


def wished(policy: Policy, known: Sums) -> Array:
    """Return the weights a policy would have if nothing limited it.

    Thompson sampling has floor + (1 - arms * floor) * P(arm is best): what one draw
    of every arm's posterior would choose. Epsilon-greedy has 1 - epsilon for the arm
    with the best posterior mean (shared where several have), and epsilon for all.

    Args:
        policy: One that learns.
        known: Shape (..., arms).

    Returns:
        The same shape; sums to 1 over the arms.
    """
    arms = known.count.shape[-1]
    if policy.kind is PolicyKind.THOMPSON:
        probable = probability_best(known, policy.posterior)
        return np.asarray(policy.floor + (1 - arms * policy.floor) * probable)
    alpha, beta = beta_parameters(known)
    mean = alpha / (alpha + beta)
    best = mean == mean.max(-1, keepdims=True)
    greedy = best / best.sum(-1, keepdims=True)
    return np.asarray(policy.epsilon / arms + (1 - policy.epsilon) * greedy)


def drawn_together(apart: Sums, everything: Sums, shrinkage: float) -> Sums:
    """Return what is known in each context, drawn to what is known elsewhere.

    Rewards of all other contexts count for `shrinkage` rewards at most: they decide
    where a context has few of its own, and fade where it has many.

    Args:
        apart: Of each context; shape (contexts, arms).
        everything: Of all rewards, theirs included; shape (arms,).
        shrinkage: In rewards.
    """
    elsewhere = np.maximum(everything.values[:, None] - apart.values, 0)
    count = np.maximum(elsewhere[0], shrinkage)
    factor = np.divide(shrinkage, count, where=count > 0, out=np.zeros_like(count))
    return Sums(apart.values + elsewhere * factor)

"""Policies at work: rewards in, weights out. Pure; time is an argument.

What is learnt belongs to a model and a revision of its traffic: a change of the table
keeps what is known of the arms that stay. It is kept on disk by whoever owns this, as
one JSON document per model.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from gateway.errors import InvalidRequest
from gateway.traffic.offline import (
    Decisions,
    Estimate,
    Estimator,
    Unanswerable,
    estimate,
)
from gateway.traffic.policies import Former, Learnt, limited, refresh
from gateway.traffic.posteriors import certainty, probability_best
from gateway.traffic.table import (
    MAX_SEGMENTS,
    MAX_VALUE,
    SEPARATOR,
    ModelTraffic,
    PolicyKind,
    Source,
    Weights,
    segment_key,
)

_DRAWN = frozenset(("", *PolicyKind))
"""Policies whose decisions were drawn; a rule's and a shadow's were not."""
_TOLERANCE = 1e-6
MIN_PROPENSITY = 1e-6
"""Below it a single decision would outweigh a million others."""
MAX_TIME_S = 1e11
"""Milliseconds taken for seconds are above it."""
_NOTES = 500
"""Points in time, within the delay of labels, of which requests are remembered."""
MAX_EARLIER = 8
"""Decisions whose last weights are kept, for a rollback."""
MAX_REWARDS = 100_000
"""Rewards that are remembered one by one, for estimates."""


@dataclass(frozen=True, slots=True)
class Reward:
    """What came of a decision.

    Attributes:
        version: The arm that answered.
        reward: Between 0 and 1.
        propensity: Of the arm, as recorded with the decision.
        time: Of the decision, in Unix seconds.
        segments: As recorded.
        policy: As recorded; empty is taken for one that draws.
    """

    version: int
    reward: float
    propensity: float
    time: float = 0.0
    segments: tuple[str, ...] = ()
    policy: str = ""


@dataclass(slots=True)
class State:
    """What outlives a process.

    Attributes:
        learnt: From rewards.
        weights: In force; ``None`` for the shares of the table.
        versions: Of the arms that `weights` are for.
        shares: Of these arms in the table.
        kind: Of the policy that made them.
        decision: Revision in which that was decided.
        segments: Whose values contexts are made of.
        earlier: What decisions before it ended with, oldest first.
    """

    learnt: Learnt = field(default_factory=Learnt)
    weights: Weights | None = None
    versions: tuple[int, ...] = ()
    kind: PolicyKind = PolicyKind.FIXED
    decision: int = 0
    shares: tuple[float, ...] = ()
    segments: tuple[Source, ...] = ()
    earlier: dict[int, Former] = field(default_factory=dict)


STATE = TypeAdapter(State)
"""Reads and writes a `State` as JSON; see `state_from`."""


def state_from(body: bytes) -> State:
    """Read a `State` that was kept on disk.

    Raises:
        ValueError: It is none, or its weights are no distributions over its arms.
    """
    state: State = STATE.validate_json(body)
    for weights in (state.weights, *(one.weights for one in state.earlier.values())):
        those = (weights.weights, *weights.segments.values()) if weights else ()
        for one in those:
            if not (min(one, default=-1) >= 0 and abs(math.fsum(one) - 1) < _TOLERANCE):
                raise ValueError(f"weights {one} are no distribution")
    if state.weights and any(
        len(one) != len(state.versions)
        for one in (state.weights.weights, *state.weights.segments.values())
    ):
        raise ValueError(f"weights {state.weights} for {len(state.versions)} arms")
    return state


class Learner:
    """What is known of one model's arms.

    Args:
        traffic: The table in force.
        state: From an earlier process; ``None`` to begin.
        decision: Revision in which the table was decided.
    """

    def __init__(
        self, traffic: ModelTraffic, state: State | None = None, decision: int = 0
    ) -> None:
        self.state = state or State()
        self.traffic = traffic
        self.changed = False
        self._rewards: deque[Reward] = deque(maxlen=MAX_REWARDS)
        self._assigned: deque[tuple[float, Mapping[int, int]]] = deque()
        self._due = 0.0
        self.adopt(traffic, decision)

    @property
    def weights(self) -> Weights | None:
        """Weights in force; ``None`` for the shares of the table."""
        return self.state.weights if self.traffic.policy.learns else None

    def adopt(self, traffic: ModelTraffic, decision: int = 0) -> None:
        """Take a new table: arms that stay keep what was learnt of them.

        Weights go on from where they are if the arms and their shares are the same and
        still learn, but for the new limits: those hold at once, not with the next
        refresh. Other shares are where weights begin anew. A rollback brings back what
        was known, and the weights, when its decision was given up.

        Args:
            traffic: The table.
            decision: Revision in which it was decided; a rollback's is an earlier one.
        """
        versions = tuple(arm.version for arm in traffic.arms)
        shares = tuple(arm.share for arm in traffic.arms)
        kind = traffic.policy.kind
        state, back = self.state, None
        learnt = state.learnt
        begins_anew = (state.versions, state.shares, state.kind) != (
            versions,
            shares,
            kind,
        )
        if begins_anew or state.segments != traffic.segments:
            back = state.earlier.pop(decision, None)
            if state.versions:
                state.earlier[state.decision] = Former(
                    state.weights, learnt.rewards, learnt.arms, dict(learnt.contexts)
                )
            for oldest in [*state.earlier][:-MAX_EARLIER]:
                del state.earlier[oldest]
            if back is not None:
                weights = back.weights
                fits = weights is not None and len(weights.weights) == len(versions)
                state.weights = weights if fits else None
            elif begins_anew:
                state.weights = None
            elif state.weights is not None:
                state.weights = replace(state.weights, segments={})
            if state.segments != traffic.segments:  # the same values mean other things
                learnt.contexts.clear()
        state.versions, state.shares, state.kind = versions, shares, kind
        state.decision = decision
        state.segments = traffic.segments
        learnt.keep(versions, back)
        if traffic.policy.learns and versions:
            state.weights = limited(traffic, learnt, state.weights)
        self.traffic = traffic
        self.changed = True

    def reward(self, items: Sequence[Reward]) -> int:
        """Note what came of decisions.

        Returns:
            How many count: their arms are still some, and were drawn.

        Raises:
            InvalidRequest: Says which value of which one is out of range; none counts.
        """
        for place, item in enumerate(items):
            try:
                _check(item)
            except InvalidRequest as error:
                raise InvalidRequest(f"item {place}: {error.message}") from None
        return sum([self._note(item) for item in items])

    def _note(self, item: Reward) -> bool:
        if item.policy not in _DRAWN:
            return False
        policy, context = self.traffic.policy, ""
        if len(item.segments) == len(self.traffic.segments):  # not of an older table
            context = segment_key(item.segments)
        counts = self.state.learnt.observe(item.version, item.reward, policy, context)
        if counts:
            self._rewards.append(item)
            self.changed = True
        return counts

    def wants_assigned(self, now_s: float) -> bool:
        """Return whether it is time to note how many requests each arm has got.

        As often as weights are worked out, but not more than `_NOTES` times in the
        time that labels take.
        """
        policy = self.traffic.policy
        if not (policy.learns and policy.label_delay_s):
            return False
        every_s = max(policy.refresh_s, policy.label_delay_s / _NOTES)
        return not self._assigned or now_s >= self._assigned[-1][0] + every_s

    def note_assigned(self, now_s: float, counts: Mapping[int, int]) -> None:
        """Note how many requests each arm has got so far, by version."""
        window_s = self.traffic.policy.label_delay_s
        self._assigned.append((now_s, dict(counts)))
        while len(self._assigned) > 1 and self._assigned[1][0] <= now_s - window_s:
            self._assigned.popleft()

    def pending(self) -> dict[int, float]:
        """Return the requests by version whose rewards are still to be expected."""
        if not self.traffic.policy.label_delay_s or not self._assigned:
            return {}
        before, now = self._assigned[0][1], self._assigned[-1][1]
        return {v: float(max(0, n - before.get(v, 0))) for v, n in now.items()}

    def refresh(self, now_s: float) -> Weights | None:
        """Return new weights if it is time and they changed, else ``None``."""
        policy = self.traffic.policy
        if not policy.learns or not self.traffic.arms or now_s < self._due:
            return None
        self._due = now_s + policy.refresh_s
        before = self.state.weights
        after = refresh(self.traffic, self.state.learnt, before, self.pending())
        if before is not None and (before.weights, before.segments) == (
            after.weights,
            after.segments,
        ):
            return None
        self.state.weights = after
        self.changed = True
        return after

    def estimate(self, shares: Mapping[int, float]) -> dict[str, Estimate]:
        """Return what another split would have earned, by estimator.

        Args:
            shares: By version; those not named get nothing. They sum to 1.

        Raises:
            GatewayError: The rewards so far cannot say; the message says why.
        """
        if not self._rewards:
            raise Unanswerable(
                "no rewards since this controller started: estimates weigh single "
                "decisions, and those are kept in memory alone (what policies learnt "
                "of them outlives it)"
            )
        versions = sorted({*shares, *(item.version for item in self._rewards)})
        place = {version: index for index, version in enumerate(versions)}
        log = Decisions.of(
            [place[item.version] for item in self._rewards],
            [item.propensity for item in self._rewards],
            [item.reward for item in self._rewards],
        )
        target: Sequence[float] = [shares.get(version, 0.0) for version in versions]
        names = [f"version {version}" for version in versions]
        return {
            str(kind): estimate(log, target, kind, names=names) for kind in Estimator
        }

    def describe(self) -> dict[str, Any]:
        """Return what is known, as JSON values.

        Of each arm: ``rewards``, how many came; ``effective``, how many they count for
        by now, discounted; ``mean_reward``, by the same discount; ``best``, the
        probability that its mean is the largest, which a policy that is Thompson's
        goes by. ``None`` where there is nothing to say. And the weights, in the order
        of the arms, of each combination of segment values that has its own.
        """
        arms, learnt, weights = self.traffic.arms, self.state.learnt, self.weights
        versions = [arm.version for arm in arms]
        known = learnt.sums(versions, self.traffic.policy.discount)
        best: list[float | None] = [None] * len(arms)
        if known.count.any():
            pending = self.pending()
            late = np.array([pending.get(version, 0.0) for version in versions])
            sure = known.scaled(certainty(known, late))
            best = probability_best(sure, self.traffic.policy.posterior).tolist()
        shares = tuple(arm.share for arm in arms)
        return {
            "snapshot": weights.snapshot if weights else 0,
            "arms": [
                {
                    "version": arm.version,
                    "role": arm.role,
                    "share": arm.share,
                    "weight": (weights.weights if weights else shares)[place],
                    "rewards": learnt.rewards.get(arm.version, 0),
                    "effective": float(known.count[place]),
                    "mean_reward": float(known.total[place] / known.count[place])
                    if known.count[place]
                    else None,
                    "best": best[place],
                }
                for place, arm in enumerate(arms)
            ],
            "segments": [
                {"values": key.split(SEPARATOR), "weights": list(those)}
                for key, those in sorted((weights.segments if weights else {}).items())
            ],
        }


def _check(item: Reward) -> None:
    """Refuse what cannot have come of a decision."""
    if not 0 <= item.reward <= 1:
        raise InvalidRequest(
            f"reward {item.reward:g}: a number between 0 and 1; scale it"
        )
    if not MIN_PROPENSITY <= item.propensity <= 1:
        raise InvalidRequest(
            f"propensity {item.propensity:g}: give the one recorded with the "
            f"decision, {MIN_PROPENSITY:g} to 1"
        )
    if not 0 <= item.time < MAX_TIME_S:
        raise InvalidRequest(
            f"time {item.time:g}: give the decision's, in seconds since 1970"
        )
    if len(item.segments) > MAX_SEGMENTS:
        raise InvalidRequest(f"segments: a table has at most {MAX_SEGMENTS}")
    if any(len(value) > MAX_VALUE for value in item.segments):
        raise InvalidRequest(f"segments: a value has at most {MAX_VALUE} characters")

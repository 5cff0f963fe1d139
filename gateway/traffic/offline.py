"""What another policy would have earned, from the decisions of this one. Pure.

Every decision was logged with the propensity of its arm, so a reward can be weighed by
how much likelier the other policy had been to choose that arm. A log answers only for
arms that were tried, and only as well as its effective sample size; where it cannot
answer it is refused, with what to do about it.

Source: Dudik, Langford and Li, "Doubly Robust Policy Evaluation and Learning" (2011);
Swaminathan and Joachims, "The Self-Normalized Estimator for Counterfactual Learning"
(2015); the effective sample size is Kish's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gateway.errors import Code, GatewayError, InvalidRequest

Array = NDArray[np.float64]

MIN_ESS = 100.0
"""Decisions' worth of information without which there is no estimate."""
_MAX_MEAN_ERROR = 0.05
_MAX_MEAN_ERRORS = 4.0
"""How far the mean weight may be from 1: both absolutely and in standard errors."""
_TOLERANCE = 1e-6


class Unanswerable(GatewayError):
    """The log cannot say what the policy would have earned."""

    code: ClassVar[Code] = Code.FAILED_PRECONDITION
    label: ClassVar[str] = "unanswerable"


class Estimator(StrEnum):
    """How rewards are weighed.

    ``ips`` is unbiased and varies most. ``snips`` divides by the sum of the weights:
    slightly biased, steadier, and never outside the range of the rewards. ``dr`` weighs
    only what a model of the rewards gets wrong: unbiased whatever the model, and the
    better it is the steadier.
    """

    IPS = "ips"
    SNIPS = "snips"
    DR = "dr"


@dataclass(frozen=True, slots=True)
class Decisions:
    """Logged decisions with their rewards; n of them.

    Attributes:
        arm: Index of the arm that was chosen; int64, shape (n,).
        propensity: Its probability at that time, in (0, 1]; float64, shape (n,).
        reward: What came of it; float64, shape (n,).
        segment: Index of the segment; int64, shape (n,); zeros where there is one.
    """

    arm: NDArray[np.int64]
    propensity: Array
    reward: Array
    segment: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        arm: ArrayLike,
        propensity: ArrayLike,
        reward: ArrayLike,
        segment: ArrayLike | None = None,
    ) -> Decisions:
        """Return checked decisions.

        Raises:
            InvalidRequest: Says which value of which decision cannot be.
        """
        arms = np.asarray(arm, np.int64)
        if segment is None:
            segment = np.zeros(len(arms), np.int64)
        made = cls(
            arms,
            np.asarray(propensity, np.float64),
            np.asarray(reward, np.float64),
            np.asarray(segment, np.int64),
        )
        if any(part.shape != (len(arms),) for part in made._parts()):
            raise InvalidRequest("arm, propensity, reward and segment: one length")
        _refuse(made.arm < 0, "has a negative arm")
        _refuse(made.segment < 0, "has a negative segment")
        _refuse(~np.isfinite(made.reward), "has no reward; leave out unlabelled ones")
        _refuse(
            ~((made.propensity > 0) & (made.propensity <= 1)),
            "has no propensity in (0, 1]; decisions made without one cannot be weighed",
        )
        return made

    def _parts(self) -> tuple[NDArray[np.generic], ...]:
        return self.arm, self.propensity, self.reward, self.segment


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a policy would have earned per decision.

    Attributes:
        value: Mean reward.
        standard_error: Of it, for decisions that do not depend on each other.
        low: Lower end of the normal confidence interval.
        high: Upper end.
        decisions: Logged ones that it rests on.
        effective: Decisions under the policy itself that would say as much.
        max_weight: Of a decision.
        mean_weight: Near 1 if the propensities are those that were drawn with.
    """

    value: float
    standard_error: float
    low: float
    high: float
    decisions: int
    effective: float
    max_weight: float
    mean_weight: float


def estimate(
    log: Decisions,
    target: ArrayLike,
    estimator: Estimator = Estimator.SNIPS,
    *,
    model: ArrayLike | None = None,
    confidence: float = 0.95,
    min_ess: float = MIN_ESS,
    names: Sequence[str] = (),
) -> Estimate:
    """Estimate the mean reward of a policy from another one's log.

    Args:
        log: At least two decisions.
        target: Distribution over arms of the policy in question, shape (arms,), or one
            for each segment, shape (segments, arms).
        estimator: See `Estimator`.
        model: Expected rewards for ``dr``, of the same shape as `target`; without it,
            each arm's mean reward in the log, by segment.
        confidence: Of the interval.
        min_ess: Least effective sample size for which there is an answer.
        names: Of the arms, for what is said of them; ``arm 0`` and so on without.

    Raises:
        InvalidRequest: An argument cannot be.
        Unanswerable: The log lacks an arm, says too little, or its propensities are
            not those that arms were drawn with.
    """
    if not 0 < confidence < 1:
        raise InvalidRequest("confidence is above 0 and below 1")
    wanted = _distribution(target, log)
    weight = wanted[log.segment, log.arm] / log.propensity
    _refuse_untried(log, wanted, names)
    effective = _refuse_thin(weight, min_ess)
    _refuse_wrong(weight)
    count = len(weight)
    if estimator is Estimator.SNIPS:
        value = float((weight * log.reward).sum() / weight.sum())
        scatter = weight * (log.reward - value)
        error = float(np.sqrt((scatter**2).sum()) / weight.sum())
    else:
        scores = weight * log.reward
        if estimator is Estimator.DR:
            expected = _model(model, log, wanted.shape)
            residual = log.reward - expected[log.segment, log.arm]
            scores = (wanted * expected).sum(-1)[log.segment] + weight * residual
        value = float(scores.mean())
        error = float(scores.std(ddof=1) / np.sqrt(count))
    from scipy.special import ndtri  # late: it is 0.1 s of every start

    reach = error * float(ndtri((1 + confidence) / 2))
    return Estimate(
        value,
        error,
        value - reach,
        value + reach,
        count,
        effective,
        float(weight.max()),
        float(weight.mean()),
    )


def _refuse(wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise InvalidRequest(f"decision {int(wrong.argmax())} {what}")


def _distribution(target: ArrayLike, log: Decisions) -> Array:
    """Return the target as (segments, arms), checked."""
    wanted = np.atleast_2d(np.asarray(target, np.float64))
    segments = int(log.segment.max(initial=0)) + 1
    if wanted.ndim != 2 or 1 < len(wanted) < segments or not wanted.size:
        raise InvalidRequest(
            f"target: one distribution, or one for each of {segments} segments"
        )
    if not len(log.arm) or int(log.arm.max()) >= wanted.shape[1]:
        raise InvalidRequest(
            "target: give a weight (0 will do) to every arm of the log, and a log that "
            "is not empty"
        )
    if not (wanted >= 0).all() or (abs(wanted.sum(-1) - 1) > _TOLERANCE).any():
        raise InvalidRequest("target: weights are not negative and sum to 1")
    if wanted.shape[0] < segments:
        wanted = np.repeat(wanted, segments, 0)
    return wanted


def _refuse_untried(log: Decisions, wanted: Array, names: Sequence[str]) -> None:
    tried = np.zeros(wanted.shape, bool)
    tried[log.segment, log.arm] = True
    present = np.isin(np.arange(len(wanted)), log.segment)
    missing = np.argwhere((wanted > 0) & ~tried & present[:, None])
    if len(missing):
        segment, arm = (int(place) for place in missing[0])
        name = names[arm] if names else f"arm {arm}"
        where = f" in segment {segment}" if len(wanted) > 1 else ""
        raise Unanswerable(
            f"{name} has no rewards here{where}, so nothing is known of what it earns; "
            "give it a floor and collect decisions, or leave it out of the target"
        )


def _refuse_thin(weight: Array, min_ess: float) -> float:
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    if len(weight) < 2 or effective < min_ess:
        raise Unanswerable(
            f"{len(weight)} decisions say as much as {effective:.1f} of the target's "
            f"own would, and {min_ess:g} are needed; collect more, raise the floor of "
            "the arms it prefers, or ask for a policy nearer to the logged one"
        )
    return effective


def _refuse_wrong(weight: Array) -> None:
    off = abs(float(weight.mean()) - 1)
    error = float(weight.std(ddof=1) / np.sqrt(len(weight)))
    if off > max(_MAX_MEAN_ERROR, _MAX_MEAN_ERRORS * error):
        raise Unanswerable(
            f"the mean weight is {weight.mean():.3f} and should be 1 (within "
            f"{error:.3f}): arms were not drawn with the logged propensities, or "
            "decisions are missing by arm; send back every decision's propensity and "
            "policy as recorded, and compare label coverage between arms"
        )


def _model(model: ArrayLike | None, log: Decisions, shape: tuple[int, ...]) -> Array:
    """Return expected rewards, shape (segments, arms)."""
    if model is not None:
        given = np.atleast_2d(np.asarray(model, np.float64))
        if given.shape[-1] != shape[1] or len(given) not in (1, shape[0]):
            raise InvalidRequest("model: expected rewards, one for each of the target")
        if not np.isfinite(given).all():
            raise InvalidRequest("model: expected rewards are numbers")
        return np.broadcast_to(given, shape)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (log.segment, log.arm), log.reward)
    np.add.at(count, (log.segment, log.arm), 1)
    overall = float(log.reward.mean())
    means = np.divide(total, count, where=count > 0, out=np.full(shape, overall))
    return np.asarray(means)

"""The traffic table: who may answer for a model, and by which rule. Immutable.

The controller writes it, fronts hold a snapshot of it. What an operator decides is in
`ModelTraffic` and changes with its revision; what a policy works out from rewards is
in `Weights`, and changes with every refresh without touching anything else.

Shares and weights are fractions of the requests, not percentages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

MAX_ARMS = 64
MAX_SHADOWS = 8
MAX_SEGMENTS = 8
MAX_UNITS = 10_000
"""Units that rules may name, over all rules of a model."""
MAX_VALUE = 256
"""Characters of a unit or segment that are looked at; the rest of it is ignored."""
RULE = "rule"
"""Stands for the policy of a decision that a rule of the table made."""
SEPARATOR = "\x1f"
"""Between the values of a combination of segments: ASCII's unit separator."""
LATEST = "latest"
"""The alias that follows the newest version by itself."""
METRICS = ("error_rate", "latency_p99_ms")
"""What guardrails can watch."""
BUCKETS = 10_000
"""Into which a sticky split divides the units."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""A field that nobody knows is a mistake, not something to leave out."""


class Role(StrEnum):
    """What an arm is to its model."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"
    SHADOW = "shadow"


class PolicyKind(StrEnum):
    """How an arm is chosen.

    ``fixed`` and ``sticky`` keep the arms' shares; with ``sticky`` a unit stays with
    its arm. The others learn the shares from rewards, and begin with them.
    """

    FIXED = "fixed"
    STICKY = "sticky"
    EPSILON_GREEDY = "epsilon_greedy"
    THOMPSON = "thompson"


@dataclass(frozen=True, slots=True)
class Arm:
    """A version that can receive traffic.

    Attributes:
        version: Its number.
        role: Champion (exactly one of the arms) or challenger.
        share: Fraction of requests at the start; the shares of all arms sum to 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    version: int
    role: Role
    share: float


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring buckets of units that an arm owns.

    Attributes:
        version: The arm.
        buckets: How many, at least 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    version: int
    buckets: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value of a request is found.

    Attributes:
        kind: ``parameter`` of the request or ``metadata`` of the call.
        key: Its name; of metadata in lower case.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests that go to an arm whatever the policy says: canary users.

    Attributes:
        version: The arm.
        units: Units it holds for.
        key: Metadata key it holds for, with `value`; empty for none.
        value: Of that key.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    version: int
    units: frozenset[str] = frozenset()
    key: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """How an arm is chosen, with the limits of those that learn.

    Attributes:
        kind: See `PolicyKind`.
        epsilon: epsilon_greedy: fraction spread evenly over all arms.
        discount: Factor on what was learnt, per reward of the model (gamma).
        posterior: thompson: ``beta`` or ``gaussian``.
        floor: Least weight of an arm.
        cap: Largest weight of an arm.
        max_step: Largest change of a weight by one refresh.
        challenger_ceiling: Largest weight of a challenger.
        champion_min: Least weight of the champion while any challenger has had fewer
            than `min_rewards` rewards.
        min_rewards: Rewards an arm must have had before it may exceed its share.
        refresh_s: Seconds between refreshes.
        label_delay_s: Seconds until a reward is to be expected; decisions younger than
            that make their arms uncertain. 0: rewards are there at once.
        contextual: One posterior per combination of segments, drawn to the global one.
        shrinkage: contextual: rewards' worth of the global posterior in each segment's.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: PolicyKind = PolicyKind.FIXED
    epsilon: float = 0.1
    discount: float = 0.999
    posterior: str = "beta"
    floor: float = 0.02
    cap: float = 1.0
    max_step: float = 1.0
    challenger_ceiling: float = 1.0
    champion_min: float = 0.0
    min_rewards: int = 0
    refresh_s: float = 1.0
    label_delay_s: float = 0.0
    contextual: bool = False
    shrinkage: float = 100.0

    @property
    def learns(self) -> bool:
        """Whether rewards change its weights."""
        return self.kind in {PolicyKind.EPSILON_GREEDY, PolicyKind.THOMPSON}


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets copies of requests; its answers go to nobody.

    Attributes:
        version: Its number; not one of an arm.
        sample: Fraction of the requests that is copied.
        max_queue: Copies in flight per front; those beyond are dropped and counted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    version: int
    sample: float = 1.0
    max_queue: int = 256


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A limit whose breach takes an arm's traffic away.

    Attributes:
        metric: What is watched: ``error_rate`` or ``latency_p99_ms``.
        limit: Largest value.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    metric: str
    limit: float


@dataclass(frozen=True, slots=True)
class ModelTraffic:
    """What was decided about a model's traffic.

    Attributes:
        revision: Of the change that made it; grows by one with each.
        arms: Those that may answer; empty: the highest ready version answers.
        policy: How one is chosen.
        salt: Of the layer whose units are split; experiments that share a layer share
            it, those in different layers are independent of each other.
        unit: What an assignment sticks to; ``None``: each request by itself.
        segments: Values that quality is broken down by.
        rules: Requests that go to an arm whatever the policy says, first match first.
        shadows: Versions that get copies.
        guardrails: Limits of every arm.
        frozen: A policy that learns keeps its weights.
        aliases: Name to version, for clients that ask for an alias.
        buckets: Owners of all buckets of a sticky split from 0 on, kept so that units
            stay when shares change (`gateway.traffic.buckets.settle`); empty where
            shares alone decide.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    revision: int = 0
    arms: tuple[Arm, ...] = ()
    policy: Policy = field(default_factory=Policy)
    salt: str = ""
    unit: Source | None = None
    segments: tuple[Source, ...] = ()
    rules: tuple[Rule, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()
    frozen: bool = False
    aliases: Mapping[str, int] = field(default_factory=dict)
    buckets: tuple[Span, ...] = ()

    @property
    def champion(self) -> Arm | None:
        """The champion; ``None`` where there are no arms."""
        for arm in self.arms:
            if arm.role is Role.CHAMPION:
                return arm
        return None

    def check(self) -> None:
        """Refuse what could not be served as it stands.

        Raises:
            InvalidRequest: Names the field and what it must be.
        """
        from gateway.traffic.checks import check

        check(self)


@dataclass(frozen=True, slots=True)
class Weights:
    """The distribution over arms now in force, as a policy worked it out.

    Attributes:
        snapshot: Its number; grows with every refresh.
        weights: By arm, in the order of `ModelTraffic.arms`; they sum to 1.
        segments: The same by joined segment values, where the policy is contextual.
    """

    snapshot: int
    weights: tuple[float, ...]
    segments: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def segment_key(values: Sequence[str]) -> str:
    """Return the key of `Weights.segments` for the values of all segments, in order."""
    return SEPARATOR.join(values)


MODEL_TRAFFIC = TypeAdapter(ModelTraffic)
"""Reads and writes a `ModelTraffic` as JSON."""
WEIGHTS = TypeAdapter(Weights)
"""Reads and writes `Weights` as JSON."""

"""Which arm answers a request: the traffic table at work. Loop thread only.

A request pays a draw and a bisect, or the hash of its unit; what is the same for all
requests of an arm was worked out when the table or the weights came.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import random
from typing import Any, NamedTuple, Protocol

from gateway.catalogue import VersionEntry
from gateway.serving.plans import Plan
from gateway.serving.state import FrontState
from gateway.serving.values import unit_keys
from gateway.traffic.allocation import Allocation
from gateway.traffic.buckets import bucket_table, bucketing
from gateway.traffic.table import (
    MAX_VALUE,
    RULE,
    ModelTraffic,
    PolicyKind,
    Role,
    Rule,
    Source,
    Weights,
    segment_key,
)

_Counts = dict[str, dict[int, int]]
"""Requests by model and version."""


class Tally:
    """Requests that an arm answered, by its policy or by a rule."""

    __slots__ = ("answered",)

    def __init__(self) -> None:
        self.answered = 0


Tallies = defaultdict[tuple[int, bool], Tally]
"""Those of a model, by version and whether a rule chose it."""


class Choice(NamedTuple):
    """An arm that was chosen to answer, and how: goes with the prediction's record.

    Attributes:
        version: Of the arm.
        role: Of the arm.
        propensity: Probability of the arm when it was chosen.
        policy: Kind of the policy, or ``rule``.
        revision: Of the traffic table.
        snapshot: Of the weights; 0 for the shares of the table.
        tally: Counts what came of it; no part of the record.
    """

    version: int
    role: Role
    propensity: float
    policy: str
    revision: int
    snapshot: int
    tally: Tally

    def described(self) -> dict[str, Any]:
        """Return all of it that is recorded, as JSON values."""
        return {name: one for name, one in self._asdict().items() if name != "tally"}


class Context(NamedTuple):
    """What of a request took part in a choice.

    Attributes:
        unit: What the assignment sticks to; empty where the request has none.
        bucket: Of the unit; -1 where none was needed.
        segments: Values of the configured segments, empty where absent.
    """

    unit: str
    bucket: int
    segments: tuple[str, ...]


NO_CONTEXT = Context("", -1, ())


class Headers(Protocol):
    """The part of a call that is looked at."""

    def metadata(self, key: str) -> str | None:
        """Return a request header (lower-case key), or ``None``."""


class Router:
    """The arms of a model that serve now, and how one is chosen.

    Args:
        traffic: What was decided.
        ready: Its versions that serve, by number.
        weights: What the policy made of it since; ``None`` for the arms' shares.
        tallies: Of the model, which outlive its tables.
        draw: Returns a number in [0, 1), uniformly.

    Attributes:
        entries: The arms that serve, in the table's order.
        easy: The choice depends on nothing in the request.
        unit_key: The parameter that is the unit; empty if none is.
        unit_name: The same as it is on the wire.
        segment_keys: Parameters that are segments.
    """

    def __init__(
        self,
        traffic: ModelTraffic,
        ready: Mapping[int, VersionEntry],
        weights: Weights | None = None,
        tallies: Tallies | None = None,
        *,
        draw: Callable[[], float] = random,
    ) -> None:
        self.traffic = traffic
        self._places = [
            place for place, arm in enumerate(traffic.arms) if arm.version in ready
        ]
        self._arms = [traffic.arms[place] for place in self._places]
        self._index = {arm.version: index for index, arm in enumerate(self._arms)}
        self.entries = [ready[arm.version] for arm in self._arms]
        self._tallies = defaultdict(Tally) if tallies is None else tallies
        self.easy = not (traffic.rules or traffic.unit or traffic.segments)
        unit = traffic.unit
        self.unit_key = unit.key if unit and unit.kind == "parameter" else ""
        self.unit_name = self.unit_key.encode()
        self._unit_header = unit.key if unit and unit.kind == "metadata" else ""
        self._bucket_of = bucketing(traffic.salt)
        self.segment_keys = [s.key for s in traffic.segments if s.kind == "parameter"]
        self._draw = draw
        self._rules = [
            (self._index[rule.version], rule)
            for rule in traffic.rules
            if rule.version in self._index
        ]
        self._ruled = [
            self._choice(index, 1.0, RULE, 0) for index in range(len(self._arms))
        ]
        self._table: bytes | None = None
        self._stuck: list[Choice] = []
        self.reweigh(weights)
        if traffic.policy.kind is PolicyKind.STICKY and self.serves:
            self._stick()

    @property
    def serves(self) -> bool:
        """Whether any arm that may answer is ready."""
        return bool(self._choices)

    def reweigh(self, weights: Weights | None) -> None:
        """Take new weights, in one step."""
        shares = [arm.share for arm in self.traffic.arms]
        if weights is None or len(weights.weights) != len(shares):
            weights = Weights(0, tuple(shares))
        self._snapshot = weights.snapshot
        self._cumulative, self._choices = self._among_ready(weights.weights)
        self._by_segment = {
            segment: self._among_ready(those)
            for segment, those in weights.segments.items()
        }

    def choose(
        self, call: Headers, parameters: Mapping[str, str], unit: str | None
    ) -> tuple[int, Choice, Context]:
        """Choose the arm of a request.

        Args:
            call: Brings the metadata.
            parameters: Those of the request that the table looks at.
            unit: Value of the unit's parameter, where that is its source and it was
                read already.

        Returns:
            Index of the arm in `entries`, how it was chosen, and what took part.
        """
        if self.easy:
            index = bisect_right(self._cumulative, self._draw())
            return index, self._choices[index], NO_CONTEXT
        if unit is None:
            header = self._unit_header
            unit = (call.metadata(header) if header else None) or ""
        unit = unit[:MAX_VALUE]
        sources = self.traffic.segments
        segments: tuple[str, ...] = ()
        if sources:
            segments = tuple([_value(source, call, parameters) for source in sources])
        for index, rule in self._rules:
            if _matches(rule, unit, call):
                return index, self._ruled[index], Context(unit, -1, segments)
        if self._table is not None and unit:
            bucket = self._bucket_of(unit)
            index = self._table[bucket]
            return index, self._stuck[index], Context(unit, bucket, segments)
        ends, choices = self._cumulative, self._choices
        if self._by_segment:
            found = self._by_segment.get(segment_key(segments))
            if found is not None:
                ends, choices = found
        index = bisect_right(ends, self._draw())
        return index, choices[index], Context(unit, -1, segments)

    def _stick(self) -> None:
        """Lay out which arm each bucket has.

        Units of an arm that does not serve go to the first that does and has a share,
        the champion if it can be, and come back with it.
        """
        index_of = {place: index for index, place in enumerate(self._places)}
        able = [i for i, arm in enumerate(self._arms) if arm.share]
        stand_in = min(able, key=lambda i: self._arms[i].role is not Role.CHAMPION)
        places = bucket_table(self.traffic)
        table = bytes(index_of.get(place, stand_in) for place in places)
        kind = self.traffic.policy.kind
        self._stuck = [
            self._choice(index, table.count(index) / len(table), kind, 0)
            for index in range(len(self._arms))
        ]
        self._table = table

    def _among_ready(
        self, weights: Sequence[float]
    ) -> tuple[tuple[float, ...], list[Choice]]:
        """Return the draw between arms that serve, and what each choice then means.

        Returns:
            Where the arms' intervals of [0, 1) end, and a choice for each arm; both
            empty where no arm that serves has any weight.
        """
        allocation = Allocation.among([weights[place] for place in self._places])
        kind, snapshot = self.traffic.policy.kind, self._snapshot
        choices = [
            self._choice(index, propensity, kind, snapshot)
            for index, propensity in enumerate(allocation.propensities)
        ]
        return allocation.ends, choices

    def _choice(
        self, index: int, propensity: float, policy: str, snapshot: int
    ) -> Choice:
        arm = self._arms[index]
        revision = self.traffic.revision
        tally = self._tallies[arm.version, policy == RULE]
        return Choice(
            arm.version, arm.role, propensity, policy, revision, snapshot, tally
        )


class Routers:
    """The routers of all models, as the catalogue in force has them.

    Args:
        state: Has the catalogue.

    Attributes:
        units: Names of parameters that are some model's unit, as on the wire.
    """

    def __init__(self, state: FrontState) -> None:
        self._state = state
        self._routers: dict[str, Router] = {}
        self._tallies: defaultdict[str, Tallies] = defaultdict(
            lambda: defaultdict(Tally)
        )
        self.units: frozenset[bytes] = frozenset()

    def forget(self, models: Iterable[str]) -> None:
        """Make those of models anew, from the catalogue that is in force now."""
        for model in models:
            self._routers.pop(model, None)
        self.units = unit_keys(self._state.catalogue.traffic.values())

    def of(self, model: str) -> Router | None:
        """Return who chooses between the arms of a model; ``None``: it has none."""
        router = self._routers.get(model)
        if router is not None:
            return router
        catalogue = self._state.catalogue
        traffic = catalogue.traffic.get(model)
        if traffic is None or not traffic.arms:
            return None
        ready = catalogue.ready_versions(model)
        weights, tallies = catalogue.weights.get(model), self._tallies[model]
        router = self._routers[model] = Router(traffic, ready, weights, tallies)
        return router

    def reweigh(self, model: str, weights: Weights) -> None:
        """Put new weights of a model's arms in force."""
        self._state.reweigh(model, weights)
        router = self._routers.get(model)
        if router is not None:
            router.reweigh(weights)

    def arms(self, *, ruled: bool = False) -> _Counts:
        """Return the requests that each version answered as an arm, by model.

        Args:
            ruled: Only those that a rule of the table sent.
        """
        found: _Counts = {}
        for model, tallies in self._tallies.items():
            counts = found[model] = dict.fromkeys((v for v, _ in tallies), 0)
            for (version, by_rule), tally in tallies.items():
                if by_rule or not ruled:
                    counts[version] += tally.answered
        return found


class Fork:
    """A form of request that any arm of a model may answer.

    Args:
        router: Chooses the arm.
        parameters: Those of the request that the router looks at; the same in every
            request of this form.

    Attributes:
        model: Whose form it is.
        plans: How each arm serves it, by index; ``None`` until it first does.
        straight: Every arm is known to take this form as it is.
    """

    __slots__ = ("model", "parameters", "plans", "router", "straight")

    def __init__(self, router: Router, parameters: Mapping[str, str]) -> None:
        self.router = router
        self.parameters = parameters
        self.plans: list[Plan | None] = [None] * len(router.entries)
        self.model = ""
        self.straight = False

    def add(self, arm: int, plan: Plan) -> None:
        """Remember how an arm serves this form."""
        self.plans[arm] = plan
        self.model = plan.model
        self.straight = all(
            known is not None and known.straight for known in self.plans
        )


def _value(source: Source, call: Headers, parameters: Mapping[str, str]) -> str:
    """Return a value of the request; empty where it has none."""
    if source.kind == "metadata":
        return (call.metadata(source.key) or "")[:MAX_VALUE]
    return parameters.get(source.key, "")[:MAX_VALUE]


def _matches(rule: Rule, unit: str, call: Headers) -> bool:
    if unit and unit in rule.units:
        return True
    return bool(rule.key) and call.metadata(rule.key) == rule.value

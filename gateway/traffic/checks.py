"""What a traffic table may be: every refusal names the field and the way out. Pure."""

from __future__ import annotations

import math
import re

from gateway.errors import InvalidRequest
from gateway.traffic.table import (
    BUCKETS,
    MAX_ARMS,
    MAX_SEGMENTS,
    MAX_SHADOWS,
    MAX_UNITS,
    MAX_VALUE,
    METRICS,
    ModelTraffic,
    Policy,
    PolicyKind,
    Role,
    Shadow,
)

_TOLERANCE = 1e-9
_MEANT = frozenset(
    ("priority", "timeout", "sequence_id", "sequence_start", "sequence_end")
)
"""Parameters of requests that are not the user's own."""
_HEADER = re.compile(r"[0-9a-z_.-]+")
"""Keys of gRPC metadata (grpc/grpc, doc/PROTOCOL-HTTP2.md, "Header-Name")."""


def check(traffic: ModelTraffic) -> None:
    """Refuse what could not be served as it stands; see `ModelTraffic.check`."""
    _check_arms(traffic)
    _check_buckets(traffic)
    _check_policy(traffic.policy, len(traffic.arms))
    _check_sources(traffic)
    versions = {arm.version for arm in traffic.arms}
    for rule in traffic.rules:
        if rule.version not in versions:
            raise InvalidRequest(
                f"rules: version {rule.version} is no arm; arms are {_listed(versions)}"
            )
        if not rule.units and not rule.key:
            raise InvalidRequest("rules: one names neither units nor a key")
        if rule.units and traffic.unit is None:
            raise InvalidRequest("rules: units need a unit source; set unit")
        if not all(0 < len(unit) <= MAX_VALUE for unit in rule.units):
            raise InvalidRequest(
                f"rules: a unit has 1 to {MAX_VALUE} characters; of longer ones only "
                "those are looked at"
            )
        if rule.key:
            _check_header("rules", rule.key)
    if sum(len(rule.units) for rule in traffic.rules) > MAX_UNITS:
        raise InvalidRequest(
            f"rules: name at most {MAX_UNITS} units; use a key, or a share"
        )
    _check_shadows(traffic.shadows, versions)
    for guardrail in traffic.guardrails:
        if guardrail.metric not in METRICS:
            raise InvalidRequest(
                f"guardrails: '{guardrail.metric}' is not watched; there are "
                + " and ".join(METRICS)
            )
        if not 0 < guardrail.limit < math.inf:
            raise InvalidRequest(
                f"guardrails: the limit of {guardrail.metric} must be a number above 0"
            )


def _listed(versions: set[int]) -> str:
    return ", ".join(str(version) for version in sorted(versions)) or "none"


def _check_arms(traffic: ModelTraffic) -> None:
    arms = traffic.arms
    if not arms:
        return
    if len(arms) > MAX_ARMS:
        raise InvalidRequest(f"arms: at most {MAX_ARMS}, not {len(arms)}")
    versions = {arm.version for arm in arms}
    if len(versions) != len(arms):
        raise InvalidRequest("arms: a version is there twice")
    if min(versions) < 1:
        raise InvalidRequest(
            f"arms: version {min(versions)}: versions are whole numbers from 1 on"
        )
    champions = sum(arm.role is Role.CHAMPION for arm in arms)
    if champions != 1 or any(arm.role is Role.SHADOW for arm in arms):
        raise InvalidRequest(
            f"arms: exactly one is the champion and the others are challengers, not "
            f"{champions} champions"
        )
    for arm in arms:
        if not 0 <= arm.share <= 1:
            raise InvalidRequest(
                f"arms: version {arm.version} has a share of {arm.share:g}; a share "
                "is between 0 and 1, such as 0.9 for 90 %"
            )
    total = math.fsum(arm.share for arm in arms)
    if abs(total - 1) > _TOLERANCE:
        raise InvalidRequest(f"arms: shares sum to {total:g}; they must sum to 1")


def _check_buckets(traffic: ModelTraffic) -> None:
    if not traffic.buckets:
        return
    owned = dict.fromkeys((arm.version for arm in traffic.arms), 0)
    for span in traffic.buckets:
        if span.version not in owned or span.buckets < 1:
            raise InvalidRequest("buckets: every span has an arm and a bucket or more")
        owned[span.version] += span.buckets
    if sum(owned.values()) != BUCKETS:
        raise InvalidRequest(f"buckets: there are {BUCKETS}, each with one owner")
    for arm in traffic.arms:
        if abs(owned[arm.version] - arm.share * BUCKETS) >= 1 + _TOLERANCE:
            raise InvalidRequest(
                f"buckets: version {arm.version} has {owned[arm.version]} of "
                f"{BUCKETS}, and a share of {arm.share:g}; leave buckets out to have "
                "them settled"
            )


def _check_policy(policy: Policy, arms: int) -> None:
    _check_ranges(policy)
    if policy.learns and arms:
        _check_room(policy, arms)


def _check_ranges(policy: Policy) -> None:
    fractions = ("epsilon", "floor", "cap", "max_step", "challenger_ceiling")
    for name in (*fractions, "champion_min"):
        if not 0 <= getattr(policy, name) <= 1:
            raise InvalidRequest(f"policy: {name} must be between 0 and 1")
    if not 0 < policy.discount <= 1:
        raise InvalidRequest("policy: discount must be above 0 and at most 1")
    if policy.posterior not in {"beta", "gaussian"}:
        raise InvalidRequest("policy: posterior must be 'beta' or 'gaussian'")
    if policy.max_step == 0 or policy.cap == 0:
        raise InvalidRequest("policy: max_step and cap must be above 0")
    for name in ("min_rewards", "shrinkage"):
        if not 0 <= getattr(policy, name) < math.inf:
            raise InvalidRequest(f"policy: {name} must be a number, at least 0")
    if not 0 <= policy.label_delay_s <= 31 * 86_400:
        raise InvalidRequest("policy: label_delay_s must be between 0 and 31 days")
    if not 0.05 <= policy.refresh_s <= 3600:
        raise InvalidRequest("policy: refresh_s must be between 0.05 and 3600")


def _check_room(policy: Policy, arms: int) -> None:
    """Refuse limits that no weights could keep."""
    if policy.floor * arms > 1 + _TOLERANCE:
        raise InvalidRequest(
            f"policy: a floor of {policy.floor:g} for {arms} arms exceeds 1"
        )
    most = min(policy.cap, policy.challenger_ceiling) * (arms - 1) + policy.cap
    if most < 1 - _TOLERANCE:
        raise InvalidRequest(
            "policy: cap and challenger_ceiling leave requests to no arm"
        )
    if policy.champion_min + policy.floor * (arms - 1) > 1 + _TOLERANCE:
        raise InvalidRequest(
            "policy: champion_min leaves less than the floor to the challengers"
        )
    if policy.floor > min(policy.cap, policy.challenger_ceiling):
        raise InvalidRequest("policy: floor exceeds cap or challenger_ceiling")


def _check_sources(traffic: ModelTraffic) -> None:
    sources = list(traffic.segments)
    if len(sources) > MAX_SEGMENTS:
        raise InvalidRequest(f"segments: at most {MAX_SEGMENTS}, not {len(sources)}")
    if traffic.unit is not None:
        sources.append(traffic.unit)
    for source in sources:
        if source.kind not in {"parameter", "metadata"} or not source.key:
            raise InvalidRequest(
                "unit and segments are 'parameter:KEY' or 'metadata:KEY', not "
                f"'{source.kind}:{source.key}'"
            )
        if source.kind == "metadata":
            _check_header("unit and segments", source.key)
        elif source.key in _MEANT or source.key.startswith("triton_"):
            raise InvalidRequest(
                f"unit and segments: parameter '{source.key}' means something to the "
                "protocol already; choose a name of your own"
            )
    if len({*sources}) != len(sources):
        raise InvalidRequest("unit and segments: one is there twice")
    if traffic.policy.kind is PolicyKind.STICKY and traffic.unit is None:
        raise InvalidRequest(
            "policy: sticky needs a unit; set unit to 'metadata:KEY' or 'parameter:KEY'"
        )
    if traffic.policy.contextual and not traffic.segments:
        raise InvalidRequest("policy: contextual needs segments")


def _check_header(where: str, key: str) -> None:
    if not _HEADER.fullmatch(key) or key.endswith("-bin"):
        raise InvalidRequest(
            f"{where}: metadata key '{key}' can be in no request: keys are lower-case "
            "letters, digits, '_', '-' and '.', and those that end in '-bin' are bytes"
        )


def _check_shadows(shadows: tuple[Shadow, ...], arms: set[int]) -> None:
    if len(shadows) > MAX_SHADOWS:
        raise InvalidRequest(f"shadows: at most {MAX_SHADOWS}, not {len(shadows)}")
    versions = {shadow.version for shadow in shadows}
    if len(versions) != len(shadows):
        raise InvalidRequest("shadows: a version is there twice")
    if versions & arms:
        raise InvalidRequest(
            f"shadows: version {_listed(versions & arms)} is an arm already"
        )
    for shadow in shadows:
        if not 0 < shadow.sample <= 1 or shadow.max_queue < 1:
            raise InvalidRequest(
                f"shadows: version {shadow.version} has a sample of {shadow.sample:g} "
                f"and a max_queue of {shadow.max_queue}; sample is above 0 and at most "
                "1, max_queue at least 1"
            )

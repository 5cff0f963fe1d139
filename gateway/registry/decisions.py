"""What each change makes of a model, or why it is refused. Pure.

Every function takes the model as it is and returns it as it will be. Revisions are
counted elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from gateway.errors import ChangeRefused, InvalidRequest, UnknownModel
from gateway.registry.audit import canonical, sha256
from gateway.registry.records import (
    Candidate,
    Model,
    Tensor,
    Version,
    traffic_body,
    with_fields,
)
from gateway.traffic.buckets import settle
from gateway.traffic.table import LATEST, Arm, ModelTraffic, Role

CHAMPION = "champion"
MAX_VERSION = 10**18 - 1
"""Largest version number that a model repository can name."""
MAX_ALIASES = 64
_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_ANSWERS = ("arms", "buckets", "policy", "rules", "salt", "segments", "unit")
"""Parts of a table that say who answers, and how that is decided."""


def import_versions(
    model: Model, candidates: Sequence[Candidate], actor: str, time: str
) -> tuple[Model, tuple[int, ...]]:
    """Add versions; the first ones of a model make the highest its champion.

    Of those that their source serves, if it serves some: importing moves no traffic.
    A numbered candidate whose version is there with the same bytes is that version.

    Returns:
        The model, and the number of each candidate.
    """
    if not candidates:
        raise InvalidRequest("nothing to import: name at least one version")
    versions = dict(model.versions)
    numbers = []
    for candidate in candidates:
        highest = max(versions, default=0)
        number = candidate.version or highest + 1
        there = versions.get(number)
        if there is not None and there.digest != candidate.digest:
            raise ChangeRefused(
                f"version {number} has other bytes (digest {there.digest[:12]}); "
                "versions never change: import it without a number, as a new version"
            )
        if there is None:
            _check_number(number, highest)
            versions[number] = Version(
                version=number,
                digest=candidate.digest,
                signature=candidate.signature,
                config=candidate.config,
                metadata=candidate.metadata,
                created_by=actor,
                created=time,
            )
        numbers.append(number)
    highest = max(versions)
    aliases = {**model.traffic.aliases, LATEST: highest}
    traffic = replace(model.traffic, aliases=aliases)
    model = replace(model, versions=versions, traffic=traffic)
    found = zip(candidates, numbers, strict=True)
    return _begun(model, {n for one, n in found if one.waits}), tuple(numbers)


def set_metadata(model: Model, version: int, fields: Mapping[str, object]) -> Model:
    """Replace the named fields of a version's metadata."""
    found = _version(model, version)
    metadata = with_fields(found.metadata, fields)
    return _with_version(model, replace(found, metadata=metadata))


def set_alias(model: Model, alias: str, version: int) -> Model:
    """Point an alias to a version; ``champion`` takes the traffic along."""
    _check_alias(alias)
    _version(model, version)
    arms = model.traffic.arms
    if alias == CHAMPION:
        if len(arms) > 1:
            raise ChangeRefused(
                f"{len(arms)} arms share the traffic, so moving the champion alone is "
                "ambiguous; set the traffic as a whole"
            )
        return _checked(_with_champion(model, version))
    aliases = {**model.traffic.aliases, alias: version}
    if len(aliases) > MAX_ALIASES:
        raise InvalidRequest(f"at most {MAX_ALIASES} aliases; remove one first")
    model = replace(model, traffic=replace(model.traffic, aliases=aliases))
    _check_approval(model)
    return model


def remove_alias(model: Model, alias: str) -> Model:
    """Take an alias away."""
    _check_alias(alias)
    if alias == CHAMPION and model.traffic.arms:
        raise ChangeRefused("the champion arm has this alias; set the traffic instead")
    if alias not in model.traffic.aliases:
        raise UnknownModel(f"model '{model.name}' has no alias '{alias}'")
    aliases = {k: v for k, v in model.traffic.aliases.items() if k != alias}
    return replace(model, traffic=replace(model.traffic, aliases=aliases))


def approve(model: Model, version: int, actor: str) -> Model:
    """Approve a version; not by who imported it. A model's first becomes champion."""
    found = _version(model, version)
    if actor == found.created_by:
        raise ChangeRefused(
            f"{actor} imported version {version}; somebody else must approve it"
        )
    return _begun(_with_version(model, replace(found, approved_by=actor)))


def require_approval(model: Model, required: bool) -> Model:
    """Set whether versions need approval before they get traffic."""
    return _checked(_begun(replace(model, require_approval=required)))


def set_traffic(model: Model, traffic: ModelTraffic) -> Model:
    """Decide who answers; aliases stay, and ``champion`` follows the champion.

    Owners of buckets are made from those in force, whatever `traffic` says of them.
    """
    if not traffic.arms:
        raise InvalidRequest(
            "arms: name at least one; without any, each new version would answer "
            "everybody at once"
        )
    traffic = settle(model.traffic, traffic)
    return _checked(_answering(model, traffic, frozen=traffic.frozen))


def set_frozen(model: Model, frozen: bool) -> Model:
    """Stop, or let go on, what the policy learns."""
    return replace(model, traffic=replace(model.traffic, frozen=frozen))


def restore(model: Model, traffic: ModelTraffic) -> Model:
    """Let those answer who did earlier; aliases, and whether it is frozen, stay."""
    return _checked(_answering(model, traffic, frozen=model.traffic.frozen))


def answers(traffic: ModelTraffic) -> str:
    """Return a digest of who answers and how; empty where that is left open."""
    if not traffic.arms:
        return ""
    body = traffic_body(traffic)
    return sha256(canonical({part: body[part] for part in _ANSWERS}))


def wanted(model: Model) -> tuple[set[int], set[int]]:
    """Return the versions that answer, and those that shadow; some may do both."""
    traffic = model.traffic
    shadows = {shadow.version for shadow in traffic.shadows}
    serving = {arm.version for arm in traffic.arms}
    for alias, version in traffic.aliases.items():
        # Being the newest has no shadow answer; a name that somebody chose does.
        if alias != LATEST or version not in shadows:
            serving.add(version)
    return {version for version in serving if model.may_serve(version)}, shadows


def _answering(model: Model, traffic: ModelTraffic, *, frozen: bool) -> Model:
    aliases = dict(model.traffic.aliases)
    aliases.pop(CHAMPION, None)
    if traffic.champion is not None:
        aliases[CHAMPION] = traffic.champion.version
    return replace(model, traffic=replace(traffic, frozen=frozen, aliases=aliases))


def _with_champion(model: Model, version: int) -> Model:
    arms = (Arm(version, Role.CHAMPION, 1.0),)
    rules = tuple(rule for rule in model.traffic.rules if rule.version == version)
    shadows = tuple(one for one in model.traffic.shadows if one.version != version)
    traffic = replace(model.traffic, arms=arms, rules=rules, shadows=shadows)
    traffic = settle(model.traffic, traffic)
    return _answering(model, traffic, frozen=traffic.frozen)


def _begun(model: Model, waiting: Collection[int] = ()) -> Model:
    """Let the highest version that may answer be the champion, where none was decided.

    Later ones wait for a decision: neither import nor approval alone moves traffic.
    """
    may = [version for version in model.versions if model.may_serve(version)]
    if model.traffic.arms or not may:
        return model
    return _with_champion(model, max(set(may).difference(waiting) or may))


def _with_version(model: Model, version: Version) -> Model:
    return replace(model, versions={**model.versions, version.version: version})


def _version(model: Model, version: int) -> Version:
    found = model.versions.get(version)
    if found is None:
        there = ", ".join(map(str, [*model.versions][-10:])) or "none"
        raise UnknownModel(
            f"model '{model.name}' has no version {version}; the last ones are {there}"
        )
    return found


def _check_number(number: int, highest: int) -> None:
    if not 1 <= number <= MAX_VERSION:
        raise InvalidRequest(f"version {number} must lie in 1 to {MAX_VERSION}")
    if number <= highest:
        raise ChangeRefused(
            f"version {number} comes after version {highest}, and numbers ascend; "
            "import it without a number, as a new version"
        )


def _check_alias(alias: str) -> None:
    if alias == LATEST:
        raise ChangeRefused("'latest' is the highest version; it cannot be set")
    if not _ALIAS.fullmatch(alias):
        raise InvalidRequest(
            f"alias {alias[:100]!r} must be a letter or underscore, then letters, "
            "digits, '.', '_' or '-', at most 64 in all"
        )


def _checked(model: Model) -> Model:
    """Refuse traffic that the versions cannot or must not serve."""
    traffic = model.traffic
    traffic.check()
    for version in (*(arm.version for arm in traffic.arms),):
        _version(model, version)
    for shadow in traffic.shadows:
        _version(model, shadow.version)
    _check_approval(model)
    champion = traffic.champion
    if champion is None:
        if traffic.shadows:
            raise InvalidRequest("shadows: need arms whose requests they copy")
        return model
    ours = _version(model, champion.version)
    for arm in traffic.arms:
        _check_signature(ours, _version(model, arm.version), answers_too=True)
    for shadow in traffic.shadows:
        _check_signature(ours, _version(model, shadow.version), answers_too=False)
    return model


def _check_approval(model: Model) -> None:
    """Refuse what would let clients have a version that nobody approved.

    ``latest`` follows every import; the loader passes over what may not serve.
    """
    traffic = model.traffic
    named = [arm.version for arm in traffic.arms]
    named += [v for alias, v in sorted(traffic.aliases.items()) if alias != LATEST]
    for version in named:
        if version in model.versions and not model.may_serve(version):
            raise ChangeRefused(
                f"version {version} is not approved, and model '{model.name}' "
                f"requires it; somebody other than "
                f"{model.versions[version].created_by} must approve it first"
            )


def _check_signature(ours: Version, other: Version, *, answers_too: bool) -> None:
    """Compare a version with the champion, whose clients it has to serve."""
    champion, arm = ours.signature, other.signature
    needs = {tensor.name: tensor for tensor in arm.inputs}
    given = {tensor.name: tensor for tensor in champion.inputs}
    if needs.keys() != given.keys():
        _incompatible(ours, other, f"inputs {_names(needs)} for {_names(given)}")
    for name, tensor in given.items():
        if not _takes(needs[name], tensor):
            _incompatible(
                ours, other, f"input {_shown(needs[name])}, not {_shown(tensor)}"
            )
    gives = {tensor.name: tensor for tensor in arm.outputs}
    for tensor in champion.outputs if answers_too else ():
        found = gives.get(tensor.name)
        if found is None:
            _incompatible(ours, other, f"no output '{tensor.name}'")
        elif not _resembles(found, tensor):
            _incompatible(ours, other, f"output {_shown(found)}, not {_shown(tensor)}")


def misfit(model: Model, traffic: ModelTraffic) -> str:
    """Say why a champion cannot serve the clients of the present one; empty if it can.

    It is no reason to refuse it: somebody may want just that.
    """
    now, then = model.traffic.champion, traffic.champion
    if now is None or then is None or then.version not in model.versions:
        return ""
    ours, other = model.versions[now.version], model.versions[then.version]
    try:
        _check_signature(ours, other, answers_too=True)
    except ChangeRefused as refusal:
        what = refusal.message.partition(";")[0]
        return f"{what}; requests as they are now will be refused, or answers differ"
    return ""


def _incompatible(ours: Version, other: Version, what: str) -> None:
    raise ChangeRefused(
        f"version {other.version} cannot stand in for champion {ours.version}: it has "
        f"{what}; serve it as a model of its own, or export it to match"
    )


def _takes(needs: Tensor, given: Tensor) -> bool:
    """Return whether all that `given` describes fits `needs`."""
    if needs.datatype != given.datatype:
        return False
    if needs.shape is None or given.shape is None:
        return True
    return len(needs.shape) == len(given.shape) and all(
        need in (-1, there)
        for need, there in zip(needs.shape, given.shape, strict=True)
    )


def _resembles(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs may be alike; variable dimensions may be anything."""
    if one.datatype != other.datatype:
        return False
    if one.shape is None or other.shape is None:
        return True
    return len(one.shape) == len(other.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(one.shape, other.shape, strict=True)
    )


def _names(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"'{name}'" for name in tensors) or "none"


def _shown(tensor: Tensor) -> str:
    shape = "any shape" if tensor.shape is None else list(tensor.shape)
    return f"'{tensor.name}' {tensor.datatype} {shape}"

"""What differs between two decisions about traffic, in lines for people. Pure."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from gateway.registry.audit import canonical, sha256
from gateway.traffic.table import ModelTraffic, Rule, Source

_UNITS = 5
"""Units of a rule that are named; of more, the number and a digest."""


def differences(old: ModelTraffic, new: ModelTraffic) -> tuple[str, ...]:
    """Return a line for each thing that differs, in a fixed order; revisions do not.

    Example:
        >>> from gateway.traffic.table import Arm, Role
        >>> one, two = (ModelTraffic(arms=(Arm(n, Role.CHAMPION, 1),)) for n in (1, 2))
        >>> for line in differences(one, two):
        ...     print(line)
        - arm 1: champion, share 1
        + arm 2: champion, share 1
    """
    before, after = _described(old), _described(new)
    names = list(dict.fromkeys([*before, *after]))
    return tuple(
        line
        for name in names
        if (line := _line(name, before.get(name), after.get(name)))
    )


def _line(name: str, old: str | None, new: str | None) -> str:
    if old == new:
        return ""
    if old is None:
        return f"+ {name}: {new}"
    if new is None:
        return f"- {name}: {old}"
    return f"{name}: {old} -> {new}"


def _described(traffic: ModelTraffic) -> dict[str, str]:
    lines = {
        f"arm {arm.version}": f"{arm.role}, share {arm.share}" for arm in traffic.arms
    }
    lines |= {
        f"policy.{one.name}": _text(getattr(traffic.policy, one.name))
        for one in fields(traffic.policy)
    }
    lines["salt"] = repr(traffic.salt)
    lines["unit"] = _source(traffic.unit)
    lines["segments"] = ", ".join(map(_source, traffic.segments)) or "none"
    lines |= {
        f"rule {place}": _rule(rule) for place, rule in enumerate(traffic.rules, 1)
    }
    lines |= {
        f"shadow {shadow.version}": (
            f"sample {shadow.sample}, at most {shadow.max_queue} queued"
        )
        for shadow in traffic.shadows
    }
    lines |= {
        f"guardrail {place}": f"{guardrail.metric} at most {guardrail.limit}"
        for place, guardrail in enumerate(traffic.guardrails, 1)
    }
    lines["frozen"] = _text(traffic.frozen)
    lines |= {
        f"alias {alias}": str(version)
        for alias, version in sorted(traffic.aliases.items())
    }
    return lines


def _text(value: Any) -> str:  # noqa: ANN401 - a field of any type
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _source(source: Source | None) -> str:
    return f"{source.kind}:{source.key}" if source else "none"


def _rule(rule: Rule) -> str:
    parts = []
    if rule.key:
        parts.append(f"{rule.key} = {rule.value!r}")
    if rule.units:
        units = sorted(rule.units)
        more = ""
        if len(units) > _UNITS:
            digest = sha256(canonical(units))[:8]
            more = f" and others, {len(units)} in all, digest {digest}"
        parts.append(f"units {', '.join(map(repr, units[:_UNITS]))}{more}")
    return f"version {rule.version} for {' or '.join(parts)}"

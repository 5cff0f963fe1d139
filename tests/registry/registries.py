"""Registries for tests: short ways to say who changes what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.registry.audit import sha256
from gateway.registry.records import Candidate, Change, Signature, Tensor
from gateway.registry.registry import Registry
from gateway.traffic.table import Arm, ModelTraffic, Role

SIGNATURE = Signature((Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 2)),))
START_NS = 1_790_000_000_123_456_789


def candidate(content: str = "a", **fields: Any) -> Candidate:
    """A version whose artefact is only a digest."""
    return Candidate(sha256(content.encode()), SIGNATURE, **fields)


def by(actor: str = "ada", reason: str = "because", **fields: Any) -> Change:
    return Change(actor, reason, **fields)


def split(*shares: float, **fields: Any) -> ModelTraffic:
    """Arms 1, 2, ... with these shares; the first is the champion."""
    arms = tuple(
        Arm(number, Role.CHALLENGER if number > 1 else Role.CHAMPION, share)
        for number, share in enumerate(shares, 1)
    )
    return ModelTraffic(arms=arms, **fields)


def only(version: int) -> tuple[Arm, ...]:
    return (Arm(version, Role.CHAMPION, 1.0),)


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Registry]:
    ticks = iter(range(START_NS, START_NS + 10**15, 10**9))
    options.setdefault("unix_ns", lambda: next(ticks))
    registry = Registry(path, **options)
    try:
        yield registry
    finally:
        registry.close()

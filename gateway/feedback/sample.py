"""Which predictions are joined, and which are recorded with their inputs."""

from __future__ import annotations

import zlib

from gateway.feedback_config import JoinConfig

_LIKELY = 0.5
"""Propensity from which a champion's answer may be left out of the sample."""


def is_rare(role: str, propensity: float) -> bool:
    """Return whether an answer is one of those of which none is left out.

    These are the others', and what the policy was unlikely to choose.
    """
    return role != "champion" or propensity < _LIKELY


def share_of(role: str, propensity: float, settings: JoinConfig) -> float:
    """Return the share of such predictions that are joined."""
    return 1.0 if is_rare(role, propensity) else settings.sample


def in_share(key: bytes, share: float) -> bool:
    """Tell whether a prediction is in a share of all, by a hash of its id."""
    return share >= 1 or zlib.crc32(key) < share * 2**32

"""Which predictions are joined."""

from __future__ import annotations

import zlib

from gateway.feedback_config import JoinConfig

_LIKELY = 0.5
"""Propensity from which a champion's answer may be left out of the sample."""


def share_of(role: str, propensity: float, settings: JoinConfig) -> float:
    """Return the share of such predictions that are joined.

    Rare ones always are: the others', and what the policy was unlikely to choose.
    """
    if role != "champion" or propensity < _LIKELY:
        return 1.0
    return settings.sample


def is_in(share: float, key: bytes) -> bool:
    """Tell whether a prediction is in a sample of this share, by a hash of its id."""
    return share >= 1 or zlib.crc32(key) < share * 2**32

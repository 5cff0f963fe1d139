"""Which predictions are joined."""

from __future__ import annotations

import zlib

from gateway.feedback.types import Prediction
from gateway.feedback_config import JoinConfig

_LIKELY = 0.5
"""Propensity from which a champion's answer may be left out of the sample."""


def share_of(prediction: Prediction, settings: JoinConfig) -> float:
    """Return the share of predictions such as this one that are joined.

    Rare ones always are: the others', and what the policy was unlikely to choose.
    """
    if prediction.role != "champion" or prediction.propensity < _LIKELY:
        return 1.0
    return settings.sample


def is_joined(prediction: Prediction, settings: JoinConfig) -> bool:
    """Tell whether a prediction is in the sample, by a hash of its id."""
    share = share_of(prediction, settings)
    return share >= 1 or zlib.crc32(prediction.id) < share * 2**32

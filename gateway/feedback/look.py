"""What the join knows of one prediction, before and after its window closes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.feedback.join import Join
from gateway.feedback.pending import Held, Pending, WorkingSet, horizon_ms, rows_of
from gateway.feedback.types import Outcome
from gateway.feedback_config import FeedbackConfig


class Look(NamedTuple):
    """One prediction as it stands.

    Attributes:
        pending: The request, its answers read; ``None`` if it is unknown.
        closes_ms: When its window closes, 0 if it is unknown.
        forgotten_ms: When nothing is known of it any more, 0 if nothing is.
        needs_activation: Without one, nothing is emitted.
        rows: As they are emitted; provisional, while the window is open.
        waiting: Labels without a prediction, and until when (Unix ms) they wait.
    """

    pending: Pending | None
    closes_ms: int
    forgotten_ms: int
    needs_activation: bool
    rows: Sequence[Outcome]
    waiting: Sequence[tuple[Held, int]]


def looked(key: bytes, state: WorkingSet, config: FeedbackConfig) -> Look:
    """Return what a working set has of a prediction.

    Args:
        key: Its id, 16 bytes.
        state: Where it is, if it is anywhere.
        config: Of all models.
    """
    join = Join(config, state)
    waiting = [
        (held, join.waits_until_ms(held)) for held in state.dangling.get(key, ())
    ]
    pending = state.pending.get(key)
    if pending is None:
        return Look(None, 0, 0, needs_activation=False, rows=(), waiting=waiting)
    settings = join.settings(pending.model)
    assert pending.answers is not None  # read here, where the file may be
    share = state.thinning.share_of(key)
    rows = rows_of(key, pending, settings, share).values()
    return Look(
        pending,
        pending.time_ms + settings.window_s * 1000,
        pending.time_ms + horizon_ms(settings),
        settings.needs_activation,
        [row._replace(provisional=not pending.closed) for row in rows],
        waiting,
    )

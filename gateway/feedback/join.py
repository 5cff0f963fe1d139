"""Predictions meet their labels. Pure: time comes in as an argument.

What comes out is a function of the events and of when the log took them in
(`Stored.arrived_ms`), not of how the two topics were interleaved or cut into batches:

- A label is in time until its prediction's time plus the window, a correction until
  the lateness after that, and a dead letter from then on.
- A label without a prediction is an orphan unless a prediction was taken in at most
  the dangling time later.
- All labels of a prediction lie in one partition, in order. Those that come before
  their prediction are held and applied in that order.

Only the moment when a row is emitted depends on the watermark. A row is emitted when
its window closes: that is when the watermark passes it, or when a label says by its own
time of arrival that no other can be in time. Whatever changes an emitted row later
takes it back (-1) and emits it again (+1) in the same cohort.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.feedback.label_state import Verdict, misfit, take
from gateway.feedback.pending import (
    Effects,
    Held,
    Pending,
    RowKey,
    WorkingSet,
    horizon_ms,
    rows_of,
)
from gateway.feedback.sample import in_share, share_of
from gateway.feedback.types import (
    DeadLetter,
    Label,
    LabelKind,
    Outcome,
    Prediction,
    Reason,
    Stored,
)
from gateway.feedback_config import FeedbackConfig, JoinConfig

SKEW_MS = 5000
"""By how much a front's clock may be ahead of the log's."""


class Join:
    """Applies events to a working set.

    Args:
        config: Of all models.
        state: Where the state of every id is that the events name.
    """

    def __init__(self, config: FeedbackConfig, state: WorkingSet) -> None:
        self._config = config
        self._models, self._default = config.models, config.default
        self._state = state
        models = (config.default, *config.models.values())
        self._shortest_ms = min(horizon_ms(model) for model in models)
        self._longest_ms = max(horizon_ms(model) for model in models)
        self.effects = Effects()

    def settings(self, model: str) -> JoinConfig:
        """Return the settings of a model."""
        return self._models.get(model, self._default)

    def due_ms(self, pending: Pending) -> int:
        """Return when the watermark closes a request, or has it forgotten."""
        settings = self.settings(pending.model)
        if pending.closed:
            return pending.time_ms + horizon_ms(settings)
        return pending.time_ms + settings.window_s * 1000

    def predict(self, arrived_ms: int, prediction: Prediction) -> None:
        """Take in what one version answered; a second time it changes nothing."""
        settings = self.settings(prediction.model)
        counts = self.effects.counts
        if prediction.time_ms > arrived_ms + SKEW_MS:
            # A front's clock that is far ahead would keep its window open for as long.
            counts["predictions_ahead"] += 1
            prediction = prediction._replace(time_ms=arrived_ms)
        if arrived_ms > prediction.time_ms + horizon_ms(settings):
            counts["predictions_late"] += 1
            return
        key = (prediction.version, prediction.role)
        pending = self._state.pending.get(prediction.id)
        new = pending is None
        if pending is None:
            pending = Pending(
                prediction.model, prediction.time_ms, prediction.rows, arrived_ms
            )
            self._state.pending[prediction.id] = pending
        elif key in pending.answers:
            counts["predictions_again"] += 1
            return
        self._state.changed.add(prediction.id)
        self._state.answered.add(prediction.id)
        # What is not in the sample stays known, or its labels would be orphans.
        share = share_of(prediction.role, prediction.propensity, settings)
        if in_share(prediction.id, share):
            before = self._emitted(prediction.id, pending)
            pending.answers[key] = prediction
            self._settle(pending, before, self._emitted(prediction.id, pending))
        if new and self._state.held:
            held = self._state.dangling.pop(prediction.id, ())
            self._state.held -= len(held)
            for each in held:
                self._meet(each, pending)

    def label(self, stored: Stored, label: Label) -> None:
        """Take in a label: apply it, hold it, or say why it is of no use."""
        held = Held(stored, label)
        if not label.prediction_id:
            self._refuse(held, Reason.INVALID, "labels name the prediction id")
            return
        pending = self._state.pending.get(label.prediction_id)
        if pending is not None:
            self._meet(held, pending)
        elif stored.arrived_ms > _born_ms(label.prediction_id) + self._longest_ms:
            # Forgotten or never there: at once, as if its prediction were still here.
            self._refuse(held, Reason.LATE, "after window_s and lateness_s")
        elif self._state.held >= self._config.max_dangling:
            self._refuse(held, Reason.OVERFLOW, "too many labels wait: max_dangling")
        else:
            self._state.dangling.setdefault(label.prediction_id, []).append(held)
            self._state.held += 1
            self._state.changed.add(label.prediction_id)

    def advance(self, watermark_ms: int, due: Iterable[bytes]) -> None:
        """Close and forget those of the requests and labels that are `due`."""
        for key in due:
            pending = self._state.pending.get(key)
            if pending is None:
                self._give_up(key, watermark_ms)
                continue
            if not pending.closed and watermark_ms > self.due_ms(pending):
                self._close(key, pending)
            if pending.closed and watermark_ms > self.due_ms(pending):
                del self._state.pending[key]
                self._state.changed.add(key)

    def waits_until_ms(self, held: Held) -> int:
        """Return when a label without a prediction is given up.

        The model is not known without one; it is the longest of all models' times.
        """
        models = (self._config.default, *self._config.models.values())
        longest = max(model.dangling_ttl_s for model in models)
        return held.stored.arrived_ms + longest * 1000

    def _give_up(self, key: bytes, watermark_ms: int) -> None:
        kept = []
        for held in self._state.dangling.pop(key, ()):
            if watermark_ms <= self.waits_until_ms(held):
                kept.append(held)
                continue
            self._state.held -= 1
            self._state.changed.add(key)
            if held.stored.arrived_ms > _born_ms(key) + self._shortest_ms:
                self._refuse(held, Reason.LATE, "its prediction is forgotten")
            else:
                self._refuse(held, Reason.ORPHAN, "no prediction has this id")
        if kept:
            self._state.dangling[key] = kept

    def _meet(self, held: Held, pending: Pending) -> None:
        stored, label = held
        settings = self.settings(pending.model)
        arrived_ms = stored.arrived_ms
        if pending.arrived_ms > arrived_ms + settings.dangling_ttl_s * 1000:
            self._refuse(held, Reason.ORPHAN, "its prediction came too late")
            return
        if arrived_ms > pending.time_ms + horizon_ms(settings):
            self._refuse(held, Reason.LATE, "after window_s and lateness_s")
            return
        if label.kind in (LabelKind.VALUE, LabelKind.RETRACTED):
            wrong = misfit(label, settings, pending.rows)
            if wrong is not None:
                self._refuse(held, *wrong)
                return
        self._state.changed.add(label.prediction_id)
        if arrived_ms > pending.time_ms + settings.window_s * 1000:
            if not pending.closed:
                self._close(label.prediction_id, pending)
            self.effects.counts["corrections"] += 1
        if not pending.closed:
            self._apply(held, pending, settings)
            return
        before = self._emitted(label.prediction_id, pending)
        self._apply(held, pending, settings)
        self._settle(pending, before, self._emitted(label.prediction_id, pending))

    def _apply(self, held: Held, pending: Pending, settings: JoinConfig) -> None:
        label = held.label
        if label.kind is LabelKind.ACTIVATION:
            verdict = Verdict.DUPLICATE if pending.activated else Verdict.APPLIED
            pending.activated = True
        else:
            arrived_ms = held.stored.arrived_ms
            verdict = take(pending.labels, label, arrived_ms, settings.conflict)
        self.effects.counts[verdict] += 1
        if verdict is Verdict.REJECTED:
            self._refuse(held, Reason.CONFLICT, "another value is there already")
        elif verdict is Verdict.FULL:
            self._refuse(held, Reason.OVERFLOW, "too many parts of one label")

    def _close(self, key: bytes, pending: Pending) -> None:
        pending.closed = True
        self._state.changed.add(key)
        self.effects.outcomes.extend(self._emitted(key, pending).values())

    def _emitted(self, key: bytes, pending: Pending) -> dict[RowKey, Outcome]:
        """Return the rows of a request as they are emitted with what is known."""
        if not pending.closed:
            return {}
        share = self._state.thinning.share_of(key)
        return rows_of(key, pending, self.settings(pending.model), share)

    def _settle(
        self,
        pending: Pending,
        before: dict[RowKey, Outcome],
        after: dict[RowKey, Outcome],
    ) -> None:
        """Emit what is new and correct what is no longer what it was."""
        for key, row in after.items():
            old = before.get(key)
            if old == row:
                continue
            if old is not None:
                self.effects.outcomes.append(old._replace(sign=-1))
                revision = old.revision_of_row + 1
                pending.revisions[key] = revision
                self.effects.counts["corrected"] += 1
                self.effects.outcomes.append(row._replace(revision_of_row=revision))
            else:
                self.effects.outcomes.append(row)

    def _refuse(self, held: Held, reason: Reason, detail: str) -> None:
        self.effects.counts[f"dead_{reason}"] += 1
        self.effects.dead.append(
            DeadLetter(held.stored, reason, detail, held.stored.arrived_ms, 1)
        )


def _born_ms(key: bytes) -> int:
    return int.from_bytes(key[:6])  # RFC 9562, section 5.7: Unix time in ms

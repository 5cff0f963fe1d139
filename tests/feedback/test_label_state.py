"""Which labels fit what their model has."""

from __future__ import annotations

import pytest

from gateway.feedback.label_state import misfit
from gateway.feedback.types import Label, LabelKind, Reason, Value
from gateway.feedback_config import JoinConfig, LabelConfig


def _label(value: Value | None, kind: LabelKind = LabelKind.VALUE) -> Label:
    return Label("e", "s", bytes(16), None, 0, "label", kind, value, 0, 1, 1.0)


@pytest.mark.parametrize(
    ("config", "good", "bad"),
    [
        (LabelConfig(), "any", 1.0),
        (LabelConfig(classes=("up", "down")), "up", "left"),
        (LabelConfig(type="number"), 2.0, True),
        (LabelConfig(type="bool"), False, 0.0),
        (LabelConfig(type="vector", length=2), (1.0, 2.0), (1.0,)),
        (LabelConfig(type="vector"), (1.0,), "x"),
    ],
)
def test_values_are_of_their_label(
    config: LabelConfig, good: Value, bad: Value
) -> None:
    model = JoinConfig(labels={"label": config})
    assert misfit(_label(good), model, 1) is None
    assert (misfit(_label(bad), model, 1) or "")[0] is Reason.INVALID


@pytest.mark.parametrize("kind", [LabelKind.VALUE, LabelKind.RETRACTED])
def test_labels_and_rows_that_are_not_there(kind: LabelKind) -> None:
    other = JoinConfig(labels={"fraud": LabelConfig()})
    reason, detail = misfit(_label("up", kind), other, 1) or (None, "")
    assert reason is Reason.UNKNOWN_LABEL
    assert "fraud" in detail
    beyond = _label("up", kind)._replace(row=1)
    assert (misfit(beyond, JoinConfig(), 1) or "")[0] is Reason.NO_SUCH_ROW
    assert misfit(beyond, JoinConfig(), 2) is None

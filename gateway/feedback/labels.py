"""Whether a label is one that its model has. Pure."""

from __future__ import annotations

from gateway.feedback.cloudevents import Rejected
from gateway.feedback.types import Label, LabelKind, Reason
from gateway.feedback_config import JoinConfig


def check(label: Label, model: JoinConfig) -> None:
    """Check a label's name and value against the labels of its model.

    The row is left to the join, which knows how many the prediction has.

    Raises:
        Rejected: The model has no such label, or its values are others.
    """
    if label.kind is LabelKind.ACTIVATION:
        return
    wanted = model.labels.get(label.name)
    if wanted is None:
        known = ", ".join(sorted(model.labels)) or "none"
        text = f"label_name {label.name!r} is none of the model's: {known}"
        raise Rejected(Reason.UNKNOWN_LABEL, text)
    if label.kind is LabelKind.RETRACTED:
        return
    value = label.value
    match wanted.type:
        case "class":
            fits = isinstance(value, str)
        case "bool":
            fits = isinstance(value, bool)
        case "number":
            fits = isinstance(value, float)
        case "vector":
            fits = isinstance(value, tuple)
    if not fits:
        text = f"value of {label.name!r} must be of type {wanted.type}"
        raise Rejected(Reason.INVALID, text)
    if isinstance(value, str) and wanted.classes and value not in wanted.classes:
        text = f"value {value!r} is none of the classes of {label.name!r}"
        raise Rejected(Reason.INVALID, text)
    if isinstance(value, tuple) and wanted.length and len(value) != wanted.length:
        text = f"{label.name!r} is a vector of {wanted.length}, not of {len(value)}"
        raise Rejected(Reason.INVALID, text)


def check_alias(label: Label, models: dict[str, JoinConfig], other: JoinConfig) -> None:
    """Check a label that names its model, as one by request id does.

    Others pass: their model is known when they meet their prediction.

    Raises:
        Rejected: As `check`, or the model takes no labels by request id.
    """
    if label.alias is None:
        return
    model = models.get(label.alias.model, other)
    if not model.by_request_id:
        text = (
            f"model {label.alias.model!r} takes no labels by request id: send the "
            "prediction_id, or set feedback.models.<name>.by_request_id"
        )
        raise Rejected(Reason.INVALID, text)
    check(label, model)

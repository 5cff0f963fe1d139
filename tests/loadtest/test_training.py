"""The demo's models are honest, exported whole, and indifferent to batching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loadtest.models import write_model
from loadtest.sessions import open_session
from loadtest.traffic import ABSOLUTE, RELATIVE, reference
from loadtest.training import INPUT, TrainedModel, train_breast_cancer, train_digits


@pytest.mark.parametrize(
    ("train", "features", "classes", "accuracy"),
    [(train_digits, 64, 10, 0.95), (train_breast_cancer, 30, 2, 0.93)],
)
def test_trained_models_know_records_they_have_not_seen(
    train: Callable[[], TrainedModel],
    features: int,
    classes: int,
    accuracy: float,
    tmp_path: Path,
) -> None:
    model = train()
    path = write_model(tmp_path, model.name, model.payload)
    assert path == tmp_path / model.name / "1" / "model.onnx"
    assert model.records.shape == (len(model.labels), features)
    assert model.records.dtype == np.float32
    source = reference(model, path)
    assert source.probabilities.shape == (len(model.labels), classes)
    assert accuracy < source.accuracy < 1
    names = [source.label_output, source.probability_output]
    labels, probabilities = open_session(path).run(names, {INPUT: model.records})
    assert np.array_equal(labels, source.labels)
    np.testing.assert_allclose(
        probabilities, source.probabilities, rtol=RELATIVE, atol=ABSOLUTE
    )


def test_training_is_repeatable() -> None:
    first, second = train_breast_cancer(), train_breast_cancer()
    assert first.payload == second.payload
    assert np.array_equal(first.records, second.records)


def test_no_label_hangs_on_rounding(tmp_path: Path) -> None:
    """Labels are compared exactly, so the two best classes must lie apart."""
    for model in (train_digits(), train_breast_cancer()):
        source = reference(model, write_model(tmp_path, model.name, model.payload))
        best = np.sort(source.probabilities, axis=1)
        assert float(np.min(best[:, -1] - best[:, -2])) > 1e-3

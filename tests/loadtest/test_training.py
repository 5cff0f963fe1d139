"""The demo's models are honest, exported whole, and indifferent to batching."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from loadtest.models import write_model
from loadtest.processes import ROOT
from loadtest.sessions import open_session
from loadtest.traffic import ABSOLUTE, RELATIVE, reference
from loadtest.training import (
    INPUT,
    TrainedModel,
    train_breast_cancer,
    train_digits,
    train_digits_linear,
    train_digits_tree,
)


@pytest.mark.parametrize(
    ("train", "features", "classes", "accuracy"),
    [
        (train_digits, 64, 10, 0.95),
        (train_digits_linear, 64, 10, 0.95),
        (train_digits_tree, 64, 10, 0.8),
        (train_breast_cancer, 30, 2, 0.93),
    ],
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
    assert source.as_trained
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
    trains = (train_digits, train_digits_tree, train_breast_cancer)
    for number, train in enumerate(trains):
        model, folder = train(), tmp_path / str(number)
        source = reference(model, write_model(folder, model.name, model.payload))
        best = np.sort(source.probabilities, axis=1)
        assert float(np.min(best[:, -1] - best[:, -2])) > 1e-3


def loadtest(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_examples_are_written_once(tmp_path: Path) -> None:
    done = loadtest("example", str(tmp_path / "models"))
    files = [Path(line) for line in done.stdout.splitlines()]
    names = ("digits", "breast_cancer")
    assert files == [tmp_path / "models" / name / "1/model.onnx" for name in names]
    assert all(file.stat().st_size > 1000 for file in files)
    again = loadtest("example", str(tmp_path / "models"))
    assert again.returncode == 1
    assert again.stderr.endswith("digits/1: File exists (choose another)\n")


def test_an_unknown_command_lists_those_there_are() -> None:
    done = loadtest("exmaple")
    assert done.returncode == 2
    said = " ".join(done.stderr.replace("\u2502", " ").split())
    assert "No such command 'exmaple' (of canned, client, compare, cost, demo" in said


def test_a_file_that_says_something_else_is_not_as_trained(tmp_path: Path) -> None:
    model, other = train_digits(), train_digits_linear()
    path = write_model(tmp_path, model.name, other.payload)
    assert not reference(model, path).as_trained


def test_the_versions_of_the_digits_share_their_data_and_outputs() -> None:
    trained = [
        train() for train in (train_digits, train_digits_linear, train_digits_tree)
    ]
    assert len({model.data_digest for model in trained}) == 1
    assert len({model.kind for model in trained}) == len(trained)
    assert all(np.array_equal(trained[0].records, model.records) for model in trained)
    signatures = [
        [(o.name, o.type, o.shape) for o in session.get_outputs()]
        for session in (ort.InferenceSession(model.payload) for model in trained)
    ]
    assert signatures[0] == signatures[1] == signatures[2]

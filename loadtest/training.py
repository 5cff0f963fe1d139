"""Honest models in seconds: real data that ships inside scikit-learn.

Of the digits there are three models, all as scikit-learn makes them: a network, a
linear model that is nearly as good, and a tree that is not.

Both data sets are split once, seeded and stratified. What `TrainedModel` holds of
the data is the part that training never saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from loadtest.models import write_model

INPUT = "features"
HELD_OUT = 0.25
Load = Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]

OPSETS = {"": 17, "ai.onnx.ml": 3}


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained classifier and the records it has not seen.

    Attributes:
        name: Name of the data set, and of the model in the repository.
        kind: What it is, in two words.
        payload: The ONNX file: `INPUT` float32 (rows, features) to labels int64
            (rows,) and probabilities float32 (rows, classes).
        records: float32, shape (held out, features).
        labels: int64, shape (held out,).
        expected: What scikit-learn itself says: float64, shape (held out, classes).
        data_digest: SHA-256 of what it was trained with, in hexadecimal.
        parameters: Of the training.
    """

    name: str
    kind: str
    payload: bytes
    records: NDArray[np.float32]
    labels: NDArray[np.int64]
    expected: NDArray[np.float64]
    data_digest: str
    parameters: Mapping[str, str]


def train_digits(*, seed: int = 0) -> TrainedModel:
    """Train a small network on 8x8 images of handwritten digits (10 classes)."""
    network = MLPClassifier((128,), max_iter=300, tol=1e-3, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), network)
    return _train("digits", "small network", load_digits, pipeline, seed)


def train_digits_tree(*, seed: int = 0) -> TrainedModel:
    """Train a decision tree on the same digits.

    Pixels are whole numbers and its thresholds lie between them, so that float32
    decides as float64 does.
    """
    tree = make_pipeline(DecisionTreeClassifier(random_state=seed))
    return _train("digits", "decision tree", load_digits, tree, seed)


def train_digits_linear(*, seed: int = 0) -> TrainedModel:
    """Train a logistic regression on the same digits."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    return _train("digits", "linear model", load_digits, pipeline, seed)


def train_breast_cancer(*, seed: int = 0) -> TrainedModel:
    """Train a logistic regression on 30 measurements of tumours (2 classes)."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    return _train("breast_cancer", "linear model", load_breast_cancer, pipeline, seed)


def _train(
    name: str, kind: str, load: Load, pipeline: Pipeline, seed: int
) -> TrainedModel:
    records, labels = load(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        records.astype(np.float32),
        labels,
        test_size=HELD_OUT,
        stratify=labels,
        random_state=seed,
    )
    model = pipeline.fit(train_x, train_y)
    exported = convert_sklearn(
        model,
        name,
        initial_types=[(INPUT, FloatTensorType([None, test_x.shape[1]]))],
        options={"zipmap": False},
        target_opset=OPSETS,
    )
    chosen = pipeline[-1]
    return TrainedModel(
        name,
        kind,
        exported.SerializeToString(),
        np.ascontiguousarray(test_x),
        test_y.astype(np.int64),
        model.predict_proba(test_x),
        hashlib.sha256(train_x.tobytes() + train_y.tobytes()).hexdigest(),
        {
            "algorithm": type(chosen).__name__,
            "seed": str(seed),
            "held_out": str(HELD_OUT),
        },
    )


def write_examples(repository: Path) -> list[Path]:
    """Train both models, save them in a repository and return their files.

    Raises:
        OSError: One is there already, or cannot be written.
    """
    return [
        write_model(repository, model.name, model.payload)
        for model in (train_digits(), train_breast_cancer())
    ]

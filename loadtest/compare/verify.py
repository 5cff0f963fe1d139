"""Answers compared with ONNX Runtime before anything is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loadtest import models
from loadtest.dialects import Dialect
from loadtest.sessions import open_session
from loadtest.wire import BadAnswer

SAMPLE = 32
"""Answers compared, asked for at once so that they share batches."""
RELATIVE = 1e-4
ABSOLUTE = 1e-5
"""Batches of different sizes round differently."""


class WrongAnswer(Exception):
    """A server does not answer what ONNX Runtime says."""


def verify(
    port: int, dialect: Dialect, model: Path, *, rows: int = 1, sample: int = SAMPLE
) -> tuple[bytes, int]:
    """Compare a sample of answers with ONNX Runtime.

    Args:
        port: Of the server.
        dialect: How it is asked.
        model: File of the model, in a repository in Triton's layout.
        rows: Of each request.
        sample: Answers to compare.

    Returns:
        One request, and the length of its answer (0 if lengths differ).

    Raises:
        WrongAnswer: If an answer differs or fails.
    """
    name = model.parent.parent.name
    generator = np.random.default_rng(1)
    shape = (sample, rows, *models.row_shape(name))
    inputs = generator.standard_normal(shape).astype(np.float32)
    session = open_session(model)
    requests = [dialect.encode(name, each) for each in inputs]
    try:
        answers = dialect.ask(port, requests)
        found = [dialect.decode(each) for each in answers]
    except (BadAnswer, ValueError) as error:
        raise WrongAnswer(f"no answer: {error}") from error
    if len(answers) != len(requests):
        raise WrongAnswer(f"{len(answers)} answers to {len(requests)} requests")
    for scores, given in zip(found, inputs, strict=True):
        expected = session.run([models.OUTPUT], {models.INPUT: given})[0]
        right = scores.shape == expected.shape and np.allclose(
            scores, expected, rtol=RELATIVE, atol=ABSOLUTE
        )
        if not right:
            raise WrongAnswer(f"{scores} instead of {expected}")
    return requests[0], len(answers[0]) if dialect.fixed_length else 0

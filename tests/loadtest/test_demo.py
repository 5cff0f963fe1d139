"""The demo, end to end: a real server process and real calls."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from loadtest.demo import MIN_REQUESTS
from loadtest.processes import ROOT


@pytest.mark.slow
def test_every_answer_of_the_demo_agrees_with_onnx_runtime() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "demo", "--seconds", "3", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    assert found["problems"] == []
    assert found["agreed"] == found["requests"]
    assert set(found["models"]) == {"digits", "breast_cancer"}
    for model in found["models"].values():
        assert model["requests"] >= MIN_REQUESTS
        assert model["disagreements"] == model["failures"] == 0
        assert model["mean_batch_rows"] >= 1
        assert model["accuracy"] == pytest.approx(model["offline_accuracy"], abs=0.05)

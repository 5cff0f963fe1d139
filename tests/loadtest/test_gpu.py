"""The GPU measurement: its graphs, its refusal, and all of it but the device."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from loadtest.gpu import run
from loadtest.gpu.graphs import FULL, KINDS, OUTPUT, TINY, TYPES
from loadtest.processes import ROOT
from workers.cuda import look_at_driver

PARAMETERS = {"resnet50": 25.5e6, "bert-base": 108.8e6}
"""As published; without BERT's pooler and segment embeddings."""


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_give_probabilities_that_depend_on_the_row(
    kind: str, precision: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(KINDS[kind].build(TINY, precision))
    session = run.open_session(file, "cpu")
    rows = KINDS[kind].rows(TINY, 5)
    scores = session.run([OUTPUT], {KINDS[kind].input: rows})[0]
    assert scores.dtype == np.float32
    assert scores.sum(axis=1) == pytest.approx([1] * 5, abs=1e-2)
    assert np.ptp(scores, axis=0).max() > 1e-4
    single = session.run([OUTPUT], {KINDS[kind].input: rows[:1]})[0]
    assert np.allclose(single[0], scores[0], atol=run.TOLERANCES[precision])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_graphs_are_as_large_as_their_names_say(kind: str) -> None:
    model = onnx.ModelProto.FromString(KINDS[kind].build(FULL, "fp16"))
    found = sum(int(np.prod(each.dims)) for each in model.graph.initializer)
    assert found == pytest.approx(PARAMETERS[kind], rel=0.01)


def test_batches_are_measured_up_to_the_rows_there_are(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(KINDS["bert-base"].build(replace(TINY, layers=1), "fp32"))
    rows = KINDS["bert-base"].rows(TINY, 4)
    session = run.open_session(file, "cpu")
    rates = run.bare_rates(session, rows, device="cpu", seconds=0.1)
    assert sorted(rates) == [1, 2, 4]
    assert min(rates.values()) > 0


def measure(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest", "gpu", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        check=False,
    )


@pytest.mark.skipif(look_at_driver() is not None, reason="there is an NVIDIA driver")
def test_without_a_gpu_it_says_so_in_a_line_and_ends_with_2() -> None:
    done = measure()
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "cuda" in line
    assert "--cpu-smoke" in line


@pytest.mark.slow
def test_all_but_the_device_is_measured_on_the_cpu() -> None:
    done = measure("--cpu-smoke", "--seconds", "0.3", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    assert len(found["lines"]) == len(KINDS) * len(TYPES)
    for line in found["lines"]:
        assert line["gateway"]["median"] > 0
        assert line["bare"]["median"] > 0

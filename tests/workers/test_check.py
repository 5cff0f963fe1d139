"""The canary as a process: one order in, one report out, whatever the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import onnx_models as models
from workers.check import INTERNAL_ERROR, check
from workers.spec import (
    LOAD_ORDER,
    LOAD_REPORT,
    LoadOrder,
    LoadReport,
    SessionSettings,
)


def canary(order: LoadOrder) -> tuple[LoadReport, str]:
    """Return the report of ``python -m workers.check`` and its standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "workers.check"],
        input=LOAD_ORDER.dump_json(order),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.endswith(b"\n")
    assert done.stdout.count(b"\n") == 1
    return LOAD_REPORT.validate_json(done.stdout), done.stderr.decode()


def test_a_good_model_is_reported_with_its_spec(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.logistic_regression())
    order = LoadOrder(3, "m", 1, str(path), default_max_batch_rows=8)
    report, errors = canary(order)
    assert errors == ""
    assert report.handle == 3
    assert report.error == ""
    assert report.spec is not None
    assert report.spec.max_batch_rows == 8
    assert report.slowest_run_ns > 0
    # a worker loads what the canary decided, and decides the same
    again = check(LOAD_ORDER.validate_json(LOAD_ORDER.dump_json(order)))
    assert again.spec == report.spec


def test_garbage_is_an_error_inside_the_report(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08garbage" * 1000)
    report, errors = canary(LoadOrder(4, "m", 1, str(path)))
    assert report.error
    assert report.spec is None
    assert str(tmp_path) not in report.error
    assert errors == ""


def test_a_refusal_is_an_error_inside_the_report(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.zipmap())
    settings = SessionSettings(intra_op_threads=2)
    report, _ = canary(LoadOrder(5, "m", 1, str(path), settings))
    assert "zipmap" in report.error


def test_a_bug_of_ours_is_reported_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(order: LoadOrder) -> None:
        raise KeyError("what\nnow")

    monkeypatch.setattr("workers.session.open_version", broken)
    report = check(LoadOrder(6, "m", 1, str(tmp_path)))
    assert report == LoadReport(6, error=INTERNAL_ERROR)
    assert "KeyError: 'what\\nnow'" in capsys.readouterr().err

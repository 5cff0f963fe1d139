"""The unmodified tritonclient works: its suite runs in an environment of its own."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurizer.datatypes import DATATYPES
from tests import onnx_models
from tests.gateway_process import GatewayProcess, gateway
from tests.protocol.served import ALL, FREE, add_model, metric, negation

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-triton"
BUILD_TIMEOUT_S = 240
SUITE_TIMEOUT_S = 120


def environment() -> Path:
    """Return a Python that has the pinned tritonclient, built where it is missing."""
    requirements = HERE / "requirements.txt"
    installed = ENVIRONMENT / "installed"
    python = ENVIRONMENT / "bin" / "python"
    ENVIRONMENT.mkdir(exist_ok=True)
    with (ENVIRONMENT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_text() != requirements.read_text():
            for command in (
                [sys.executable, "-m", "venv", str(ENVIRONMENT)],
                [str(python), "-m", "pip", "install", "-q", "-r", str(requirements)],
            ):
                built = subprocess.run(
                    command,
                    check=False,
                    capture_output=True,
                    text=True,
                    timeout=BUILD_TIMEOUT_S,
                )
                assert built.returncode == 0, built.stdout + built.stderr
            installed.write_text(requirements.read_text())
    return python


def write_models(root: Path) -> None:
    """Write the models that the suite calls."""
    identity = onnx_models.identity
    for datatype in DATATYPES:
        add_model(root, f"identity_{datatype}", identity(datatype))
    add_model(root, "pair", onnx_models.two_by_two())
    add_model(root, "both", {1: identity("FP32"), 2: negation(2)}, ALL)
    add_model(root, "free", identity("FP32", ("A", "B")), FREE)
    add_model(root, "scalar", identity("FP32", ()))
    add_model(root, "texts", identity("BYTES", ("N", "length")))
    add_model(root, "slow", onnx_models.loops())
    add_model(root, "changing", identity("FP32"))
    add_model(root, "broken", b"this is no model")


@pytest.fixture(scope="module")
def interpreter() -> Path:
    return environment()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    root = tmp_path_factory.mktemp("triton-models")
    write_models(root)
    with gateway(root, workers={"hang_timeout_ms": 60_000}) as running:
        yield running


@pytest.mark.timeout(BUILD_TIMEOUT_S + SUITE_TIMEOUT_S + 60)
def test_every_case_of_the_tritonclient_suite_passes(
    interpreter: Path, served: GatewayProcess, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(negation(2))
    ran = subprocess.run(
        [str(interpreter), str(HERE / "suite.py"), served.address, str(model)],
        check=False,
        capture_output=True,
        text=True,
        timeout=SUITE_TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.rstrip().endswith(" passed, 0 failed"), ran.stdout
    assert metric(served, "baton_process_deaths_total") == 0

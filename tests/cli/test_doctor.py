"""What ``baton doctor`` finds."""

from __future__ import annotations

import json
import resource
import socket
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    (root / "fraud" / "1").mkdir(parents=True)
    (root / "fraud" / "12").mkdir()
    (root / "notes").mkdir()
    return root


def examined(
    baton: Any, tmp_path: Path, text: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status and the checks by name."""
    path = tmp_path / "baton.yaml"
    path.write_text(text)
    result = baton("doctor", str(path), "--json")
    answer = json.loads(result.stdout)
    checks = {check["name"]: check for check in answer["checks"]}
    assert answer["ok"] == (result.exit_code == 0)
    for check in checks.values():
        assert (check["fix"] == "") == (check["status"] == "ok"), check
    return result.exit_code, checks


FREE = "grpc: {port: 0}\nmetrics: {port: 0}\n"


def test_a_machine_that_can_serve(baton: Any, tmp_path: Path, repository: Path) -> None:
    status, checks = examined(baton, tmp_path, FREE + "model_repository: models\n")
    assert status == 0
    assert checks["models"]["detail"].endswith("models: fraud (1, 12)")
    assert "CPUExecutionProvider" in checks["onnxruntime"]["detail"]
    assert checks["cuda"]["status"] == "ok"
    assert {"python", "platform", "packages", "state", "shared memory"} <= set(checks)


def test_text_has_the_way_out_in_the_failing_line(
    baton: Any, tmp_path: Path, repository: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "baton.yaml"
        path.write_text(f"grpc: {{port: {port}}}\nmetrics: {{port: 0}}\n")
        result = baton("doctor", str(path))
    assert result.exit_code == 1
    assert (
        f"fail port {port}: 127.0.0.1: Address already in use -> stop what listens "
        "there, or choose another with --port\n"
    ) in result.stdout


def test_each_front_needs_its_port(
    baton: Any, tmp_path: Path, repository: Path
) -> None:
    text = "grpc: {port: 65535, port_mode: each, fronts: 2}\nmetrics: {port: 0}\n"
    status, checks = examined(baton, tmp_path, text)
    assert status == 1
    assert checks["port 65536"]["detail"] == "127.0.0.1: above 65535"


def test_a_missing_repository_or_model_fails(
    baton: Any, tmp_path: Path, repository: Path
) -> None:
    status, checks = examined(baton, tmp_path, FREE + "model_repository: none\n")
    assert (status, checks["models"]["status"]) == (1, "fail")
    text = FREE + "model_repository: models\nload: [fraud, notes]\n"
    status, checks = examined(baton, tmp_path, text)
    assert (status, checks["models"]["status"]) == (1, "fail")
    assert "no notes" in checks["models"]["detail"]


def test_an_empty_repository_is_a_warning(baton: Any, tmp_path: Path) -> None:
    status, checks = examined(baton, tmp_path, FREE + "model_repository: .\n")
    assert (status, checks["models"]["status"]) == (0, "warn")


def test_a_wrong_configuration_fails_with_its_line(baton: Any, tmp_path: Path) -> None:
    status, checks = examined(baton, tmp_path, "grpc:\n  prt: 1\n")
    assert status == 1
    assert "baton.yaml:2: grpc.prt: unknown" in checks["config"]["detail"]
    assert "models" not in checks


def test_cuda_that_is_demanded_must_work(
    baton: Any, tmp_path: Path, repository: Path
) -> None:
    text = FREE + "model_repository: models\nworkers: {device: cuda}\n"
    status, checks = examined(baton, tmp_path, text)
    usable = "ran on the GPU" in checks["cuda"]["detail"]
    assert (status, checks["cuda"]["status"]) == ((0, "ok") if usable else (1, "fail"))


def test_few_open_files_are_a_warning(
    baton: Any, tmp_path: Path, repository: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    try:
        status, checks = examined(baton, tmp_path, FREE + "model_repository: models\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (status, checks["open files"]["status"]) == (0, "warn")

"""Bytes that changed in the store behind the registry's back are not served."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

from gateway.protocol import inference_pb2 as pb
from gateway.registry.registry import Registry
from tests.gateway_process import wait_for
from tests.traffic.served import MODEL, Served, serving
from tests.versions import answer, ask, says


def _artefact(served: Served, version: int) -> Path:
    registry = Registry(served.registry, read_only=True)
    try:
        digest = registry.model(MODEL).versions[version].digest
    finally:
        registry.close()
    return served.state / "registry" / "artefacts" / "sha256" / digest / "model.onnx"


def _states(served: Served) -> dict[int, tuple[str, str]]:
    index = served.running.call(
        "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse
    )
    return {int(m.version): (m.state, m.reason) for m in index.models if m.version}


def _flip(file: Path, number: float) -> None:
    """Change the number that a version says, in place: hard links see it too."""
    before, after = (np.float32(n).tobytes() for n in (number, number + 40))
    body = file.read_bytes()
    assert body.count(before) == 1
    file.chmod(0o644)
    file.write_bytes(body.replace(before, after))
    file.chmod(0o444)


def test_a_flipped_byte_is_refused_and_put_back_by_an_import(tmp_path: Path) -> None:
    with serving(tmp_path, versions=(1, 2)) as served:
        served.set({1: 0.5, 2: 0.5})
        _flip(_artefact(served, 2), 2)
        # What runs goes on, also when it is to be loaded anew.
        request = pb.RepositoryModelLoadRequest(model_name=MODEL)
        with pytest.raises(grpc.RpcError, match="bytes changed since it was imported"):
            served.running.call(
                "RepositoryModelLoad", request, pb.RepositoryModelLoadResponse
            )
        assert {answer(served.running.infer(ask(MODEL, "2"))) for _ in range(4)} == {2}
        assert served.running.terminate() == 0
        served.running.restart()
        wait_for(lambda: _states(served)[2][0] != "LOADING")
        state, reason = _states(served)[2]
        assert state == "UNAVAILABLE"
        assert "bytes changed since it was imported" in reason
        assert _states(served)[1] == ("READY", "")
        assert set(served.drawn(50)) == {1}
        wait_for(served.admin_is_up)
        (again,) = served.take_in("2", says(2)).versions
        assert (again, _states(served)[2]) == (3, ("READY", ""))
        assert set(served.drawn(50)) == {1, 2}

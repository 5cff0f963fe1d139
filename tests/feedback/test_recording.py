"""Every answer of a real gateway in the event log, through a killed controller."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections import Counter
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.controller import recording
from gateway.feedback.columns import decode
from gateway.feedback.frames import BLOCK_HEADER
from gateway.feedback.log import PREDICTIONS, Place
from gateway.feedback.log_file import LogFile
from gateway.feedback.types import Prediction
from gateway.feedback_config import FeedbackConfig
from tests.gateway_process import wait_for
from tests.traffic.served import MODEL, serving
from tests.versions import ask, says

PARTITIONS = 4


def logged(state: Path) -> list[Prediction]:
    """Return the predictions in the log of a gateway that is stopped."""
    log = LogFile(state / "events" / "log.sqlite", PARTITIONS)
    blocks = {}
    for partition in range(PARTITIONS):
        for stored in log.read(Place(PREDICTIONS, partition), 0, 10_000):
            blocks[dict(stored.event.headers)[BLOCK_HEADER]] = stored.event.value
    log.close()
    return [one for block in blocks.values() for one in decode(block or b"")]


def test_every_answer_is_logged_with_its_outputs(tmp_path: Path) -> None:
    feedback = {"enabled": True, "partitions": PARTITIONS}
    plain = tmp_path / "plain" / "1"
    plain.mkdir(parents=True)
    (plain / "model.onnx").write_bytes(says(7))
    with serving(tmp_path, grpc={"fronts": 2}, feedback=feedback) as served:
        served.take_in("other", says(7), model="other")
        assert served.said(model="other") == 7
        assert served.said(model="plain") == 7  # not registered: no table
        assert served.said("1") == 1  # by number
        served.set({1: 1.0}, shadows=[{"version": 3}])
        assert served.streamed([ask(MODEL)] * 20) == [1] * 20
        (controller,) = served.running.pids("controller")
        os.kill(controller, signal.SIGKILL)
        assert served.drawn(30) == {1: 30}
        wait_for(served.admin_is_up)
        assert served.drawn(30) == {1: 30}
        assert served.running.stop() == 0
        found = logged(served.state)
    kinds = Counter((p.model, p.version, p.role, p.policy) for p in found)
    assert kinds.pop(("other", 1, "champion", "fixed")) == 1
    assert kinds.pop(("plain", 1, "champion", "none")) == 1
    assert kinds.pop((MODEL, 1, "champion", "version")) == 1
    assert kinds.pop((MODEL, 1, "champion", "fixed")) == 80
    assert 0 < kinds.pop((MODEL, 3, "shadow", "shadow")) <= 80
    assert not kinds
    names = {p.id for p in found if p.role != "shadow"}
    assert len(names) == 83
    assert {p.id for p in found if p.role == "shadow"} <= names
    for prediction in found:
        (output,) = prediction.outputs
        assert (output.name, output.datatype, output.shape) == ("y", "FP32", (1, 1))
        value = prediction.version if prediction.model == MODEL else 7
        assert struct.unpack("<f", output.data) == (value,)
        assert prediction.request_id == ("" if prediction.role == "shadow" else "1")
        # Ids carry their time (RFC 9562): shortly after admission.
        assert (
            -1 <= int.from_bytes(prediction.id[:6], "big") - prediction.time_ms < 30_000
        )


def test_a_socket_that_cannot_be_bound_is_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recording, "_RETRY_S", 0.02)
    (tmp_path / "log.sock").write_text("in the way")

    async def work() -> None:
        feedback = FeedbackConfig(enabled=True, partitions=PARTITIONS)
        config = Config(state_dir=tmp_path, feedback=feedback)
        writer = recording.Recording(config)
        while "predictions_not_taken" not in caplog.messages:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not writer.log.done()
        (tmp_path / "log.sock").unlink()
        await asyncio.wait_for(asyncio.shield(writer.log), 10)
        assert (tmp_path / "log.sock").is_socket()
        await writer.stop()

    asyncio.run(asyncio.wait_for(work(), 30))


def test_without_it_nothing_is_logged(tmp_path: Path) -> None:
    with serving(tmp_path, versions=(1,)) as served:
        assert served.said() == 1
        assert served.running.stop() == 0
        assert not (served.state / "events").exists()
        assert not (served.state / "log.sock").exists()

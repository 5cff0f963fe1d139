"""Ground truth while things break: all that was answered and labelled is joined."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.client_rpc import ClientError
from gateway.feedback.shard import Shard
from gateway.feedback_config import FeedbackConfig
from gateway.outcomes_client import OutcomesClient
from gateway.protocol import inference_pb2 as pb
from gateway.protocol import outcomes_pb2
from tests.adversity.harness import show, total
from tests.feedback.logged import all_closed, emitted
from tests.gateway_process import SERVICE, wait_for
from tests.traffic.served import MODEL, Served, serving
from tests.versions import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PARTITIONS = 2
FEEDBACK: dict[str, Any] = {
    "enabled": True,
    "partitions": PARTITIONS,
    "default": {
        "labels": {"label": {"type": "number"}},
        "window_s": 10,
        "lateness_s": 3600,
    },
}


class Loop:
    """A client that asks, and labels what it was told."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.labels: dict[bytes, float] = {}
        self._unlabelled: list[str] = []

    def ask(self, count: int) -> None:
        """Ask some times; every time must be answered."""
        rpc = self.served.running.channel.unary_unary(
            SERVICE + "ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        calls = [rpc.future(ask(MODEL), timeout=30) for _ in range(count)]
        for call in calls:
            name = call.result().parameters["prediction_id"].string_param
            self._unlabelled.append(name)

    def label(self) -> None:
        """Label all that is not labelled; raises `ClientError` if nobody takes it."""
        events = []
        values = {}
        for name in self._unlabelled:
            value = float(len(self.labels) + len(values))
            values[bytes.fromhex(name.replace("-", ""))] = value
            event = outcomes_pb2.LabelEvent(id=name, source="test", time_ms=1)
            event.data.prediction_id = name
            event.data.number = value
            events.append(event)
        address = f"unix:{self.served.state}/outcomes.sock"
        with OutcomesClient(address) as client:
            answer = client.report(events)
        assert answer.taken == len(events)
        self.labels |= values
        self._unlabelled.clear()

    def label_and_ask(self) -> None:
        """Go on until labels are refused, within reason."""
        for _ in range(50):
            self.label()
            self.ask(200)

    def labelled(self) -> bool:
        """Return whether the labels were taken; a client tries until they are."""
        try:
            self.label()
        except ClientError:
            return False
        return True

    def joined(self) -> dict[bytes, object]:
        """Return what the joined rows come to, once the gateway is stopped."""
        config = FeedbackConfig.model_validate(FEEDBACK)
        found: dict[bytes, object] = {}
        for partition in range(PARTITIONS):
            path = self.served.state / "joins" / f"{partition}.sqlite"
            shard = Shard(path, partition, config)
            for _, row in shard.outcomes(most=100_000):
                value = dict(row.labels).get("label")
                if row.sign < 0:
                    assert found.pop(row.id) == value
                else:
                    assert row.id not in found
                    found[row.id] = value
            shard.close()
        return found


def test_a_full_disk_loses_no_prediction_and_no_label(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F19: fronts keep what the log does not take, and clients hear of it."""
    models = tmp_path / "models"
    models.mkdir()
    with serving(
        models, versions=(1,), feedback=FEEDBACK, state_dir=str(small_disk)
    ) as served:
        loop = Loop(served)
        loop.ask(100)
        wait_for(loop.labelled)
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(20):
            loop.ask(100)
        with pytest.raises(ClientError) as caught:
            loop.label_and_ask()  # SQLite may have some room left in its own files
        assert "free space" in str(caught.value)
        wait_for(lambda: total(served.running, "baton_log_unacknowledged") > 0)
        ballast.unlink()
        wait_for(loop.labelled, 60)
        wait_for(lambda: not total(served.running, "baton_log_unacknowledged"), 60)
        assert (
            total(served.running, "baton_log_predictions_total", outcome="dropped") == 0
        )
        count = len(loop.labels)
        wait_for(
            lambda: (
                total(served.running, "baton_join_rows", status="labelled") == count
            ),
            60,
        )
        assert served.running.stop() == 0
        assert loop.joined() == loop.labels
    with capsys.disabled():
        show(f"F19: {count} predictions and labels through a full disk, none lost")


def test_a_killed_controller_loses_no_prediction_and_no_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F12: at any point, again and again; nobody who asks notices."""
    with serving(tmp_path, versions=(1,), feedback=FEEDBACK) as served:
        loop = Loop(served)
        for _ in range(5):
            loop.ask(200)
            wait_for(loop.labelled, 30)
            loop.ask(100)
            (controller,) = served.running.pids("controller")
            os.kill(controller, signal.SIGKILL)
            loop.ask(100)
        wait_for(loop.labelled, 30)
        count = len(loop.labels)
        # Labels that waited longer than the window for a controller are corrections.
        wait_for(
            lambda: emitted(served.state) >= count and all_closed(served.state), 60
        )
        assert served.running.stop() == 0
        assert loop.joined() == loop.labels
    with capsys.disabled():
        show(f"F12: 5 kills of the controller, {count} predictions joined once each")

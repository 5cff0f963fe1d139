"""Labels by clients' own request ids, through a real gateway whose controller dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.outcomes_client import OutcomesClient
from gateway.protocol import inference_pb2 as pb
from gateway.protocol import outcomes_pb2
from tests.adversity.harness import show, total
from tests.adversity.test_ground_truth import FEEDBACK, Loop
from tests.feedback.logged import all_closed
from tests.gateway_process import SERVICE, wait_for
from tests.traffic.served import MODEL, Served, serving
from tests.versions import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class ByRequestId(Loop):
    """A client that labels what it asked by its own ids of the requests."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._waiting: dict[str, bytes] = {}

    def ask(self, count: int) -> None:
        rpc = self.served.running.channel.unary_unary(
            SERVICE + "ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        calls = {}
        for _ in range(count):
            request = ask(MODEL)
            request.id = f"order/{uuid4()}"
            calls[request.id] = rpc.future(request, timeout=30)
        for said, call in calls.items():
            name = call.result().parameters["prediction_id"].string_param
            self._waiting[said] = bytes.fromhex(name.replace("-", ""))

    def label(self) -> None:
        values, events = {}, []
        for said, key in self._waiting.items():
            values[key] = float(len(self.labels) + len(values))
            event = outcomes_pb2.LabelEvent(id=said, source="test", time_ms=1)
            event.data.model, event.data.request_id = MODEL, said
            event.data.number = values[key]
            events.append(event)
        with OutcomesClient(f"unix:{self.served.state}/outcomes.sock") as client:
            answer = client.report(events)
        assert answer.taken == len(events)
        self.labels |= values
        self._waiting.clear()


def test_a_killed_controller_loses_no_label_by_request_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feedback = {**FEEDBACK, "by_request_id": True}
    with serving(
        tmp_path, versions=(1,), feedback=feedback, grpc={"fronts": 2}
    ) as served:
        loop = ByRequestId(served)
        for _ in range(5):
            loop.ask(200)
            wait_for(loop.labelled, 30)
            loop.ask(100)
            (controller,) = served.running.pids("controller")
            os.kill(controller, signal.SIGKILL)
            loop.ask(100)
        wait_for(loop.labelled, 30)
        count = len(loop.labels)
        wait_for(
            lambda: (
                total(served.running, "baton_join_events_total", outcome="applied")
                == count
            ),
            60,
        )
        wait_for(lambda: all_closed(served.state), 60)
        assert served.running.stop() == 0
        assert loop.joined() == loop.labels
    with capsys.disabled():
        show(f"F12: 5 kills, {count} labels by request id joined once each")

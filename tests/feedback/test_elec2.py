"""Real data through the whole loop: Elec2, streamed, labelled late and out of order.

45,312 half hours of the electricity market of New South Wales, in order, with whether
the price went up (M. Harries, 1999; the normalised form that stream learners use).
"""

from __future__ import annotations

import csv
import gzip
import os
import random
import signal
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import numpy as np
import pytest
from onnx import helper
from onnx.numpy_helper import from_array

from gateway.client_rpc import ClientError
from gateway.feedback.columns import decode
from gateway.feedback.log import DEAD_LETTERS, PREDICTIONS, Place
from gateway.feedback.log_file import LogFile
from gateway.feedback.shard import Shard
from gateway.feedback_config import FeedbackConfig
from gateway.outcomes_client import OutcomesClient
from gateway.protocol import inference_pb2 as pb
from gateway.protocol import outcomes_pb2
from tests.feedback.logged import emitted
from tests.gateway_process import SERVICE, wait_for
from tests.onnx_models import FLOAT, build, info
from tests.traffic.served import MODEL, Served, serving

FEATURES = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
PARTITIONS = 3
WINDOW_S = 15
FEEDBACK = {
    "enabled": True,
    "partitions": PARTITIONS,
    "default": {
        "labels": {"up": {"type": "bool"}},
        "window_s": WINDOW_S,
        "lateness_s": 3600,
        "cohort_s": 1,
    },
}
SENT_AT_ONCE = 1500


class Answer(NamedTuple):
    """What the client was told."""

    name: str
    version: int
    score: float


def linear(weights: np.ndarray) -> bytes:
    """``x`` FLOAT [N, 6] to ``y`` FLOAT [N, 1]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["y"]),
    ]
    constants = [
        from_array(weights[:-1, None].astype(np.float32), "w"),
        from_array(weights[-1:].astype(np.float32), "b"),
    ]
    shape = ["N", len(FEATURES)]
    return build(
        nodes, [info("x", FLOAT, shape)], [info("y", FLOAT, ["N", 1])], constants
    )


def elec2() -> tuple[np.ndarray, list[bool]]:
    """Return features, float32 of shape (45312, 6), and whether the price went up."""
    path = Path(__file__).parents[1] / "data" / "elec.csv.gz"
    with gzip.open(path, "rt", encoding="ascii") as file:
        rows = list(csv.DictReader(file))
    features = [[float(row[name]) for name in FEATURES] for row in rows]
    return np.array(features, np.float32), [row["class"] == "1" for row in rows]


def answers(served: Served, rows: np.ndarray) -> Iterator[Answer]:
    """Stream one request a row; yield what comes back, in order."""
    rpc = served.running.channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    window = threading.Semaphore(2000)

    def requests() -> Iterator[pb.ModelInferRequest]:
        for number, row in enumerate(rows):
            window.acquire()
            request = pb.ModelInferRequest(model_name=MODEL)
            request.parameters["unit"].string_param = str(number)
            request.inputs.add(name="x", datatype="FP32", shape=[1, len(FEATURES)])
            request.raw_input_contents.append(row.tobytes())
            yield request

    for response in rpc(requests(), timeout=120):
        window.release()
        assert not response.error_message
        found = response.infer_response
        (score,) = struct.unpack("<f", found.raw_output_contents[0])
        name = found.parameters["prediction_id"].string_param
        yield Answer(name, int(found.model_version), score)


def label(number: int, name: str, up: bool, seq: int = 0) -> outcomes_pb2.LabelEvent:
    event = outcomes_pb2.LabelEvent(id=f"{number}-{seq}", source="market", time_ms=1)
    event.data.prediction_id = name
    event.data.label_name = "up"
    event.data.truth = up
    event.data.seq = seq
    return event


def send(served: Served, labels: list[outcomes_pb2.LabelEvent]) -> None:
    """Send labels, again for as long as nobody takes them."""

    def taken() -> bool:
        try:
            with OutcomesClient(f"unix:{served.state}/outcomes.sock") as client:
                answer = client.report(labels)
        except ClientError:
            return False
        assert (answer.taken, answer.refused) == (len(labels), 0)
        return True

    wait_for(taken, 60)


def joined(served: Served) -> dict[tuple[int, int], Counter[bool]]:
    """Return what the rows that were emitted add up to, of a stopped gateway."""
    found: dict[tuple[int, int], Counter[bool]] = {}
    for partition in range(PARTITIONS):
        path = served.state / "joins" / f"{partition}.sqlite"
        shard = Shard(path, partition, FeedbackConfig.model_validate(FEEDBACK))
        for _, row in shard.outcomes(most=1_000_000):
            ((name, up),) = row.labels
            assert (row.status, name, row.row) == ("labelled", "up", 0)
            (score,) = struct.unpack("<f", row.output[0].data)
            group = found.setdefault((row.version, row.cohort_ms), Counter())
            group[(score > 0) == up] += row.sign
        shard.close()
    return found


def cohorts(served: Served) -> dict[str, int]:
    """Return the second in which each prediction was made, as the log has it.

    Whatever the log has twice, because the controller was killed, is the same.
    """
    log = LogFile(served.state / "events" / "log.sqlite", PARTITIONS)
    found = {}
    for partition in range(PARTITIONS):
        assert log.read(Place(DEAD_LETTERS, partition), 0, 1) == []
        for stored in log.read(Place(PREDICTIONS, partition), 0, 1_000_000):
            for one in decode(stored.event.value or b""):
                found[str(UUID(bytes=one.id))] = one.time_ms // 1000 * 1000
    log.close()
    return found


@pytest.mark.timeout(240)
def test_accuracy_is_what_it_is_offline_to_the_last_row(tmp_path: Path) -> None:
    order = random.Random(2)
    features, ups = elec2()
    known = np.c_[features[:2000], np.ones(2000, np.float32)]
    weights = np.linalg.lstsq(known, np.where(ups[:2000], 1.0, -1.0), rcond=None)[0]
    with serving(tmp_path, versions=(), feedback=FEEDBACK) as served:
        for name, factor in (("old", 0.6), ("new", 1.0)):
            served.take_in(name, linear(weights * np.array([*[1.0] * 6, factor])))
        policy = {"kind": "sticky"}
        unit = {"kind": "parameter", "key": "unit"}
        served.set({1: 0.7, 2: 0.3}, policy=policy, unit=unit)
        told: list[Answer] = []
        due: list[tuple[int, outcomes_pb2.LabelEvent]] = []
        late: list[outcomes_pb2.LabelEvent] = []
        for number, answer in enumerate(answers(served, features)):
            told.append(answer)
            up, luck = ups[number], order.random()
            wrong = luck < 0.01  # to be corrected, half of them after the window
            first = label(number, answer.name, up != wrong)
            due.append((number + order.randrange(3000), first))
            if luck > 0.99:
                due.append((number + order.randrange(6000), first))
            if wrong:
                right = label(number, answer.name, up, seq=1)
                if luck < 0.005:
                    late.append(right)
                else:
                    due.append((number + order.randrange(6000), right))
        due.sort(key=lambda entry: entry[0])
        assert len(told) == len(ups) == 45_312
        for start in range(0, len(due), SENT_AT_ONCE):
            send(served, [event for _, event in due[start : start + SENT_AT_ONCE]])
            if start // SENT_AT_ONCE == 15:
                (controller,) = served.running.pids("controller")
                os.kill(controller, signal.SIGKILL)
        wait_for(lambda: emitted(served.state) >= len(ups), 90)
        send(served, late)
        wait_for(lambda: emitted(served.state) >= len(ups) + 2 * len(late), 30)
        assert served.running.stop() == 0
        when = cohorts(served)
        online = joined(served)
    offline: dict[tuple[int, int], Counter[bool]] = {}
    for answer, up in zip(told, ups, strict=True):
        group = offline.setdefault((answer.version, when[answer.name]), Counter())
        group[(answer.score > 0) == up] += 1
    assert len(late) > 100
    assert len(offline) > 4
    assert online == offline

"""``baton log rows`` and ``baton labels show``: what was joined, for people to see."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pyarrow.parquet as pq
import pytest

from gateway.clock import PredictionIds, now_ns
from gateway.commands.log_rows import moment
from gateway.config import GrpcConfig
from gateway.controller import joined
from gateway.controller.seam import Handlers
from gateway.feedback.cloudevents import encode
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.look import Look
from gateway.feedback.partition import partition_of
from gateway.feedback.pending import Held, Pending
from gateway.feedback.types import (
    Event,
    Label,
    LabelKind,
    Outcome,
    Status,
    Stored,
    Tensor,
    Value,
)
from gateway.feedback_config import FeedbackConfig
from gateway.outcomes_client import OutcomesClient
from gateway.protocol import outcomes_pb2 as pb
from gateway.rpc import Methods
from gateway.transport.listener import Listener
from tests.feedback.logged import block
from tests.feedback.services import Gateway
from tests.feedback.test_log_commands import back
from tests.gateway_process import wait_for
from tests.traffic.served import MODEL, serving
from tests.versions import ask

CONFIG = FeedbackConfig.model_validate(
    {
        "partitions": 2,
        "default": {
            "labels": {"label": {"type": "class"}, "paid": {"type": "number"}},
            "window_s": 60,
            "lateness_s": 600,
        },
        "models": {"m2": {"needs_activation": True, "window_s": 60}},
    }
)
NAMES = [name.decode() for name in PredictionIds().mint_all(20)]
CLOSED_MS = 66_000


@pytest.fixture
def joining(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path, CONFIG, joins=True)
    yield made
    made.stop()


def predict(gateway: Gateway, *names: str) -> None:
    for name in names:
        event = Event(b"", block([name.encode()], gateway.now_ms()))
        where = partition_of(name.encode(), 2)
        gateway.run(gateway.log.append(PREDICTIONS, where, [event]))


def tell(gateway: Gateway, of: str, value: Value | None, **more: Any) -> None:
    key = UUID(of).bytes
    kind = LabelKind.VALUE
    label = Label("e1", "shop", key, None, 0, "label", kind, value, 0, 5000, 1.0)
    event = encode(label._replace(**more))
    gateway.run(gateway.log.append(LABELS, partition_of(event.key, 2), [event]))


def rows_of(gateway: Gateway, *words: str) -> list[dict[str, Any]]:
    result = gateway.baton("log", "rows", "--json", *words)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return [json.loads(line) for line in result.stdout.splitlines()]


def look(gateway: Gateway, name: str) -> dict[str, Any]:
    result = gateway.baton("labels", "show", name, "--json")
    if result.exit_code:
        return {}
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def shown(gateway: Gateway, name: str) -> str:
    result = gateway.baton("labels", "show", name)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def emitted(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    """Wait until so many rows are emitted, and return them."""

    def all_of_them() -> list[dict[str, Any]]:
        found = rows_of(gateway, "--limit", "1000")
        return found if len(found) == count else []

    found: list[dict[str, Any]] = wait_for(all_of_them)
    return found


def test_an_open_window_is_shown_as_what_it_is(joining: Gateway) -> None:
    first, other, *_ = NAMES
    predict(joining, first, other)
    tell(joining, first, "up")
    found = wait_for(
        lambda: look(joining, first).get("labels") and look(joining, first)
    )
    partition = partition_of(first.encode(), 2)
    assert (found["prediction_id"], found["partition"]) == (first, partition)
    assert (found["model"], found["rows"], found["closed"]) == ("m", 1, False)
    assert found["closes_ms"] == found["time_ms"] + 60_000
    assert found["forgotten_ms"] == found["time_ms"] + 660_000
    (label,) = found["labels"]
    assert (label["label_name"], label["value"], label["time_ms"]) == (
        *("label", "up"),
        5000,
    )
    (answer,) = found["answers"]
    assert (answer["version"], answer["role"]) == (1, "champion")
    (row,) = found["joined"]
    assert (row["provisional"], row["status"], row["sign"]) == (True, "labelled", 1)
    assert (row["labels"], row["outputs"]) == ({"label": "up"}, {"y": [1.0]})
    assert found["waiting"] == []
    text = shown(joining, first)
    assert "provisional" in text
    assert "window is open until" in text
    assert 'label="up"' in text
    # What is provisional is emitted nowhere.
    assert rows_of(joining, "--limit", "1000") == []
    assert joining.baton("log", "rows").stdout.count("\n") == 1  # the heading
    joining.ahead_ms = CLOSED_MS
    final, missing = emitted(joining, 2)
    if final["id"] != first:
        final, missing = missing, final
    assert (missing["status"], missing["labels"]) == ("missing", {})
    assert missing["label_ms"] is None
    number = final.pop("number")
    assert number >= 1
    assert final == row | {"provisional": False}
    closed = look(joining, first)
    assert closed["closed"]
    assert closed["joined"] == [final]
    assert "its window closed" in shown(joining, first)
    assert "emitted" in shown(joining, first)


def test_corrections_and_what_was_taken_back(joining: Gateway) -> None:
    name = NAMES[0]
    predict(joining, name)
    tell(joining, name, "up")
    joining.ahead_ms = CLOSED_MS
    emitted(joining, 1)
    tell(joining, name, "down", seq=1, event_id="e2")
    rows = emitted(joining, 3)
    assert [(one["sign"], one["labels"]["label"]) for one in rows] == [
        (1, "up"),
        (-1, "up"),
        (1, "down"),
    ]
    assert [one["revision_of_row"] for one in rows] == [0, 0, 1]
    assert [one["number"] for one in rows] == [1, 2, 3]
    tell(joining, name, None, seq=2, event_id="e3", kind=LabelKind.RETRACTED)
    assert emitted(joining, 5)[-1]["status"] == "missing"
    (label,) = look(joining, name)["labels"]
    assert (label["value"], label["seq"]) == (None, 2)
    assert "retracted" in shown(joining, name)
    lines = joining.baton("log", "rows").stdout.splitlines()
    assert [line.split()[6] for line in lines[1:]] == ["+1", "-1", "+1", "-1", "+1"]
    assert all(name in line and "m:1" in line for line in lines[1:])


def test_labels_wait_for_their_prediction_where_all_can_see(joining: Gateway) -> None:
    name = NAMES[0]
    tell(joining, name, "up", seq=3)
    found = wait_for(lambda: look(joining, name))
    assert (found["known"], found["joined"], found["answers"]) == (False, [], [])
    (label,) = found["waiting"]
    assert (label["value"], label["seq"], label["source"]) == ("up", 3, "shop")
    assert label["until_ms"] == label["arrived_ms"] + 600_000
    assert "not here yet" in shown(joining, name)
    predict(joining, name)
    found = wait_for(lambda: look(joining, name)["known"] and look(joining, name))
    assert (found["waiting"], found["joined"][0]["labels"]) == ([], {"label": "up"})


def test_what_is_not_known_has_a_way_out(joining: Gateway, tmp_path: Path) -> None:
    wait_for(lambda: joining.baton("log", "rows").stderr == "")
    result = joining.baton("labels", "show", str(uuid4()), "--json")
    assert result.exit_code == 1
    error = json.loads(result.stderr)
    assert error["code"] == "NOT_FOUND"
    assert "forgotten" in error["error"]
    result = joining.baton("labels", "show", "17")
    assert result.exit_code == 1
    assert "36 characters" in result.stderr
    # And where another controller joins the partition.
    (tmp_path / "other").mkdir()
    idle = Gateway(tmp_path / "other", CONFIG)
    try:
        result = idle.baton("labels", "show", NAMES[0])
        assert result.exit_code == 1
        assert "ask the controller that joins it" in result.stderr
        result = idle.baton("log", "rows", "--json")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "partitions 0, 1 of 2" in result.stderr
    finally:
        idle.stop()


def test_an_activation_is_waited_for(joining: Gateway) -> None:
    """Without one there is nothing to emit, and that is said."""
    name = NAMES[0]
    value = block([name.encode()], joining.now_ms(), model="m2")
    where = partition_of(name.encode(), 2)
    joining.run(joining.log.append(PREDICTIONS, where, [Event(b"", value)]))
    found = wait_for(lambda: look(joining, name))
    assert (found["needs_activation"], found["activated"]) == (True, False)
    assert (found["joined"], len(found["answers"])) == ([], 1)
    assert "nobody acted upon it" in shown(joining, name)
    tell(joining, name, None, kind=LabelKind.ACTIVATION)
    found = wait_for(lambda: look(joining, name)["activated"] and look(joining, name))
    assert len(found["joined"]) == 1


def test_rows_are_chosen_and_counted_from_the_end(joining: Gateway) -> None:
    predict(joining, *NAMES)
    for name in NAMES[:5]:
        tell(joining, name, "up")
    wait_for(lambda: all(look(joining, name).get("labels") for name in NAMES[:5]))
    joining.ahead_ms = CLOSED_MS
    rows = emitted(joining, 20)
    # Newest last: by their predictions, which each partition emitted in order.
    assert [one["time_ms"] for one in rows] == sorted(one["time_ms"] for one in rows)
    assert len(rows_of(joining)) == 10
    assert rows_of(joining, "--limit", "7") == rows[-7:]
    labelled = rows_of(joining, "--status", "labelled", "--limit", "1000")
    assert {one["id"] for one in labelled} == set(NAMES[:5])
    assert rows_of(joining, "--status", "labelled", "--limit", "2") == labelled[-2:]
    assert rows_of(joining, "--status", "default") == []
    assert rows_of(joining, "--model", "m", "--limit", "1000") == rows
    assert rows_of(joining, "--model", "other") == []
    assert rows_of(joining, "--version", "2") == []
    assert rows_of(joining, "--since", "1h") == rows
    since = datetime.fromtimestamp(rows[12]["time_ms"] / 1000, UTC).isoformat()
    late = [one for one in rows if one["time_ms"] >= rows[12]["time_ms"]]
    assert rows_of(joining, "--since", since) == late
    assert rows_of(joining, "--since", since, "--limit", "3") == late[-3:]
    assert rows_of(joining, "--since", "2100-01-01") == []
    for words in (["--format", "jsonl"], ["f", "--follow"], ["--limit", "10001"]):
        assert joining.baton("log", "rows", *words).exit_code == 2


def test_files_have_what_is_printed(joining: Gateway) -> None:
    predict(joining, *NAMES)
    tell(joining, NAMES[0], "up")
    tell(joining, NAMES[0], 2.5, name="paid", event_id="e2")
    wait_for(lambda: len(look(joining, NAMES[0]).get("labels", ())) == 2)
    joining.ahead_ms = CLOSED_MS
    rows = {(one["partition"], one["number"]): one for one in emitted(joining, 20)}
    file = joining.folder / "rows.jsonl"
    result = joining.baton("log", "rows", str(file))
    assert (result.exit_code, result.stdout) == (0, "20 rows\n")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(one["partition"], one["number"]): one for one in found} == rows
    parquet = joining.folder / "rows.parquet"
    result = joining.baton("log", "rows", str(parquet), "--json")
    assert json.loads(result.stdout) == {"rows": 20, "undecodable": 0}
    for row, one in zip(pq.read_table(parquet).to_pylist(), found, strict=True):
        assert joined_back(row) == one
    result = joining.baton("log", "rows", str(file), "--status", "labelled")
    assert result.stdout == "1 rows\n"
    result = joining.baton("log", "rows", str(parquet), "--limit", "3")
    assert result.stdout == "3 rows\n"
    assert pq.read_table(parquet).num_rows == 3
    assert not list(joining.folder.glob("*.part"))
    result = joining.baton("log", "rows", "/no/such/folder/x")
    assert result.exit_code == 1
    assert "/no/such/folder" in result.stderr


def joined_back(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of Parquet as the object that it was made of."""
    cohort, label = row.pop("cohort_ms"), row.pop("label_ms")
    labels, number = row.pop("labels"), row.pop("number")
    found = back(row) | {"number": number}
    found["cohort_ms"] = round(cohort.timestamp() * 1000)
    found["label_ms"] = label and round(label.timestamp() * 1000)
    found["labels"] = {
        one["label_name"]: next(
            value
            for name, value in one.items()
            if name != "label_name" and value is not None
        )
        for one in labels
    }
    return found


def test_rows_are_followed_through_a_restart(tmp_path: Path) -> None:
    made = Gateway(tmp_path, CONFIG, joins=True)
    command = [sys.executable, "-m", "gateway", "log", "rows", "--json", "--follow"]
    env = os.environ | {"BATON_OUTCOMES_ADDRESS": f"unix:{tmp_path}/outcomes.sock"}
    made.ahead_ms = CLOSED_MS
    predict_then(made, NAMES[0])
    emitted(made, 1)
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as rows:
        assert rows.stdout is not None
        assert rows.stderr is not None
        try:
            assert json.loads(rows.stdout.readline())["id"] == NAMES[0]
            predict_then(made, NAMES[1])
            assert json.loads(rows.stdout.readline())["id"] == NAMES[1]
            made.stop()
            assert "going on" in rows.stderr.readline()
            made = Gateway(tmp_path, CONFIG, joins=True)
            made.ahead_ms = CLOSED_MS
            predict_then(made, NAMES[2])
            assert json.loads(rows.stdout.readline())["id"] == NAMES[2]
            rows.send_signal(signal.SIGINT)
            assert rows.wait(20) == 0
        finally:
            rows.kill()
            made.stop()


def predict_then(gateway: Gateway, name: str) -> None:
    """Append a prediction by the log's own clock, which is behind the joiner's."""
    ahead_ms, gateway.ahead_ms = gateway.ahead_ms, 0
    predict(gateway, name)
    gateway.ahead_ms = ahead_ms


def test_moments_beyond_the_calendar_are_numbers() -> None:
    assert moment(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"
    assert moment((1 << 63) - 1) == "9223372036854775807 ms"


def outcome(number: int, nbytes: int) -> Outcome:
    output = (Tensor("y", "UINT8", (nbytes,), bytes(nbytes)),)
    return Outcome(
        number.to_bytes(16), 0, "m", 1, "champion", "fixed", 1.0, 1, 0, "", -1, (), 0,
        0, output, (), None, Status.MISSING, 1.0, 1, 0, provisional=False,
    )  # fmt: skip


def test_large_rows_come_in_messages_that_any_client_takes() -> None:
    rows = [(n, outcome(n, 250_000)) for n in range(1, 40)]
    rows.append((40, outcome(40, joined.ANSWER_BYTES + 1)))
    answers = list(joined._answers(3, rows, 41))
    assert [row.number for answer in answers for row in answer.rows] == [*range(1, 41)]
    assert all(answer.ByteSize() < 4 << 20 for answer in answers)
    assert [answer.next for answer in answers[:-1]] == [
        answer.rows[0].number for answer in answers[1:]
    ]
    assert answers[-1].next == 41


def test_of_a_prediction_as_much_is_said_as_there_is_room_for() -> None:
    held = Held(
        Stored(LABELS, 0, 1, 2, Event(b"k", b"v")),
        Label("e", "s", bytes(16), None, 0, "label", LabelKind.VALUE, "up", 0, 0, 1.0),
    )
    many = Look(None, 0, 0, False, (), [(held, 3)] * 1005)
    answer = joined._looked(0, many)
    assert (len(answer.waiting), answer.left_out) == (1000, 5)
    rows = [outcome(n, 1 << 20) for n in range(5)]
    pending = Pending("m", 1, 5, 2)
    answer = joined._looked(0, Look(pending, 3, 4, False, rows, [(held, 3)]))
    assert (len(answer.joined), len(answer.waiting), answer.left_out) == (2, 1, 3)
    assert answer.ByteSize() < 4 << 20


async def test_who_does_not_read_is_not_read_ahead_for(tmp_path: Path) -> None:
    made, ended = 0, asyncio.Event()

    async def rows(_: pb.RowsRequest) -> AsyncIterator[pb.RowsResponse]:
        nonlocal made
        try:
            while True:
                made += 1
                yield pb.RowsResponse(rows=[pb.JoinedRow(unit="x" * 1_000_000)])
        finally:
            ended.set()

    path = "/baton.v1.EventLog/Rows"
    methods = Methods(
        unary={}, streams={path: Handlers().streaming(pb.RowsRequest, rows)}
    )
    listener = Listener(methods, GrpcConfig(), now_ns)
    await listener.start_unix(tmp_path / "s", private=True)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        method = channel.unary_stream(
            path,
            request_serializer=pb.RowsRequest.SerializeToString,
            response_deserializer=pb.RowsResponse.FromString,
        )
        call = method(pb.RowsRequest())
        await call.read()
        before = -1
        while before < made:  # until it comes to rest
            before = made
            await asyncio.sleep(0.2)
        assert made < 40  # what fits into the client's windows
        for _ in range(60):
            await call.read()
        assert made > 60
        call.cancel()
        async with asyncio.timeout(10):
            await ended.wait()
    await listener.stop(1)


def test_what_nobody_can_mean_is_refused(joining: Gateway) -> None:
    wait_for(lambda: joining.baton("log", "rows").stderr == "")
    with OutcomesClient(f"unix:{joining.folder}/outcomes.sock") as client:
        for request, said in (
            (pb.RowsRequest(partition=2), "partition"),
            (pb.RowsRequest(last=10_001), "last"),
            (pb.RowsRequest(status="new"), "labelled"),
        ):
            with pytest.raises(Exception, match=said):
                list(client.rows(request))


def test_a_gateway_s_rows_are_seen(tmp_path: Path) -> None:
    """The whole way: a front's answer, a label, and what became of them."""
    join = {"window_s": 2, "lateness_s": 600, "labels": {"label": {"type": "class"}}}
    feedback = {"enabled": True, "partitions": 3, "default": join}
    with serving(tmp_path, versions=(1, 2), feedback=feedback) as served:
        served.set({1: 0.5, 2: 0.5})
        told = served.streamed([ask(MODEL, unit="u") for _ in range(20)])
        env = os.environ | {
            "BATON_OUTCOMES_ADDRESS": f"unix:{served.state}/outcomes.sock"
        }

        def baton(*words: str) -> str:
            command = [sys.executable, "-m", "gateway", *words]
            return subprocess.run(
                command, env=env, check=True, capture_output=True, text=True
            ).stdout

        def seen() -> list[dict[str, Any]]:
            lines = baton("log", "rows", "--json", "--limit", "100").splitlines()
            return [json.loads(line) for line in lines] if len(lines) == 20 else []

        rows = wait_for(seen, 30)
        assert sorted(one["outputs"]["y"][0] for one in rows) == sorted(told)
        assert {one["status"] for one in rows} == {"missing"}
        name = rows[0]["id"]
        baton("labels", "send", "--prediction-id", name, "--value", "up")

        def corrected() -> Any:
            found = json.loads(baton("labels", "show", name, "--json"))
            return found["labels"] and found

        found = wait_for(corrected)
        assert (found["closed"], found["joined"][0]["status"]) == (True, "labelled")
        assert found["joined"][0]["provisional"] is False

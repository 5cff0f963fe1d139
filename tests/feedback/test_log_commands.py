"""``baton log``: what was answered, labelled and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pyarrow.parquet as pq
import pytest

from featurizer.encode import encode_array
from gateway.commands import log_files
from gateway.commands.log_objects import line, objects
from gateway.feedback.block_writer import encode
from gateway.feedback.blocks import Answer, TensorLayout
from gateway.feedback.cloudevents import encode as encode_label
from gateway.feedback.letters import encode_letter
from gateway.feedback.log import DEAD_LETTERS, LABELS, PREDICTIONS
from gateway.feedback.types import (
    DeadLetter,
    Event,
    Label,
    LabelKind,
    Reason,
    Stored,
    Value,
)
from tests.feedback.services import Gateway, exported
from tests.feedback.test_blocks import Chosen
from tests.gateway_process import wait_for
from tests.traffic.served import MODEL, serving
from tests.versions import ask

CHOICE = Chosen(7, "challenger", 0.25, "thompson", 3, 4)
ARRAYS = {
    "FP32": np.array([[0.1], [np.nan]], np.float32),
    "FP64": np.array([[0.1], [-np.inf]], np.float64),
    "FP16": np.array([[0.5], [1]], np.float16),
    "BF16": np.array([[0x3F80], [0xBF80]], np.uint16),  # 1 and -1
    "INT64": np.array([[-(2**63)], [2**53 + 1]], np.int64),
    "UINT64": np.array([[0], [2**64 - 1]], np.uint64),
    "BOOL": np.array([[True], [False]]),
    "BYTES": np.array([["up"], ["ü"]], object),
}
AS_JSON: dict[str, list[list[Any]]] = {
    "FP32": [[0.1], ["NaN"]],
    "FP64": [[0.1], ["-Infinity"]],
    "FP16": [[0.5], [1.0]],
    "BF16": [[1.0], [-1.0]],
    "INT64": [[-(2**63)], [2**53 + 1]],
    "UINT64": [[0], [2**64 - 1]],
    "BOOL": [[True], [False]],
    "BYTES": [["up"], ["ü"]],
}


def block(
    *names: str, outputs: dict[str, bytes] | None = None, width: int = 1
) -> Event:
    """Return an event with predictions of two rows, whose outputs are `ARRAYS`."""
    if outputs is None:
        outputs = {name: encode_array(one, name) for name, one in ARRAYS.items()}
    layout = tuple(TensorLayout(name, name, (width,)) for name in outputs)
    answers = [
        Answer(
            name=name.encode(),
            model="m",
            admitted_ns=(1_000 + n) * 1_000_000,
            latency_us=1500,
            rows=2,
            choice=CHOICE,
            context=("u1", 17, ("eu", "")),
            layout=layout,
            outputs=list(outputs.values()),
            request_id=b"r1",
        )
        for n, name in enumerate(names)
    ]
    return Event(b"", encode(answers))


def label(value: Value = "up", name: str = "") -> Event:
    """Return a label."""
    id_ = UUID(name).bytes if name else bytes(16)
    kind = LabelKind.VALUE
    return encode_label(Label("e", "s", id_, None, 1, "label", kind, value, 2, 5, 0.5))


def said(topic: str, event: Event) -> list[dict[str, Any]]:
    """Return the objects of an event, as JSON has them."""
    stored = Stored(topic, 1, 2, 3, event)
    return [json.loads(line(thing)) for thing in objects(stored)]


def test_a_prediction_says_what_was_answered_and_why() -> None:
    first, second = str(uuid4()), str(uuid4())
    found, other = said(PREDICTIONS, block(first, second))
    assert found == {
        "partition": 1,
        "offset": 2,
        "arrived_ms": 3,
        "id": first,
        "time_ms": 1000,
        "model": "m",
        "version": 7,
        "role": "challenger",
        "policy": "thompson",
        "propensity": 0.25,
        "revision": 3,
        "snapshot": 4,
        "unit": "u1",
        "bucket": 17,
        "segments": ["eu", ""],
        "rows": 2,
        "outputs": AS_JSON,
        "latency_us": 1500,
        "request_id": "r1",
    }
    assert (other["id"], other["time_ms"]) == (second, 1001)


def test_outputs_that_are_not_there_or_do_not_fit() -> None:
    (found,) = said(PREDICTIONS, block(str(uuid4()), outputs={"FP32": b""}))
    assert found["outputs"] == {"FP32": None}
    assert "error" not in found
    for broken in ({"FP32": b"12345678x"}, {"FP99": b"1234"}, {"BYTES": b"\xff" * 8}):
        (found,) = said(PREDICTIONS, block(str(uuid4()), outputs=broken))
        assert "outputs" not in found
        assert "bytes of" in found["error"] or "is of FP99" in found["error"]
        assert found["event"]


@pytest.mark.parametrize(
    ("topic", "event", "error"),
    [
        (PREDICTIONS, Event(b"", b"\xff\xff"), "no block"),
        (PREDICTIONS, Event(b"k", b"text", (("h", b"\xff"),)), "no block"),
        (LABELS, Event(b"k", None), "36 characters"),
        (LABELS, Event(b"\xff", b"{}"), "specversion"),
        (LABELS, Event(b"k", b"[" * 100_000, label().headers), "cannot be read"),
        (DEAD_LETTERS, Event(b"k", b"x"), "baton_"),
    ],
)
def test_what_cannot_be_decoded_is_shown_as_it_is(
    topic: str, event: Event, error: str
) -> None:
    (found,) = said(topic, event)
    assert error in found["error"]
    value = event.value
    if value is None:
        assert found["event"]["value"] is None
    else:
        shown = found["event"]
        assert value in (shown.get("value", "").encode(), bytes.fromhex(_hex(shown)))
    assert set(found) == {"partition", "offset", "arrived_ms", "error", "event"}


def _hex(shown: dict[str, Any]) -> str:
    text: str = shown.get("value_hex", "")
    return text


def test_a_dead_letter_says_what_it_was_and_why() -> None:
    was = Stored(LABELS, 3, 44, 5, label("up"))
    letter = encode_letter(DeadLetter(was, Reason.LATE, "too late", 5, 1))
    (found,) = said(DEAD_LETTERS, letter)
    assert (found["reason"], found["detail"]) == ("late", "too late")
    assert found["origin"] == {"topic": LABELS, "partition": 3, "offset": 44}
    assert (found["label"]["value"], found["label"]["row"]) == ("up", 1)
    broken = was._replace(event=Event(b"k", b"x"))
    letter = encode_letter(DeadLetter(broken, Reason.UNREADABLE, "", 5, 1))
    assert said(DEAD_LETTERS, letter)[0]["event"]["value"] == "x"


def test_tail_shows_the_last_and_what_came_since(gateway: Gateway) -> None:
    names = [str(uuid4()) for _ in range(60)]
    append = gateway.log.append
    for n in range(0, 60, 3):
        gateway.run(append(PREDICTIONS, n % 2, [block(*names[n : n + 3])]))

    def tail(*words: str) -> list[dict[str, Any]]:
        result = gateway.baton("log", "tail", "predictions", *words)
        assert result.exit_code == 0, result.stderr
        return [json.loads(text) for text in result.stdout.splitlines()]

    assert [one["id"] for one in tail("--limit", "4")][-3:] == names[-3:]
    assert len(tail()) == 10
    ones = tail("--partition", "1", "--limit", "1000")
    assert {one["id"] for one in ones} == {
        name for n, name in enumerate(names) if n // 3 % 2
    }
    ones = tail("--partition", "1", "--from-offset", "8")
    assert [one["offset"] for one in ones] == [8] * 3 + [9] * 3
    assert len(tail("--partition", "1", "--from-offset", "8", "--limit", "2")) == 2
    assert tail("--partition", "1", "--from-offset", "99") == []
    assert len(tail("--since", "1h")) == 60
    assert tail("--since", "1h", "--limit", "5") == tail("--limit", "5")
    assert tail("--since", "2100-01-01T00:00:00Z") == []
    time_ms = max(one["arrived_ms"] for one in tail("--since", "1h"))
    moment = np.datetime64(time_ms, "ms").item().isoformat() + "+00:00"
    since = tail("--since", moment)
    assert since == [one for one in tail("--since", "1h") if one in since]
    assert {one["arrived_ms"] for one in since} == {time_ms}
    page = ["--partition", "1", "--from-offset", "1", "--limit", "1", "--follow"]
    for words in (["--from-offset", "1"], ["--since", "soon"], page):
        assert gateway.baton("log", "tail", "labels", *words).exit_code == 2
    result = gateway.baton("log", "tail", "labels", "--partition", "2")
    assert result.exit_code == 1
    assert "0 to 1" in result.stderr


def test_parquet_has_what_json_has(gateway: Gateway) -> None:
    names = [str(uuid4()) for _ in range(4)]
    bad = Event(b"", b"\xff")
    gateway.run(gateway.log.append(PREDICTIONS, 0, [block(*names[:3]), bad]))
    gateway.run(gateway.log.append(PREDICTIONS, 1, [block(names[3])]))
    values: list[Value] = ["up", 2.0, True, (1.0, 2.0)]
    events = [label(value, names[0]) for value in values]
    gateway.run(gateway.log.append(LABELS, 0, events))
    was = Stored(LABELS, 0, 0, 5, events[1])
    letter = encode_letter(DeadLetter(was, Reason.LATE, "late", 5, 1))
    gateway.run(gateway.log.append(DEAD_LETTERS, 0, [letter]))
    file = gateway.folder / "out.parquet"
    for topic in (PREDICTIONS, LABELS, DEAD_LETTERS):
        result = gateway.baton("log", "export", topic, str(file), "--json")
        assert result.exit_code == 0, result.stderr
        rows = pq.read_table(file).to_pylist()
        things = exported(gateway, topic)
        undecodable = sum("error" in thing for thing in things)
        assert json.loads(result.stdout) == {
            "rows": len(things),
            "undecodable": undecodable,
        }
        for row, thing in zip(rows, things, strict=True):
            assert back(row) == thing
    assert not list(gateway.folder.glob("*.part"))


def back(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of Parquet as the object that it was made of."""
    out = {name: value for name, value in row.items() if value is not None}
    for name in ("arrived_ms", "time_ms"):
        if name in out:
            out[name] = round(out[name].timestamp() * 1000)
    for name in ("number", "truth", "text", "vector"):
        if name in out:
            out["value"] = out.pop(name)
    if "outputs" in out:
        out["outputs"] = {
            one["name"]: cells(one).reshape(one["shape"]).tolist()
            for one in out["outputs"]
        }
    if "label" in out:
        out["label"] = back(out["label"])
    if "event" in out:
        out["event"] = json.loads(out["event"])
    return out


def cells(output: dict[str, Any]) -> np.ndarray:
    """Return the values of an output, as JSON has them."""
    (values,) = [output[n] for n in ("integers", "numbers", "texts") if output[n]]
    of = {"UINT64": int, "BOOL": bool, "FP32": lambda x: float(str(np.float32(x)))}
    plain = [of.get(output["datatype"], lambda x: x)(value) for value in values]
    out = np.empty(len(plain), object)
    for n, value in enumerate(plain):
        number = isinstance(value, float) and not np.isfinite(value)
        out[n] = ("NaN" if np.isnan(value) else "-Infinity") if number else value
    return out


def test_parquet_holds_one_row_group_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "_GROUP_BYTES", 100_000)
    monkeypatch.setattr(log_files, "_GROUP_ROWS", 50)
    large = {"FP32": np.zeros(20_000, np.float32).tobytes()}
    few = block(*(str(uuid4()) for _ in range(3)), outputs=large, width=10_000)
    many = block(*(str(uuid4()) for _ in range(120)), outputs={})
    with log_files.writer(tmp_path / "f", "parquet", PREDICTIONS) as write:
        for event in (many, few, many):
            write(Stored(PREDICTIONS, 0, 0, 0, event))
    groups = pq.ParquetFile(tmp_path / "f").metadata
    rows = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert sum(rows) == 243
    assert max(rows) <= 50


def test_without_pyarrow_the_way_out_is_said(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file = gateway.folder / "out.parquet"
    file.write_text("as it was")
    result = gateway.baton("log", "export", "labels", str(file))
    assert result.exit_code == 1
    assert "[parquet]" in result.stderr
    assert "jsonl" in result.stderr
    assert file.read_text() == "as it was"
    result = gateway.baton("log", "export", "labels", str(file), "--format", "jsonl")
    assert result.exit_code == 0
    result = gateway.baton("log", "export", "labels", "/no/such/folder/x")
    assert result.exit_code == 1
    assert "/no/such/folder" in result.stderr


def test_tail_follows_what_comes_through_a_restart(tmp_path: Path) -> None:
    made = Gateway(tmp_path)
    command = [sys.executable, "-m", "gateway", "log", "tail", "labels", "--follow"]
    env = os.environ | {"BATON_OUTCOMES_ADDRESS": f"unix:{tmp_path}/outcomes.sock"}
    made.run(made.log.append(LABELS, 0, [label(0.0)]))
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        try:
            assert json.loads(tail.stdout.readline())["value"] == 0
            made.run(made.log.append(LABELS, 1, [label(1.0)]))
            assert json.loads(tail.stdout.readline())["value"] == 1
            made.stop()
            assert "going on" in tail.stderr.readline()
            made = Gateway(tmp_path)
            made.run(made.log.append(LABELS, 1, [label(2.0), Event(b"k", b"x")]))
            assert json.loads(tail.stdout.readline())["value"] == 2
            assert "error" in json.loads(tail.stdout.readline())
            tail.send_signal(signal.SIGINT)
            assert tail.wait(20) == 0
            assert tail.stderr.read() == ""
        finally:
            tail.kill()
            made.stop()


def test_tail_goes_on_from_the_last_that_it_showed(gateway: Gateway) -> None:
    """With --since and --limit: what lies between was once left out."""
    gateway.run(gateway.log.append(LABELS, 0, [label(float(n)) for n in range(30)]))
    address = f"unix:{gateway.folder}/outcomes.sock"
    command = [sys.executable, "-m", "gateway", "log", "tail", "labels", "--follow"]
    with subprocess.Popen(
        [*command, "--since", "1h", "--limit", "3", "--outcomes", address],
        stdout=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        try:
            first = [json.loads(tail.stdout.readline())["value"] for _ in range(3)]
            gateway.run(gateway.log.append(LABELS, 0, [label(30.0)]))
            assert [*first, json.loads(tail.stdout.readline())["value"]] == [
                *(27, 28, 29, 30)
            ]
        finally:
            tail.kill()


def test_a_gateway_s_answers_are_in_its_log(tmp_path: Path) -> None:
    feedback = {"enabled": True, "partitions": 3}
    with serving(tmp_path, versions=(1, 2), feedback=feedback) as served:
        served.set({1: 0.5, 2: 0.5})
        told = served.streamed([ask(MODEL, unit="u") for _ in range(50)])
        out = tmp_path / "out.jsonl"

        def baton(*words: str) -> str:
            env = os.environ | {
                "BATON_OUTCOMES_ADDRESS": f"unix:{served.state}/outcomes.sock"
            }
            command = [sys.executable, "-m", "gateway", *words]
            return subprocess.run(
                command, env=env, check=True, capture_output=True, text=True
            ).stdout

        def logged() -> list[dict[str, Any]]:
            baton("log", "export", "predictions", str(out))
            found = [json.loads(text) for text in out.read_text().splitlines()]
            return found if len(found) == 50 else []

        found = wait_for(logged)
        assert sorted(one["outputs"]["y"][0][0] for one in found) == sorted(told)
        for one in found:
            assert one["outputs"]["y"] == [[float(one["version"])]]
            assert (one["model"], one["propensity"]) == (MODEL, 0.5)
            assert abs(one["time_ms"] - one["arrived_ms"]) < 60_000
        lines = [
            json.dumps({"prediction_id": one["id"], "value": "up"}) for one in found
        ]
        out.write_text("\n".join(lines))
        assert baton("labels", "send", str(out)) == "50 labels taken, 0 refused\n"
        sent = baton("log", "tail", "labels", "--limit", "100").splitlines()
        labelled = {json.loads(text)["prediction_id"] for text in sent}
        assert labelled == {one["id"] for one in found}

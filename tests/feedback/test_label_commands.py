"""``baton labels`` and ``baton log`` against the services, on the embedded log."""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.controller.outcomes import SOCKET
from gateway.feedback.cloudevents import encode
from gateway.feedback.letters import encode_letter
from gateway.feedback.log import DEAD_LETTERS
from gateway.feedback.types import DeadLetter, Event, Label, LabelKind, Reason, Stored
from tests.feedback.services import Gateway, exported


def test_labels_are_sent_and_read_back(gateway: Gateway) -> None:
    values = ["up", 2, True, [1, 2.5]]
    lines = [{"prediction_id": str(uuid4()), "value": value} for value in values]
    lines.append({"prediction_id": str(uuid4()), "kind": "activation"})
    text = "\n".join(json.dumps(line) for line in lines)
    result = gateway.baton("labels", "send", "-", "--json", given=text)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"taken": 5, "refused": 0, "refusals": []}
    found = {one["prediction_id"]: one for one in exported(gateway, "labels")}
    for line in lines:
        one = found[line["prediction_id"]]
        assert one.get("value") == line.get("value")
        assert one["kind"] == line.get("kind", "value")
        assert one["source"] == "baton labels send"
    again = gateway.baton("labels", "send", "-", given=text)
    assert again.stdout == "5 labels taken, 0 refused\n"
    ids = {one["id"] for one in exported(gateway, "labels")}
    assert len(ids) == 5  # so the second time counts for nothing


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--value", "up"], "up"),
        (["--value", "2"], "2"),
        (["--number", "2"], 2.0),
        (["--false"], False),
        (["--vector", "1, 2.5"], [1.0, 2.5]),
        (["--kind", "retracted"], None),
    ],
)
def test_one_label_is_sent_by_options(
    gateway: Gateway, words: list[str], value: object
) -> None:
    prediction_id = str(uuid4())
    more = "--label-name price --row 3 --seq 4 --weight 0.5 --time-ms 77 --id e1"
    named = ["--prediction-id", prediction_id, "--source", "shop", *more.split()]
    result = gateway.baton("labels", "send", *named, *words)
    assert (result.exit_code, result.stdout) == (0, "1 labels taken, 0 refused\n")
    (found,) = exported(gateway, "labels")
    assert found.pop("value", None) == value
    for name in ("partition", "offset", "arrived_ms", "kind"):
        del found[name]
    assert found == {
        "id": "e1",
        "source": "shop",
        "prediction_id": prediction_id,
        "row": 3,
        "label_name": "price",
        "seq": 4,
        "weight": 0.5,
        "time_ms": 77,
    }


def test_a_table_is_sent(gateway: Gateway) -> None:
    ids = [str(uuid4()) for _ in range(5)]
    rows = [
        "prediction_id,value,number,truth,vector,row",
        f"{ids[0]},1,,,,",
        f'{ids[1]},"a\nb",,,,2',
        f"{ids[2]},,1,,,x",
        f"{ids[3]},,,True,,",
        f"{ids[4]},,,,1 2,",
        "short,row",
    ]
    file = gateway.folder / "labels.csv"
    file.write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    result = gateway.baton("labels", "send", str(file), "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert (said["taken"], said["refused"]) == (4, 2)
    assert [one["line"] for one in said["refusals"]] == [5, 8]  # one row has two lines
    found = {one["prediction_id"]: one for one in exported(gateway, "labels")}
    values = [found[one]["value"] for one in ids if one in found]
    assert values == ["1", "a\nb", True, [1.0, 2.0]]
    assert found[ids[1]]["row"] == 2
    again = gateway.baton(
        *("labels", "send", "-", "--format", "csv"), given="id,colour\n1,2\n"
    )
    assert again.exit_code == 1
    assert "colour" in again.stderr
    assert "prediction_id" in again.stderr


def test_long_files_are_sent_in_parts_and_refusals_keep_their_lines(
    gateway: Gateway,
) -> None:
    """More than one stream takes, with lines that are empty, broken, and refused."""
    lines: list[str] = []
    wrong: list[int] = []
    for n in range(20_000):
        lines.append(json.dumps({"prediction_id": str(uuid4()), "value": n}))
        if n % 1000 == 7:
            lines += ["", '{"prediction_id": "x", "value": 1}', "{"]
            wrong += [len(lines) - 1, len(lines)]
    file = gateway.folder / "labels.jsonl"
    file.write_text("\n".join(lines))
    result = gateway.baton("labels", "send", str(file))
    assert result.exit_code == 1
    assert result.stdout == "20000 labels taken, 40 refused\n"
    named = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert named == [f"line {number}" for number in wrong]
    assert sum(end for _, end in extents(gateway, "labels")) == 20_000


def extents(gateway: Gateway, topic: str) -> list[tuple[int, int]]:
    """Return what the log holds."""
    return [gateway.run(gateway.log.extent(topic, n)) for n in range(2)]


def test_a_file_is_of_the_time_when_it_was_changed(gateway: Gateway) -> None:
    """Sent again after a correction, it does not undo that."""
    file = gateway.folder / "labels.jsonl"
    file.write_text(json.dumps({"prediction_id": str(uuid4()), "value": "up"}))
    os.utime(file, ns=(1_700_000_000_123_456_789,) * 2)
    for _ in range(2):
        assert gateway.baton("labels", "send", str(file)).exit_code == 0
    first, again = exported(gateway, "labels")
    assert first["time_ms"] == 1_700_000_000_123
    assert {**again, "offset": 0, "arrived_ms": 0} == {
        **first, "offset": 0, "arrived_ms": 0
    }  # fmt: skip


def test_what_is_refused_is_said_by_line(gateway: Gateway) -> None:
    text = '\n{"prediction_id": "x", "value": 1}\n'
    result = gateway.baton("labels", "send", "-", given=text)
    assert result.exit_code == 1
    assert "line 2: invalid: prediction_id" in result.stderr
    for bad in (
        "{",
        "[]",
        '{"colour": 1}',
        '{"kind": "x"}',
        '{"kind": 1}',
        '{"value": %s}' % ("9" * 400),
        '{"time_ms": 1e9}',
        '{"vector": ["a"]}',
        "[" * 100_000,
        '{"request_id": "r", "model": "m", "value": 1}',
    ):
        good = json.dumps({"prediction_id": str(uuid4()), "value": 1})
        result = gateway.baton("labels", "send", "-", given=f"{bad}\n{good}\n")
        assert result.exit_code == 1, bad
        assert result.stdout == "1 labels taken, 1 refused\n"
        assert "line 1: invalid: " in result.stderr
    for words in ([], ["f.jsonl", "--value", "up"], ["--vector", "a"]):
        result = gateway.baton("labels", "send", *words)
        assert result.exit_code == 2
    result = gateway.baton("labels", "send", "/no/such/file")
    assert result.exit_code == 1
    assert "/no/such/file" in result.stderr


def test_labels_may_name_the_clients_own_request_id(gateway: Gateway) -> None:
    refused = gateway.baton(
        "labels", "send", "--request-id", "a", "--model", "m", "--number", "1"
    )
    assert refused.exit_code == 1
    assert "by_request_id is off" in refused.stderr
    gateway.configure(by_request_id=True)
    given = 'request_id,model,number\na,m,1\n"b/c",m,2\n'
    sent = gateway.baton("labels", "send", "-", "--format", "csv", given=given)
    assert sent.stdout == "2 labels taken, 0 refused\n"
    line = '{"request_id": "d", "model": "m", "value": 3}\n'
    assert gateway.baton("labels", "send", "-", given=line).exit_code == 0
    words = ("--request-id", "a", "--model", "m", "--kind", "withdrawn")
    assert gateway.baton("labels", "send", *words).exit_code == 0
    found = [
        (one["request_id"], one["model"], one["tenant"], one["kind"])
        for one in exported(gateway, "labels")
    ]
    assert sorted(found) == [
        ("a", "m", "", "value"),
        ("a", "m", "", "withdrawn"),
        ("b/c", "m", "", "value"),
        ("d", "m", "", "value"),
    ]
    result = gateway.baton("labels", "send", "--request-id", "a", "--number", "1")
    assert "model: must be text" in result.stderr


def test_all_labels_of_a_prediction_are_taken_back(gateway: Gateway) -> None:
    words = ("labels", "send", "--kind", "withdrawn", "--prediction-id", str(uuid4()))
    assert gateway.baton(*words).stdout == "1 labels taken, 0 refused\n"
    (found,) = exported(gateway, "labels")
    assert (found["kind"], found["prediction_id"]) == ("withdrawn", words[-1])
    result = gateway.baton(*words, "--row", "1")
    assert result.exit_code == 1
    assert "of all rows and names" in result.stderr


def event_of(number: int) -> Event:
    """Return a label."""
    label = Label(
        "e", "s", bytes(16), None, 0, "label", LabelKind.VALUE, float(number), 0, 1, 1.0
    )
    return encode(label)


def test_dead_letters_are_shown_and_replayed(gateway: Gateway) -> None:
    for offset, reason in enumerate([Reason.LATE, Reason.ORPHAN, Reason.LATE]):
        was = Stored("labels", 1, offset, 5, event_of(offset))
        letter = encode_letter(DeadLetter(was, reason, "too late", 5, 1))
        gateway.run(gateway.log.append(DEAD_LETTERS, 1, [letter]))
    shown = json.loads(gateway.baton("labels", "dlq", "--json").stdout)
    assert shown["reasons"] == {"late": 2, "orphan": 1}
    assert [one["label"]["value"] for one in shown["letters"]] == [0, 1, 2]
    assert shown["letters"][0]["origin"] == {
        "topic": "labels",
        "partition": 1,
        "offset": 0,
    }
    foreign = Event(b"k", b"x")
    gateway.run(gateway.log.append(DEAD_LETTERS, 1, [foreign]))
    assert "2 late\n1 orphan\n" in gateway.baton("labels", "dlq").stdout
    words = ("labels", "replay", "--reason", "late")
    dry = gateway.baton(*words, "--dry-run").stdout
    assert dry == "2 dead letters would be replayed\n"
    assert exported(gateway, "labels") == []
    assert gateway.baton(*words).stdout == "2 dead letters replayed\n"
    assert [one["value"] for one in exported(gateway, "labels")] == [0, 2]


def test_where_nothing_answers(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / SOCKET}"
    result = CliRunner().invoke(app, ["labels", "dlq", "--outcomes", address])
    assert result.exit_code == 1
    assert "feedback.enabled" in result.stderr
    words = ("labels", "send", "--prediction-id", str(uuid4()), "--value", "up")
    result = CliRunner().invoke(app, [*words, "--outcomes", address])
    assert result.exit_code == 1
    assert "(0 of them are taken)" in result.stderr

"""``baton labels`` and ``baton log`` against the services, on the embedded log."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.config import Config
from gateway.controller.outcomes import SOCKET, start
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.letters import encode_letter
from gateway.feedback.log import DEAD_LETTERS
from gateway.feedback.log_file import LogFile
from gateway.feedback.types import DeadLetter, Event, Reason, Stored
from gateway.feedback_config import FeedbackConfig

_T = TypeVar("_T")


class Gateway:
    """The services, on a loop of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.run(self._start())

    async def _start(self) -> None:
        self.log = EmbeddedLog(LogFile(self.folder / "log.sqlite", 2))
        feedback = FeedbackConfig(partitions=2)
        config = Config(state_dir=self.folder, feedback=feedback)
        self._listener = await start(self.log, config)

    async def _stop(self) -> None:
        await self._listener.stop(1)
        await self.log.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run on the loop of the services."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self) -> None:
        """End both services and the loop."""
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def baton(self, *words: str, given: str | None = None) -> Result:
        """Run a command."""
        env = {"BATON_OUTCOMES_ADDRESS": f"unix:{self.folder / SOCKET}"}
        return CliRunner().invoke(app, words, input=given, env=env)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path)
    yield made
    made.stop()


def exported(gateway: Gateway, topic: str) -> list[dict[str, Any]]:
    """Return what `baton log export` writes."""
    file = gateway.folder / "out.jsonl"
    result = gateway.baton("log", "export", topic, str(file))
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_labels_are_sent_and_read_back(gateway: Gateway) -> None:
    values = ["up", 2, True, [1, 2.5]]
    lines = [{"prediction_id": str(uuid4()), "value": value} for value in values]
    lines.append({"prediction_id": str(uuid4()), "kind": "activation"})
    text = "\n".join(json.dumps(line) for line in lines)
    result = gateway.baton("labels", "send", "-", "--json", given=text)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"taken": 5, "refused": 0, "refusals": []}
    found = {one["key"]: one for one in exported(gateway, "labels")}
    for line in lines:
        body = json.loads(found[line["prediction_id"]]["value"])
        assert body.get("value") == line.get("value")
    again = gateway.baton("labels", "send", "-", given=text)
    assert again.stdout == "5 labels taken, 0 refused\n"
    ids = {one["headers"]["ce_id"] for one in exported(gateway, "labels")}
    assert len(ids) == 5  # so the second time counts for nothing
    tail = gateway.baton("log", "tail", "labels", "--limit", "1").stdout.splitlines()
    assert 1 <= len(tail) <= 2


def test_what_is_refused_is_said_by_line(gateway: Gateway) -> None:
    text = '\n{"prediction_id": "x", "value": 1}\n'
    result = gateway.baton("labels", "send", "-", given=text)
    assert result.exit_code == 1
    assert "line 2: invalid: prediction_id" in result.stderr
    for bad in ("{", "[]", '{"colour": 1}', '{"kind": "x"}', '{"kind": 1}'):
        result = gateway.baton("labels", "send", "-", given=bad)
        assert result.exit_code == 1
        assert "line 1: " in result.stderr
    result = gateway.baton("labels", "send", "/no/such/file")
    assert result.exit_code == 1
    assert "/no/such/file" in result.stderr


def test_dead_letters_are_shown_and_replayed(gateway: Gateway) -> None:
    for offset, reason in enumerate([Reason.LATE, Reason.ORPHAN, Reason.LATE]):
        was = Stored("labels", 1, offset, 5, Event(b"k", b"%d" % offset))
        letter = encode_letter(DeadLetter(was, reason, "too late", 5, 1))
        gateway.run(gateway.log.append(DEAD_LETTERS, 1, [letter]))
    shown = json.loads(gateway.baton("labels", "dlq", "--json").stdout)
    assert shown["reasons"] == {"late": 2, "orphan": 1}
    assert len(shown["letters"]) == 3
    assert "2 late\n1 orphan\n" in gateway.baton("labels", "dlq").stdout
    words = ("labels", "replay", "--reason", "late")
    dry = gateway.baton(*words, "--dry-run").stdout
    assert dry == "2 dead letters would be replayed\n"
    assert exported(gateway, "labels") == []
    assert gateway.baton(*words).stdout == "2 dead letters replayed\n"
    assert [one["value"] for one in exported(gateway, "labels")] == ["0", "2"]


def test_where_nothing_answers(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / SOCKET}"
    result = CliRunner().invoke(app, ["labels", "dlq", "--outcomes", address])
    assert result.exit_code == 1
    assert "feedback.enabled" in result.stderr

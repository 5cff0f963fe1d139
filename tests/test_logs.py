"""What a log record looks like, and that it cannot be forged."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import configure, escape, get_logger

logger = get_logger("tests.logs")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_text_has_time_level_process_event_and_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "text", "front-0")
    logger.info("model_loaded", model="m", version=3, path="a b", empty="")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info front-0 model_loaded "
        r'model=m version=3 path="a b" empty=""\n',
        captured.err,
    )


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "json", "worker-1")
    logger.debug("e", names=["a", 1], share=0.5, none=None, bad=float("nan"), ok=True)
    logger.warning("e", level="mine", error=ValueError("x"))
    first, second = rows(capsys)
    assert first | {"time": ""} == {
        "time": "",
        "level": "debug",
        "process": "worker-1",
        "event": "e",
        "names": ["a", 1],
        "share": 0.5,
        "none": None,
        "bad": "nan",
        "ok": True,
    }
    assert (second["level"], second["field_level"]) == ("warning", "mine")
    assert second["error"] == "x"


def test_records_below_the_level_are_not_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("warning", "json", "p")
    logger.info("hidden")
    logger.error("shown")
    assert [row["event"] for row in rows(capsys)] == ["shown"]


def test_the_last_configuration_wins(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text", "p")
    configure("info", "json", "q")
    logger.info("e")
    assert [row["process"] for row in rows(capsys)] == ["q"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_stays_in_its_record(
    capsys: pytest.CaptureFixture[str], log_format: Any
) -> None:
    configure("info", log_format, "p")
    try:
        raise ValueError("line one\nline two")
    except ValueError:
        logger.exception("broke", step=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "step" in line
    assert "Traceback (most recent call last)" in line


def test_records_of_libraries_are_structured_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "json", "p")
    logging.getLogger("lib").warning("got %s", "it\nall")
    (row,) = rows(capsys)
    assert (row["event"], row["logger"]) == ("library_log", "lib")
    assert row["message"] == "got it\nall"


@given(st.text(), st.text(min_size=1))
def test_no_value_can_forge_a_record(value: str, key: str) -> None:
    class Sink:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    for log_format in ("text", "json"):
        sink = Sink()
        stderr, sys.stderr = sys.stderr, sink
        try:
            configure("info", log_format, "p")
            logger.info("e", **{key: value})
        finally:
            sys.stderr = stderr
        assert sink.text.endswith("\n")
        assert sink.text[:-1].isprintable()


def test_escape_keeps_what_can_be_read() -> None:
    assert escape("modèle 模型") == "modèle 模型"
    assert escape("a\nb\x1b[31m\u202e") == "a\\nb\\u001b[31m\\u202e"

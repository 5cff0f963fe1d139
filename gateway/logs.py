"""Structured logs on standard error: a constant event name and its fields.

Text reads ``time level process event key=value ...``; JSON is one object a line.
Whatever a value holds, a record stays one line without control characters.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Literal

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Logger:
    """Writes events; the fields carry what varies.

    Thread-safe, as the standard library's handlers are. Example:
        ``get_logger(__name__).info("model_loaded", model=name, version=version)``
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """Write what helps to find a bug."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Write what an operator wants to know."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Write what went wrong and was dealt with."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Write what went wrong and needs somebody."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Write an error with the traceback of the exception being handled."""
        self._write(logging.ERROR, event, fields, exc_info=True)

    def _write(
        self, level: int, event: str, fields: dict[str, object], exc_info: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, exc_info=exc_info, extra={"fields": fields})


def get_logger(name: str) -> Logger:
    """Return the logger of a module (pass ``__name__``)."""
    return Logger(logging.getLogger(name))


def configure(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["text", "json"],
    process: str,
) -> None:
    """Send all logs of this process, libraries' included, to standard error.

    May be called again: the last call wins.

    Args:
        level: Lowest level written.
        format: ``text`` for people, ``json`` for collectors.
        process: Name of this process in every record, such as ``front-0``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter(process) if format == "json" else _TextFormatter(process)
    )
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)


def escape(text: str) -> str:
    r"""Return `text` on one line, unprintable characters as ``\n`` or ``\u001b``.

    Line ends, terminal escapes, invisible and direction-changing characters of
    foreign text thus cannot pass for output of ours. Pure.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else json.dumps(char)[1:-1] for char in text
    )


class _Formatter(logging.Formatter):
    """What both formats share: the head of a record and its fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def head(self, record: logging.LogRecord) -> dict[str, str]:
        """Return time (UTC, milliseconds), level, process and event."""
        fields = getattr(record, "fields", None)
        moment = datetime.fromtimestamp(record.created, UTC)
        return {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "event": "library_log" if fields is None else record.getMessage(),
        }

    def fields(self, record: logging.LogRecord) -> dict[str, object]:
        """Return the fields; a library's record gets ``logger`` and ``message``."""
        fields: dict[str, object] | None = getattr(record, "fields", None)
        if fields is None:
            fields = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            traceback = self.formatException(record.exc_info)
            fields = {**fields, "traceback": traceback}
        return fields


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = self.head(record)
        parts = [escape(value) for value in head.values()]
        for key, value in self.fields(record).items():
            parts.append(f"{escape(key)}={_text(value)}")
        return " ".join(parts)


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, object] = {**self.head(record)}
        for key, value in self.fields(record).items():
            row[f"field_{key}" if key in row else key] = _plain(value)
        return json.dumps(row)


def _text(value: object) -> str:
    """Return a value for the text format, quoted where it would not read as one."""
    text = str(value)
    if text and text.isprintable() and not any(char in text for char in ' "=\\'):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escape(quoted)}"'


def _plain(value: object) -> object:
    """Return what JSON can hold; NaN and infinities are not JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)

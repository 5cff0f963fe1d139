"""Files that ``baton log`` writes: whole or not at all, and said how many rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.commands.options import Outcomes
from gateway.commands.shared import print_json, progress
from gateway.errors import Code

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gateway.commands.log_files import Write

Format = Annotated[
    Literal["jsonl", "parquet"] | None,
    typer.Option("--format", help="By the name of FILE, unless given."),
]


class Export:
    """A file that is being written.

    Attributes:
        rows: That were written.
        undecodable: Those of them that hold an error.
    """

    def __init__(self, write: Write, bar: Progress, task: TaskID) -> None:
        self._write, self._bar, self._task = write, bar, task
        self.rows = self.undecodable = 0

    def write(self, one: object) -> None:
        """Write what an event or a row says."""
        rows, errors = self._write(one)
        self.rows += rows
        self.undecodable += errors

    def advance(self, steps: float = 1) -> None:
        """Move the bar."""
        self._bar.advance(self._task, steps)


@contextmanager
def exporting(
    outcomes: Outcomes, file: Path, format_: str | None, topic: str, total: int
) -> Iterator[Export]:
    """Have a file written; it is there, and said to be, once all went well.

    Args:
        outcomes: Options of the command.
        file: Is made anew.
        format_: ``jsonl`` or ``parquet``; by the name of `file` unless given.
        topic: Of the log, or ``rows``.
        total: Steps of the bar.
    """
    from gateway.commands.log_files import MissingPackage, writer

    kind = format_ or ("parquet" if file.suffix == ".parquet" else "jsonl")
    part = file.with_name(file.name + ".part")
    try:
        with (
            writer(part, kind, topic) as write,
            progress(shown=total > 100) as bar,
        ):
            task = bar.add_task("", total=total, what=f"{topic} to {file.name}")
            export = Export(write, bar, task)
            yield export
        os.replace(part, file)
    except MissingPackage as error:
        outcomes.fail(str(error), Code.FAILED_PRECONDITION)
    except OSError as error:
        outcomes.fail(f"{error.filename or file}: {error.strerror or error}")
    finally:
        part.unlink(missing_ok=True)
    if outcomes.as_json:
        print_json({"rows": export.rows, "undecodable": export.undecodable})
        return
    bad = export.undecodable
    tail = f", {bad} of them could not be decoded" if bad else ""
    typer.echo(f"{export.rows} rows{tail}")

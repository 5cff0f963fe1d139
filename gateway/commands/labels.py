"""``baton labels``: what became of predictions."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from gateway.commands.look import show_prediction
from gateway.commands.options import Outcomes, takes
from gateway.commands.shared import columns, console, print_json, progress
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.commands.label_files import Line, Refusal
    from gateway.outcomes_client import OutcomesClient
    from gateway.protocol import outcomes_pb2 as pb

labels_app = typer.Typer(help="Tell what became of predictions; see what came of it.")
labels_app.command("show")(takes(Outcomes)(show_prediction))
_REPLAYED = 1000
_MESSAGE_LABELS, _MESSAGE_BYTES = 1000, 1 << 20
_STREAM_MESSAGES = 16
"""After which the answer is waited for: it says which labels were refused, and what
is sent may be sent again."""
_LONG = 1 << 20
"""Bytes of a file that is worth a bar."""
_NAMED = 1000
"""Refusals that are named; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Label(Outcomes):
    """Options of one label, beside those of all commands."""

    prediction_id: Annotated[
        str | None, typer.Option(help="Of one label, without FILE.")
    ] = None
    request_id: Annotated[
        str | None, typer.Option(help="The client's own instead; with --model.")
    ] = None
    model: Annotated[
        str | None, typer.Option(help="As the client named it, with --request-id.")
    ] = None
    value: Annotated[str | None, typer.Option(help="Its value, a class.")] = None
    number: Annotated[float | None, typer.Option(help="Its value, a number.")] = None
    truth: Annotated[
        bool | None, typer.Option("--true/--false", help="Its value, a boolean.")
    ] = None
    vector: Annotated[
        str | None, typer.Option(help="Its value, numbers with commas between.")
    ] = None
    label_name: Annotated[str | None, typer.Option(help="Of which label.")] = None
    row: Annotated[int | None, typer.Option(help="Of which row, from 0.")] = None
    seq: Annotated[
        int | None, typer.Option(help="Higher ones supersede lower ones.")
    ] = None
    weight: Annotated[float | None, typer.Option(help="Above 0.")] = None
    kind: Annotated[
        Literal["value", "retracted", "activation", "withdrawn"] | None,
        typer.Option(
            help="What the event says: value, unless given. withdrawn takes back all "
            "labels of the prediction."
        ),
    ] = None
    time_ms: Annotated[
        int | None, typer.Option(help="When it became true (Unix); now, unless given.")
    ] = None
    id: Annotated[
        str | None, typer.Option(help="Of the event; a hash of it, unless given.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Return what is said of the label."""
        every = asdict(self)
        del every["address"], every["as_json"]
        return {name: one for name, one in every.items() if one is not None}


@labels_app.command("send")
@takes(Label)
def send_labels(
    label: Label,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="JSONL or CSV; - is stdin.", show_default=False
        ),
    ] = None,
    *,
    format_: Annotated[
        Literal["jsonl", "csv"] | None,
        typer.Option("--format", help="By the name of FILE, unless given."),
    ] = None,
    source: Annotated[str, typer.Option(help="Who says so, unless a line does.")] = (
        "baton labels send"
    ),
) -> None:
    """Send one label, by options, or those of a file.

    JSONL has an object on each line, as in {"prediction_id": "...", "value": "up"}.
    "value" is a class in quotes, a number, true, false, or a list of numbers. A line
    may have label_name, row, seq, weight, kind, time_ms, source and id. Instead of
    prediction_id, request_id and model name the client's own request id, where the
    gateway has feedback.by_request_id.

    CSV names its columns in the first line: prediction_id, and value for classes, or
    number, truth, or vector (numbers with spaces between), and those above.

    Without time_ms a label's time is when FILE was last changed, so that a file sent
    again changes nothing, not even what a later one has corrected; without an id an
    event's is a hash of the line.
    """
    given = label.given()
    if (file is None) == (not given):
        raise typer.BadParameter("name a FILE, or one label: --prediction-id, --value")
    sending = _Sending(label)
    with label.client() as client:
        if file is None:
            sending.send(client, [_one(given, source)])
        else:
            suffix = "csv" if file.suffix == ".csv" else "jsonl"
            with _labels(label, file, format_ or suffix, source) as labels:
                sending.send(client, labels)
    sending.conclude()


class _Sending:
    """Sends labels, and keeps count of what became of them."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._taken = self._refused = 0
        self._refusals: list[Refusal] = []

    def send(self, client: OutcomesClient, labels: Iterable[Line]) -> None:
        from gateway.commands.label_files import Refusal
        from gateway.protocol import outcomes_pb2 as pb

        numbers: list[int] = []
        requests: list[pb.ReportRequest] = []
        room = 0
        for number, label in labels:
            if isinstance(label, Refusal):
                self._refuse(label)
                continue
            size = label.ByteSize() + 8
            full = not requests or len(requests[-1].labels) >= _MESSAGE_LABELS
            if full or size > room:
                if len(requests) >= _STREAM_MESSAGES:
                    self._stream(client, requests, numbers)
                    numbers, requests = [], []
                requests.append(pb.ReportRequest())
                room = _MESSAGE_BYTES
            requests[-1].labels.append(label)
            numbers.append(number)
            room -= size
        self._stream(client, requests, numbers)

    def _stream(
        self,
        client: OutcomesClient,
        requests: list[pb.ReportRequest],
        numbers: list[int],
    ) -> None:
        from gateway.client_rpc import ClientError
        from gateway.commands.label_files import Refusal

        try:
            answer = client.report_stream(requests)
        except ClientError as error:
            text = f"{error} ({self._taken} of them are taken)"
            raise ClientError(text, error.code) from None
        self._taken += answer.taken
        for one in answer.refusals:
            self._refuse(Refusal(numbers[one.place], one.reason, one.detail))
        self._refused += answer.refused - len(answer.refusals)

    def _refuse(self, refusal: Refusal) -> None:
        self._refused += 1
        if len(self._refusals) < _NAMED:
            self._refusals.append(refusal)

    def conclude(self) -> None:
        """Say how it went; exit with 1 if any was refused."""
        refusals = sorted(self._refusals)
        if self._outcomes.as_json:
            named = [refusal._asdict() for refusal in refusals]
            counts = {"taken": self._taken, "refused": self._refused}
            print_json(counts | {"refusals": named})
        else:
            typer.echo(f"{self._taken} labels taken, {self._refused} refused")
            for line, reason, detail in refusals:
                typer.echo(escape(f"line {line}: {reason}: {detail}"), err=True)
            if more := self._refused - len(refusals):
                typer.echo(f"and {more} more, not named", err=True)
        if self._refused:
            raise typer.Exit(1)


def _one(given: dict[str, Any], source: str) -> Line:
    """Return the label that options give."""
    from gateway.commands.label_files import Unless, message, vector

    try:
        if "vector" in given:
            given["vector"] = vector(given["vector"])
        return 1, message(given, Unless(source, time.time_ns() // 1_000_000))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise typer.BadParameter(escape(" ".join(str(error).split()))) from None


@contextmanager
def _labels(
    outcomes: Outcomes, file: Path, format_: str, source: str
) -> Iterator[Iterator[Line]]:
    """Open a file of labels, with a bar if it is a long one."""
    from gateway.commands.label_files import BadFile, Unless, from_csv, from_jsonl

    read = from_csv if format_ == "csv" else from_jsonl
    try:
        with _opened(file) as lines:
            size, time_ns = 0, time.time_ns()
            if str(file) != "-":
                about = os.fstat(lines.fileno())
                # Sent again, it is no later than what others have said meanwhile.
                size, time_ns = about.st_size, about.st_mtime_ns
            with progress(shown=size > _LONG) as bar:
                task = bar.add_task("", total=size, what=f"labels of {file.name}")
                moved = lambda nbytes: bar.advance(task, nbytes)  # noqa: E731
                unless = Unless(source, time_ns // 1_000_000)
                yield read(_counted(lines, moved), unless)
    except (BadFile, UnicodeDecodeError) as error:
        outcomes.fail(f"{file}: {' '.join(str(error).split())}")
    except OSError as error:
        outcomes.fail(f"{file}: {error.strerror or error}")
    except csv.Error as error:
        outcomes.fail(f"{file}: {error}")


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    if str(file) == "-":
        yield sys.stdin
    else:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield lines


def _counted(lines: TextIO, moved: Callable[[int], None]) -> Iterator[str]:
    for line in lines:
        moved(len(line))  # of characters: a byte each, mostly
        yield line


@labels_app.command("dlq")
@takes(Outcomes)
def show_dead_letters(
    outcomes: Outcomes,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
) -> None:
    """Count the dead letters by reason, and show the last of each partition."""
    reasons: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    with outcomes.client() as client:
        for partition in range(len(client.extents("dlq"))):
            last: deque[dict[str, Any]] = deque(maxlen=limit)
            for letter in _letters(client, partition):
                reasons[letter.get("reason", "")] += 1
                last.append(letter)
            rows += last
    if outcomes.as_json:
        print_json({"reasons": dict(reasons), "letters": rows})
        return
    for reason, count in reasons.most_common():
        typer.echo(f"{count} {escape(reason) or 'of another origin'}")
    table = columns("PARTITION", "OFFSET", "PREDICTION", "REASON", "DETAIL")
    for row in rows:
        table.add_row(
            str(row["partition"]),
            str(row["offset"]),
            escape(row.get("label", {}).get("prediction_id", "")),
            escape(row.get("reason", "")),
            escape(row.get("detail", row.get("error", ""))),
        )
    console().print(table)


@labels_app.command("replay")
@takes(Outcomes)
def replay_dead_letters(
    outcomes: Outcomes,
    reason: Annotated[
        str, typer.Option(help="Only those with this reason; empty for all.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count them, and replay none.")
    ] = False,
) -> None:
    """Append dead letters to where they came from, once their cause is mended."""
    count = 0
    with outcomes.client() as client:
        for partition in range(len(client.extents("dlq"))):
            offsets = (
                letter["offset"]
                for letter in _letters(client, partition)
                if "error" not in letter and reason in ("", letter["reason"])
            )
            while batch := list(islice(offsets, _REPLAYED)):
                count += len(batch) if dry_run else client.replay(partition, batch)
    if outcomes.as_json:
        print_json({"replayed": 0 if dry_run else count, "found": count})
        return
    typer.echo(f"{count} dead letters {'would be ' if dry_run else ''}replayed")


def _letters(client: OutcomesClient, partition: int) -> Iterator[dict[str, Any]]:
    """Yield the dead letters that a partition has now."""
    from gateway.commands.log_objects import objects

    extent = client.extents("dlq")[partition]
    for stored in client.events("dlq", partition, extent.start, extent.end):
        yield from objects(stored)

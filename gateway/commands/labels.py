"""``baton labels``: what became of predictions; and ``baton log``: the event log."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.commands.options import takes
from gateway.commands.shared import AsJson, columns, console, fail, print_json
from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.outcomes_client import OutcomesClient
    from gateway.protocol import outcomes_pb2 as pb

labels_app = typer.Typer(help="Tell what became of predictions; see what was unusable.")
log_app = typer.Typer(help="Read the event log.")
_BATCH = 1000
_SHOWN = 20

Topic = Annotated[
    Literal["predictions", "labels", "dlq"], typer.Argument(metavar="TOPIC")
]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Options of all of these commands."""

    outcomes: Annotated[
        str,
        typer.Option(
            envvar="BATON_OUTCOMES_ADDRESS",
            metavar="ADDR",
            help="The gateway's Outcomes service: unix:PATH or host:port.",
        ),
    ] = "unix:.baton/outcomes.sock"
    as_json: AsJson = False

    @contextmanager
    def client(self) -> Iterator[OutcomesClient]:
        """Open a client; an expected error inside is printed and exits."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway.client_rpc import ClientError
        from gateway.outcomes_client import OutcomesClient

        try:
            with OutcomesClient(self.outcomes) as client:
                yield client
        except ClientError as error:
            fail(str(error), error.code, as_json=self.as_json)


@labels_app.command("send")
@takes(Where)
def send_labels(
    where: Where,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON objects, a line each; - is stdin."),
    ],
    source: Annotated[str, typer.Option(help="Who says so, where a line does not.")] = (
        "baton labels send"
    ),
) -> None:
    """Send labels, as in {"prediction_id": "...", "value": "up"}, a line each.

    A line may have label_name, row, seq, weight, kind (value, retracted, activation),
    time_ms, source and id, and tenant, model, request_id instead of prediction_id.
    Without an id it is a hash of the line, so that a file sent twice counts once.
    """
    taken, refused = 0, list[dict[str, Any]]()
    count = 0
    with where.client() as client:
        lines = _lines(file, where)
        while batch := list(islice(lines, _BATCH)):
            answer = client.report(
                [_label(n, text, source, where) for n, text in batch]
            )
            taken += answer.taken
            count += answer.refused
            for one in answer.refusals[: _SHOWN - len(refused)]:
                line = batch[one.place][0]
                said = {"line": line, "reason": one.reason, "detail": one.detail}
                refused.append(said)
    if where.as_json:
        print_json({"taken": taken, "refused": count, "refusals": refused})
    else:
        typer.echo(f"{taken} labels taken, {count} refused")
        for said in refused:
            text = f"line {said['line']}: {said['reason']}: {said['detail']}"
            typer.echo(escape(text), err=True)
    if count:
        raise typer.Exit(1)


@labels_app.command("dlq")
@takes(Where)
def show_dead_letters(
    where: Where,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
) -> None:
    """Count the dead letters by reason, and show the last of each partition."""
    reasons: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    with where.client() as client:
        for partition, extent in enumerate(client.extents("dlq")):
            last: list[dict[str, Any]] = []
            for event in client.events("dlq", partition, extent.start, extent.end):
                row = _plain(event)
                reasons[row["headers"].get("baton_reason", "")] += 1
                last = [*last[-(limit - 1) :], row] if limit > 1 else [row]
            rows += last
    if where.as_json:
        print_json({"reasons": dict(reasons), "letters": rows})
        return
    for reason, count in reasons.most_common():
        typer.echo(f"{count} {escape(reason)}")
    table = columns("PARTITION", "OFFSET", "KEY", "REASON", "DETAIL")
    for row in rows:
        said = row["headers"]
        table.add_row(
            str(row["partition"]),
            str(row["offset"]),
            escape(row["key"]),
            escape(said.get("baton_reason", "")),
            escape(said.get("baton_detail", "")),
        )
    console().print(table)


@labels_app.command("replay")
@takes(Where)
def replay_dead_letters(
    where: Where,
    reason: Annotated[
        str, typer.Option(help="Only those with this reason; empty for all.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count them, and replay none.")
    ] = False,
) -> None:
    """Append dead letters to where they came from, once their cause is mended."""
    count = 0
    with where.client() as client:
        for partition, extent in enumerate(client.extents("dlq")):
            events = client.events("dlq", partition, extent.start, extent.end)
            offsets = (
                event.offset
                for event in events
                if not reason or _plain(event)["headers"].get("baton_reason") == reason
            )
            while batch := list(islice(offsets, _BATCH)):
                count += len(batch) if dry_run else client.replay(partition, batch)
    if where.as_json:
        print_json({"replayed": 0 if dry_run else count, "found": count})
        return
    typer.echo(f"{count} dead letters {'would be ' if dry_run else ''}replayed")


@log_app.command("tail")
@takes(Where)
def tail_log(
    where: Where,
    topic: Topic,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 10,
) -> None:
    """Print the last events of every partition as JSON, a line each."""
    with where.client() as client:
        for partition, extent in enumerate(client.extents(topic)):
            start = max(extent.start, extent.end - limit)
            for event in client.events(topic, partition, start, extent.end):
                typer.echo(json.dumps(_plain(event)))


@log_app.command("export")
@takes(Where)
def export_log(
    where: Where,
    topic: Topic,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, made anew.")],
) -> None:
    """Write all events that a topic holds now into a file, a line of JSON each."""
    count = 0
    try:
        with where.client() as client, file.open("w") as out:
            for partition, extent in enumerate(client.extents(topic)):
                for event in client.events(topic, partition, extent.start, extent.end):
                    out.write(json.dumps(_plain(event)) + "\n")
                    count += 1
    except OSError as error:
        fail(f"{file}: {error.strerror}", Code.INVALID_ARGUMENT, as_json=where.as_json)
    if where.as_json:
        print_json({"events": count})
        return
    typer.echo(f"{count} events")


def _plain(event: pb.StoredEvent) -> dict[str, Any]:
    """Return an event as JSON has it; what is no UTF-8 is hexadecimal, said so."""
    value: dict[str, Any] = {"value": None}
    if event.HasField("value"):
        try:
            value = {"value": event.value.decode()}
        except UnicodeDecodeError:
            value = {"value_hex": event.value.hex()}
    return {
        "topic": event.topic,
        "partition": event.partition,
        "offset": event.offset,
        "arrived_ms": event.arrived_ms,
        "key": event.key.decode(errors="backslashreplace"),
        "headers": {
            one.name: one.value.decode(errors="backslashreplace")
            for one in event.headers
        },
    } | value


def _lines(file: Path, where: Where) -> Iterator[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers."""
    try:
        with sys.stdin if str(file) == "-" else file.open() as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        text = f"{file}: {' '.join(str(error).split())}"
        fail(text, Code.INVALID_ARGUMENT, as_json=where.as_json)


def _label(number: int, line: str, source: str, where: Where) -> pb.LabelEvent:
    """Return the label in a line; the service checks what it says."""
    from gateway.protocol import outcomes_pb2 as pb

    try:
        given = json.loads(line)
        if not isinstance(given, dict):
            raise TypeError("must be a JSON object")
        event = pb.LabelEvent(
            id=given.pop("id", hashlib.sha256(line.encode()).hexdigest()[:32]),
            source=given.pop("source", source),
            kind=given.pop("kind", "value").upper(),
            time_ms=given.pop("time_ms", time.time_ns() // 1_000_000),
        )
        match given.pop("value", None):
            case bool(truth):
                given["truth"] = truth
            case int(value) | float(value):
                given["number"] = value
            case str(text):
                given["text"] = text
            case list(values):
                given["vector"] = pb.Vector(values=values)
        event.data.CopyFrom(pb.LabelData(**given))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        text = f"line {number}: {escape(' '.join(str(error).split()))}; see --help"
        fail(text, Code.INVALID_ARGUMENT, as_json=where.as_json)
    return event

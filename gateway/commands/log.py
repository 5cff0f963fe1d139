"""``baton log``: read the event log, as it grows or as a whole."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.commands.options import Outcomes, takes
from gateway.commands.shared import print_json, progress
from gateway.errors import Code
from gateway.feedback.log import Extent, Place

if TYPE_CHECKING:
    from gateway.outcomes_client import OutcomesClient

log_app = typer.Typer(help="Read the event log: predictions, labels, dead letters.")

Topic = Annotated[
    Literal["predictions", "labels", "dlq"], typer.Argument(metavar="TOPIC")
]
Partition = Annotated[
    int | None, typer.Option(min=0, help="This one only.", show_default=False)
]
_LINES = 10
_POLL_S = 0.3
_BACK = 16
"""Events that are read at once, going back from the end."""
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@log_app.command("tail")
@takes(Outcomes)
def tail_log(
    outcomes: Outcomes,
    topic: Topic,
    *,
    partition: Partition = None,
    from_offset: Annotated[
        int | None,
        typer.Option(min=0, help="All from here on (wants --partition)."),
    ] = None,
    since: Annotated[
        str,
        typer.Option(help="All that came since: 90s, 10m, 2h, 7d ago, or ISO 8601."),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Lines: the last ({_LINES}); with a beginning, the first."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until ^C.")
    ] = False,
) -> None:
    """Print predictions, labels or dead letters as JSON, a line each.

    What cannot be decoded has "error" and the event as it is.
    """
    if from_offset is not None and (partition is None or since):
        text = "--from-offset wants --partition, and no --since"
        raise typer.BadParameter(text)
    since_ms = _since_ms(since)
    with outcomes.client() as client, suppress(KeyboardInterrupt):
        spans = _spans(outcomes, client, topic, partition)
        if from_offset is not None:
            (only,) = spans
            spans[only] = Extent(max(from_offset, spans[only].start), spans[only].end)
        if since_ms is not None:
            for n, span in spans.items():
                start = _first(client, Place(topic, n), span, since_ms)
                spans[n] = Extent(start, span.end)
        ends = {n: span.end for n, span in spans.items()}
        if since_ms is None and from_offset is None:
            lists = [
                _last(client, Place(topic, n), span, limit or _LINES)
                for n, span in spans.items()
            ]
            found = list(merge(*lists, key=_arrived))[-(limit or _LINES) :]
            _print(iter(found))
        else:
            parts = [
                _objects(client, Place(topic, n), span) for n, span in spans.items()
            ]
            _print(islice(merge(*parts, key=_arrived), limit))
        if follow:
            _follow(client, topic, ends)


@log_app.command("export")
@takes(Outcomes)
def export_log(
    outcomes: Outcomes,
    topic: Topic,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Is made anew.")],
    *,
    format_: Annotated[
        Literal["jsonl", "parquet"] | None,
        typer.Option("--format", help="By the name of FILE, unless given."),
    ] = None,
    partition: Partition = None,
) -> None:
    """Write what a topic holds now into a file: JSON, a line each, or Parquet.

    One object (or row) per prediction, label or dead letter. Parquet wants the extra
    `parquet`.
    """
    kind = format_ or ("parquet" if file.suffix == ".parquet" else "jsonl")
    from gateway.commands.log_files import MissingPackage, writer

    part = file.with_name(file.name + ".part")
    rows = errors = 0
    try:
        with outcomes.client() as client, writer(part, kind, topic) as write:
            spans = _spans(outcomes, client, topic, partition)
            total = sum(end - start for start, end in spans.values())
            with progress(shown=total > 100) as bar:
                task = bar.add_task("", total=total, what=f"{topic} to {file.name}")
                for n, span in spans.items():
                    for stored in client.events(topic, n, *span):
                        count, bad = write(stored)
                        rows, errors = rows + count, errors + bad
                        bar.advance(task)
        os.replace(part, file)
    except MissingPackage as error:
        outcomes.fail(str(error), Code.FAILED_PRECONDITION)
    except OSError as error:
        outcomes.fail(f"{error.filename or file}: {error.strerror or error}")
    finally:
        part.unlink(missing_ok=True)
    if outcomes.as_json:
        print_json({"rows": rows, "undecodable": errors})
        return
    tail = f", {errors} of them could not be decoded" if errors else ""
    typer.echo(f"{rows} rows{tail}")


def _spans(
    outcomes: Outcomes, client: OutcomesClient, topic: str, only: int | None
) -> dict[int, Extent]:
    """Return what partitions hold."""
    extents = client.extents(topic)
    if only is not None and only >= len(extents):
        outcomes.fail(f"--partition: there are 0 to {len(extents) - 1}")
    return {
        n: Extent(extent.start, extent.end)
        for n, extent in enumerate(extents)
        if only in (None, n)
    }


def _objects(
    client: OutcomesClient, place: Place, span: Extent
) -> Iterator[dict[str, Any]]:
    from gateway.commands.log_objects import objects

    for stored in client.events(*place, *span):
        yield from objects(stored)


def _last(
    client: OutcomesClient, place: Place, span: Extent, most: int
) -> deque[dict[str, Any]]:
    """Return the last objects of a partition: an event may hold many."""
    found: deque[dict[str, Any]] = deque(maxlen=most)
    start, end = span
    while start < end and len(found) < most:
        begin = max(start, end - _BACK)
        some = deque(_objects(client, place, Extent(begin, end)), most)
        found.extendleft(islice(reversed(some), most - len(found)))
        end = begin
    return found


def _first(client: OutcomesClient, place: Place, span: Extent, ms: int) -> int:
    """Return the offset of the first event that arrived at a time, or later."""
    start, end = span
    while start < end:
        middle = (start + end) // 2
        found = next(client.events(*place, middle, end, most=1), None)
        if found is None or found.arrived_ms >= ms:
            end = middle
        else:
            start = found.offset + 1
    return start


def _follow(client: OutcomesClient, topic: str, ends: dict[int, int]) -> None:
    from gateway.client_rpc import ClientError

    lost = False
    while True:
        time.sleep(_POLL_S)
        try:
            for n, extent in enumerate(client.extents(topic)):
                if n in ends and ends[n] < extent.end:
                    span = Extent(ends[n], extent.end)
                    _print(_objects(client, Place(topic, n), span))
                    ends[n] = extent.end
            lost = False
        except ClientError as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            if not lost:
                typer.echo(f"baton: {error}; going on when it answers", err=True)
            lost = True


def _print(things: Iterator[dict[str, Any]]) -> None:
    from gateway.commands.log_objects import line

    for thing in things:
        typer.echo(line(thing))


def _arrived(thing: dict[str, Any]) -> int:
    arrived: int = thing["arrived_ms"]
    return arrived


def _since_ms(text: str) -> int | None:
    if not text:
        return None
    if ago := _AGO.fullmatch(text):
        return time.time_ns() // 1_000_000 - int(ago[1]) * _UNITS_MS[ago[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        text = f"--since: {text!r} is neither 90s, 10m, 2h or 7d, nor ISO 8601"
        raise typer.BadParameter(text) from None
    # Without a zone it is this machine's, as in other tools that take times.
    return int((moment.astimezone(UTC) - _EPOCH).total_seconds() * 1000)

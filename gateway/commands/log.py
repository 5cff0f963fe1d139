"""``baton log``: read the event log, as it grows or as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.commands.exporting import Format, exporting
from gateway.commands.following import follow_on
from gateway.commands.log_rows import show_rows
from gateway.commands.options import Outcomes, Since, since_ms, takes
from gateway.feedback.log import Extent, Place

if TYPE_CHECKING:
    from gateway.outcomes_client import OutcomesClient

log_app = typer.Typer(help="Read the event log, and the rows that were joined of it.")

Topic = Annotated[
    Literal["predictions", "labels", "dlq"], typer.Argument(metavar="TOPIC")
]
Partition = Annotated[
    int | None, typer.Option(min=0, help="This one only.", show_default=False)
]
_LINES = 10
_BACK = 16
"""Events that are read at once, going back from the end."""
log_app.command("rows")(takes(Outcomes)(show_rows))


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
    since: Since = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"The last so many ({_LINES}, or all --since); from an offset, first.",
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
    if from_offset is not None and limit is not None and follow:
        text = "--from-offset with --limit is a page: leave --limit or --follow out"
        raise typer.BadParameter(text)
    start_ms = since_ms(since)
    with outcomes.client() as client, suppress(KeyboardInterrupt):
        spans = _spans(outcomes, client, topic, partition)
        if from_offset is not None:
            (only,) = spans
            spans[only] = Extent(max(from_offset, spans[only].start), spans[only].end)
        if start_ms is not None:
            for n, span in spans.items():
                start = _first(client, Place(topic, n), span, start_ms)
                spans[n] = Extent(start, span.end)
        ends = {n: span.end for n, span in spans.items()}
        if from_offset is None and (limit or not since):
            most = limit or _LINES
            lists = [
                _last(client, Place(topic, n), span, most) for n, span in spans.items()
            ]
            _print(deque(merge(*lists, key=_arrived), most))
        else:
            parts = [
                _objects(client, Place(topic, n), span) for n, span in spans.items()
            ]
            _print(islice(merge(*parts, key=_arrived), limit))
        if follow:
            follow_on(
                client,
                topic,
                ends,
                lambda n, span: _print(_objects(client, Place(topic, n), span)),
            )


@log_app.command("export")
@takes(Outcomes)
def export_log(
    outcomes: Outcomes,
    topic: Topic,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Is made anew.")],
    *,
    format_: Format = None,
    partition: Partition = None,
) -> None:
    """Write what a topic holds now into a file: JSON, a line each, or Parquet.

    One object (or row) per prediction, label or dead letter. Parquet wants the extra
    `parquet`.
    """
    with outcomes.client() as client:
        spans = _spans(outcomes, client, topic, partition)
        total = sum(end - start for start, end in spans.values())
        with exporting(outcomes, file, format_, topic, total) as export:
            for n, span in spans.items():
                for stored in client.events(topic, n, *span):
                    export.write(stored)
                    export.advance()


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


def _print(things: Iterable[dict[str, Any]]) -> None:
    from gateway.commands.log_objects import line

    for thing in things:
        typer.echo(line(thing))


def _arrived(thing: dict[str, Any]) -> int:
    arrived: int = thing["arrived_ms"]
    return arrived

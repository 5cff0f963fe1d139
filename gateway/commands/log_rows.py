"""``baton log rows``: what predictions and labels came to."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.commands.exporting import Export, Format, exporting
from gateway.commands.following import follow_on
from gateway.commands.options import Outcomes, Since, since_ms
from gateway.commands.shared import MAX_INT
from gateway.feedback.log import Extent
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.outcomes_client import OutcomesClient
    from gateway.protocol import outcomes_pb2 as pb

_LINES = 10
_MAX_LIMIT = 10_000
_HELD = 16_000
"""Rows of all partitions that are held while they are brought into one order."""
_LONG_CELL = 60
_HEADING = (
    f"{'PREDICTED':24} {'PREDICTION':36} {'ROW':>3} {'MODEL:VERSION':16} {'ROLE':10} "
    f"{'STATUS':8} SIGN LABELS <- OUTPUTS"
)


def show_rows(
    outcomes: Outcomes,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Is made anew, with all of them.", show_default=False
        ),
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Of this model.")] = "",
    version: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_INT, help="Of this version.", show_default=False),
    ] = None,
    status: Annotated[
        Literal["labelled", "missing", "default"] | None,
        typer.Option(help="That came by their labels so."),
    ] = None,
    since: Since = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MAX_LIMIT,
            help=f"The last so many: {_LINES}, or all --since and all in FILE.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until ^C.")
    ] = False,
    format_: Format = None,
) -> None:
    """Print joined rows, or write them into FILE: predictions with their labels.

    A row is emitted when the window of its prediction closes. A later label takes it
    back (SIGN -1) and emits it anew. Printed newest last, --since by the time of the
    prediction; with --json a line of JSON each, in which everything is.

    A controller has the rows of the partitions that it joins, the last
    feedback.max_outcomes of each: where several share them, ask each (--outcomes).
    """
    from gateway.protocol import outcomes_pb2 as pb

    if file is None and format_ is not None:
        raise typer.BadParameter("--format wants FILE; --json prints JSON")
    if file is not None and follow:
        raise typer.BadParameter("--follow prints: leave FILE or --follow out")
    start_ms = since_ms(since)
    wanted = pb.RowsRequest(
        model=model, version=version or 0, status=status or "", since_ms=start_ms or 0
    )
    with outcomes.client() as client:
        spans = _spans(client)
        if file is not None:
            wanted.last = limit or 0
            total = sum(end - start for start, end in spans.values())
            with exporting(outcomes, file, format_, "rows", total) as export:
                _write(client, wanted, spans, export)
            return
        wanted.last = limit or (0 if since else _LINES)
        if not outcomes.as_json:
            typer.echo(_HEADING)
        _print(outcomes, _rows(client, wanted, spans))
        if follow:
            with suppress(KeyboardInterrupt):
                _follow(outcomes, client, wanted, spans)


def _follow(
    outcomes: Outcomes,
    client: OutcomesClient,
    wanted: pb.RowsRequest,
    spans: dict[int, Extent],
) -> None:
    wanted.last = 0

    def show(partition: int, span: Extent) -> None:
        _print(outcomes, _of(client, wanted, partition, span))

    follow_on(client, "rows", {n: span.end for n, span in spans.items()}, show)


def _spans(client: OutcomesClient) -> dict[int, Extent]:
    """Return what partitions hold; say which ones are others'."""
    extents = client.extents("rows")
    elsewhere = [str(n) for n, extent in enumerate(extents) if extent.elsewhere]
    if elsewhere:
        typer.echo(
            f"baton: not joined here, so not shown: partitions {', '.join(elsewhere)} "
            f"of {len(extents)}",
            err=True,
        )
    return {n: Extent(extent.start, extent.end) for n, extent in enumerate(extents)}


def _rows(
    client: OutcomesClient, wanted: pb.RowsRequest, spans: dict[int, Extent]
) -> Iterable[pb.JoinedRow]:
    """Return the rows of all partitions, in the order of their predictions.

    What a partition emitted later stays later.
    """
    page = max(1, _HELD // max(1, len(spans)))
    parts = [_timed(_of(client, wanted, n, span, page)) for n, span in spans.items()]
    rows = (row for _, row in merge(*parts, key=itemgetter(0)))
    return deque(rows, wanted.last) if wanted.last else rows


def _timed(rows: Iterable[pb.JoinedRow]) -> Iterator[tuple[int, pb.JoinedRow]]:
    latest_ms = 0
    for row in rows:
        latest_ms = max(latest_ms, row.time_ms)
        yield latest_ms, row


def _of(
    client: OutcomesClient,
    wanted: pb.RowsRequest,
    partition: int,
    span: Extent,
    page: int = _HELD,
) -> Iterator[pb.JoinedRow]:
    """Yield the rows of a partition, a page at a time unless they are few anyway."""
    from gateway.protocol import outcomes_pb2 as pb

    start, end = span
    while start < end:
        upto = end if wanted.last else min(start + page, end)
        request = pb.RowsRequest(partition=partition, start=start, end=upto)
        request.MergeFrom(wanted)
        # As a list: a stream that is left open holds one of the connection's.
        for answer in list(client.rows(request)):
            yield from answer.rows
        start = upto


def _print(outcomes: Outcomes, rows: Iterable[pb.JoinedRow]) -> None:
    from gateway.commands.log_objects import line, row_objects

    for row in rows:
        for thing in row_objects(row):
            typer.echo(line(thing) if outcomes.as_json else text_of(thing))


def text_of(thing: dict[str, Any]) -> str:
    """Return the object of a row as a line for people."""
    version = f"{escape(thing['model'])}:{thing['version']}"
    labels = " ".join(cell(*each) for each in thing["labels"].items()) or "-"
    outputs = " ".join(cell(*each) for each in thing["outputs"].items()) or "-"
    return (
        f"{moment(thing['time_ms']):24} {thing['id']:36} {thing['row']:>3} "
        f"{version:16} {thing['role']:10} {thing['status']:8} {thing['sign']:+4} "
        f"{labels} <- {outputs}"
    )


def moment(ms: int) -> str:
    """Return a time as ISO 8601, in UTC; beyond the calendar, its milliseconds."""
    try:
        text = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"
    return text.replace("+00:00", "Z")


def cell(name: str, value: object) -> str:
    """Return a name and its value, cut where it is long."""
    text = json.dumps(value)
    cut = text if len(text) <= _LONG_CELL else text[: _LONG_CELL - 3] + "..."
    return f"{escape(name)}={cut}"


def _write(
    client: OutcomesClient,
    wanted: pb.RowsRequest,
    spans: dict[int, Extent],
    export: Export,
) -> None:
    from gateway.protocol import outcomes_pb2 as pb

    if wanted.last:
        for row in _rows(client, wanted, spans):
            export.write(row)
        return
    for n, (start, end) in spans.items():
        if start == end:
            continue
        request = pb.RowsRequest(partition=n, start=start, end=end)
        request.MergeFrom(wanted)
        done = start
        for answer in client.rows(request):
            for row in answer.rows:
                export.write(row)
            export.advance(answer.next - done)
            done = answer.next

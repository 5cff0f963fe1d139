"""``baton labels show``: what the join knows of one prediction now."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.log_rows import cell, moment
from gateway.commands.options import Outcomes
from gateway.commands.shared import columns, console, print_json
from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.protocol import outcomes_pb2 as pb


def show_prediction(
    outcomes: Outcomes,
    prediction_id: Annotated[
        str, typer.Argument(metavar="PREDICTION_ID", help="As the answer gave it.")
    ],
) -> None:
    """Show what the join knows of a prediction now.

    Who answered, its labels, until when labels are waited for, and the rows that come
    of it: "provisional" while its window is open, for they may change and are counted
    nowhere yet. Also labels that came without their prediction.
    """
    with outcomes.client() as client:
        answer = client.look(prediction_id)
    if not answer.known and not answer.waiting:
        outcomes.fail(_unknown(prediction_id, answer.partition), Code.NOT_FOUND)
    found = look_object(prediction_id, answer)
    if outcomes.as_json:
        print_json(found)
        return
    for text in _about(found):
        typer.echo(text)
    for table in _tables(found):
        if table.row_count:
            typer.echo()
            console().print(table)
    if found["left_out"]:
        typer.echo(f"and {found['left_out']} more lines, for which there is no room")


def _unknown(prediction_id: str, partition: int) -> str:
    return (
        f"nothing is known of {escape(prediction_id)} here (partition {partition}): it "
        "is not joined yet, was not logged (feedback.enabled), is another gateway's "
        "(--outcomes), was one too many (feedback.max_pending), or is forgotten since "
        "window_s and lateness_s are over: `baton log rows FILE` may have its rows, "
        "`baton log export predictions FILE` itself"
    )


def look_object(prediction_id: str, answer: pb.LookResponse) -> dict[str, Any]:
    """Return what is known of a prediction as JSON has it."""
    from gateway.commands.log_objects import (
        label_object,
        label_value,
        row_objects,
    )
    from gateway.feedback.cloudevents import decode
    from gateway.outcomes_client import stored_of

    waiting = []
    for one in answer.waiting:
        stored = stored_of(one.event)
        label = label_object(decode(stored.event, len(stored.event.value or b"")))
        place = {"offset": stored.offset, "arrived_ms": stored.arrived_ms}
        waiting.append(place | label | {"until_ms": one.until_ms})
    found: dict[str, Any] = {
        "prediction_id": prediction_id.lower(),
        "partition": answer.partition,
        "known": answer.known,
    }
    if answer.known:
        for name in (
            "model", "time_ms", "arrived_ms", "rows", "closed", "closes_ms",
            "forgotten_ms", "activated", "needs_activation",
        ):  # fmt: skip
            found[name] = getattr(answer, name)
    found["answers"] = [
        {
            "version": one.version,
            "role": one.role,
            "policy": one.policy,
            "propensity": one.propensity,
            "revision": one.revision,
            "snapshot": one.snapshot,
            "unit": one.unit,
            "bucket": one.bucket,
            "segments": list(one.segments),
        }
        for one in answer.answers
    ]
    found["labels"] = [
        {
            "row": one.row,
            "label_name": one.value.label_name,
            "value": label_value(one.value),
            "seq": one.seq,
            "time_ms": one.time_ms,
            "weight": one.weight,
            "parts": [
                {"source": part.source, "id": part.id, "number": part.number}
                for part in one.parts
            ],
        }
        for one in answer.labels
    ]
    found["joined"] = [thing for row in answer.joined for thing in row_objects(row)]
    for row in found["joined"]:
        del row["number"]  # it gets one when it is emitted
    return found | {"waiting": waiting, "left_out": answer.left_out}


def _about(found: dict[str, Any]) -> Iterator[str]:
    name = f"prediction {found['prediction_id']}"
    if not found["known"]:
        yield f"{name} is not here yet, but labels of it are"
        return
    rows = f"{found['rows']} row{'s' if found['rows'] != 1 else ''}"
    yield (
        f"{name}: {escape(found['model'])}, {rows}, answered "
        f"{moment(found['time_ms'])}, partition {found['partition']}"
    )
    closes, forgotten = moment(found["closes_ms"]), moment(found["forgotten_ms"])
    if found["closed"]:
        yield f"its window closed {closes}; labels correct its rows until {forgotten}"
    else:
        left_s = max(0, found["closes_ms"] - time.time_ns() // 1_000_000) // 1000
        yield (
            f"its window is open until {closes} ({left_s} s from now): rows are "
            f"provisional; then labels correct them until {forgotten}"
        )
    if found["needs_activation"] and not found["activated"]:
        yield "nobody acted upon it: its rows are emitted once an activation comes"
    if not found["answers"]:
        yield "it is not in the sample: none of its answers is joined"


def _tables(found: dict[str, Any]) -> Iterator[Table]:
    table = columns("ANSWERED", "ROLE", "POLICY", "PROPENSITY", "UNIT", "SEGMENTS")
    for one in found["answers"]:
        table.add_row(
            str(one["version"]),
            one["role"],
            one["policy"],
            f"{one['propensity']:.3f}",
            escape(one["unit"]),
            escape(" ".join(one["segments"])),
        )
    yield table
    table = columns("LABEL", "ROW", "VALUE", "SEQ", "TIME", "WEIGHT", "FROM")
    for one in found["labels"]:
        value = one["value"]
        table.add_row(
            escape(one["label_name"]),
            str(one["row"]),
            "retracted" if value is None else json.dumps(value),
            str(one["seq"]),
            moment(one["time_ms"]),
            f"{one['weight']:g}",
            escape(" ".join(part["source"] for part in one["parts"])),
        )
    yield table
    table = columns("JOINED", "ROLE", "ROW", "STATUS", "STATE", "LABELS", "OUTPUTS")
    for one in found["joined"]:
        table.add_row(
            str(one["version"]),
            one["role"],
            str(one["row"]),
            one["status"],
            "provisional" if one["provisional"] else "emitted",
            " ".join(cell(*each) for each in one["labels"].items()),
            " ".join(cell(*each) for each in one["outputs"].items()),
        )
    yield table
    table = columns("WAITS", "ROW", "KIND", "VALUE", "SEQ", "SOURCE", "UNTIL")
    for one in found["waiting"]:
        table.add_row(
            escape(one["label_name"]),
            str(one["row"]),
            one["kind"],
            json.dumps(one["value"]) if "value" in one else "",
            str(one["seq"]),
            escape(one["source"]),
            moment(one["until_ms"]),
        )
    yield table

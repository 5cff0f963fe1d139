"""A model as rows of the registry's tables, and back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gateway.errors import ChangeRefused, UnknownModel
from gateway.registry.audit import Entry, canonical, parse
from gateway.registry.decisions import answers
from gateway.registry.differences import differences
from gateway.registry.records import VERSION, Metadata, Model, Version, traffic_body
from gateway.traffic.table import MODEL_TRAFFIC, ModelTraffic

_INSERTS = {
    "model": "INSERT INTO models VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
    "SET body = excluded.body, seq = excluded.seq",
    "version": "INSERT INTO versions VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
    "SET body = excluded.body, seq = excluded.seq",
    "traffic": "INSERT INTO revisions VALUES (?, ?, ?, ?)",
}
_SHOWN = 200
"""Characters of a value in a line for people."""


def load(connection: sqlite3.Connection, name: str) -> Model:
    """Read a model; at revision 0 if there is none of that name."""
    query = "SELECT body FROM models WHERE model = ?"
    row = connection.execute(query, (name,)).fetchone()
    if row is None:
        return Model(name)
    head = json.loads(row[0])
    query = "SELECT body FROM versions WHERE model = ? ORDER BY version"
    versions = [
        VERSION.validate_python(json.loads(body))
        for (body,) in connection.execute(query, (name,))
    ]
    traffic, effective = revision(connection, name, head["revision"])
    return Model(
        name=name,
        revision=head["revision"],
        require_approval=head["require_approval"],
        versions={version.version: version for version in versions},
        traffic=traffic,
        effective=effective,
    )


def revision(
    connection: sqlite3.Connection, name: str, number: int
) -> tuple[ModelTraffic, int]:
    """Read a model's traffic at a revision, and the revision it was decided in.

    Raises:
        UnknownModel: There is no such model or revision.
    """
    query = "SELECT body FROM revisions WHERE model = ? AND revision = ?"
    row = connection.execute(query, (name, number)).fetchone()
    if row is None:
        raise UnknownModel(
            f"model '{name}' has no revision {number}; `baton audit show {name}` lists "
            "those that there are"
        )
    value = json.loads(row[0])
    return MODEL_TRAFFIC.validate_python(value["traffic"]), value["effective"]


def revision_before(connection: sqlite3.Connection, model: Model) -> int:
    """Return the last revision before the present decision in which others answered.

    Raises:
        ChangeRefused: There is none.
    """
    query = """
        SELECT max(revision) FROM revisions WHERE model = ? AND revision < ?
        AND json_extract(CAST(body AS TEXT), '$.answers') NOT IN ('', ?)
    """
    asked = model.name, model.effective, answers(model.traffic)
    (found,) = connection.execute(query, asked).fetchone()
    if found is None:
        raise ChangeRefused(
            f"model '{model.name}' has no earlier decision to return to; name a "
            "revision, or set the traffic"
        )
    return int(found)


def operation(connection: sqlite3.Connection, operation_id: str) -> Entry | None:
    """Return the entry of an operation that was done already."""
    query = "SELECT body FROM audit JOIN operations USING (seq) WHERE id = ?"
    row = connection.execute(query, (operation_id,)).fetchone()
    return parse(row[0]) if row else None


def changed_rows(old: Model, new: Model) -> dict[str, bytes]:
    """Return the rows that a change writes, by key."""
    head = {"revision": new.revision, "require_approval": new.require_approval}
    traffic = {
        "answers": answers(new.traffic),
        "effective": new.effective,
        "traffic": traffic_body(new.traffic),
    }
    rows = {
        "model": canonical(head),
        f"traffic/{new.revision}": canonical(traffic),
    }
    for number, version in new.versions.items():
        if old.versions.get(number) != version:
            value = VERSION.dump_python(version, mode="json")
            rows[f"version/{number}"] = canonical(value)
    return rows


def write(
    connection: sqlite3.Connection, rows: Mapping[str, bytes], entry: Entry
) -> None:
    """Write the rows of a change whose entry is in the log, within a transaction."""
    for key, body in rows.items():  # the model's first: others refer to it
        table, _, number = key.partition("/")
        numbers = (int(number),) if number else ()
        row = entry.model, *numbers, body, entry.seq
        connection.execute(_INSERTS[table], row)
    done = entry.evidence["operation"], entry.seq
    connection.execute("INSERT INTO operations VALUES (?, ?)", done)


def described(old: Model, new: Model) -> tuple[str, ...]:
    """Return what a change changes, line by line."""
    lines: list[str] = []
    if old.require_approval != new.require_approval:
        lines.append(f"require approval: {'yes' if new.require_approval else 'no'}")
    for number, version in new.versions.items():
        lines += _version_lines(old.versions.get(number), version)
    return (*lines, *differences(old.traffic, new.traffic))


def _version_lines(old: Version | None, new: Version) -> list[str]:
    name = f"version {new.version}"
    if old is None:
        return [f"+ {name}: digest {new.digest}"]
    if old == new:
        return []
    lines = []
    if old.approved_by != new.approved_by:
        lines.append(f"{name}: approved by {new.approved_by}")
    for field in fields(Metadata):
        before, after = (getattr(one.metadata, field.name) for one in (old, new))
        if before != after:
            shown = f"{_cut(before)} -> {_cut(after)}"
            lines.append(f"{name} {field.name}: {shown}")
    return lines


def _cut(value: Any) -> str:  # noqa: ANN401 - a field of any type
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

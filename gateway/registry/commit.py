"""Making a change: decided, recorded and written in one transaction, or not at all."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast

from gateway.errors import (
    GatewayError,
    InvalidRequest,
    RevisionConflict,
    UnknownModel,
)
from gateway.registry import decisions, rows
from gateway.registry.audit import Entry, canonical, chain, sha256
from gateway.registry.database import Database, append, read_head
from gateway.registry.records import Change, Changed, Model

MAX_TEXT = 4096
"""Characters of an actor, a reason, or an operation id."""
MAX_EVIDENCE_BYTES = 1 << 20

Plan = Callable[[sqlite3.Connection, Model, str], tuple[Model, tuple[int, ...]]]
"""Takes the model as it is and the time; returns it as it will be, without counting
its revision, and the versions concerned."""


def utc_time(unix_ns: int) -> str:
    """Return a moment as the audit log writes it: RFC 3339, UTC, milliseconds."""
    at = datetime.fromtimestamp(unix_ns // 1_000_000 / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change to be made.

    Attributes:
        action: What it is called in the audit log.
        model: The model's name.
        asked: Its arguments, as JSON.
        change: Who wants it, why, from where.
        plan: What it does.
        may_be_new: The model need not be there yet.
    """

    action: str
    model: str
    asked: Mapping[str, object]
    change: Change
    plan: Plan
    may_be_new: bool = False


def commit(database: Database, proposal: Proposal, unix_ns: int) -> Changed:
    """Make a change, or say of a dry run what it would do."""
    change, now = proposal.change, utc_time(unix_ns)
    request = _fingerprint(proposal)
    if change.dry_run:
        with database.read() as connection:
            return _rehearse(connection, proposal, now)
    with database.write() as connection:
        done = _done(connection, change.operation_id, request)
        if done is not None:
            return done
        old, new, versions = _decide(connection, proposal, now)
        # What is so already writes nothing but that it was asked for: repetitions of
        # the operation must not do it later.
        written = {} if new is old else rows.changed_rows(old, new)
        entry = chain(
            read_head(connection),
            time=now,
            actor=change.actor,
            action=proposal.action,
            model=proposal.model,
            from_revision=old.revision,
            to_revision=new.revision,
            reason=change.reason,
            evidence={
                "given": change.evidence,
                "operation": change.operation_id or uuid.uuid4().hex,
                "peer": change.peer,
                "request": request,
                "change": rows.described(old, new),
                "versions": versions,
                "wrote": {key: sha256(body) for key, body in written.items()},
            },
        )
        append(connection, entry)
        rows.write(connection, written, entry)
    return _changed(entry)


def known(model: Model) -> Model:
    """Return a model that is there.

    Raises:
        UnknownModel: It is not.
    """
    if model.revision == 0:
        raise UnknownModel(
            f"the registry has no model '{model.name}'; import a version of it first"
        )
    return model


def _rehearse(connection: sqlite3.Connection, proposal: Proposal, now: str) -> Changed:
    name = proposal.model
    try:
        old, new, versions = _decide(connection, proposal, now)
    except GatewayError as error:
        revision = rows.load(connection, name).revision
        return Changed(name, revision, 0, "", (), (), error.message)
    return Changed(name, new.revision, 0, "", versions, rows.described(old, new))


def _decide(
    connection: sqlite3.Connection, proposal: Proposal, now: str
) -> tuple[Model, Model, tuple[int, ...]]:
    """Return the model before and after, and the versions concerned.

    Where all is so already, before and after are the same object.
    """
    name, change = proposal.model, proposal.change
    old = rows.load(connection, name)
    if not proposal.may_be_new:
        known(old)
    expected = change.expected_revision
    if expected is not None and expected != old.revision:
        raise RevisionConflict(
            f"model '{name}' is at revision {old.revision}, not {expected}: somebody "
            f"changed it; look at it, and try again with revision {old.revision}"
        )
    if change.seen is not None and change.seen[1] != old.effective:
        went_back = old.effective < change.seen[0]
        if went_back or proposal.action == "rollback":
            raise RevisionConflict(
                f"model '{name}' was {'rolled back' if went_back else 'decided on'} by "
                "somebody else while this change was under way; look at it, and ask "
                "again if it still holds"
            )
    new, versions = proposal.plan(connection, old, now)
    if old.revision and replace(new, effective=old.effective) == replace(
        old, traffic=replace(old.traffic, revision=new.traffic.revision)
    ):
        return old, old, versions
    revision = old.revision + 1
    moved = decisions.answers(old.traffic) != decisions.answers(new.traffic)
    effective = new.effective
    if moved and effective == old.effective:
        effective = revision
    traffic = replace(new.traffic, revision=revision)
    new = replace(new, revision=revision, effective=effective, traffic=traffic)
    return old, new, versions


def _fingerprint(proposal: Proposal) -> str:
    """Return the SHA-256 of all that is asked for; refuse what cannot be recorded."""
    change = proposal.change
    for field in ("actor", "reason"):
        text = getattr(change, field)
        if not text.strip():
            raise InvalidRequest(
                f"a change needs its {field}: actor and reason go into the audit log"
            )
    for field in ("actor", "reason", "operation_id"):
        if len(getattr(change, field)) > MAX_TEXT:
            raise InvalidRequest(f"{field} has more than {MAX_TEXT} characters")
    try:
        evidence = canonical(change.evidence)
        if canonical(json.loads(evidence)) != evidence:
            raise ValueError("a name occurs twice")
        if len(evidence) > MAX_EVIDENCE_BYTES:
            raise ValueError(f"it has more than {MAX_EVIDENCE_BYTES} bytes")
        return sha256(
            canonical(
                {
                    "action": proposal.action,
                    "actor": change.actor,
                    "asked": proposal.asked,
                    "evidence": change.evidence,
                    "expected_revision": change.expected_revision,
                    "model": proposal.model,
                    "reason": change.reason,
                }
            )
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"the change cannot be recorded as JSON: {error}"
        ) from error


def _done(
    connection: sqlite3.Connection, operation_id: str, request: str
) -> Changed | None:
    """Return what an operation did the first time, if this is not it."""
    entry = rows.operation(connection, operation_id) if operation_id else None
    if entry is None:
        return None
    if entry.evidence["request"] != request:
        raise InvalidRequest(
            f"operation {operation_id!r} was done already, as entry {entry.seq}, with "
            "other arguments; a new change needs a new operation id"
        )
    return _changed(entry)


def _changed(entry: Entry) -> Changed:
    versions = cast("list[int]", entry.evidence["versions"])
    lines = cast("list[str]", entry.evidence["change"])
    return Changed(
        model=entry.model,
        revision=entry.to_revision,
        seq=entry.seq,
        hash=entry.hash,
        versions=tuple(versions),
        change=tuple(lines),
        applied=entry.to_revision > entry.from_revision,
    )

"""The registry: models, versions, traffic; every change audited, or not made.

A change is one transaction that writes the new state and its audit entry. It is bound
to the revision it was meant for, and repeating it changes nothing more.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gateway.errors import ChangeRefused, InvalidRequest
from gateway.registry import decisions, rows
from gateway.registry.audit import Entry, Verdict, parse
from gateway.registry.commit import Proposal, commit, known
from gateway.registry.database import Database, verify_database
from gateway.registry.records import (
    METADATA,
    Candidate,
    Change,
    Changed,
    Model,
    traffic_body,
)
from gateway.registry.repository import name_fault
from gateway.traffic.table import ModelTraffic

MAX_PAGE = 10_000
"""Entries of the audit log that are returned at a time."""


class Registry:
    """The registry in one SQLite file. One process writes; calls block on the disk.

    Changes raise, whichever they are: `InvalidRequest` (it can never be made),
    `UnknownModel`, `RevisionConflict` (the model has another revision by now),
    `ChangeRefused` (a rule forbids it as things stand), `RegistryUnavailable` (it could
    not be recorded). After any of these the state is what it was.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Open the registry, and make it where it is not there.

        Args:
            path: Of the SQLite file; its folder must be there.
            read_only: Refuse every change; for other processes.
            unix_ns: The clock of the audit log.

        Raises:
            RegistryUnavailable: It cannot be opened.
        """
        self._database = Database(path, read_only=read_only)
        self._unix_ns = unix_ns

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def names(self) -> tuple[str, ...]:
        """Return all models, sorted."""
        with self._database.read() as connection:
            found = connection.execute("SELECT model FROM models ORDER BY model")
            return tuple(str(name) for (name,) in found)

    def model(self, name: str) -> Model:
        """Return a model with its versions and traffic.

        Raises:
            UnknownModel: There is none of that name.
        """
        with self._database.read() as connection:
            return known(rows.load(connection, name))

    def traffic(self, name: str, revision: int | None = None) -> ModelTraffic:
        """Return a model's traffic, now or as it was at a revision.

        Raises:
            UnknownModel: There is no such model or revision.
        """
        with self._database.read() as connection:
            if revision is None:
                return known(rows.load(connection, name)).traffic
            return rows.revision(connection, name, revision)[0]

    def earlier(self, name: str, to_revision: int | None = None) -> ModelTraffic:
        """Return the traffic that `rollback` would bring back.

        Raises:
            UnknownModel: There is no such model or revision.
        """
        with self._database.read() as connection:
            now = known(rows.load(connection, name))
            return _rolled_back(connection, now, to_revision).traffic

    def history(
        self, model: str | None = None, *, before: int | None = None, limit: int = 100
    ) -> tuple[Entry, ...]:
        """Return audit entries, the newest first.

        Args:
            model: Only those of this model.
            before: Only those with a smaller number.
            limit: At most so many.
        """
        query = """
            SELECT body FROM audit WHERE seq < ?
            AND (? IS NULL OR json_extract(CAST(body AS TEXT), '$.model') = ?)
            ORDER BY seq DESC LIMIT ?
        """
        bound = before if before is not None else (1 << 63) - 1
        asked = bound, model, model, max(1, min(limit, MAX_PAGE))
        with self._database.read() as connection:
            return tuple(parse(body) for (body,) in connection.execute(query, asked))

    def operation(self, operation_id: str) -> Entry | None:
        """Return the entry of the change that had this id; ``None`` for none."""
        with self._database.read() as connection:
            return rows.operation(connection, operation_id)

    def verify(self, expect: str | None = None) -> Verdict:
        """Check the audit log, and the state against it; see `audit.verify`."""
        return verify_database(self._database, expect)

    def import_versions(
        self,
        model: str,
        candidates: Sequence[Candidate],
        change: Change,
        *,
        fields: Mapping[str, object] | None = None,
        require_approval: bool = False,
    ) -> Changed:
        """Add versions, and the model where it is new.

        Args:
            model: Its name.
            candidates: What to add; their artefacts are in the store.
            change: Who, why, from where.
            fields: Of the metadata, for all that are named, as `set_metadata` has it;
                also for those that are there already.
            require_approval: Of a new model: no version gets traffic unapproved, and
                the first one that is approved becomes champion.
        """
        fault = name_fault(model)
        if fault:
            raise InvalidRequest(f"model name {model[:100]!r} {fault}")

        def plan(_: object, now: Model, at: str) -> tuple[Model, tuple[int, ...]]:
            if now.revision == 0:
                now = replace(now, require_approval=require_approval)
            elif require_approval and not now.require_approval:
                raise ChangeRefused(
                    f"model '{model}' is there already, and this is said when it is "
                    f"new: `baton models require-approval {model}` does it now"
                )
            made, numbers = decisions.import_versions(now, candidates, change.actor, at)
            for number in numbers if fields else ():
                made = decisions.set_metadata(made, number, fields or {})
            return made, numbers

        asked = {
            "candidates": [
                {
                    "config": one.config,
                    "digest": one.digest,
                    "metadata": METADATA.dump_python(one.metadata, mode="json"),
                    "version": one.version,
                }
                for one in candidates
            ],
            "fields": dict(fields or {}),
            "require_approval": require_approval,
        }
        proposal = Proposal("import", model, asked, change, plan, may_be_new=True)
        return commit(self._database, proposal, self._unix_ns())

    def set_metadata(
        self, model: str, version: int, fields: Mapping[str, object], change: Change
    ) -> Changed:
        """Replace fields of a version's metadata; those not named stay."""
        return self._change(
            "set_metadata",
            model,
            {"version": version, "fields": dict(fields)},
            change,
            lambda now: decisions.set_metadata(now, version, fields),
        )

    def set_alias(
        self, model: str, alias: str, version: int, change: Change
    ) -> Changed:
        """Point an alias to a version; ``champion`` moves all the traffic there."""
        return self._change(
            "set_alias",
            model,
            {"alias": alias, "version": version},
            change,
            lambda now: decisions.set_alias(now, alias, version),
        )

    def remove_alias(self, model: str, alias: str, change: Change) -> Changed:
        """Take an alias away."""
        return self._change(
            "remove_alias",
            model,
            {"alias": alias},
            change,
            lambda now: decisions.remove_alias(now, alias),
        )

    def approve(self, model: str, version: int, change: Change) -> Changed:
        """Let a version get traffic; the actor must not be who imported it."""
        return self._change(
            "approve",
            model,
            {"version": version},
            change,
            lambda now: decisions.approve(now, version, change.actor),
        )

    def require_approval(self, model: str, required: bool, change: Change) -> Changed:
        """Set whether versions need approval before they get traffic."""
        return self._change(
            "require_approval",
            model,
            {"required": required},
            change,
            lambda now: decisions.require_approval(now, required),
        )

    def set_traffic(self, model: str, traffic: ModelTraffic, change: Change) -> Changed:
        """Decide who answers; revision, aliases and owners given are not looked at."""
        bare = replace(traffic, revision=0, aliases={}, buckets=())
        return self._change(
            "set_traffic",
            model,
            {"traffic": traffic_body(bare)},
            change,
            lambda now: decisions.set_traffic(now, traffic),
        )

    def freeze(self, model: str, frozen: bool, change: Change) -> Changed:
        """Keep a learning policy's weights as they are, or let it go on."""
        return self._change(
            "freeze" if frozen else "unfreeze",
            model,
            {},
            change,
            lambda now: decisions.set_frozen(now, frozen),
        )

    def rollback(
        self, model: str, change: Change, *, to_revision: int | None = None
    ) -> Changed:
        """Let those answer who did before; rolling back twice goes back further.

        Args:
            model: Its name.
            change: Who, why, from where.
            to_revision: The revision to return to; ``None`` for the last one before
                the present decision in which others answered.
        """

        def plan(
            connection: sqlite3.Connection, now: Model, _: str
        ) -> tuple[Model, tuple[int, ...]]:
            return _rolled_back(connection, now, to_revision), ()

        asked = {"to_revision": to_revision}
        proposal = Proposal("rollback", model, asked, change, plan)
        return commit(self._database, proposal, self._unix_ns())

    def _change(
        self,
        action: str,
        model: str,
        asked: Mapping[str, object],
        change: Change,
        decide: Callable[[Model], Model],
    ) -> Changed:
        def plan(_: object, now: Model, __: str) -> tuple[Model, tuple[int, ...]]:
            return decide(now), ()

        proposal = Proposal(action, model, asked, change, plan)
        return commit(self._database, proposal, self._unix_ns())


def _rolled_back(
    connection: sqlite3.Connection, now: Model, to_revision: int | None
) -> Model:
    revision = to_revision
    if revision is None:
        revision = rows.revision_before(connection, now)
    traffic, effective = rows.revision(connection, now.name, revision)
    return replace(decisions.restore(now, traffic), effective=effective)

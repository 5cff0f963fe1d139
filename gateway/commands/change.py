"""What the commands that change something share: their options, and the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.options import takes
from gateway.commands.shared import (
    ADMIN,
    MAX_INT,
    Admin,
    AsJson,
    connect,
    print_json,
    read,
)
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.admin_client import AdminClient
    from gateway.protocol import admin_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of every change; `change_command` has typer read them."""

    reason: Annotated[str, typer.Option(help="Why; goes into the audit log.")]
    evidence: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file with what speaks for it; goes there too."),
    ] = None
    if_revision: Annotated[
        int | None,
        typer.Option(help="Only if the model still has this revision.", min=0,
                     max=MAX_INT),
    ] = None  # fmt: skip
    operation_id: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="The same change with the same id is made once, however often it is "
            "asked for; a new id without.",
        ),
    ] = ""
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change; change nothing.")
    ] = False
    admin: Admin = ADMIN
    as_json: AsJson = False

    @contextmanager
    def asking(self, model: str) -> Iterator[tuple[AdminClient, pb.Change]]:
        """Give a client, and what the change of a model says about itself."""
        evidence = {} if self.evidence is None else read(self.evidence)
        with connect(self.admin, as_json=self.as_json) as client:
            change = client.change(
                model,
                self.reason,
                evidence=evidence,
                expected_revision=self.if_revision,
                operation_id=self.operation_id,
                dry_run=self.dry_run,
            )
            yield client, change

    def report(self, answer: pb.ChangeResponse) -> None:
        """Print what a change did, or would do; exit with 1 where it is refused."""
        if self.as_json:
            print_json(_body(answer))
        else:
            _tell(answer)
        if answer.refusal:
            raise typer.Exit(1)


change_command = takes(Options)
"""Gives a command the options of every change as its first argument."""


def _body(answer: pb.ChangeResponse) -> dict[str, Any]:
    return {
        "model": answer.model,
        "revision": answer.revision,
        "applied": answer.applied,
        "versions": list(answer.versions),
        "change": list(answer.diff),
        "refusal": answer.refusal,
        "fronts": answer.fronts,
        "notes": list(answer.notes),
        "audit": {"seq": answer.audit_seq, "hash": answer.audit_hash},
    }


def _tell(answer: pb.ChangeResponse) -> None:
    for line in answer.diff:
        typer.echo(f"  {escape(line)}")
    for note in answer.notes:
        typer.echo(f"  note: {escape(note)}", err=True)
    name = escape(answer.model)
    if answer.refusal:
        typer.echo(f"baton: would be refused: {escape(answer.refusal)}", err=True)
    elif answer.applied:
        where = f", in force in {answer.fronts} fronts" if answer.fronts else ""
        typer.echo(
            f"{name}: revision {answer.revision}{where} "
            f"(audit entry {answer.audit_seq}, {answer.audit_hash[:12]})"
        )
    elif answer.diff:
        typer.echo(f"{name}: nothing was changed (dry run)")
    else:
        typer.echo(f"{name}: all is so already; nothing to change")

"""What the admin plane's commands share: arguments, the client, the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.admin_client import AdminClient
    from gateway.protocol import admin_pb2 as pb

ADMIN = "unix:.baton/admin.sock"

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
AnyModel = Annotated[str, typer.Argument(metavar="[MODEL]", help="One; none for all.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1)]
Admin = Annotated[
    str,
    typer.Option(
        "--admin",
        envvar="BATON_ADMIN_ADDRESS",
        metavar="ADDR",
        help="The gateway's admin plane: unix:PATH or host:port.",
    ),
]
Reason = Annotated[str, typer.Option(help="Why; goes into the audit log.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would change; change nothing.")
]
Expected = Annotated[
    int | None,
    typer.Option(
        "--if-revision", help="Only if the model still has this revision.", min=0
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def report(answer: pb.ChangeResponse, as_json: bool) -> None:
    """Print what a change did, or would do; exit with 1 where it would be refused."""
    body = {
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
    if as_json:
        print_json(body)
    else:
        for line in answer.diff:
            typer.echo(f"  {escape(line)}")
        for note in answer.notes:
            typer.echo(f"  note: {escape(note)}", err=True)
        name = escape(answer.model)
        if answer.refusal:
            typer.echo(f"baton: would be refused: {escape(answer.refusal)}", err=True)
        elif answer.applied:
            typer.echo(
                f"{name}: revision {answer.revision}, in force in {answer.fronts} "
                f"fronts (audit entry {answer.audit_seq}, {answer.audit_hash[:12]})"
            )
        elif answer.diff:
            typer.echo(f"{name}: nothing was changed (dry run)")
        else:
            typer.echo(f"{name}: all is so already; nothing to change")
    if answer.refusal:
        raise typer.Exit(1)


def read(file: Path) -> dict[str, Any]:
    """Return the object in a YAML or JSON file."""
    try:
        value = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise typer.BadParameter(f"{file}: {text}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{file}: must hold an object")
    return value


@contextmanager
def connect(address: str) -> Iterator[AdminClient]:
    """Open a client; an expected error inside is printed in one line and exits."""
    from gateway.admin_client import AdminClient
    from gateway.client_rpc import ClientError

    try:
        with AdminClient(address) as client:
            yield client
    except ClientError as error:
        typer.echo(f"baton: {error}", err=True)
        raise typer.Exit(1) from None


def columns(*names: str) -> Table:
    """Return an empty table whose cells fold."""
    table = Table(*names, box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    return table


def console() -> Console:
    """Return a console for which foreign text is no markup."""
    made = Console(markup=False, emoji=False, highlight=False)
    if not made.is_terminal:
        made.width = 200  # A pipe has no width; tables would fold at 80.
    return made


def print_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2))

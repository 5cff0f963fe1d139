"""``baton audit``: who changed what, when and why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.shared import (
    ADMIN,
    Admin,
    AnyModel,
    AsJson,
    columns,
    connect,
    console,
    fail,
    print_json,
)
from gateway.errors import Code, GatewayError
from gateway.logs import escape

_HASH = re.compile(r"[0-9a-f]{12,64}")
_NO_LOG = 3
"""Exit status where there is no log to check, or it cannot be read."""

audit_app = typer.Typer(help="Who changed what, when and why.")


@audit_app.command("show")
def show_audit(
    model: AnyModel = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Show the last changes, newest first."""
    with connect(admin, as_json=as_json) as client:
        entries = client.audit(model, limit=limit)
    if as_json:
        print_json(entries)
        return
    table = columns(
        "SEQ", "TIME", "ACTOR", "PEER", "ACTION", "MODEL", "REVISION", "REASON"
    )
    for entry in entries:
        table.add_row(
            str(entry["seq"]),
            entry["time"],
            escape(entry["actor"]),
            escape(entry["evidence"].get("peer", "")),
            entry["action"],
            escape(entry["model"]),
            f"{entry['from_revision']} -> {entry['to_revision']}",
            escape(entry["reason"]),
        )
    console().print(table)


@audit_app.command("verify")
def verify_audit(
    state_dir: Annotated[
        Path, typer.Option(help="The gateway's state folder; it need not run.")
    ] = Path(".baton"),
    expect: Annotated[
        str,
        typer.Option(
            help="Hash that the log must contain, noted earlier; 12 digits or more."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Check the whole audit log. Exit status 1: it was tampered with; 3: no log."""
    if expect and not _HASH.fullmatch(expect):
        raise typer.BadParameter(f"{escape(expect)}: give 12 to 64 hexadecimal digits")
    from gateway.registry.registry import Registry

    path = state_dir / "registry" / "registry.sqlite"
    if not path.exists():
        text = f"no registry at {escape(str(path))} (name --state-dir)"
        fail(text, Code.NOT_FOUND, as_json=as_json, status=_NO_LOG)
    try:
        registry = Registry(path, read_only=True)
        verdict = registry.verify(expect or None)
        registry.close()
    except GatewayError as error:
        fail(escape(error.message), error.code, as_json=as_json, status=_NO_LOG)
    fault = verdict.fault
    if as_json:
        head = {"entries": verdict.entries, "head": verdict.head}
        print_json({"ok": not fault, "entry": verdict.bad_seq, "fault": fault, **head})
    elif fault:
        typer.echo(
            "baton: the audit log is not what was written. Entry "
            f"{verdict.bad_seq}: {escape(fault)}; the {verdict.entries} before it are "
            f"whole, head {verdict.head}",
            err=True,
        )
    else:
        typer.echo(f"{verdict.entries} entries, head {verdict.head}")
    raise typer.Exit(1 if fault else 0)

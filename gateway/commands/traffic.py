"""``baton traffic``: which version answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.commands.outcomes import add_outcome_commands
from gateway.commands.shared import (
    ADMIN,
    Admin,
    AsJson,
    DryRun,
    Expected,
    Model,
    Operation,
    Reason,
    Shares,
    Version,
    connect,
    fail,
    read,
    report,
    shares_of,
)
from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.admin_client import AdminClient
    from gateway.protocol import admin_pb2 as pb

traffic_app = typer.Typer(
    help="Decide which version answers; every change is audited and can be undone."
)
add_outcome_commands(traffic_app)

PolicyName = Literal["fixed", "sticky", "epsilon_greedy", "thompson"]


@traffic_app.command("set")
def set_traffic(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON table.")],
    *,
    reason: Reason,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Put a whole table in force (`traffic show --json` has it as `table`).

    A `revision` in the file counts as --if-revision, unless that is given.
    """
    table = read(file)
    if if_revision is None and isinstance(table.get("revision"), int):
        if_revision = table["revision"] or None
    with connect(admin, as_json=as_json) as client:
        moved = _moved_aliases(client, model, table, if_revision)
        if moved:
            fail(
                f"{file}: {moved} differs from the alias in force, and a table moves "
                "none: use `baton models alias`, or leave aliases out of the file",
                Code.FAILED_PRECONDITION,
                as_json=as_json,
            )
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        report(client.set_traffic(change, table), as_json)


@traffic_app.command("split")
def split_traffic(
    model: Model,
    shares: Shares,
    *,
    reason: Reason,
    policy: Annotated[
        PolicyName | None, typer.Option(help="How an arm is chosen; as now without.")
    ] = None,
    unit: Annotated[
        str,
        typer.Option(help="What sticks: metadata:KEY or parameter:KEY.", metavar="SRC"),
    ] = "",
    salt: Annotated[str, typer.Option(help="Of the layer of experiments.")] = "",
    champion: Annotated[
        int,
        typer.Option(
            help="The champion. Without: the present one if it is named, or else the "
            "first one named.",
            min=0,
        ),
    ] = 0,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Split a model's requests between versions; the champion stays who it is."""
    wanted = shares_of(shares)
    source = _source(unit) if unit else None
    if champion and champion not in wanted:
        raise typer.BadParameter(f"--champion {champion} has no share; name it too")
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        table = _present(client, change)
        if operation_id and not dry_run:
            done = client.done(change, "set_traffic")
            if done is not None:
                report(done, as_json)
                return
        first = champion or _champion(table, wanted)
        table["arms"] = [
            {
                "version": version,
                "role": "champion" if version == first else "challenger",
                "share": share,
            }
            for version, share in wanted.items()
        ]
        kept = set(wanted)
        table["rules"] = [rule for rule in table["rules"] if rule["version"] in kept]
        table["shadows"] = [s for s in table["shadows"] if s["version"] not in kept]
        if policy is not None:
            table["policy"]["kind"] = policy
        if source:
            table["unit"] = source
        if salt:
            table["salt"] = salt
        report(client.set_traffic(change, table), as_json)


@traffic_app.command("shadow")
def shadow_traffic(
    model: Model,
    version: Version,
    *,
    reason: Reason,
    sample: Annotated[
        float, typer.Option(help="Fraction of requests that is copied.", min=0, max=1)
    ] = 1.0,
    max_queue: Annotated[
        int, typer.Option(help="Copies in flight per front.", min=1)
    ] = 256,
    remove: Annotated[
        bool, typer.Option("--remove", help="Make no more copies.")
    ] = False,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Copy requests to a version whose answers nobody gets."""
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        table = _present(client, change)
        if operation_id and not dry_run:
            done = client.done(change, "set_traffic")
            if done is not None:
                report(done, as_json)
                return
        table["shadows"] = [s for s in table["shadows"] if s["version"] != version]
        if not remove:
            shadow = {"version": version, "sample": sample, "max_queue": max_queue}
            table["shadows"].append(shadow)
        report(client.set_traffic(change, table), as_json)


@traffic_app.command("freeze")
def freeze_traffic(
    model: Model,
    *,
    reason: Reason,
    off: Annotated[bool, typer.Option("--off", help="Let it go on learning.")] = False,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Have a policy that learns keep its weights as they are."""
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        report(client.freeze(change, frozen=not off), as_json)


@traffic_app.command("rollback")
def rollback_traffic(
    model: Model,
    *,
    reason: Reason,
    to: Annotated[
        int, typer.Option(help="Revision to return to; the one before without.", min=0)
    ] = 0,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Let those answer who did before."""
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        report(client.rollback(change, to), as_json)


def _present(client: AdminClient, change: pb.Change) -> dict[str, Any]:
    """Return a model's table, and have a change hold only while it is in force.

    Args:
        client: Of the admin plane.
        change: Of the model; keeps an expected revision that it has.
    """
    shown = client.show(change.model)[0]
    if not change.HasField("expected_revision"):
        change.expected_revision = shown["revision"]
    table: dict[str, Any] = shown["traffic"]
    return table


def _champion(table: dict[str, Any], wanted: dict[int, float]) -> int:
    """Return the champion of a table if it is to have a share, or else the first."""
    for arm in table["arms"]:
        if arm["role"] == "champion" and arm["version"] in wanted:
            return int(arm["version"])
    return next(iter(wanted))


def _moved_aliases(
    client: AdminClient, model: str, table: dict[str, Any], if_revision: int | None
) -> str:
    """Return the aliases that a table has otherwise than the model; empty for none."""
    given = table.get("aliases")
    if not isinstance(given, dict) or not given:
        return ""
    shown = client.show(model)[0]
    if if_revision not in (None, shown["revision"]):
        return ""  # Of another revision: the server says which, or that it was done.
    now = shown["aliases"]
    moved = [name for name in {**now, **given} if now.get(name) != given.get(name)]
    return ", ".join(f"aliases.{escape(str(name))}" for name in sorted(moved, key=str))


def _source(text: str) -> dict[str, str]:
    kind, _, key = text.partition(":")
    if kind not in ("metadata", "parameter") or not key:
        name = escape(key or text)
        raise typer.BadParameter(
            f"--unit {escape(text)}: write metadata:{name} (of the call) or "
            f"parameter:{name} (of the request)"
        )
    return {"kind": kind, "key": key}

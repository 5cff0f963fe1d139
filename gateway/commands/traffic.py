"""``baton traffic``: which version answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.commands.change import Options, change_command
from gateway.commands.outcomes import add_outcome_commands
from gateway.commands.shared import (
    MAX_INT,
    Model,
    Shares,
    Version,
    fail,
    read,
    shares_of,
)
from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.admin_client import AdminClient

traffic_app = typer.Typer(
    help="Decide which version answers; every change is audited and can be undone."
)
add_outcome_commands(traffic_app)

PolicyName = Literal["fixed", "sticky", "epsilon_greedy", "thompson"]


@traffic_app.command("set")
@change_command
def set_traffic(
    options: Options,
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON table.")],
) -> None:
    """Put a whole table in force (`traffic show --json` has it as `table`).

    A `revision` in the file counts as --if-revision, unless that is given.
    """
    table = read(file)
    if options.if_revision is None and table.get("revision"):
        options = replace(options, if_revision=_revision(table["revision"], file))
    with options.asking(model) as (client, change):
        moved = _moved_aliases(client, model, table, options.if_revision)
        if moved:
            fail(
                f"{file}: {moved} differs from the alias in force, and a table moves "
                "none: use `baton models alias`, or leave aliases out of the file",
                Code.FAILED_PRECONDITION,
                as_json=options.as_json,
            )
        options.report(client.set_traffic(change, table))


@traffic_app.command("split")
@change_command
def split_traffic(
    options: Options,
    model: Model,
    shares: Shares,
    *,
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
) -> None:
    """Split a model's requests between versions; the champion stays who it is."""
    wanted = shares_of(shares)
    source = _source(unit) if unit else None
    if champion and champion not in wanted:
        raise typer.BadParameter(f"--champion {champion} has no share; name it too")
    kept = set(wanted)

    def amend(table: dict[str, Any]) -> None:
        first = champion or _champion(table, wanted)
        table["arms"] = [
            {
                "version": version,
                "role": "champion" if version == first else "challenger",
                "share": share,
            }
            for version, share in wanted.items()
        ]
        table["rules"] = [rule for rule in table["rules"] if rule["version"] in kept]
        table["shadows"] = [s for s in table["shadows"] if s["version"] not in kept]
        if policy is not None:
            table["policy"]["kind"] = policy
        if source:
            table["unit"] = source
        if salt:
            table["salt"] = salt

    _amend(options, model, amend)


@traffic_app.command("shadow")
@change_command
def shadow_traffic(
    options: Options,
    model: Model,
    version: Version,
    *,
    sample: Annotated[
        float, typer.Option(help="Fraction of requests that is copied.", min=0, max=1)
    ] = 1.0,
    max_queue: Annotated[
        int, typer.Option(help="Copies in flight per front.", min=1)
    ] = 256,
    remove: Annotated[
        bool, typer.Option("--remove", help="Make no more copies.")
    ] = False,
) -> None:
    """Copy requests to a version whose answers nobody gets."""

    def amend(table: dict[str, Any]) -> None:
        table["shadows"] = [s for s in table["shadows"] if s["version"] != version]
        if not remove:
            shadow = {"version": version, "sample": sample, "max_queue": max_queue}
            table["shadows"].append(shadow)

    _amend(options, model, amend)


@traffic_app.command("freeze")
@change_command
def freeze_traffic(
    options: Options,
    model: Model,
    *,
    off: Annotated[bool, typer.Option("--off", help="Let it go on learning.")] = False,
) -> None:
    """Have a policy that learns keep its weights as they are."""
    with options.asking(model) as (client, change):
        options.report(client.freeze(change, frozen=not off))


@traffic_app.command("rollback")
@change_command
def rollback_traffic(
    options: Options,
    model: Model,
    *,
    to: Annotated[
        int,
        typer.Option(
            help="Revision to return to; the one before without.", min=0, max=MAX_INT
        ),
    ] = 0,
) -> None:
    """Let those answer who did before."""
    with options.asking(model) as (client, change):
        options.report(client.rollback(change, to))


def _amend(
    options: Options, model: str, amend: Callable[[dict[str, Any]], None]
) -> None:
    """Change the table in force, and no other; what was done already is only told."""
    with options.asking(model) as (client, change):
        shown = client.show(model)[0]
        if not change.HasField("expected_revision"):
            change.expected_revision = shown["revision"]
        # Looked for after the table, so that a change that is made meanwhile is bound
        # to the revision that this one would be.
        answer = None if change.dry_run else client.done(change, "set_traffic")
        if answer is None:
            amend(shown["traffic"])
            answer = client.set_traffic(change, shown["traffic"])
        options.report(answer)


def _revision(value: Any, file: Path) -> int:  # noqa: ANN401 - whatever the file has
    """Return the revision in a table's file."""
    if type(value) is not int or not 0 < value <= MAX_INT:
        text = escape(str(value)[:100])
        raise typer.BadParameter(f"{file}: revision {text} is none: leave it out")
    return value


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

"""``baton models``: what the registry has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.change import Options, change_command
from gateway.commands.shared import (
    ADMIN,
    MAX_INT,
    Admin,
    AnyModel,
    AsJson,
    Model,
    Version,
    columns,
    connect,
    console,
    print_json,
    read,
)
from gateway.logs import escape

METADATA = (
    "YAML or JSON file with any of description, owner, stage, metrics, feature_schema, "
    "training_profile, lineage (source, code_commit, data_digest, run_id, parameters)."
)


def add_model_commands(models: typer.Typer) -> None:
    """Add the registry's commands to ``baton models``."""
    models.command("import")(import_models)
    models.command("show")(show_models)
    models.command("describe")(describe_model)
    models.command("alias")(alias_model)
    models.command("approve")(approve_model)
    models.command("require-approval")(set_approval)


@change_command
def import_models(
    options: Options,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, an ONNX file, a Triton repository, a URL, or "
            "models:/name@alias of an MLflow registry.",
        ),
    ],
    *,
    model: Annotated[
        str, typer.Option(help="Name to give it, or the one to take of several.")
    ] = "",
    metadata: Annotated[
        Path | None,
        typer.Option(help=f"{METADATA} Also for versions that are there already."),
    ] = None,
    require_approval: Annotated[
        bool,
        typer.Option(
            "--require-approval",
            help="Of a new model: no version answers before somebody else approved it.",
        ),
    ] = False,
) -> None:
    """Take versions of a model into the registry.

    The first import of a model makes its highest version the champion, which answers;
    later versions wait until `baton traffic` or the alias `champion` lets them.
    """
    if not source.strip():
        raise typer.BadParameter("SOURCE is empty: name a folder, a file or a URL")
    fields = {} if metadata is None else read(metadata)
    if "://" not in source and not source.startswith("models:/"):
        source = str(Path(source).absolute())
    with options.asking(model) as (client, change):
        answer = client.import_(
            change, source, fields, require_approval=require_approval
        )
        options.report(answer)


def show_models(
    model: AnyModel = "", admin: Admin = ADMIN, as_json: AsJson = False
) -> None:
    """Show models, their versions and who answers."""
    with connect(admin, as_json=as_json) as client:
        found = client.show(model)
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("no models (take one in with `baton models import`)")
        return
    table = columns("MODEL", "VERSION", "ALIASES", "DIGEST", "BY", "APPROVED", "SHARE")
    for one in found:
        names: dict[int, list[str]] = {}
        for alias, version in one["aliases"].items():
            names.setdefault(version, []).append(alias)
        shares = {arm["version"]: arm["share"] for arm in one["traffic"]["arms"]}
        for version in one["versions"]:
            number = version["version"]
            share = f"{shares[number]:.0%}" if number in shares else ""
            table.add_row(
                escape(one["model"]),
                str(number),
                escape(", ".join(sorted(names.get(number, [])))),
                version["digest"][:12],
                escape(version["created_by"]),
                escape(version["approved_by"]),
                share,
            )
    console().print(table)


@change_command
def describe_model(
    options: Options,
    model: Model,
    version: Version,
    *,
    metadata: Annotated[Path, typer.Option(help=METADATA)],
) -> None:
    """Say more of a version: the fields in the file are replaced, others stay."""
    fields = read(metadata)
    with options.asking(model) as (client, change):
        options.report(client.set_metadata(change, version, fields))


@change_command
def alias_model(
    options: Options,
    model: Model,
    alias: Annotated[str, typer.Argument(metavar="ALIAS")],
    version: Annotated[
        int,
        typer.Argument(
            metavar="VERSION", min=0, max=MAX_INT, help="0 takes the alias away."
        ),
    ],
) -> None:
    """Give a version a name that clients may ask for; `champion` moves all traffic."""
    with options.asking(model) as (client, change):
        options.report(client.set_alias(change, alias, version))


@change_command
def approve_model(
    options: Options,
    model: Model,
    version: Version,
) -> None:
    """Let a version answer, of a model that requires it; not by who imported it."""
    with options.asking(model) as (client, change):
        options.report(client.approve(change, version))


@change_command
def set_approval(
    options: Options,
    model: Model,
    required: Annotated[bool, typer.Option("--on/--off")] = True,
) -> None:
    """Say whether versions need an approver before they answer anybody.

    Without one they answer neither by policy nor by number or alias; they may shadow.
    """
    with options.asking(model) as (client, change):
        options.report(client.require_approval(change, required=required))

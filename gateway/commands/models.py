"""``baton models``: what the registry has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.shared import (
    ADMIN,
    Admin,
    AnyModel,
    AsJson,
    DryRun,
    Expected,
    Model,
    Operation,
    Reason,
    Version,
    columns,
    connect,
    console,
    print_json,
    read,
    report,
)
from gateway.logs import escape


def add_model_commands(models: typer.Typer) -> None:
    """Add the registry's commands to ``baton models``."""
    models.command("import")(import_models)
    models.command("show")(show_models)
    models.command("alias")(alias_model)
    models.command("approve")(approve_model)
    models.command("require-approval")(require_approval)


def import_models(
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
    reason: Reason,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file with any of description, owner, stage, metrics, "
            "feature_schema, training_profile, lineage (source, code_commit, "
            "data_digest, run_id, parameters)."
        ),
    ] = None,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
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
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        report(client.import_(change, source, fields), as_json)


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


def alias_model(
    model: Model,
    alias: Annotated[str, typer.Argument(metavar="ALIAS")],
    version: Annotated[
        int, typer.Argument(metavar="VERSION", min=0, help="0 takes the alias away.")
    ],
    *,
    reason: Reason,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Give a version a name that clients may ask for; `champion` moves all traffic."""
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        report(client.set_alias(change, alias, version), as_json)


def approve_model(
    model: Model,
    version: Version,
    *,
    reason: Reason,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Let a version answer, of a model that requires it; not by who imported it."""
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        report(client.approve(change, version), as_json)


def require_approval(
    model: Model,
    required: Annotated[bool, typer.Option("--on/--off")] = True,
    *,
    reason: Reason,
    if_revision: Expected = None,
    operation_id: Operation = "",
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Say whether versions need an approver before they answer anybody.

    Without one they answer neither by policy nor by number or alias; they may shadow.
    """
    with connect(admin, as_json=as_json) as client:
        change = client.change(
            model,
            reason,
            expected_revision=if_revision,
            operation_id=operation_id,
            dry_run=dry_run,
        )
        report(client.require_approval(change, required=required), as_json)

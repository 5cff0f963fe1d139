"""The command line: ``baton serve | doctor | call | models | traffic | ...``.

Exit status: 0 done, 1 failed, 2 wrong usage. Errors are one line (for the
configuration, one per problem) on standard error; with ``--json`` one JSON object,
``{"error": text, "code": name of a gRPC status}``. Only ``serve`` imports the
server and only commands that call one import gRPC.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from gateway.commands.audit import audit_app
from gateway.commands.labels import labels_app
from gateway.commands.log import log_app
from gateway.commands.models import add_model_commands
from gateway.commands.options import takes
from gateway.commands.repository import Reach, add_repository_commands
from gateway.commands.shared import (
    AsJson,
    Model,
    console,
    error_text,
    fail,
    print_json,
)
from gateway.commands.traffic import traffic_app
from gateway.config import schema as config_schema
from gateway.config_file import ConfigError, load_config
from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.doctor import Status

app = typer.Typer(
    name="baton",
    help="A model-serving gateway for ONNX models.",
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(
    help="Take models into the registry; list, load and unload what a server has."
)
config_app = typer.Typer(help="Explain, check and show the configuration.")
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.add_typer(traffic_app, name="traffic")
app.add_typer(audit_app, name="audit")
app.add_typer(labels_app, name="labels")
app.add_typer(log_app, name="log")
add_model_commands(models_app)
add_repository_commands(models_app)

ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", help="YAML file.", show_default=False),
]
_NEGATIVE = re.compile(r"No such option: -[0-9]")
_COLOURS: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


def main() -> None:
    """Run the command line and exit the process."""
    try:
        status = app(prog_name="baton", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "baton"
        message = error.format_message().rstrip(".")
        if _NEGATIVE.search(message):
            message = f"{message}: versions are numbers from 1 on"
        text = f"{escape(message)} (see `{command} --help`)"
        _say(text, Code.INVALID_ARGUMENT)
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except Exception as error:  # The edge: users get one line, never a traceback.
        if os.environ.get("BATON_TRACEBACK"):
            raise
        what = escape(f"{type(error).__name__}: {error}")
        _say(f"{what}. This is a bug (BATON_TRACEBACK=1 shows where).", Code.INTERNAL)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _say(message: str, code: Code) -> None:
    """Print an error that comes from no command, in the form that was asked for."""
    words = sys.argv[1:]
    as_json = "--json" in words
    if "call" in words[:1]:  # its --json is a payload
        as_json = "--output=json" in words or "--output json" in " ".join(words)
    typer.echo(error_text(message, code, as_json=as_json), err=True)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"baton {metadata.version('baton-gateway')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@app.command()
def serve(
    config: ConfigFile = None,
    *,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder of models, MODEL/1/model.onnx.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="First port; 0: a free one.")] = None,
    fronts: Annotated[int | None, typer.Option(help="Front processes.")] = None,
    port_mode: Annotated[
        Literal["shared", "each"] | None,
        typer.Option(help="One port for all fronts, or one for each."),
    ] = None,
    transport: Annotated[
        Literal["own", "grpcio"] | None,
        typer.Option(help="Baton's own HTTP/2, or grpc.aio to compare with."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Workers per device.")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Where models run.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics; 0: a free one.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="Lowest level written."),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="For people or collectors.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder for what outlives a process.")
    ] = None,
) -> None:
    """Serve the models of a repository. Flags win over environment and file."""
    flags: dict[str, Any] = {
        "model_repository": model_repository,
        "state_dir": state_dir,
        "grpc": {
            "host": host,
            "port": port,
            "fronts": fronts,
            "port_mode": port_mode,
            "transport": transport,
        },
        "workers": {"count": workers, "device": device},
        "metrics": {"port": metrics_port},
        "log": {"level": log_level, "format": log_format},
    }
    settings = _load(config, flags)
    from gateway.app import run

    raise typer.Exit(run(settings))


@app.command()
def doctor(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check whether this machine can serve. Exit status 1: something must be done."""
    from gateway.doctor import run_checks

    checks = run_checks(config)
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        rows = [
            {"name": c.name, "status": c.status, "detail": c.detail, "fix": c.fix}
            for c in checks
        ]
        print_json({"ok": not failed, "checks": rows})
    else:
        screen = console()
        for check in checks:
            screen.print(f"{check.status:<5}", style=_COLOURS[check.status], end="")
            fix = f" -> {check.fix}" if check.fix else ""
            line = escape(f"{check.name}: {check.detail}{fix}")
            screen.print(line, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
@takes(Reach)
def call(
    reach: Reach,
    model: Model,
    *,
    payload: Annotated[
        str,
        typer.Option(
            "--json",
            metavar="JSON",
            help='Inputs, {"x": [[1, 2]]}; or @FILE, or - for standard input.',
        ),
    ],
    model_version: Annotated[
        str, typer.Option(help="Version to ask for; the server chooses without.")
    ] = "",
    output: Annotated[
        Literal["text", "json"], typer.Option(help="Form of the answer.")
    ] = ("text"),
) -> None:
    """Send one request to a model and print the answer."""
    from gateway.call import build_request, read_payload, response_values

    with reach.client(as_json=output == "json") as client:
        values = read_payload(payload)
        metadata = client.metadata(model, model_version)
        request = build_request(metadata, values, version=model_version)
        response = client.infer(request)
        answer = response_values(response)
    if output == "json":
        print_json(answer)
        return
    screen = console()
    head = f"{answer['model']} version {answer['version']}"
    if answer["prediction_id"]:
        head += f", prediction {answer['prediction_id']}"
    screen.print(escape(head), style="bold", soft_wrap=True)
    outputs = answer["outputs"]
    assert isinstance(outputs, dict)
    for tensor in response.outputs:
        title = f"{tensor.name}  {tensor.datatype} {list(tensor.shape)}"
        screen.print(escape(title), style="cyan", soft_wrap=True)
        screen.print(f"  {json.dumps(outputs[tensor.name])}", soft_wrap=True)


@config_app.command("schema")
def show_schema() -> None:
    """Print the JSON schema of the file, for editors."""
    print_json(config_schema())


@config_app.command("validate")
def validate_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Check a file together with the environment, as `serve` would."""
    from gateway.preflight import faults

    problems: tuple[str, ...] = ()
    try:
        problems = tuple(map(escape, faults(load_config(file, {}))))
    except ConfigError as error:
        problems = error.problems
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    elif not problems:
        typer.echo(f"{file}: ok")
    else:
        typer.echo("\n".join(problems), err=True)
    raise typer.Exit(1 if problems else 0)


@config_app.command("show")
def show_config(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="YAML file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print every setting in force: defaults, file and environment merged."""
    settings = _load(file, {}, as_json=as_json).model_dump(mode="json")
    if as_json:
        print_json(settings)
    else:
        typer.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)


def _load(
    file: Path | None, flags: Mapping[str, Any], *, as_json: bool = False
) -> Config:
    """Return the configuration, or print its problems and exit."""
    try:
        return load_config(file, flags)
    except ConfigError as error:
        if as_json:
            fail(str(error), Code.INVALID_ARGUMENT, as_json=True)
        typer.echo(str(error), err=True)  # each line names its own place
    raise typer.Exit(1)

"""``baton models list | load | unload``: what a server has; and calls to its port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.commands.shared import AsJson, Model, columns, console, fail, print_json
from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.client_rpc import Client

Address = Annotated[
    str,
    typer.Option(
        envvar="BATON_ADDRESS", help="Server, host:port or unix:/path.", metavar="ADDR"
    ),
]
UseTls = Annotated[bool, typer.Option("--tls", help="TLS, usual authorities.")]
Ca = Annotated[Path | None, typer.Option(help="TLS, authorities of the server (PEM).")]
Cert = Annotated[Path | None, typer.Option(help="Own certificate, with --key.")]
Key = Annotated[Path | None, typer.Option(help="Its private key.")]
Timeout = Annotated[float, typer.Option(help="Longest wait in seconds.", min=0.001)]

ADDRESS = "127.0.0.1:8001"


def add_repository_commands(models: typer.Typer) -> None:
    """Add the data port's commands to ``baton models``."""
    models.command("list")(list_models)
    models.command("load")(load_model)
    models.command("unload")(unload_model)


def list_models(
    *,
    address: Address = ADDRESS,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
    tls: UseTls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """List every version in the repository and its state."""
    with reach(
        address, timeout, tls=tls, ca=ca, cert=cert, key=key, as_json=as_json
    ) as client:
        models = client.index().models
    fields = ("name", "version", "state", "reason")
    rows = [{field: getattr(entry, field) for field in fields} for entry in models]
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("no models (put them at MODEL/1/model.onnx in the repository)")
        return
    table = columns(*(field.upper() for field in fields))
    for row in rows:
        table.add_row(*(escape(row[field]) for field in fields))
    console().print(table)


def load_model(
    model: Model,
    *,
    address: Address = ADDRESS,
    timeout: Timeout = 300.0,
    as_json: AsJson = False,
    tls: UseTls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """Load a model, or load it again; returns when it serves."""
    with reach(
        address, timeout, tls=tls, ca=ca, cert=cert, key=key, as_json=as_json
    ) as client:
        client.load(model)
    _report(model, "loaded", as_json)


def unload_model(
    model: Model,
    *,
    address: Address = ADDRESS,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
    tls: UseTls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """Stop serving a model; requests in flight still finish."""
    with reach(
        address, timeout, tls=tls, ca=ca, cert=cert, key=key, as_json=as_json
    ) as client:
        client.unload(model)
    _report(model, "unloaded", as_json)


@contextmanager
def reach(
    address: str,
    timeout_s: float,
    *,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    as_json: bool,
) -> Iterator[Client]:
    """Open a client; an expected error inside is printed in one line and exits."""
    # gRPC reports failed handshakes itself, in lines of its own beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from gateway.call import TensorError
    from gateway.client_rpc import Client, ClientError, Tls

    files = Tls(ca, cert, key) if tls or ca or cert or key else None
    try:
        with Client(address, timeout_s=timeout_s, tls=files) as client:
            yield client
    except (ClientError, TensorError) as error:
        code = error.code if isinstance(error, ClientError) else Code.INVALID_ARGUMENT
        fail(escape(str(error)), code, as_json=as_json)


def _report(model: str, done: str, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, "state": done})
    else:
        typer.echo(f"{escape(model)}: {done}")

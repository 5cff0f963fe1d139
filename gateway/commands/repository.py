"""``baton models list | load | unload``: what a server has; and calls to its port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.commands.options import takes
from gateway.commands.shared import AsJson, Model, columns, console, fail, print_json
from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.client_rpc import Client

ADDRESS = "127.0.0.1:8001"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How a server is reached; `gateway.commands.options.takes` has typer read it."""

    address: Annotated[
        str,
        typer.Option(
            envvar="BATON_ADDRESS",
            help="Server, host:port or unix:/path.",
            metavar="ADDR",
        ),
    ] = ADDRESS
    timeout: Annotated[
        float, typer.Option(help="Longest wait in seconds.", min=0.001)
    ] = 30.0
    tls: Annotated[bool, typer.Option("--tls", help="TLS, usual authorities.")] = False
    ca: Annotated[
        Path | None, typer.Option(help="TLS, authorities of the server (PEM).")
    ] = None
    cert: Annotated[Path | None, typer.Option(help="Own certificate, with --key.")] = (
        None
    )
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None

    @contextmanager
    def client(self, *, as_json: bool) -> Iterator[Client]:
        """Open a client; an expected error inside is printed in one line and exits."""
        # gRPC reports failed handshakes itself, in lines of its own beside ours.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway.call import TensorError
        from gateway.client_rpc import Client, ClientError, Tls

        ca, cert, key = self.ca, self.cert, self.key
        files = Tls(ca, cert, key) if self.tls or ca or cert or key else None
        try:
            with Client(self.address, timeout_s=self.timeout, tls=files) as client:
                yield client
        except (ClientError, TensorError) as error:
            invalid = Code.INVALID_ARGUMENT
            code = error.code if isinstance(error, ClientError) else invalid
            fail(escape(str(error)), code, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientReach(Reach):
    """The same for what may take minutes."""

    timeout: Annotated[
        float, typer.Option(help="Longest wait in seconds.", min=0.001)
    ] = 300.0


def add_repository_commands(models: typer.Typer) -> None:
    """Add the data port's commands to ``baton models``."""
    models.command("list")(list_models)
    models.command("load")(load_model)
    models.command("unload")(unload_model)


@takes(Reach)
def list_models(reach: Reach, *, as_json: AsJson = False) -> None:
    """List every version in the repository and its state."""
    with reach.client(as_json=as_json) as client:
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


@takes(PatientReach)
def load_model(reach: PatientReach, model: Model, *, as_json: AsJson = False) -> None:
    """Load a model, or load it again; returns when it serves."""
    with reach.client(as_json=as_json) as client:
        client.load(model)
    _report(model, "loaded", as_json)


@takes(Reach)
def unload_model(reach: Reach, model: Model, *, as_json: AsJson = False) -> None:
    """Stop serving a model; requests in flight still finish."""
    with reach.client(as_json=as_json) as client:
        client.unload(model)
    _report(model, "unloaded", as_json)


def _report(model: str, done: str, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, "state": done})
    else:
        typer.echo(f"{escape(model)}: {done}")

"""What the admin plane's commands share: arguments, the client, what is printed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gateway.errors import Code
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.admin_client import AdminClient

ADMIN = "unix:.baton/admin.sock"
MAX_INT = (1 << 63) - 1
"""Largest number that the messages of the admin plane have room for (int64)."""

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
AnyModel = Annotated[str, typer.Argument(metavar="[MODEL]", help="One; none for all.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, max=MAX_INT)]
Admin = Annotated[
    str,
    typer.Option(
        "--admin",
        envvar="BATON_ADMIN_ADDRESS",
        metavar="ADDR",
        help="The gateway's admin plane: unix:PATH or host:port.",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help='Print JSON; errors as {"error": ..., "code": ...} on stderr.'
    ),
]
Shares = Annotated[
    list[str],
    typer.Argument(
        metavar="VERSION=SHARE...",
        help="As in 1=90% 2=10%, or 1=0.9 2=0.1; versions not named get nothing.",
    ),
]
_SHARE = re.compile(r"([0-9]{1,18})=([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(%?)")


def shares_of(texts: list[str]) -> dict[int, float]:
    """Return the shares in VERSION=SHARE words by version, in their order."""
    found: dict[int, float] = {}
    for text in texts:
        parts = _SHARE.fullmatch(text)
        if parts is None:
            raise typer.BadParameter(
                f"{escape(text)} is not VERSION=SHARE, as in 1=90% or 1=0.9"
            )
        # Decimals: 33.34% is 0.3334, and not the float beside it.
        number, percent = Decimal(parts[2]), bool(parts[3])
        version, share = int(parts[1]), number / 100 if percent else number
        if share > 1:
            way_out = "" if percent else f": write {number}% or {number / 100}"
            raise typer.BadParameter(f"{text}: a share is at most 100%{way_out}")
        if version in found:
            raise typer.BadParameter(f"{text}: version {version} is named twice")
        found[version] = float(share)
    return found


class _Loader(yaml.SafeLoader):
    """Takes no object that has a name twice: of the two, one would be lost."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        there: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in there:
                text = f"{key.value} is there twice"
                raise yaml.constructor.ConstructorError(
                    problem=text, problem_mark=key.start_mark
                )
            there.add(str(key.value))
        return super().construct_mapping(node, deep)


def read(file: Path) -> dict[str, Any]:
    """Return the object in a YAML or JSON file."""
    try:
        value = yaml.load(file.read_text(), _Loader)  # noqa: S506 - a safe one
        json.dumps(value)
    except RecursionError:
        raise typer.BadParameter(f"{file}: is nested too deeply") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise typer.BadParameter(f"{file}: {text}") from None
    except (TypeError, ValueError) as error:
        text = f"{file}: {error}; put dates and the like into quotes"
        raise typer.BadParameter(text) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{file}: must hold an object")
    return value


def fail(message: str, code: Code, *, as_json: bool, status: int = 1) -> NoReturn:
    """Print an error, as `error_text` has it, and exit with `status`."""
    typer.echo(error_text(message, code, as_json=as_json), err=True)
    raise typer.Exit(status)


def error_text(message: str, code: Code, *, as_json: bool) -> str:
    """Return what standard error gets: a line for people, or one of JSON."""
    if as_json:
        return json.dumps({"error": message, "code": code.name})
    return f"baton: {message}"


@contextmanager
def connect(address: str, *, as_json: bool) -> Iterator[AdminClient]:
    """Open a client; an expected error inside is printed in one line and exits."""
    # gRPC reports lost connections itself, in lines of its own beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from gateway.admin_client import AdminClient
    from gateway.client_rpc import ClientError

    try:
        with AdminClient(address) as client:
            yield client
    except ClientError as error:
        fail(str(error), error.code, as_json=as_json)


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


def progress(*, shown: bool) -> Progress:
    """Return a bar on standard error, which goes away in the end.

    Args:
        shown: Whether the work is long enough for one; without a terminal none is.
    """
    console = Console(stderr=True, markup=False, highlight=False)
    return Progress(
        TextColumn("{task.fields[what]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )


def print_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2))

"""Options that several commands share, said once."""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    NoReturn,
    ParamSpec,
    TypeVar,
    get_type_hints,
)

import typer

from gateway.commands.shared import AsJson, fail
from gateway.errors import Code

if TYPE_CHECKING:
    from gateway.outcomes_client import OutcomesClient

_P = ParamSpec("_P")
_T = TypeVar("_T")


def takes(
    options: type[_T],
) -> Callable[[Callable[Concatenate[_T, _P], None]], Callable[..., None]]:
    """Give a command the options of a dataclass, one of which is its first argument.

    Typer reads a signature, and so the one that it gets has both kinds of arguments.

    Args:
        options: Its fields are keyword-only, and annotated as typer wants it.
    """
    hints = get_type_hints(options, include_extras=True)
    common = [
        one.replace(annotation=hints[one.name])
        for one in inspect.signature(options).parameters.values()
    ]

    def decorate(command: Callable[Concatenate[_T, _P], None]) -> Callable[..., None]:
        own = [*inspect.signature(command, eval_str=True).parameters.values()][1:]

        @wraps(command)
        def run(**given: Any) -> None:  # noqa: ANN401 - whatever the command takes
            made = options(**{one.name: given.pop(one.name) for one in common})
            command(made, **given)  # type: ignore[call-arg]

        every = own + common
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in every}
        return run

    return decorate


Since = Annotated[
    str,
    typer.Option(help="All that came since: 90s, 10m, 2h, 7d ago, or ISO 8601."),
]
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def since_ms(text: str) -> int | None:
    """Return the time that `Since` names in Unix milliseconds; ``None`` if empty."""
    if not text:
        return None
    if ago := _AGO.fullmatch(text):
        return time.time_ns() // 1_000_000 - int(ago[1]) * _UNITS_MS[ago[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        text = f"--since: {text!r} is neither 90s, 10m, 2h or 7d, nor ISO 8601"
        raise typer.BadParameter(text) from None
    # Without a zone it is this machine's, as in other tools that take times.
    return int((moment.astimezone(UTC) - _EPOCH).total_seconds() * 1000)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Options of the commands that call the Outcomes and EventLog services."""

    address: Annotated[
        str,
        typer.Option(
            "--outcomes",
            envvar="BATON_OUTCOMES_ADDRESS",
            metavar="ADDR",
            help="The gateway's Outcomes service: unix:PATH or host:port.",
        ),
    ] = "unix:.baton/outcomes.sock"
    as_json: AsJson = False

    @contextmanager
    def client(self) -> Iterator[OutcomesClient]:
        """Open a client; an expected error inside is printed and exits."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from gateway.client_rpc import ClientError
        from gateway.outcomes_client import OutcomesClient

        try:
            with OutcomesClient(self.address) as client:
                yield client
        except ClientError as error:
            self.fail(str(error), error.code)

    def fail(self, text: str, code: Code = Code.INVALID_ARGUMENT) -> NoReturn:
        """Print an error and exit."""
        fail(text, code, as_json=self.as_json)

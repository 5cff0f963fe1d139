"""Options that several commands share, said once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

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
    common = [*inspect.signature(options, eval_str=True).parameters.values()]

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

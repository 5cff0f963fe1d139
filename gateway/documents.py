"""Documents in JSON or YAML, and what is wrong with them, for their writers. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

from gateway.errors import InvalidRequest

MAX_DEPTH = 100
"""Levels of objects and lists in a JSON document from outside."""
_KINDS = {
    "bool": "true or false",
    "dataclass": "an object",
    "dict": "an object",
    "finite": "a finite number",
    "float": "a number",
    "frozen": "a list",
    "int": "a whole number",
    "string": "text",
    "tuple": "a list",
}
"""What a value must be, by the first word of pydantic's name for the error."""
_UNKNOWN = "unexpected_keyword_argument"
_SHOWN = 200
"""Characters of a place that are shown."""


def read_object(text: str, what: str) -> dict[str, Any]:
    """Return the object that a JSON text is.

    Args:
        text: The JSON.
        what: What it is called in errors.

    Raises:
        InvalidRequest: It is none, names a field twice, or is nested more than
            `MAX_DEPTH` deep.
    """

    def fields_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidRequest(f"{what}: {twice[:_SHOWN]} is there twice")
        return made

    too_deep = InvalidRequest(f"{what}: is nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(text, object_pairs_hook=fields_of)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise InvalidRequest(f"{what}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what}: must be a JSON object")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in _inner(one)]
    if level:
        raise too_deep
    return value


def first_fault(error: ValidationError, document: type) -> str:
    """Return what is wrong: the place of the first fault, and what must be there.

    A field that nobody knows comes before one that is missing: it may be that one.

    Args:
        error: Of reading the document.
        document: The dataclass that it was to be.
    """
    faults = error.errors()
    fault = next((one for one in faults if one["type"] == _UNKNOWN), faults[0])
    kind, place = fault["type"], fault["loc"]
    name = ".".join(map(str, place))[:_SHOWN] or "it"
    expected = fault.get("ctx", {}).get("expected") or _KINDS.get(kind.split("_")[0])
    if kind == _UNKNOWN:
        known = ", ".join(one.name for one in fields(_holder(document, place)))
        return f"{name} is no field; there are {known}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "invalid_key" or place[-1:] == ("[key]",):
        return f"{name}: a name must be text"
    if kind == "string_too_long":
        return f"{name} has more than {fault['ctx']['max_length']} characters"
    return f"{name} must be {expected}" if expected else f"{name}: {fault['msg']}"


def _inner(value: object) -> Sequence[Any]:
    if isinstance(value, dict):
        return [*value.values()]
    return value if isinstance(value, list) else ()


def _holder(document: Any, place: Sequence[int | str]) -> Any:  # noqa: ANN401 - a type
    """Return the dataclass that a place lies in."""
    for part in place[:-1]:
        if isinstance(part, str):
            hint = get_type_hints(document)[part]
            document = next(one for one in (hint, *get_args(hint)) if is_dataclass(one))
    return document

"""The configuration from file, environment and flags, with every mistake named.

`gateway.config` holds what may be set. This module merges the sources, weakest
first, remembers where each setting came from, and lists all problems at once:
``file:line``, the variable or the flag, then the key and the way out.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource, SettingsError

from gateway.config import Config
from gateway.logs import escape

FLAGS: dict[tuple[str, ...], str] = {
    ("model_repository",): "--model-repository",
    ("state_dir",): "--state-dir",
    ("grpc", "host"): "--host",
    ("grpc", "port"): "--port",
    ("grpc", "fronts"): "--fronts",
    ("grpc", "port_mode"): "--port-mode",
    ("grpc", "transport"): "--transport",
    ("workers", "count"): "--workers",
    ("workers", "device"): "--device",
    ("metrics", "port"): "--metrics-port",
    ("log", "level"): "--log-level",
    ("log", "format"): "--log-format",
}
"""Settings that ``baton serve`` takes as flags."""

_Place = tuple[str | int, ...]
_PREFIX = "BATON_"
_SECTIONS: dict[str, type[BaseModel]] = {
    key: field.annotation
    for key, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: One printable line each; the message is all of them.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(map(escape, problems))
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class _Setting:
    """One value and where it was written.

    Attributes:
        path: Keys from the top, such as ``("grpc", "port")``.
        value: As read, not yet validated.
        origin: ``file:line``, an environment variable or a flag.
    """

    path: tuple[str, ...]
    value: Any
    origin: str


def load_config(path: Path | None, flags: Mapping[str, Any]) -> Config:
    """Merge defaults, file, environment and flags, and validate the result.

    Relative folders in the file are relative to the file; elsewhere, to the
    working directory.

    Args:
        path: YAML file, or ``None`` for none.
        flags: Nested like the file; ``None`` stands for a flag not given.

    Returns:
        The configuration.

    Raises:
        ConfigError: Anything is wrong, in any of the sources.
    """
    problems: list[str] = []
    settings = list(_from_file(path, problems)) if path is not None else []
    settings.extend(_from_environment(problems))
    settings.extend(_from_flags(flags))
    origins: dict[tuple[str, ...], str] = {}
    merged: dict[str, Any] = {}
    for setting in settings:
        *sections, key = setting.path
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                break  # A weaker source has a plain value here: reported below.
        else:
            target[key] = setting.value
            origins[setting.path] = setting.origin
    # `Config(...)` would read the environment again and stop at the first variable
    # that is no JSON, so the plain model's constructor fills it.
    config = Config.__new__(Config)
    try:
        BaseModel.__init__(config, **merged)
    except ValidationError as error:
        problems.extend(_problems(error, origins))
    if problems:
        raise ConfigError(problems)
    return config


def _from_file(path: Path, problems: list[str]) -> Iterator[_Setting]:
    """Read the settings of a YAML file with their lines."""
    try:
        loader = yaml.SafeLoader(path.read_bytes())
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror} (name another file)")
        return
    except yaml.YAMLError as error:
        problems.append(_syntax(path, error))
        return
    try:
        root = loader.get_single_node()
        if root is not None and not _is_empty(root):
            yield from _from_node(path, root, (), loader, problems)
    except yaml.YAMLError as error:
        problems.append(_syntax(path, error))
    finally:
        loader.dispose()


def _from_node(
    path: Path,
    node: yaml.Node,
    above: tuple[str, ...],
    loader: yaml.SafeLoader,
    problems: list[str],
) -> Iterator[_Setting]:
    """Walk one mapping; sections are walked, anything else is a value."""
    if not isinstance(node, yaml.MappingNode):
        problems.append(
            f"{path}:{node.start_mark.line + 1}: the file must hold `key: value` "
            "lines (see `baton config schema`)"
        )
        return
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{path}:{line}: a key must be a plain word (quote it)")
            continue
        key = str(key_node.value)
        here = (*above, key)
        if key in first_lines:
            problems.append(
                f"{path}:{line}: {_dotted(here)}: given twice, first in line "
                f"{first_lines[key]} (remove one)"
            )
            continue
        first_lines[key] = line
        if not above and key in _SECTIONS:
            if isinstance(value_node, yaml.MappingNode):
                yield from _from_node(path, value_node, here, loader, problems)
                continue
            if _is_empty(value_node):
                continue
        value = loader.construct_object(value_node, deep=True)
        yield _Setting(here, _beside(path, here, value), f"{path}:{line}")


def _beside(file: Path, path: tuple[str, ...], value: Any) -> Any:  # noqa: ANN401
    """Return a value in which relative paths are relative to the file."""
    if isinstance(value, dict):
        return {key: _beside(file, (*path, key), inner) for key, inner in value.items()}
    section = _section(path[:-1])
    field = section.model_fields.get(path[-1]) if section else None
    if isinstance(value, str) and field and Path in _members(field.annotation):
        return file.parent / value
    return value


def _members(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the members of a union; anything else alone."""
    return get_args(annotation) or (annotation,)


def _section(path: tuple[str, ...]) -> type[BaseModel] | None:
    """Return the model of a section, an optional one too; ``None``: it is none."""
    model: type[BaseModel] = Config
    keys = iter(path)
    for key in keys:
        field = model.model_fields.get(key)
        for member in _members(field.annotation) if field else ():
            if isinstance(member, type) and issubclass(member, BaseModel):
                model = member
                break
        else:
            return None
        if field is not None and get_origin(field.annotation) is dict:
            next(keys, None)  # a name that people chose
    return model


def _is_empty(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    """Say in one line where YAML stopped making sense."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        where = f"{path}:{error.problem_mark.line + 1}"
        what = ", ".join(part for part in (error.context, error.problem) if part)
    else:
        where, what = str(path), " ".join(str(error).split())
    return f"{where}: not valid YAML: {what} (check quotes and indentation)"


def _from_environment(problems: list[str]) -> Iterator[_Setting]:
    """Read ``BATON_`` variables one at a time, so that each can be named.

    A variable that matches nothing is refused only with ``__`` in it: Kubernetes
    itself sets ``BATON_PORT`` and the like for a service called ``baton``.
    """
    source = EnvSettingsSource(Config)
    for name, text in sorted(os.environ.items(), key=lambda item: item[0].lower()):
        if not name.upper().startswith(_PREFIX):
            continue
        source.env_vars = {name.lower(): text}
        try:
            values = source()
        except SettingsError:
            problems.append(
                f"{name}: {text[:60]!r} is not JSON (write a list as [0, 1], "
                'a section as {"key": 1})'
            )
            continue
        if values:
            yield from _flat(values, name)
        elif "__" in name:
            key, _, _ = name[len(_PREFIX) :].lower().partition("__")
            yield _Setting((key,), text, name)


def _from_flags(flags: Mapping[str, Any]) -> Iterator[_Setting]:
    """Read the flags that were given."""
    for setting in _flat(flags, "flags"):
        if setting.value is not None:
            flag = FLAGS.get(setting.path, f"--{'.'.join(setting.path)}")
            yield _Setting(setting.path, setting.value, flag)


def _flat(values: Mapping[str, Any], origin: str) -> Iterator[_Setting]:
    """Split nested values into one setting per leaf."""
    for key, value in values.items():
        if key in _SECTIONS and isinstance(value, Mapping):
            for inner, leaf in value.items():
                yield _Setting((key, inner), leaf, origin)
        else:
            yield _Setting((key,), value, origin)


def _problems(
    error: ValidationError, origins: Mapping[tuple[str, ...], str]
) -> list[str]:
    """Turn what pydantic found into lines, one per place, in the order written."""
    found: dict[tuple[str, ...], dict[_Place, list[ErrorDetails]]] = {}
    for details in error.errors(include_url=False):
        located = details["loc"]
        depth = 2 if located[0] in _SECTIONS and len(located) > 1 else 1
        path = tuple(str(part) for part in located[:depth])
        # Below a section everything helps; else only list positions do, since the
        # rest names union members.
        inside = _section(path) is not None
        index = tuple(p for p in located[depth:] if inside or isinstance(p, int))
        found.setdefault(path, {}).setdefault((*path, *index), []).append(details)
    ranks = {path: rank for rank, path in enumerate(origins)}
    lines: list[str] = []
    for path in sorted(found, key=lambda path: ranks.get(path, len(ranks))):
        origin = origins.get(path, "configuration")
        places = found[path]
        # A wrong item says more than the list "should be 'all'".
        deepest = max(len(place) for place in places)
        for place, faults in places.items():
            if len(place) == deepest:
                where = tuple(part for part in place if isinstance(part, str))
                what = _wrong(where, faults, origin)
                lines.append(f"{origin}: {_dotted(place)}: {what}")
    return lines


def _wrong(path: tuple[str, ...], faults: list[ErrorDetails], origin: str) -> str:
    """Say what is wrong with one value; a union gives a fault per member."""
    first = faults[0]
    if first["type"] == "extra_forbidden":
        return f"unknown ({_suggestion(path, origin)})"
    if first["type"] == "model_type":
        return "a section, not a value (indent its settings below it)"
    rules = [
        fault["msg"].removeprefix("Input ").replace("tuple", "list") for fault in faults
    ]
    value = first["input"]
    shown = repr(str(value) if isinstance(value, Path) else value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    model = _section(path[:-1])
    assert model is not None, "a setting without a section. This is a bug."
    field = model.model_fields.get(path[-1])
    if field is None:  # a section as a whole contradicts itself
        return " or ".join(rule.removeprefix("Value error, ") for rule in rules)
    if first["type"] == "missing":
        return f"missing ({(field.description or '').rstrip('.')})"
    if field.is_required():
        return f"{shown} {' or '.join(rules)}"
    default = field.default
    default = list(default) if isinstance(default, tuple) else default
    return f"{shown} {' or '.join(rules)} (remove it for the default, {default})"


def _suggestion(path: tuple[str, ...], origin: str) -> str:
    """Name the key that was probably meant, in the spelling of the source."""
    *above, key = path
    section = _section(tuple(above))
    assert section is not None, "a setting without a section. This is a bug."
    siblings = list(section.model_fields)
    near = difflib.get_close_matches(key, siblings, n=1)
    meant = [(*above, name) for name in near]
    if not meant:
        meant = [path for path in _every_path() if path[-1] == key]
    names = [_spelled(path, origin) for path in meant]
    if names:
        return f"did you mean {' or '.join(names)}?"
    return f"known here: {', '.join(siblings)}"


def _every_path() -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = [(key,) for key in Config.model_fields]
    for section, model in _SECTIONS.items():
        paths.extend((section, key) for key in model.model_fields)
    return paths


def _spelled(path: tuple[str, ...], origin: str) -> str:
    if origin.upper().startswith(_PREFIX):
        tail = "__..." if path[-1] in _SECTIONS else ""
        return _PREFIX + "__".join(path).upper() + tail
    return _dotted(path)


def _dotted(path: _Place) -> str:
    """Join a path as people write it: ``workers.device_ids[1]``."""
    text = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in path
    )
    return text.removeprefix(".")

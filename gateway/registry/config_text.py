"""Parsing a model configuration, from a ``config.pbtxt`` or from JSON.

Triton has fields that we do not know. They are no reason to refuse a file that
serves there; each is named, so that nobody wonders why it does nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import cast

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor

from gateway.errors import LoadFailed
from gateway.protocol.model_config_pb2 import ModelConfig

_TOKEN = re.compile(
    r"""
    \#[^\n]* | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'    # comments and strings
    | (?P<field>[A-Za-z_]\w*)(?=\s*(?:[:{<]|(?P<list>\[)))  # before what it holds
    | (?P<opens>[{<]) | (?P<closes>[}>])
    """,
    re.VERBOSE | re.DOTALL,
)
_ROOT = cast("Descriptor", ModelConfig.DESCRIPTOR)


class ConfigRefused(LoadFailed):
    """A model configuration is wrong, or asks for what Baton does not do."""


def refused(where: str, reason: str) -> ConfigRefused:
    """Make the error: one line of bounded length, whatever the file holds."""
    return ConfigRefused(" ".join(f"{where}: {reason}".split())[:1000])


def parse_pbtxt(text: str, source: str) -> tuple[ModelConfig, tuple[str, ...]]:
    """Read a ``config.pbtxt``.

    Args:
        text: Its text.
        source: Its name in messages.

    Returns:
        The configuration, and a note for each field that we do not know.

    Raises:
        ConfigRefused: It is no valid text format. The message has file and line.
    """
    try:
        try:
            return text_format.Parse(text, ModelConfig()), ()
        except text_format.ParseError:
            # Protobuf skips an unknown "field [ ... ]" only if a colon is there.
            text = _TOKEN.sub(lambda at: at[0] + ":" if at["list"] else at[0], text)
            config = text_format.Parse(text, ModelConfig(), allow_unknown_field=True)
    except text_format.ParseError as error:
        reason = str(error).split(" : ", 1)[-1]
        raise refused(f"{source}:{error.GetLine() or 1}", reason) from error
    except RecursionError as error:
        raise refused(f"{source}:1", "blocks are nested too deeply") from error
    return config, _notes(source, _unknown_in_text(text))


def parse_json(
    text: str, source: str = "config parameter"
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Read a configuration in JSON, as the load RPC carries it; see `parse_pbtxt`."""
    try:
        config = json_format.Parse(text, ModelConfig(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise refused(source, str(error)) from error
    value = json.loads(text)
    if not isinstance(value, dict):
        raise refused(source, "is not a JSON object")
    return config, _notes(source, _unknown_in_json(value, _ROOT))


def _notes(source: str, unknown: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        f"{source}: the unknown field {field} is ignored"
        for field in dict.fromkeys(unknown)
    )


def _unknown_in_text(text: str) -> Iterator[str]:
    """Yield the fields of a valid text that we do not know, as ``Message.field``.

    Protobuf skips them without a word, and names only the first in strict mode.
    """
    blocks: list[Descriptor | None] = [_ROOT]
    value: Descriptor | None = None
    for token in _TOKEN.finditer(text):
        if token["opens"]:
            blocks.append(value)
        elif token["closes"]:
            value = blocks.pop()  # a list may go on with a block of the same type
        elif token["field"]:
            block, name = blocks[-1], token["field"]
            field = block.fields_by_name.get(name) if block else None
            if block and not field:
                yield f"{block.name}.{name}"
            value = field.message_type if field else None


def _unknown_in_json(value: object, message: Descriptor) -> Iterator[str]:
    """Yield the fields of a valid JSON value that we do not know."""
    if isinstance(value, list):
        for item in value:
            yield from _unknown_in_json(item, message)
    if not isinstance(value, dict):
        return
    aliases = {field.camelcase_name: field for field in message.fields}
    for name, inner in value.items():
        field = message.fields_by_name.get(name) or aliases.get(name)
        if field is None:
            yield f"{message.name}.{name[:100]}"
        elif not field.message_type:
            continue
        elif not field.message_type.GetOptions().map_entry:
            yield from _unknown_in_json(inner, field.message_type)
        elif entry := field.message_type.fields_by_name["value"].message_type:
            yield from _unknown_in_json([*inner.values()], entry)

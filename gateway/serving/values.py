"""Values of requests that traffic tables look at: units and segments. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from google.protobuf.message import DecodeError

from gateway.errors import InvalidRequest
from gateway.protocol.inference_pb2 import InferParameter, ModelInferRequest
from gateway.traffic.table import ModelTraffic

_VALUE, _STRING = 0x12, 0x1A
"""Tags of the value in an entry of a map, and of ``InferParameter.string_param``."""


def unit_keys(tables: Iterable[ModelTraffic]) -> frozenset[bytes]:
    """Return the names of parameters that are units, as they are on the wire.

    Their values differ from request to request, so they are no part of its form.
    """
    return frozenset(
        table.unit.key.encode()
        for table in tables
        if table.unit is not None and table.unit.kind == "parameter"
    )


def text_span(message: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Return where the text in a map entry lies, if it is one and nothing else."""
    value = start + 2 + message[start + 1]
    size = end - value - 4
    if (
        size >= 0
        and message[value] == _VALUE
        and message[value + 1] == size + 2
        and message[value + 2] == _STRING
        and message[value + 3] == size
    ):
        return value + 4, end
    return None


def entry_key(message: bytes, entry: tuple[int, int]) -> bytes:
    """Return the name of a parameter whose map entry begins with it."""
    start = entry[0] + 2
    return message[start : start + message[start - 1]]


def entry_text(message: bytes, start: int, end: int) -> str:
    """Return the value of a parameter, given where its map entry lies.

    Raises:
        InvalidRequest: It is no valid entry.
    """
    span = text_span(message, start, end)
    if span is not None:
        try:
            return message[span[0] : end].decode()
        except UnicodeDecodeError:
            pass  # protobuf says so
    try:
        parsed = ModelInferRequest.ParametersEntry.FromString(message[start:end])
    except DecodeError:
        raise InvalidRequest("the message is not a valid ModelInferRequest") from None
    return text_of(parsed.value)


def text_of(parameter: InferParameter) -> str:
    """Return the value of a parameter as text: ``true``, ``7``, ``1.5`` or itself."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        return ""
    value = getattr(parameter, kind)
    return str(value).lower() if kind == "bool_param" else str(value)


def texts_of(
    parameters: Mapping[str, InferParameter], keys: Collection[str]
) -> dict[str, str]:
    """Return those of the parameters that `keys` name, as text."""
    return {key: text_of(parameters[key]) for key in keys if key in parameters}

"""Tensors as JSON: what ``baton call`` sends and prints.

Nested lists in the declared shape. BYTES elements are strings, or
``{"b64": "..."}`` where they are not UTF-8; NaN and infinities are the strings
``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, as in protobuf's JSON mapping.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES, DataType
from featurizer.encode import decode_array, encode_array
from gateway.protocol import inference_pb2 as pb

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class TensorError(ValueError):
    """The JSON does not fit the model. The message names the tensor."""


def read_payload(source: str) -> object:
    """Read JSON given literally, as ``@file``, or as ``-`` for standard input.

    Args:
        source: The argument of ``--json``.

    Returns:
        The parsed value.

    Raises:
        TensorError: It cannot be read, or is not JSON.
    """
    name = "--json"
    try:
        if source == "-":
            name, text = "standard input", sys.stdin.read()
        elif source.startswith("@"):
            name = source[1:]
            text = Path(name).read_text(encoding="utf-8")
        else:
            text = source
        value: object = json.loads(text)
    except OSError as error:
        raise TensorError(f"cannot read {name}: {error.strerror}") from None
    except RecursionError:
        raise TensorError(f"{name}: nested too deeply") from None
    except ValueError as error:
        hint = " (a file is @FILE, standard input -)" if name == "--json" else ""
        raise TensorError(f"{name} is not JSON: {error}{hint}") from None
    return value


def build_request(
    metadata: pb.ModelMetadataResponse, payload: object, *, version: str = ""
) -> pb.ModelInferRequest:
    """Turn JSON into a request for a model.

    Inputs left out are left out of the request: the server knows which of them
    are optional.

    Args:
        metadata: The model's, for names, datatypes and shapes.
        payload: ``{input: nested lists}``; a model with one input also takes its
            value bare.
        version: Version to ask for; empty leaves the choice to the server.

    Returns:
        The request, with raw contents.

    Raises:
        TensorError: A value does not fit its input, or there is no such input.
    """
    declared = {tensor.name: tensor for tensor in metadata.inputs}
    if not isinstance(payload, dict):
        if len(declared) != 1:
            raise TensorError(
                f"the model has {len(declared)} inputs: give an object with "
                f"{_inputs(metadata)}"
            )
        payload = {metadata.inputs[0].name: payload}
    request = pb.ModelInferRequest(model_name=metadata.name, model_version=version)
    for name, value in payload.items():
        if name not in declared:
            raise TensorError(f"no input {name!r}: the model takes {_inputs(metadata)}")
        tensor = declared[name]
        if tensor.datatype not in DATATYPES:
            raise TensorError(f"{name}: unknown datatype {tensor.datatype}")
        flat: list[object] = []
        shape = _flatten(value, tuple(tensor.shape), name, flat)
        raw = _encode(flat, DATATYPES[tensor.datatype], name, shape)
        request.inputs.add(name=name, datatype=tensor.datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def response_values(response: pb.ModelInferResponse) -> dict[str, object]:
    """Turn a response into what ``--output json`` prints.

    Args:
        response: With raw contents, as Baton always answers.

    Returns:
        ``model``, ``version``, ``prediction_id``, ``outputs`` (name to nested
        lists) and ``parameters`` (the others).

    Raises:
        TensorError: The contents do not fit the declared shape.
    """
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in response.parameters.items()
    }
    version = parameters.pop("version", response.model_version)
    prediction_id = parameters.pop("prediction_id", "")
    if len(response.raw_output_contents) != len(response.outputs):
        raise TensorError("the server answered without raw contents")
    outputs: dict[str, object] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype not in DATATYPES:
            raise TensorError(f"{tensor.name}: unknown datatype {tensor.datatype}")
        try:
            array = decode_array(raw, tensor.datatype, tuple(tensor.shape))
        except ValueError as error:
            raise TensorError(f"{tensor.name}: {error}") from None
        outputs[tensor.name] = nested(array, tensor.datatype)
    return {
        "model": response.model_name,
        "version": version,
        "prediction_id": prediction_id,
        "outputs": outputs,
        "parameters": parameters,
    }


def _inputs(metadata: pb.ModelMetadataResponse) -> str:
    """List the inputs: ``x (FP32 [-1, 4]), y (BYTES [-1])``."""
    return ", ".join(
        f"{tensor.name} ({tensor.datatype} {list(tensor.shape)})"
        for tensor in metadata.inputs
    )


def _flatten(
    value: object, dims: tuple[int, ...], where: str, flat: list[object]
) -> tuple[int, ...]:
    """Append the elements row-major and return the shape found."""
    if not dims:
        if isinstance(value, list):
            raise TensorError(f"{where}: a list where one element was expected")
        flat.append(value)
        return ()
    if not isinstance(value, list):
        raise TensorError(
            f"{where}: one element where a list of shape {list(dims)} was expected"
        )
    if dims[0] >= 0 and len(value) != dims[0]:
        raise TensorError(
            f"{where}: {len(value)} elements where {dims[0]} were expected"
        )
    if not value:
        return (0, *(max(dim, 0) for dim in dims[1:]))
    first: tuple[int, ...] | None = None
    for index, item in enumerate(value):
        shape = _flatten(item, dims[1:], f"{where}[{index}]", flat)
        first = shape if first is None else first
        if shape != first:
            raise TensorError(
                f"{where}[{index}]: shape {list(shape)} where the ones before have "
                f"{list(first)}"
            )
    assert first is not None
    return (len(value), *first)


def _encode(
    flat: Sequence[object], entry: DataType, name: str, shape: tuple[int, ...]
) -> bytes:
    """Return the raw contents of one tensor."""
    elements: list[object] = []
    for index, value in enumerate(flat):
        try:
            elements.append(_element(value, entry))
        except ValueError as error:
            raise TensorError(f"{_place(name, index, shape)}: {error}") from None
    if not _is_real(entry):
        array = np.empty(len(elements), dtype=entry.numpy)
        array[:] = elements
        return encode_array(array, entry.name)
    wide = np.array(elements, dtype=np.float64)
    narrow = _narrowed(wide, entry)
    lost = np.isinf(widened(narrow, entry)) & ~np.isinf(wide)
    if lost.any():
        index = int(lost.argmax())
        place = _place(name, index, shape)
        raise TensorError(f"{place}: {wide[index]:g} is too large for {entry.name}")
    return encode_array(narrow, entry.name)


def _place(name: str, index: int, shape: tuple[int, ...]) -> str:
    """Name one element: ``x[0][2]``."""
    position = np.unravel_index(index, shape) if shape else ()
    return name + "".join(f"[{int(part)}]" for part in position)


def _is_real(entry: DataType) -> bool:
    return entry.name in ("FP16", "FP32", "FP64", "BF16")


def _element(value: object, entry: DataType) -> object:
    """Check one JSON value and return it as Python holds that datatype."""
    if entry.name == "BYTES":
        return _bytes(value)
    if entry.name == "BOOL":
        if isinstance(value, bool):
            return value
        raise ValueError(f"{_shown(value)} is not true or false")
    if _is_real(entry):
        if isinstance(value, str) and value in _NON_FINITE:
            return _NON_FINITE[value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{_shown(value)} is not a number")
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"the number is too large for {entry.name}") from None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and value.is_integer():
        value, whole = int(value), True
    if not whole:
        raise ValueError(f"{_shown(value)} is not a whole number")
    limits = np.iinfo(entry.numpy.name)
    assert isinstance(value, int)
    if not limits.min <= value <= limits.max:
        raise ValueError(
            f"{_shown(value)} is outside {entry.name}: {limits.min} to {limits.max}"
        )
    return value


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Mapping) and list(value) == ["b64"]:
        encoded = value["b64"]
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise ValueError(f"{_shown(encoded)} is not base64") from None
    raise ValueError(f'{_shown(value)} is not a string or {{"b64": "..."}}')


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _narrowed(wide: NDArray[np.float64], entry: DataType) -> NDArray[np.generic]:
    """Round to the wire's precision; BF16 becomes its ``uint16`` bit patterns."""
    with np.errstate(over="ignore"):
        if entry.name != "BF16":
            return wide.astype(entry.numpy)
        bits = wide.astype("<f4").view("<u4")
    # To nearest, ties to even: add half of the unit dropped, less one if even.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(wide), 0x7FC0, rounded).astype(entry.numpy)


def widened(array: NDArray[np.generic], entry: DataType) -> NDArray[np.floating]:
    """Return floats of the same values; those of BF16 are bit patterns before."""
    if entry.name == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype(array.dtype)


def nested(array: NDArray[np.generic], datatype: str) -> object:
    """Return nested lists of what JSON can hold.

    Args:
        array: As `featurizer.encode.decode_array` makes it.
        datatype: Its own; of BF16, `array` has the bit patterns.
    """
    entry = DATATYPES[datatype]
    values: list[object]
    if datatype == "BYTES":
        values = [_text(element) for element in array.reshape(-1).tolist()]
    elif _is_real(entry):
        values = [_number(element) for element in widened(array, entry).reshape(-1)]
    else:
        values = array.reshape(-1).tolist()
    held = np.empty(len(values), dtype=object)
    held[:] = values
    nested: object = held.reshape(array.shape).tolist()
    return nested


def _text(element: bytes) -> object:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}


def _number(element: np.floating) -> object:
    """Return the shortest decimal that reads back as the same element."""
    if np.isfinite(element):
        return float(str(element))
    if np.isnan(element):
        return "NaN"
    return "Infinity" if element > 0 else "-Infinity"

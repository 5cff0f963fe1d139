"""From a ModelInferRequest to checked rows: the rules of the protocol, in order.

Pure. Whatever passes here is safe for a worker: every size is checked against
the bytes that are really there before anything is allocated.

Source: Triton's `infer_handler.cc` for the order of checks and the messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from featurizer.datatypes import DATATYPES
from featurizer.encode import (
    EncodingError,
    decode_bytes_elements,
    encode_bytes_elements,
    encode_typed_values,
)
from gateway.errors import InvalidRequest
from gateway.protocol.inference_pb2 import InferParameter, ModelInferRequest
from workers.spec import ModelSpec, TensorSpec
from workers.wire import MAX_RANK, Buffer

Input = ModelInferRequest.InferInputTensor

_RESERVED = frozenset({"headers", "binary_data_output"})
_FINAL_RESPONSE = "triton_enable_empty_final_response"
_MAX_TIMEOUT_US = 1 << 53
_MAX_ELEMENTS = 1 << 40
_MAX_ENTRIES = 4096  # checked one by one, some 3 us each

MAX_STRING_ELEMENTS = 65_536
"""BYTES elements of one request, over all its inputs. They are checked one by one
on the loop thread, at 0.3 to 0.4 us each, so that this many hold up a front for some
25 ms; an element costs four bytes of message, and 64 MiB of them took seconds."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Request parameters the protocol gives a meaning.

    Attributes:
        priority: 0 for the model's default.
        timeout_us: Queue timeout in microseconds; 0 for none.
    """

    priority: int
    timeout_us: int


@dataclass(frozen=True, slots=True)
class CheckedInputs:
    """Inputs that fit the version.

    Attributes:
        tensors: Per present input in spec order: index, full shape, raw bytes.
        rows: Size of the batch dimension; 1 where there is none.
        shape_key: Equal for requests whose rows may share a batch.
        nbytes: Bytes of all inputs.
    """

    tensors: list[tuple[int, tuple[int, ...], Buffer]]
    rows: int
    shape_key: tuple[object, ...]
    nbytes: int


def parse(message: bytes) -> ModelInferRequest:
    """Parse a request message, or raise `InvalidRequest`."""
    try:
        request = ModelInferRequest.FromString(message)
    except DecodeError:
        raise InvalidRequest("the message is not a valid ModelInferRequest") from None
    if max(len(request.inputs), len(request.parameters)) > _MAX_ENTRIES:
        raise InvalidRequest(f"more than {_MAX_ENTRIES} inputs or parameters")
    return request


def read_parameters(parameters: Mapping[str, InferParameter]) -> Parameters:
    """Read the request parameters that have a meaning; others are the user's own.

    Raises:
        InvalidRequest: A known parameter has the wrong type or range, or the name
            is reserved.
    """
    priority = timeout_us = 0
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if name == "priority":
            priority = _non_negative(name, parameter, kind)
        elif name == "timeout":
            timeout_us = min(_non_negative(name, parameter, kind), _MAX_TIMEOUT_US)
        elif name in ("sequence_start", "sequence_end", _FINAL_RESPONSE):
            if kind != "bool_param":
                raise InvalidRequest(f"parameter '{name}' must be a bool")
        elif name == "sequence_id":
            if kind not in ("int64_param", "uint64_param", "string_param"):
                raise InvalidRequest("parameter 'sequence_id' must be int64 or string")
        elif name.startswith("triton_") or name in _RESERVED:
            raise InvalidRequest(f"parameter '{name}' is reserved")
    return Parameters(priority, timeout_us)


def _non_negative(name: str, parameter: InferParameter, kind: str | None) -> int:
    if kind == "int64_param":
        value = parameter.int64_param
    elif kind == "uint64_param":
        value = parameter.uint64_param
    else:
        raise InvalidRequest(f"parameter '{name}' must be an int64 or uint64")
    if value < 0:
        raise InvalidRequest(f"parameter '{name}' must not be negative, got {value}")
    return value


def requested_outputs(
    request: ModelInferRequest, spec: ModelSpec
) -> tuple[int, ...] | None:
    """Return the spec indices of the requested outputs; ``None`` for all.

    Raises:
        InvalidRequest: An output is unknown, asked for twice, or asked for in a
            form that is not offered.
    """
    if not request.outputs:
        return None
    known = {tensor.name: index for index, tensor in enumerate(spec.outputs)}
    indices: list[int] = []
    for output in request.outputs:
        index = known.get(output.name)
        where = f"output '{output.name}' for model '{request.model_name}'"
        if index is None:
            raise InvalidRequest(
                f"unexpected inference {where}; it has {_names(spec.outputs)}"
            )
        if index in indices:
            raise InvalidRequest(f"inference {where} is requested twice")
        for name in output.parameters:
            if name.startswith("shared_memory_"):
                raise InvalidRequest(f"{where}: shared memory is not supported")
            if name == "classification":
                raise InvalidRequest(f"{where}: classification is not supported")
        indices.append(index)
    return tuple(indices)


def check_inputs(request: ModelInferRequest, spec: ModelSpec) -> CheckedInputs:
    """Check the request's inputs against the version and find their bytes.

    Raises:
        InvalidRequest: Anything is wrong; the message names model and tensor.
    """
    given = _data_by_name(request)
    tensors: list[tuple[int, tuple[int, ...], Buffer]] = []
    key: list[object] = []
    rows = 0 if spec.max_batch_rows else 1
    nbytes = strings = 0
    for index, tensor in enumerate(spec.inputs):
        found = given.pop(tensor.name, None)
        if found is None:
            if not tensor.optional:
                unknown = [n for n in given if n not in {t.name for t in spec.inputs}]
                instead = f"; it has no input '{unknown[0]}'" if unknown else ""
                raise InvalidRequest(
                    f"expected input '{tensor.name}' for model "
                    f"'{request.model_name}' is missing{instead}"
                )
            continue
        where = f"input '{tensor.name}' for model '{request.model_name}'"
        sent, data = found
        _check_type(sent, tensor, where)
        shape = tuple(sent.shape)
        if spec.max_batch_rows:
            rows = _check_batch(shape, tensor, spec, rows, where)
            _check_dims(shape[1:], shape, tensor, where, batched=True)
        else:
            _check_dims(shape, shape, tensor, where, batched=False)
        count = _element_count(shape, where)
        if tensor.datatype == "BYTES":
            strings += count
            if strings > MAX_STRING_ELEMENTS:
                raise InvalidRequest(
                    f"{where}: a request may have {MAX_STRING_ELEMENTS} BYTES "
                    f"elements, got {strings}"
                )
            raw = _checked_strings(sent, data, count, where)
        else:
            raw = _checked_numbers(sent, data, count, where)
        tensors.append((index, shape, raw))
        nbytes += len(raw)
        if tensor.optional or -1 in tensor.dims:
            key.append((index, shape[1:]))
    if given:
        name = next(iter(given))
        raise InvalidRequest(
            f"unexpected inference input '{name}' for model '{request.model_name}'; "
            f"it has {_names(spec.inputs)}"
        )
    if not tensors:
        raise InvalidRequest(
            f"a request to model '{request.model_name}' needs at least one input"
        )
    return CheckedInputs(tensors, rows, tuple(key), nbytes)


def _names(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"'{tensor.name}'" for tensor in tensors)


def _data_by_name(
    request: ModelInferRequest,
) -> dict[str, tuple[Input, Buffer | None]]:
    """Pair every input with its raw bytes; ``None`` for contents yet to be encoded."""
    raw = request.raw_input_contents
    next_raw = 0
    given: dict[str, tuple[Input, Buffer | None]] = {}
    for sent in request.inputs:
        where = f"input '{sent.name}' for model '{request.model_name}'"
        if sent.name in given:
            raise InvalidRequest(f"{where} is given twice")
        has_contents = sent.HasField("contents")
        if "shared_memory_region" in sent.parameters:
            if has_contents:
                raise InvalidRequest(
                    f"unexpected 'contents' together with shared memory for {where}"
                )
            raise InvalidRequest(f"{where}: shared memory is not supported")
        if has_contents:
            if raw:
                raise InvalidRequest(
                    "contents field must not be specified when using "
                    f"raw_input_contents for {where}"
                )
            _check_field(sent, where)
            given[sent.name] = (sent, None)
        elif next_raw < len(raw):
            given[sent.name] = (sent, raw[next_raw])
            next_raw += 1
        else:
            raise InvalidRequest(
                f"unable to find data for input tensor '{sent.name}' for model "
                f"'{request.model_name}' in request."
            )
    if next_raw < len(raw):
        raise InvalidRequest(
            f"{len(raw)} raw_input_contents for {next_raw} inputs of model "
            f"'{request.model_name}'"
        )
    return given


def _check_field(sent: Input, where: str) -> None:
    """Check typed contents: exactly the one field of the datatype may be filled."""
    datatype = DATATYPES.get(sent.datatype)
    if datatype is None:
        raise InvalidRequest(f"unknown datatype '{sent.datatype}' of {where}")
    if datatype.contents_field is None:
        raise InvalidRequest(
            f"{where}: {datatype.name} has no typed contents; use raw_input_contents"
        )
    filled = [field.name for field, _ in sent.contents.ListFields()]
    if filled and filled != [datatype.contents_field]:
        raise InvalidRequest(
            f"{where}: contents of a {datatype.name} tensor belong in "
            f"'{datatype.contents_field}' alone, got {filled}"
        )


def _check_type(sent: Input, tensor: TensorSpec, where: str) -> None:
    if sent.datatype != tensor.datatype:
        raise InvalidRequest(
            f"inference {where} has data-type '{sent.datatype}', expected "
            f"'{tensor.datatype}'"
        )
    if len(sent.shape) > MAX_RANK:
        raise InvalidRequest(f"{where} has {len(sent.shape)} dimensions")


def _check_batch(
    shape: tuple[int, ...],
    tensor: TensorSpec,
    spec: ModelSpec,
    rows: int,
    where: str,
) -> int:
    """Check the batch dimension and return it."""
    if len(shape) != len(tensor.dims) + 1:
        raise InvalidRequest(
            f"unexpected shape for {where}: expected [-1{_comma(tensor.dims)}], got "
            f"[{_commas(shape)}]"
        )
    if not 1 <= shape[0] <= spec.max_batch_rows:
        raise InvalidRequest(
            f"inference request batch-size must be between 1 and "
            f"{spec.max_batch_rows}, got {shape[0]} for {where}"
        )
    if rows and shape[0] != rows:
        raise InvalidRequest(
            f"{where} has batch size {shape[0]} where another input has {rows}"
        )
    return shape[0]


def _check_dims(
    dims: tuple[int, ...],
    shape: tuple[int, ...],
    tensor: TensorSpec,
    where: str,
    *,
    batched: bool,
) -> None:
    if len(dims) == len(tensor.dims) and all(
        size >= 0 and expected in (-1, size)
        for size, expected in zip(dims, tensor.dims, strict=True)
    ):
        return
    expected = f"-1{_comma(tensor.dims)}" if batched else _commas(tensor.dims)
    raise InvalidRequest(
        f"unexpected shape for {where}: expected [{expected}], got [{_commas(shape)}]"
    )


def _element_count(shape: tuple[int, ...], where: str) -> int:
    count = extent = 1
    for size in shape:
        count *= size
        extent *= size or 1
    if extent > _MAX_ELEMENTS:  # also where a zero dimension leaves no bytes
        raise InvalidRequest(f"{where}: shape [{_commas(shape)}] is too large")
    return count


def _checked_numbers(
    sent: Input, data: Buffer | None, count: int, where: str
) -> Buffer:
    """Return the raw bytes of `count` elements of a fixed size."""
    datatype = DATATYPES[sent.datatype]
    values = _typed_values(sent) if data is None else ()
    nbytes = len(values) * datatype.size if data is None else len(data)
    if nbytes != count * datatype.size:
        raise InvalidRequest(
            f"{where}: expected {count * datatype.size} bytes for shape "
            f"[{_commas(tuple(sent.shape))}] of {datatype.name}, got {nbytes}"
        )
    if data is None:
        return encode_typed_values(values, datatype)
    # ONNX Runtime trusts a bool to be 0 or 1: Compress adds them up to size its
    # output, and would answer with what else lies in memory.
    if datatype.name == "BOOL" and bytes(data).translate(None, b"\0\1"):
        raise InvalidRequest(f"{where}: bytes of BOOL must be 0 or 1")
    return data


def _checked_strings(
    sent: Input, data: Buffer | None, count: int, where: str
) -> Buffer:
    """Return the raw bytes of `count` strings; no more are ever looked at."""
    expected = f"{count} elements for shape [{_commas(tuple(sent.shape))}]"
    if data is None:
        elements = _typed_values(sent)
    elif len(data) < 4 * count:
        raise InvalidRequest(
            f"{where}: expected {expected}, at least {4 * count} bytes, got {len(data)}"
        )
    else:
        try:
            elements = decode_bytes_elements(data, count)
        except EncodingError as error:
            raise InvalidRequest(f"{where}: {error}") from None
    if len(elements) != count:
        raise InvalidRequest(f"{where}: expected {expected}, got {len(elements)}")
    try:
        for element in elements:
            element.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{where}: ONNX strings are UTF-8, and an element is not"
        ) from None
    return encode_bytes_elements(elements) if data is None else data


def _typed_values(sent: Input) -> Sequence[Any]:
    field = DATATYPES[sent.datatype].contents_field
    assert field is not None, "typed contents without a field. This is a bug."
    values: Sequence[Any] = getattr(sent.contents, field)
    return values


def _commas(dims: tuple[int, ...]) -> str:
    return ",".join(str(size) for size in dims)


def _comma(dims: tuple[int, ...]) -> str:
    return "".join(f",{size}" for size in dims)

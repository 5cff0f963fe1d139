"""From a ModelInferRequest to checked rows: the rules of the protocol, in order.

Pure. Whatever passes here is safe for a worker: every size is checked against
the bytes that are really there before anything is allocated.

Source: Open Inference Protocol v2 and Triton's `infer_handler.cc` for the order
of the checks and the wording of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from featurizer.datatypes import DATATYPES, DataType
from featurizer.encode import (
    EncodingError,
    decode_bytes_elements,
    encode_bytes_elements,
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
    """Parse a request message.

    Raises:
        InvalidRequest: It is not a ModelInferRequest.
    """
    try:
        return ModelInferRequest.FromString(message)
    except DecodeError:
        raise InvalidRequest("the message is not a valid ModelInferRequest") from None


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
    given = _raw_by_name(request)
    tensors: list[tuple[int, tuple[int, ...], Buffer]] = []
    key: list[object] = []
    rows = 0 if spec.max_batch_rows else 1
    nbytes = 0
    for index, tensor in enumerate(spec.inputs):
        found = given.pop(tensor.name, None)
        if found is None:
            if not tensor.optional:
                raise InvalidRequest(
                    f"expected input '{tensor.name}' for model "
                    f"'{request.model_name}' is missing"
                )
            continue
        where = f"input '{tensor.name}' for model '{request.model_name}'"
        sent, raw = found
        shape = tuple(sent.shape)
        _check_type(sent, tensor, where)
        if spec.max_batch_rows:
            rows = _check_batch(shape, tensor, spec, rows, where)
            _check_dims(shape[1:], shape, tensor, where, batched=True)
        else:
            _check_dims(shape, shape, tensor, where, batched=False)
        _check_bytes(raw, shape, DATATYPES[tensor.datatype], where)
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


def _raw_by_name(request: ModelInferRequest) -> dict[str, tuple[Input, Buffer]]:
    """Pair every input with its raw bytes, typed contents re-encoded."""
    raw = request.raw_input_contents
    next_raw = 0
    given: dict[str, tuple[Input, Buffer]] = {}
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
            given[sent.name] = (sent, _typed_to_raw(sent, where))
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


def _typed_to_raw(sent: Input, where: str) -> bytes:
    """Encode typed contents: exactly the one field of the datatype may be filled."""
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
    values = getattr(sent.contents, datatype.contents_field)
    if datatype.name == "BYTES":
        return encode_bytes_elements(values)
    if datatype.contents_field in ("int_contents", "uint_contents"):
        wide = "<i4" if datatype.contents_field == "int_contents" else "<u4"
        # Low-order bytes of the 32-bit element, as Triton takes them.
        return np.array(values, dtype=wide).astype(datatype.numpy).tobytes()
    return np.array(values, dtype=datatype.numpy).tobytes()


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


def _check_bytes(
    raw: Buffer, shape: tuple[int, ...], datatype: DataType, where: str
) -> None:
    count = 1
    extent = 1
    for size in shape:
        count *= size
        extent *= size or 1
    if extent > _MAX_ELEMENTS:  # also where a zero dimension leaves no bytes
        raise InvalidRequest(f"{where}: shape [{_commas(shape)}] is too large")
    if datatype.name != "BYTES":
        if len(raw) != count * datatype.size:
            raise InvalidRequest(
                f"{where}: expected {count * datatype.size} bytes for shape "
                f"[{_commas(shape)}] of {datatype.name}, got {len(raw)}"
            )
        return
    try:
        elements = decode_bytes_elements(raw)
        for element in elements:
            element.decode()
    except EncodingError as error:
        raise InvalidRequest(f"{where}: {error}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{where}: ONNX strings are UTF-8, and an element is not"
        ) from None
    if len(elements) != count:
        raise InvalidRequest(
            f"{where}: expected {count} elements for shape [{_commas(shape)}], got "
            f"{len(elements)}"
        )


def _commas(dims: tuple[int, ...]) -> str:
    return ",".join(str(size) for size in dims)


def _comma(dims: tuple[int, ...]) -> str:
    return "".join(f",{size}" for size in dims)

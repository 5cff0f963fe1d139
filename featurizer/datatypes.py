"""The tensor element types of the Open Inference Protocol.

Source: KServe Open Inference Protocol v2, "Tensor Data Types", and the
`DataType` enum of Triton's model configuration (where BYTES is TYPE_STRING).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class DataType:
    """One element type and its names on every border.

    Attributes:
        name: Name in requests and metadata, such as ``FP32``.
        config_name: Name in a model configuration, such as ``TYPE_FP32``.
        onnx_name: Name ONNX Runtime gives it, such as ``float``.
        onnx_code: ``TensorProto.DataType`` number of ONNX.
        size: Bytes per element; 0 for BYTES, whose elements vary.
        numpy: Dtype of arrays that hold it. BF16 has no NumPy dtype of its own
            and travels as ``uint16`` bit patterns; BYTES is ``object``.
        contents_field: Field of ``InferTensorContents`` that holds it typed, or
            ``None`` where only raw bytes are allowed (FP16 and BF16).
    """

    name: str
    config_name: str
    onnx_name: str
    onnx_code: int
    size: int
    numpy: np.dtype[np.generic]
    contents_field: str | None


def _entry(
    name: str, onnx_name: str, code: int, dtype: str, contents: str | None
) -> DataType:
    numpy_dtype: np.dtype[np.generic] = np.dtype(dtype)
    size = 0 if name == "BYTES" else numpy_dtype.itemsize
    config_name = "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"
    return DataType(name, config_name, onnx_name, code, size, numpy_dtype, contents)


DATATYPES: dict[str, DataType] = {
    entry.name: entry
    for entry in (
        _entry("BOOL", "bool", 9, "?", "bool_contents"),
        _entry("UINT8", "uint8", 2, "<u1", "uint_contents"),
        _entry("UINT16", "uint16", 4, "<u2", "uint_contents"),
        _entry("UINT32", "uint32", 12, "<u4", "uint_contents"),
        _entry("UINT64", "uint64", 13, "<u8", "uint64_contents"),
        _entry("INT8", "int8", 3, "<i1", "int_contents"),
        _entry("INT16", "int16", 5, "<i2", "int_contents"),
        _entry("INT32", "int32", 6, "<i4", "int_contents"),
        _entry("INT64", "int64", 7, "<i8", "int64_contents"),
        _entry("FP16", "float16", 10, "<f2", None),
        _entry("FP32", "float", 1, "<f4", "fp32_contents"),
        _entry("FP64", "double", 11, "<f8", "fp64_contents"),
        _entry("BYTES", "string", 8, "O", "bytes_contents"),
        _entry("BF16", "bfloat16", 16, "<u2", None),
    )
}
"""Every type by its protocol name."""

BY_CONFIG_NAME = {entry.config_name: entry for entry in DATATYPES.values()}
"""Every type by its name in a model configuration."""

BY_ONNX_TYPE = {f"tensor({entry.onnx_name})": entry for entry in DATATYPES.values()}
"""Every type by what ``onnxruntime`` prints as a node's type."""

"""Tensors to wire bytes and back.

The raw form of the Open Inference Protocol is row-major little-endian without
padding. BYTES elements are each a 4-byte little-endian length and the bytes
(Triton, `serialize_byte_tensor`); NUL bytes inside an element are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES, DataType

_LENGTH = struct.Struct("<I")


class EncodingError(ValueError):
    """Raised when bytes are not what their declared type and shape say."""


def encode_bytes_elements(elements: Iterable[bytes]) -> bytes:
    """Join elements in the raw BYTES form.

    Args:
        elements: Row-major elements, each any bytes.

    Returns:
        The length-prefixed concatenation; empty for no elements.
    """
    parts: list[bytes] = []
    for element in elements:
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def encode_typed_values(values: Sequence[float], datatype: DataType) -> bytes:
    """Encode the values of a typed contents field, any but ``bytes_contents``.

    Args:
        values: Row-major values, in the range of the field.
        datatype: Of the tensor; of 8- and 16-bit integers the low-order bytes of
            the 32-bit value are taken, as Triton takes them.

    Returns:
        Little-endian bytes without padding.
    """
    if datatype.contents_field in ("int_contents", "uint_contents"):
        wide = "<i4" if datatype.contents_field == "int_contents" else "<u4"
        return np.array(values, dtype=wide).astype(datatype.numpy).tobytes()
    return np.array(values, dtype=datatype.numpy).tobytes()


def decode_bytes_elements(
    raw: bytes | bytearray | memoryview, max_elements: int | None = None
) -> list[bytes]:
    """Split the raw BYTES form into its elements.

    Args:
        raw: Length-prefixed elements.
        max_elements: Elements to decode at most, which bounds the work whatever
            the size of `raw`; ``None`` for no bound.

    Returns:
        The elements in row-major order.

    Raises:
        EncodingError: A length runs past the end of `raw`, or there are bytes
            behind `max_elements` elements; these bytes are not looked at.
    """
    data = bytes(raw)
    elements: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        if len(elements) == max_elements:
            raise EncodingError(
                f"more than {max_elements} elements (byte {position} of {end})"
            )
        if end - position < _LENGTH.size:
            raise EncodingError(f"truncated element length at byte {position} of {end}")
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if length > end - position:
            raise EncodingError(
                f"element of {length} bytes at byte {position} runs past the end "
                f"({end})"
            )
        elements.append(data[position : position + length])
        position += length
    return elements


def encode_array(array: NDArray[np.generic], datatype: str) -> bytes:
    """Encode an array in the raw form.

    Args:
        array: Any shape, dtype of `datatype`; for BYTES an object array of
            ``str`` or ``bytes`` (``str`` is encoded as UTF-8).
        datatype: Protocol name such as ``FP32``.

    Returns:
        Row-major little-endian bytes.
    """
    if datatype == "BYTES":
        return encode_bytes_elements(
            element.encode() if isinstance(element, str) else bytes(element)
            for element in array.reshape(-1).tolist()
        )
    dtype = DATATYPES[datatype].numpy
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def decode_array(
    raw: bytes | bytearray | memoryview, datatype: str, shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """View raw bytes as an array; BYTES becomes an object array of ``bytes``.

    Args:
        raw: Exactly the bytes of `shape` elements of `datatype`.
        datatype: Protocol name such as ``FP32``.
        shape: Full shape, no variable dimension.

    Returns:
        Array of `shape`; read-only where it views `raw`.

    Raises:
        EncodingError: The byte or element count does not fit `shape`.
    """
    count = 1
    for dimension in shape:
        count *= dimension
    if datatype == "BYTES":
        elements = decode_bytes_elements(raw)
        if len(elements) != count:
            raise EncodingError(f"{len(elements)} elements where {count} were expected")
        array = np.empty(count, dtype=object)
        array[:] = elements
        return array.reshape(shape)
    entry = DATATYPES[datatype]
    if len(raw) != count * entry.size:
        raise EncodingError(
            f"{len(raw)} bytes where {count * entry.size} were expected"
        )
    return np.frombuffer(raw, dtype=entry.numpy).reshape(shape)

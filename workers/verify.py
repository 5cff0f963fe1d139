"""Reading a model file before it is trusted: what is refused, and by which name.

ONNX Runtime is C++ that parses whatever it is given, and a model file may point
at other files. So each file passes here first: it must be whole, ask only for
operators that ONNX Runtime brings along, and stay inside its folder. What a
tensor holds is left to ONNX Runtime, in a canary process.

Source: onnx.proto (ONNX IR); the path rules answer CVE-2022-25882, CVE-2024-27318
and CVE-2026-27489 of the `onnx` package.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError

from workers.onnx_subset_pb2 import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    SparseTensorProto,
    TensorProto,
)

MAX_OPSETS: dict[str, int] = {
    "": 26,
    "ai.onnx.ml": 5,
    "ai.onnx.preview": 1,
    "ai.onnx.training": 1,
    "ai.onnx.preview.training": 1,
    "com.microsoft": 1,
    "com.microsoft.experimental": 1,
    "com.microsoft.nchwc": 1,
    "org.pytorch.aten": 1,
}
"""Newest opset of each domain that ONNX Runtime 1.31 loads (a test asks it).

ONNX Runtime itself writes all of these into every model it saves, used or not.
"""

MAX_FILE_BYTES = (2 << 30) - 1
"""Largest message that protobuf reads; weights beyond it are external data."""


class ModelRefused(Exception):
    """The file is not taken. One line for people: file, reason, way out."""


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """What a file that passed refers to.

    Attributes:
        external_files: Sorted names of its external data, relative to its folder.
        opsets: Domain (``ai.onnx`` is the empty one) to imported version.
    """

    external_files: tuple[str, ...]
    opsets: dict[str, int]


def verify_model(path: Path, *, max_bytes: int) -> VerifiedModel:
    """Check one model file and everything it refers to; blocks on the disk.

    A digest beside it (``model.onnx.sha256``, as ``sha256sum`` writes) must match.

    Args:
        path: The ONNX file.
        max_bytes: Largest sum of the file and its external data.

    Raises:
        ModelRefused: The file must not be loaded. No bytes raise anything else.
    """
    try:
        _check_size(path.name, path.stat().st_size, max_bytes)
        data = _read(path, MAX_FILE_BYTES + 1)
        check_digest(path, hashlib.sha256(data).hexdigest())
        model = _parse(path.name, data)
        size = len(data)
        del data
        opsets = _check_operators(path.name, model)
        external = _external_sizes(path, _tensors(model))
    except OSError as error:
        reason = error.strerror or "unknown error"
        raise ModelRefused(
            f"{path.name}: cannot be read: {reason}; check the path and its permissions"
        ) from error
    _check_size(path.name, size + sum(external.values()), max_bytes)
    return VerifiedModel(tuple(sorted(external)), opsets)


def check_digest(path: Path, digest: str) -> None:
    """Compare the SHA-256 of a file with the one written beside it, if there is one.

    Args:
        path: The model file; its digest file adds ``.sha256`` to the name.
        digest: What the file's bytes hash to, in hexadecimal.

    Raises:
        ModelRefused: The two differ.
        OSError: The digest file cannot be read.
    """
    try:
        written = _read(path.with_name(f"{path.name}.sha256"), 1024)
    except FileNotFoundError:
        return
    # "\" leads the line where sha256sum had to escape the file name.
    expected = written.split()[:1] or [b""]
    if expected[0].lstrip(b"\\").lower() != digest.encode():
        raise ModelRefused(
            f"{path.name}: its SHA-256 is {digest}, which {path.name}.sha256 does "
            "not say; fetch both again"
        )


def open_beneath(folder: Path, name: str) -> int:
    """Open a regular file under a folder for reading, following no link on the way.

    Every step is opened relative to the one before, so that nobody can slip a link
    in between a check and the read.

    Args:
        folder: Where to start; links on the way to it are the owner's choice.
        name: Relative name as in `VerifiedModel.external_files`.

    Raises:
        OSError: It is missing, a link, or not a regular file.
    """
    *parents, last = PurePosixPath(name).parts
    # Without O_NONBLOCK a named pipe would hold us until somebody writes to it.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    at = os.open(folder, flags | os.O_DIRECTORY)
    try:
        for part in parents:
            step = os.open(part, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = step
        opened = os.open(last, flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(0, "it is not a regular file")
    return opened


def shown(text: object) -> str:
    """Quote a name out of a file for a message: on one line, bounded."""
    quoted = repr(text)
    return quoted if len(quoted) <= 120 else f"{quoted[:116]}...'"


def _read(path: Path, max_bytes: int) -> bytes:
    """Return a regular file's first bytes; the file itself may be a link."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a regular file")
        return file.read(min(status.st_size, max_bytes))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_size(name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ModelRefused(
            f"{name}: takes {size} bytes with its external data, and max_model_bytes "
            f"is {max_bytes}; raise it to serve the model"
        )


def _parse(name: str, data: bytes) -> ModelProto:
    """Return the parsed model, which has a graph with nodes and outputs."""
    if not data:
        raise ModelRefused(f"{name}: is empty; copy or export it again")
    if len(data) > MAX_FILE_BYTES:
        raise ModelRefused(
            f"{name}: is larger than 2 GiB, the most ONNX allows in one file; save "
            "the weights as external data"
        )
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        # ir_version comes first in what every exporter writes.
        reason = (
            "is truncated, damaged or nested too deeply"
            if data.startswith(b"\x08")
            else "is not an ONNX file"
        )
        raise ModelRefused(f"{name}: {reason}; copy or export it again") from error
    parts = {
        "ir_version": model.ir_version > 0,
        "graph": model.HasField("graph"),
        "nodes": bool(model.graph.node),
        "outputs": bool(model.graph.output),
    }
    missing = [part for part, there in parts.items() if not there]
    if missing:
        raise ModelRefused(
            f"{name}: is not a whole ONNX model, it has no {missing[0]}; copy or "
            "export it again"
        )
    return model


def _domain(domain: str) -> str:
    """Return the domain's canonical name: ``ai.onnx`` is the default one.

    Protobuf hands bytes over where they are no UTF-8; `str` makes them text.
    """
    return "" if domain == "ai.onnx" else str(domain)


def _check_operators(name: str, model: ModelProto) -> dict[str, int]:
    """Refuse operators ONNX Runtime does not bring along; return the opsets."""
    own = {_domain(function.domain) for function in model.functions}
    opsets = _check_imports(name, model.opset_import, own)
    _check_nodes(name, _nodes(model.graph.node), opsets)
    for function in model.functions:
        imports = _check_imports(name, function.opset_import, own)
        _check_nodes(name, _nodes_of_function(function), opsets | imports)
    return opsets


def _check_imports(
    name: str, imports: Iterable[OperatorSetIdProto], own: set[str]
) -> dict[str, int]:
    opsets = {_domain(entry.domain): entry.version for entry in imports}
    for domain, version in opsets.items():
        newest = MAX_OPSETS.get(domain)
        if newest is None and domain not in own:
            raise ModelRefused(
                f"{name}: imports operators of the unknown domain {shown(domain)}; "
                "custom operators are not loaded, export the model without them"
            )
        if newest is not None and not 1 <= version <= newest:
            raise ModelRefused(
                f"{name}: needs opset {version} of domain {domain or 'ai.onnx'}, and "
                f"1 to {newest} are known; export it for opset {newest}"
            )
    return opsets


def _check_nodes(name: str, nodes: Iterable[NodeProto], opsets: dict[str, int]) -> None:
    for node in nodes:
        domain = _domain(node.domain)
        if domain not in opsets:
            raise ModelRefused(
                f"{name}: operator {shown(node.op_type)} is of domain "
                f"{shown(domain or 'ai.onnx')}, which the model does not import; "
                "export it again, without custom operators"
            )


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes and those of their subgraphs; protobuf bounds the depth."""
    for node in nodes:
        yield node
        yield from _nodes_of_attributes(node.attribute)


def _nodes_of_attributes(attributes: Iterable[AttributeProto]) -> Iterator[NodeProto]:
    for attribute in attributes:
        for graph in (attribute.g, *attribute.graphs):
            yield from _nodes(graph.node)


def _nodes_of_function(function: FunctionProto) -> Iterator[NodeProto]:
    """Yield the nodes of its body and of its attributes' default values."""
    yield from _nodes(function.node)
    yield from _nodes_of_attributes(function.attribute_proto)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor: initializers and attributes of all graphs and functions."""
    nodes = [*_nodes(model.graph.node)]
    attributes: list[AttributeProto] = []
    for function in model.functions:
        nodes += _nodes_of_function(function)
        attributes += function.attribute_proto
    for node in nodes:
        attributes += node.attribute
    graphs = [model.graph]
    for attribute in attributes:
        yield attribute.t
        yield from attribute.tensors
        yield from _dense((attribute.sparse_tensor, *attribute.sparse_tensors))
        graphs += (attribute.g, *attribute.graphs)
    for graph in graphs:
        yield from graph.initializer
        yield from _dense(graph.sparse_initializer)


def _dense(sparse: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _external_sizes(path: Path, tensors: Iterable[TensorProto]) -> dict[str, int]:
    """Return name and size of each external file, which holds what is asked of it."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = _location(path.name, entries.get("location", ""))
        if location not in sizes:
            sizes[location] = _size_beneath(path, location)
        end = sum(
            _byte_count(path.name, key, entries.get(key, "0"))
            for key in ("offset", "length")
        )
        if end > sizes[location]:
            raise ModelRefused(
                f"{path.name}: external data {shown(location)} has {sizes[location]} "
                f"bytes, and tensor {shown(tensor.name)} ends at {end}; copy it again"
            )
    return sizes


def _location(name: str, location: str) -> str:
    """Return the normalised name of an external file that stays in the folder.

    ``*`` marks addresses in memory to ONNX Runtime (``*/_ORT_MEM_ADDR_/*``).
    """
    sound = (
        isinstance(location, str)
        and location.isprintable()
        and not set(location) & set("\\*")
        and 0 < len(location) <= 1024
    )
    place = PurePosixPath(location if sound else "")
    if not place.parts or place.is_absolute() or ".." in place.parts:
        raise ModelRefused(
            f"{name}: external data {shown(location)} is not a relative path below "
            "the model's folder; save the weights beside the model"
        )
    return str(place)


def _size_beneath(path: Path, location: str) -> int:
    try:
        opened = open_beneath(path.parent, location)
    except OSError as error:
        is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        reason = "a link is on the way" if is_link else error.strerror
        raise ModelRefused(
            f"{path.name}: external data {shown(location)} cannot be used: {reason}; "
            "put a plain file there, reached without links"
        ) from error
    try:
        return os.fstat(opened).st_size
    finally:
        os.close(opened)


def _byte_count(name: str, key: str, text: str) -> int:
    # int64 has at most 19 digits; int() on longer text may raise.
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise ModelRefused(
            f"{name}: {key} {shown(text)} of external data is not a number of bytes; "
            "export the model again"
        )
    return int(text)

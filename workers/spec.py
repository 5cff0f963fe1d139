"""What a version is and how to load it: values that cross process borders.

Pure data. The lifecycle writes a `LoadOrder`, a worker answers with a
`LoadReport`; fronts keep the `ModelSpec` to check requests against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a version.

    Attributes:
        name: Name in the model's graph.
        datatype: Protocol name, such as ``FP32``.
        dims: Dimensions, -1 where variable, **without** the batch dimension when
            the version batches.
        optional: The input may be absent from a request.
        model_dims: Dimensions the graph wants where they differ from `dims`
            (``reshape`` of a model configuration); all fixed. ``None``: same.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    model_dims: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The tensors of a version, and whether rows of several requests may share a run.

    Attributes:
        inputs: Inputs in the order their index has on the wire.
        outputs: Outputs in the order their index has on the wire.
        max_batch_rows: Largest batch in rows. 0: the model has no batch
            dimension and serves one request at a time.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_rows: int


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """How one input of a declared warm-up run is filled.

    Attributes:
        datatype: Protocol name.
        dims: Fixed dimensions, without the batch dimension.
        source: ``zero``, ``random``, or ``file``.
        path: Absolute path of the raw data where `source` is ``file``.
    """

    datatype: str
    dims: tuple[int, ...]
    source: Literal["zero", "random", "file"]
    path: str = ""


@dataclass(frozen=True, slots=True)
class Warmup:
    """A run to make at load, as ``model_warmup`` of a model configuration declares it.

    Attributes:
        name: Label for messages.
        rows: Rows of the run; 0 or 1 for a model without batch dimension.
        count: How often to run it.
        inputs: Input name to its data.
    """

    name: str
    rows: int
    count: int
    inputs: dict[str, WarmupInput]


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """A tensor as a model configuration declares it (see `TensorSpec`)."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    reshape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a worker runs a version.

    Attributes:
        device: ``cpu`` or ``cuda``. ``cuda`` never falls back to the CPU.
        device_id: Index of the GPU.
        intra_op_threads: Threads of one run on the CPU, at least 1.
        gpu_memory_bytes: Bound of the CUDA arena; 0 for none.
        cuda_graphs: Capture one CUDA graph per batch bucket.
    """

    device: Device = "cpu"
    device_id: int = 0
    intra_op_threads: int = 1
    gpu_memory_bytes: int = 0
    cuda_graphs: bool = False


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Everything a worker needs to load one version.

    Attributes:
        handle: Number of this load on the wire; never reused by a gateway.
        model: Model name.
        version: Version number.
        path: The ONNX file in the artefact store.
        settings: Session settings.
        max_batch_rows: Declared limit; ``None`` to derive it from the model.
        default_max_batch_rows: Limit to use where one is derived.
        inputs: Declared inputs; empty to derive them from the model.
        outputs: Declared outputs; empty to derive them from the model.
        warmups: Declared warm-up runs.
        spec: Already decided by the canary: load as this, without probing.
        across_requests: Rows of several requests may share a run, where it batches.
    """

    handle: int
    model: str
    version: int
    path: str
    settings: SessionSettings = field(default_factory=SessionSettings)
    max_batch_rows: int | None = None
    default_max_batch_rows: int = 64
    inputs: tuple[DeclaredTensor, ...] = ()
    outputs: tuple[DeclaredTensor, ...] = ()
    warmups: tuple[Warmup, ...] = ()
    spec: ModelSpec | None = None
    across_requests: bool = True


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What came of a load.

    Attributes:
        handle: The order's handle.
        error: Empty on success, else the reason, one line, for people.
        spec: The decided spec on success.
        notes: Things worth a log line (why a model does not batch, ...).
        slowest_run_ns: Slowest warm-up run after the first of its shape.
        provider: Execution provider in use, such as ``CPUExecutionProvider``.
    """

    handle: int
    error: str = ""
    spec: ModelSpec | None = None
    notes: tuple[str, ...] = ()
    slowest_run_ns: int = 0
    provider: str = ""


LOAD_ORDER = TypeAdapter(LoadOrder)
"""Reads and writes a `LoadOrder` as JSON."""
LOAD_REPORT = TypeAdapter(LoadReport)
"""Reads and writes a `LoadReport` as JSON."""

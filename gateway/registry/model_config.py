"""Triton's model configuration: what a model's owner asks for, and what we do of it.

A ``config.pbtxt`` written for Triton works here, or is refused with the field that
does not. What changes no answer and is not done is a note, never silence.

Source: Triton's model configuration (model_config.proto and its documentation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featurizer.datatypes import BY_CONFIG_NAME, DATATYPES
from gateway.config import AdmissionConfig, BatchingConfig
from gateway.protocol import model_config_pb2 as pb
from gateway.protocol.model_config_pb2 import ModelConfig
from gateway.registry.config_text import refused
from workers.spec import DeclaredTensor, ModelSpec, TensorSpec, Warmup, WarmupInput

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
MAX_PRIORITY_LEVELS = 256
"""Bound of ``priority_levels``, each of which is a queue; ours, not Triton's."""

_THREADS = "intra_op_thread_count"
SHADOWS = "shadow_versions"
"""Parameter that the registry writes: versions that get copies of requests."""
ANSWERING = "answering_versions"
"""Parameter that the registry writes: those that answer, where others shadow."""
DIGESTS = "artefact_digests"
"""Parameter that the registry writes: what the bytes of each version must be."""
_MAX_UINT32 = (1 << 32) - 1
_SOURCES: dict[str, Literal["zero", "random", "file"]] = {
    "zero_data": "zero",
    "random_data": "random",
    "input_data_file": "file",
}
_TYPES = {
    number: BY_CONFIG_NAME[label].name
    for label, number in pb.DataType.items()
    if label in BY_CONFIG_NAME
}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a model is to be served: its configuration, or our defaults where silent.

    Attributes:
        max_batch_rows: Largest batch; 0 for no batch dimension; ``None`` to derive
            it from the model. proto3 does not tell an absent ``max_batch_size``
            from 0, so: 0 where inputs or outputs are declared, as in Triton, else
            ``None``.
        inputs: Declared inputs; empty to derive them from the model.
        outputs: Declared outputs; empty to derive them from the model.
        warmups: Declared warm-up runs.
        batching: Rows of several requests may share a run. Without a configuration
            they do; with one, if it has ``dynamic_batching`` or leaves the limit to
            us. Off, one request still may bring `max_batch_rows` rows.
        max_queue_delay_us: How long a batch waits for company while a worker is free.
        preferred_batch_rows: Sizes at which a batch leaves before the delay ends.
        max_queue_requests: Requests queued or running before more are refused.
        priority_levels: Number of priorities, 1 the highest; 0 for none.
        default_priority: Priority of a request that brings none; 0 without levels.
        default_timeout_us: Longest time in the queue; 0 for no limit.
        allow_timeout_override: A request may set a timeout of its own. True where
            no ``default_queue_policy`` is declared.
        worker_share: Workers to load the model into; 0 for all.
        device_kind: Where to run; ``auto`` for where the workers are.
        intra_op_threads: Threads of one run; 0 for the server's default.
    """

    max_batch_rows: int | None
    inputs: tuple[DeclaredTensor, ...]
    outputs: tuple[DeclaredTensor, ...]
    warmups: tuple[Warmup, ...]
    batching: bool
    max_queue_delay_us: int
    preferred_batch_rows: tuple[int, ...]
    max_queue_requests: int
    priority_levels: int
    default_priority: int
    default_timeout_us: int
    allow_timeout_override: bool
    worker_share: int
    device_kind: Literal["auto", "cpu", "gpu"]
    intra_op_threads: int


def derive_settings(
    name: str,
    config: ModelConfig | None,
    *,
    folder: Path,
    batching: BatchingConfig,
    admission: AdmissionConfig,
) -> tuple[ModelSettings, tuple[str, ...]]:
    """Turn a configuration, or its absence, into settings.

    Args:
        name: The model's name.
        config: As `gateway.registry.config_text` read it; ``None`` if there is none.
        folder: The model's folder, with ``warmup/`` in it.
        batching: Server defaults.
        admission: Server defaults.

    Returns:
        The settings, and a note for each setting that has no effect.

    Raises:
        ConfigRefused: It contradicts itself, or asks for what Baton does not do.
    """
    config = config or ModelConfig()
    for wrong, reason in _refusals(name, config):
        if wrong:
            raise refused(name, reason)
    declared = bool(config.input or config.output)
    rows = config.max_batch_size or (0 if declared else None)
    dynamic = config.dynamic_batching
    is_dynamic = config.HasField("dynamic_batching")
    queue = dynamic.default_queue_policy
    settings = ModelSettings(
        max_batch_rows=rows,
        inputs=_declared(name, config.input),
        outputs=_declared(name, config.output),
        warmups=_warmups(name, config, folder),
        batching=rows != 0 and (is_dynamic or rows is None),
        max_queue_delay_us=dynamic.max_queue_delay_microseconds
        if is_dynamic
        else batching.max_queue_delay_us,
        preferred_batch_rows=tuple(sorted(dynamic.preferred_batch_size)),
        max_queue_requests=queue.max_queue_size or admission.max_queue_requests,
        priority_levels=dynamic.priority_levels,
        default_priority=dynamic.default_priority_level,
        default_timeout_us=queue.default_timeout_microseconds,
        allow_timeout_override=queue.allow_timeout_override
        or not dynamic.HasField("default_queue_policy"),
        worker_share=sum(max(1, group.count) for group in config.instance_group),
        device_kind=_device_kind(name, config),
        intra_op_threads=_intra_op_threads(name, config),
    )
    notes = tuple(
        f"{name}: {field} has no effect" for field, is_set in _ignored(config) if is_set
    )
    return settings, notes


def complete_config(
    name: str, settings: ModelSettings, declared: ModelConfig | None, spec: ModelSpec
) -> ModelConfig:
    """Return the configuration in force, as the ModelConfig RPC answers it.

    Clients decide by it how to call: ``dynamic_batching`` is there only if we batch,
    and tensors are those of the loaded model.
    """
    config = ModelConfig()
    if declared is not None:
        config.CopyFrom(declared)
    config.name = name
    config.platform = PLATFORM
    config.backend = BACKEND
    config.default_model_filename = config.default_model_filename or "model.onnx"
    config.max_batch_size = spec.max_batch_rows
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    config.model_transaction_policy.decoupled = False
    del config.input[:]
    del config.output[:]
    for tensor in spec.inputs:
        config.input.add(optional=tensor.optional, **_tensor_fields(tensor))
    for tensor in spec.outputs:
        config.output.add(**_tensor_fields(tensor))
    if not (settings.batching and spec.max_batch_rows):
        config.ClearField("dynamic_batching")
        return config
    config.dynamic_batching.CopyFrom(
        pb.ModelDynamicBatching(
            preferred_batch_size=settings.preferred_batch_rows,
            max_queue_delay_microseconds=settings.max_queue_delay_us,
            priority_levels=settings.priority_levels,
            default_priority_level=settings.default_priority,
            default_queue_policy=pb.ModelQueuePolicy(
                default_timeout_microseconds=settings.default_timeout_us,
                allow_timeout_override=settings.allow_timeout_override,
                max_queue_size=min(settings.max_queue_requests, _MAX_UINT32),
            ),
        )
    )
    return config


def _tensor_fields(tensor: TensorSpec) -> dict[str, object]:
    fields: dict[str, object] = {
        "name": tensor.name,
        "data_type": DATATYPES[tensor.datatype].config_name,
        "dims": tensor.dims,
    }
    if tensor.model_dims is not None:
        fields["reshape"] = pb.ModelTensorReshape(shape=tensor.model_dims)
    return fields


def _refusals(name: str, config: ModelConfig) -> Iterator[tuple[bool, str]]:
    """Yield what would be wrong, and whether it is."""
    yield (
        config.name not in ("", name),
        f"its configuration is for model '{config.name}'; make name and folder equal",
    )
    yield (
        config.HasField("ensemble_scheduling") or config.platform == "ensemble",
        "ensemble_scheduling is not supported: models do not call each other here; "
        "call them one after the other from the client",
    )
    yield (
        config.HasField("sequence_batching"),
        "sequence_batching is not supported: requests are independent, and any worker "
        "may get the next one",
    )
    yield (
        config.model_transaction_policy.decoupled,
        "model_transaction_policy.decoupled is not supported: an ONNX model answers "
        "each request once",
    )
    yield (
        config.platform not in ("", PLATFORM) or config.backend not in ("", BACKEND),
        f"platform '{config.platform}' and backend '{config.backend}' are not "
        f"supported: only ONNX models are served ({PLATFORM}, {BACKEND})",
    )
    yield (
        any(group.kind == group.KIND_MODEL for group in config.instance_group),
        "instance_group KIND_MODEL is not supported: workers choose the device; use "
        "KIND_AUTO, KIND_CPU or KIND_GPU",
    )
    yield (
        any(tensor.is_shape_tensor for tensor in config.input)
        or any(tensor.is_shape_tensor for tensor in config.output),
        "is_shape_tensor is not supported: only TensorRT has shape tensors",
    )
    yield (
        any(tensor.allow_ragged_batch for tensor in config.input),
        "allow_ragged_batch is not supported: rows of a batch have one shape",
    )
    yield (
        config.response_cache.enable,
        "response_cache.enable is not supported: every answer is computed",
    )
    yield from _contradictions(config)


def _contradictions(config: ModelConfig) -> Iterator[tuple[bool, str]]:
    dynamic = config.dynamic_batching
    rows, levels = config.max_batch_size, dynamic.priority_levels
    yield rows < 0, f"max_batch_size is {rows}; it must not be negative"
    yield (
        any(group.count < 0 for group in config.instance_group),
        "instance_group.count must not be negative",
    )
    preferred = dynamic.preferred_batch_size
    yield (
        any(size < 1 or 0 < rows < size for size in preferred),
        f"preferred_batch_size {list(preferred)} must lie in 1 to max_batch_size",
    )
    yield (
        levels > MAX_PRIORITY_LEVELS,
        f"priority_levels is {levels}; at most {MAX_PRIORITY_LEVELS} are kept",
    )
    yield (
        not min(1, levels) <= dynamic.default_priority_level <= levels,
        f"default_priority_level must lie in 1 to priority_levels, which is {levels}",
    )


def _ignored(config: ModelConfig) -> Iterator[tuple[str, bool]]:
    """Yield settings that change no answer and that we do not act on."""
    dynamic, optimization = config.dynamic_batching, config.optimization
    policy, groups = dynamic.default_queue_policy, config.instance_group
    declared = bool(config.input or config.output)
    yield (
        "optimization.execution_accelerators",
        optimization.HasField("execution_accelerators"),
    )
    yield "optimization.graph", optimization.HasField("graph")
    yield "optimization.cuda", optimization.HasField("cuda")
    yield "optimization.eager_batching", optimization.eager_batching
    yield (
        "dynamic_batching (max_batch_size is 0)",
        config.HasField("dynamic_batching") and declared and not config.max_batch_size,
    )
    yield "preserve_ordering", dynamic.preserve_ordering
    yield "priority_queue_policy", bool(dynamic.priority_queue_policy)
    yield "timeout_action DELAY", policy.timeout_action == policy.DELAY
    for field in ("gpus", "profile", "passive", "host_policy"):
        yield f"instance_group.{field}", any(getattr(group, field) for group in groups)
    yield "input.format", any(tensor.format for tensor in config.input)
    yield (
        "output.label_filename",
        any(tensor.label_filename for tensor in config.output),
    )
    for field in ("cc_model_filenames", "metric_tags", "runtime"):
        yield field, bool(getattr(config, field))
    for parameter in sorted(config.parameters):
        known = parameter in {_THREADS, SHADOWS, ANSWERING, DIGESTS}
        yield f"parameter '{parameter}'", not known


def _declared(
    name: str, tensors: Iterable[pb.ModelInput | pb.ModelOutput]
) -> tuple[DeclaredTensor, ...]:
    declared = {tensor.name: _declared_tensor(name, tensor) for tensor in tensors}
    if "" in declared or len(declared) < sum(1 for _ in tensors):
        raise refused(name, "tensors need names that differ")
    return tuple(declared.values())


def _declared_tensor(
    name: str, tensor: pb.ModelInput | pb.ModelOutput
) -> DeclaredTensor:
    where = f"{name}: tensor '{tensor.name}'"
    datatype = _TYPES.get(tensor.data_type)
    if datatype is None:
        raise refused(where, "needs a data_type, such as TYPE_FP32")
    if any(dim < 1 and dim != -1 for dim in tensor.dims):
        raise refused(where, "dims must be positive, or -1 where variable")
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
    if reshape is not None:
        if min((*tensor.dims, *reshape), default=1) < 1:
            raise refused(where, "reshape is not supported with variable dims")
        if math.prod(reshape) != math.prod(tensor.dims):
            raise refused(where, "reshape must keep the number of elements")
    optional = isinstance(tensor, pb.ModelInput) and tensor.optional
    return DeclaredTensor(tensor.name, datatype, tuple(tensor.dims), optional, reshape)


def _warmups(name: str, config: ModelConfig, folder: Path) -> tuple[Warmup, ...]:
    declared = bool(config.input or config.output)
    limit = config.max_batch_size or (1 if declared else None)
    warmups = []
    for number, run in enumerate(config.model_warmup, 1):
        label = run.name or f"warm-up {number}"
        if limit is not None and run.batch_size > limit:
            raise refused(
                f"{name}: model_warmup '{label}'",
                f"batch_size is {run.batch_size}, more than the limit {limit}",
            )
        inputs = {
            key: _warmup_input(f"{name}: model_warmup '{label}'", value, folder)
            for key, value in sorted(run.inputs.items())
        }
        warmups.append(Warmup(label, run.batch_size, max(1, run.count), inputs))
    return tuple(warmups)


def _warmup_input(where: str, value: pb.ModelWarmup.Input, folder: Path) -> WarmupInput:
    datatype = _TYPES.get(value.data_type)
    source = _SOURCES.get(value.WhichOneof("input_data_type") or "")
    if datatype is None or source is None or min(value.dims, default=1) < 1:
        raise refused(
            where,
            "each input needs a data_type, fixed dims, and one of zero_data, "
            "random_data and input_data_file",
        )
    path = ""
    if source == "file":
        home = (folder / "warmup").resolve()
        name = value.input_data_file
        file = (home / name).resolve() if name.isprintable() else home
        if not (file.is_relative_to(home) and file.is_file()):
            raise refused(
                where, f"input_data_file {name!r} is no file in the warmup folder"
            )
        path = str(file)
    return WarmupInput(datatype, tuple(value.dims), source, path)


def _device_kind(name: str, config: ModelConfig) -> Literal["auto", "cpu", "gpu"]:
    kinds = {group.kind for group in config.instance_group} - {
        pb.ModelInstanceGroup.KIND_AUTO
    }
    if len(kinds) > 1:
        raise refused(name, "instance_group must not mix kinds: workers are all alike")
    if not kinds:
        return "auto"
    return "gpu" if pb.ModelInstanceGroup.KIND_GPU in kinds else "cpu"


def _intra_op_threads(name: str, config: ModelConfig) -> int:
    if _THREADS not in config.parameters:
        return 0
    text = config.parameters[_THREADS].string_value
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise refused(name, f"parameter {_THREADS} '{text}' is not a number of threads")
    return int(text)

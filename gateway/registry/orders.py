"""What a definition comes to: the order to load it, the entry to publish. Pure."""

from __future__ import annotations

import base64
from pathlib import Path

from gateway.catalogue import BatchPolicy, QueuePolicy, State, VersionEntry
from gateway.config import Config, intra_op_threads
from gateway.errors import LoadFailed
from gateway.registry.model_config import complete_config
from gateway.registry.placement import Placement
from gateway.registry.repository import ModelDefinition
from workers.spec import LoadOrder, LoadReport, SessionSettings


def load_order(
    config: Config, definition: ModelDefinition, version: int, handle: int, path: Path
) -> LoadOrder:
    """Say how a version is to be loaded.

    Args:
        config: Defaults and devices.
        definition: The model.
        version: Which of its versions.
        handle: Number of this load.
        path: The verified copy of its file.

    Raises:
        LoadFailed: The model asks for a device the workers do not have.
    """
    settings, workers = definition.settings, config.workers
    device = workers.device
    if settings.device_kind == "cpu":
        device = "cpu"
    elif settings.device_kind == "gpu" and device != "cuda":
        raise LoadFailed(
            "its configuration asks for a GPU (KIND_GPU), and the workers run on the "
            "CPU; set workers.device to cuda, or KIND_CPU"
        )
    return LoadOrder(
        handle=handle,
        model=definition.name,
        version=version,
        path=str(path),
        settings=SessionSettings(
            device=device,
            device_id=workers.device_ids[0],
            intra_op_threads=settings.intra_op_threads or intra_op_threads(workers),
            gpu_memory_bytes=workers.gpu_memory_bytes,
            cuda_graphs=workers.cuda_graphs,
        ),
        max_batch_rows=settings.max_batch_rows,
        default_max_batch_rows=config.batching.max_batch_rows,
        inputs=settings.inputs,
        outputs=settings.outputs,
        warmups=settings.warmups,
        across_requests=settings.batching,
    )


def ready_entry(
    config: Config,
    definition: ModelDefinition,
    placement: Placement,
    report: LoadReport,
) -> VersionEntry:
    """Return what fronts must know of a version that was loaded.

    Args:
        config: Defaults.
        definition: The model.
        placement: How and where it was loaded.
        report: The canary's report, with the decided spec.
    """
    assert report.spec is not None
    spec, settings = report.spec, definition.settings
    complete = complete_config(
        definition.name, settings, definition.declared_config, spec
    )
    preferred = [rows for rows in settings.preferred_batch_rows if rows > 0]
    return VersionEntry(
        version=placement.order.version,
        state=State.READY,
        handle=placement.order.handle,
        shadows=placement.shadows,
        spec=spec,
        batching=BatchPolicy(
            max_rows=spec.max_batch_rows,
            max_bytes=config.batching.max_batch_bytes,
            max_delay_ns=settings.max_queue_delay_us * 1000,
            target_rows=min(preferred, default=0),
            across_requests=settings.batching and spec.max_batch_rows > 0,
        ),
        queue=QueuePolicy(
            max_requests=settings.max_queue_requests,
            priority_levels=settings.priority_levels,
            default_priority=settings.default_priority,
            default_timeout_ns=settings.default_timeout_us * 1000,
            allow_timeout_override=settings.allow_timeout_override,
        ),
        slowest_run_ns=report.slowest_run_ns,
        config=base64.b64encode(complete.SerializeToString()).decode(),
    )

"""The lifecycle of versions: verify, canary, load, switch, drain the old.

Serialised per model. A version that fails anywhere on the way is UNAVAILABLE with
the reason; what served before goes on serving, and other models never notice.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from gateway.catalogue import (
    BatchPolicy,
    ModelEntry,
    QueuePolicy,
    State,
    VersionEntry,
)
from gateway.config import Config, intra_op_threads
from gateway.errors import GatewayError, InvalidRequest, LoadFailed
from gateway.logs import get_logger
from gateway.registry.model_config import ModelSettings, complete_config
from gateway.registry.repository import (
    ModelDefinition,
    Repository,
    VersionSource,
    write_override,
)
from gateway.registry.store import ArtefactStore
from workers.spec import LoadOrder, LoadReport, ModelSpec, SessionSettings
from workers.verify import ModelRefused

_log = get_logger("lifecycle")


@dataclass(frozen=True, slots=True)
class Placement:
    """A load, and in how many workers of each device (0: in all)."""

    order: LoadOrder
    share: int


class Fleet(Protocol):
    """The processes, as the lifecycle needs them."""

    async def load(self, placement: Placement, *, one_by_one: bool) -> LoadReport:
        """Load in every worker that should have it, or in none (LoadFailed)."""

    async def unload(self, handle: int) -> None:
        """Free a load everywhere."""

    async def publish(self, models: dict[str, ModelEntry], *, ready: bool) -> None:
        """Put a catalogue in force in every front, and return when it is."""

    async def released(self, handle: int) -> None:
        """Wait until no front uses a load that is no longer published."""


Canary = Callable[[LoadOrder], Awaitable[LoadReport]]
"""Loads a version in a process of its own and reports; never raises."""


@dataclass(slots=True)
class VersionRecord:
    """One version: what is published of it, and what it was loaded from."""

    entry: VersionEntry
    placement: Placement | None = None
    digest: str = ""
    settings: ModelSettings | None = None


@dataclass(eq=False, slots=True)
class ModelRecord:
    """One model: its versions, and the lock that serialises what happens to it."""

    versions: dict[int, VersionRecord] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    reason: str = ""


class Lifecycle:
    """Brings versions up and down. Supervisor's loop only.

    Args:
        config: Defaults and limits.
        repository: Where models come from.
        store: Where verified copies go; workers load from it alone.
        canary: See `Canary`.
    """

    def __init__(
        self,
        config: Config,
        repository: Repository,
        store: ArtefactStore,
        canary: Canary,
    ) -> None:
        self._config = config
        self._repository = repository
        self._store = store
        self._canary = canary
        self._models: dict[str, ModelRecord] = {}
        self._next_handle = 1
        self._ready = False
        self._canaries = asyncio.Semaphore(2)
        self._background: set[asyncio.Task[None]] = set()
        self.fleet: Fleet

    def placements(self) -> list[Placement]:
        """Return every load that workers should have now."""
        return [
            version.placement
            for model in self._models.values()
            for version in model.versions.values()
            if version.placement is not None
        ]

    def index(self) -> list[dict[str, str]]:
        """Return the repository index: loaded, failed, and never loaded models."""
        rows = []
        names = {*self._models, *self._repository.names()}
        for name in sorted(names):
            record = self._models.get(name)
            if record is None or not record.versions:
                reason = record.reason if record else ""
                state = State.UNAVAILABLE if reason else ""
                rows.append(
                    {"name": name, "version": "", "state": state, "reason": reason}
                )
                continue
            for version in sorted(record.versions):
                entry = record.versions[version].entry
                row = {"name": name, "version": str(version)}
                rows.append({**row, "state": entry.state, "reason": entry.reason})
        return rows

    async def start(self, names: Sequence[str]) -> None:
        """Load models side by side; failures are logged, the others serve."""

        async def one(name: str) -> None:
            try:
                await self.load(name)
            except GatewayError as error:
                _log.error("model_unavailable", model=name, reason=error.message)

        await asyncio.gather(*(one(name) for name in names))
        self._ready = True
        await self._publish()

    async def load(
        self,
        name: str,
        config_json: str | None = None,
        files: dict[str, bytes] | None = None,
    ) -> None:
        """Load or reload a model; returns when every front serves it.

        Args:
            name: Model name.
            config_json: Configuration in place of the repository's.
            files: Files by ``file:<version>/<name>``, in place of the repository's.

        Raises:
            GatewayError: Any version could not be loaded; the message says why.
        """
        record = self._models.setdefault(name, ModelRecord())
        async with record.lock:
            try:
                with tempfile.TemporaryDirectory(prefix="baton-load-") as folder:
                    definition = await asyncio.to_thread(
                        self._read, name, config_json, files, Path(folder)
                    )
                    failures = await self._bring_up(record, definition)
            except GatewayError as error:
                if not record.versions:
                    record.reason = error.message
                    await self._publish()
                raise
            record.reason = ""
            if not failures:
                chosen = {source.version for source in definition.versions}
                await self._retire(
                    record, [v for v in record.versions if v not in chosen]
                )
        if failures:
            raise LoadFailed("; ".join(failures))

    async def unload(self, name: str) -> None:
        """Take a model out of service; what it has in flight is answered.

        Raises:
            InvalidRequest: It was never loaded.
        """
        record = self._models.get(name)
        if record is None or not (record.versions or record.reason):
            raise InvalidRequest(f"Model to be unloaded has not been served: '{name}'")
        async with record.lock:
            await self._retire(record, list(record.versions))

    async def close(self) -> None:
        """Stop what runs in the background."""
        for task in self._background:
            task.cancel()

    # -- up ---------------------------------------------------------------------

    def _read(
        self,
        name: str,
        config_json: str | None,
        files: dict[str, bytes] | None,
        folder: Path,
    ) -> ModelDefinition:
        if not files:
            return self._repository.read(name, config_json=config_json)
        write_override(name, files, folder)
        override = Repository(
            folder, batching=self._config.batching, admission=self._config.admission
        )
        return override.read(name, config_json=config_json)

    async def _bring_up(
        self, record: ModelRecord, definition: ModelDefinition
    ) -> list[str]:
        """Bring every chosen version up; return the reasons of those that failed."""
        for note in definition.notes:
            _log.warning("model_note", model=definition.name, note=note)
        fresh = [
            source
            for source in definition.versions
            if source.version not in record.versions
        ]
        for source in fresh:
            entry = VersionEntry(source.version, State.LOADING)
            record.versions[source.version] = VersionRecord(entry)
        if fresh:
            await self._publish()
        failures = []
        for source in definition.versions:
            current = record.versions[source.version]
            try:
                await self._bring_up_one(record, definition, source)
            except (GatewayError, ModelRefused, OSError) as error:
                reason = str(error)
                failures.append(
                    f"'{definition.name}' version {source.version}: {reason}"
                )
                if current.entry.state != State.READY:
                    entry = VersionEntry(source.version, State.UNAVAILABLE, reason)
                    record.versions[source.version] = VersionRecord(entry)
                    await self._publish()
        return failures

    async def _bring_up_one(
        self, record: ModelRecord, definition: ModelDefinition, source: VersionSource
    ) -> None:
        current = record.versions[source.version]
        artefact = await asyncio.to_thread(self._store.take_in, source.path)
        unchanged = (
            current.entry.state == State.READY
            and current.digest == artefact.digest
            and current.settings == definition.settings
        )
        if unchanged:
            return
        order = self._order(definition, source.version, artefact.path)
        async with self._canaries:
            report = await self._canary(order)
        if report.error or report.spec is None:
            raise LoadFailed(report.error or "the canary gave no signature")
        for note in report.notes:
            _log.info(
                "model_note",
                model=definition.name,
                version=source.version,
                note=note,
            )
        # Files of declared warm-ups may be gone when a worker loads again: the canary
        # alone reads them, and workers warm up on synthetic rows.
        warmups = tuple(
            warmup
            for warmup in order.warmups
            if all(value.source != "file" for value in warmup.inputs.values())
        )
        placement = Placement(
            replace(order, spec=report.spec, warmups=warmups),
            definition.settings.worker_share,
        )
        serving = current.entry.state == State.READY
        await self.fleet.load(placement, one_by_one=serving)
        entry = self._entry(definition, order, report.spec, report.slowest_run_ns)
        record.versions[source.version] = VersionRecord(
            entry, placement, artefact.digest, definition.settings
        )
        await self._publish()
        _log.info(
            "version_ready",
            model=definition.name,
            version=source.version,
            provider=report.provider,
            max_batch_rows=report.spec.max_batch_rows,
            digest=artefact.digest[:12],
        )
        if current.placement is not None:
            self._let_go(current.placement.order.handle)

    def _order(
        self, definition: ModelDefinition, version: int, path: Path
    ) -> LoadOrder:
        settings, workers = definition.settings, self._config.workers
        device = workers.device
        if settings.device_kind == "cpu":
            device = "cpu"
        elif settings.device_kind == "gpu" and device != "cuda":
            raise LoadFailed(
                "its configuration asks for a GPU (KIND_GPU), and the workers run on "
                "the CPU; set workers.device to cuda, or KIND_CPU"
            )
        handle = self._next_handle
        self._next_handle += 1
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
            default_max_batch_rows=self._config.batching.max_batch_rows,
            inputs=settings.inputs,
            outputs=settings.outputs,
            warmups=settings.warmups,
        )

    def _entry(
        self,
        definition: ModelDefinition,
        order: LoadOrder,
        spec: ModelSpec,
        slowest_run_ns: int,
    ) -> VersionEntry:
        settings = definition.settings
        config = complete_config(
            definition.name, settings, definition.declared_config, spec
        )
        preferred = [rows for rows in settings.preferred_batch_rows if rows > 0]
        batching = BatchPolicy(
            max_rows=spec.max_batch_rows,
            max_bytes=self._config.batching.max_batch_bytes,
            max_delay_ns=settings.max_queue_delay_us * 1000,
            target_rows=min(preferred, default=0),
            across_requests=settings.batching and spec.max_batch_rows > 0,
        )
        queue = QueuePolicy(
            max_requests=settings.max_queue_requests,
            priority_levels=settings.priority_levels,
            default_priority=settings.default_priority,
            default_timeout_ns=settings.default_timeout_us * 1000,
            allow_timeout_override=settings.allow_timeout_override,
        )
        return VersionEntry(
            version=order.version,
            state=State.READY,
            handle=order.handle,
            spec=spec,
            batching=batching,
            queue=queue,
            slowest_run_ns=slowest_run_ns,
            config=base64.b64encode(config.SerializeToString()).decode(),
        )

    # -- down -------------------------------------------------------------------

    async def _retire(self, record: ModelRecord, versions: list[int]) -> None:
        """Take versions out of service, then free them once their work is done."""
        handles = []
        for version in versions:
            current = record.versions[version]
            if current.placement is not None:
                handles.append(current.placement.order.handle)
            entry = VersionEntry(version, State.UNAVAILABLE, "unloaded")
            record.versions[version] = VersionRecord(entry)
        await self._publish()
        for handle in handles:
            self._let_go(handle)

    def _let_go(self, handle: int) -> None:
        async def later() -> None:
            await self.fleet.released(handle)
            await self.fleet.unload(handle)

        task = asyncio.get_running_loop().create_task(later())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _publish(self) -> None:
        models = {
            name: ModelEntry(
                name,
                {v: version.entry for v, version in record.versions.items()},
                record.reason,
            )
            for name, record in self._models.items()
            if record.versions or record.reason
        }
        await self.fleet.publish(models, ready=self._ready)


def operations(lifecycle: Lifecycle) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return the requests that fronts pass on to the lifecycle."""

    async def load(message: dict[str, Any]) -> dict[str, Any]:
        files = {
            name: base64.b64decode(content)
            for name, content in message["files"].items()
        }
        await lifecycle.load(message["model"], message["config"], files)
        return {}

    async def unload(message: dict[str, Any]) -> dict[str, Any]:
        await lifecycle.unload(message["model"])
        return {}

    async def index(_message: dict[str, Any]) -> dict[str, Any]:
        return {"models": await asyncio.to_thread(lifecycle.index)}

    return {"load": load, "unload": unload, "index": index}

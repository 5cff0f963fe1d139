"""The lifecycle of versions: verify, canary, load, switch, drain the old.

Serialised per model. A version that fails anywhere on the way is UNAVAILABLE with
the reason; what served before goes on serving, and other models never notice.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from gateway.catalogue import UNLOADED, ModelEntry, State, VersionEntry
from gateway.config import Config
from gateway.errors import GatewayError, InvalidRequest, LoadFailed
from gateway.logs import get_logger
from gateway.registry.model_config import ModelSettings
from gateway.registry.orders import load_order, ready_entry
from gateway.registry.placement import Fleet, Placement
from gateway.registry.repository import (
    ModelDefinition,
    Repository,
    write_override,
)
from gateway.registry.store import Artefact, ArtefactStore
from workers.spec import LoadOrder, LoadReport
from workers.verify import ModelRefused

_log = get_logger("lifecycle")

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
        self._store_lock = asyncio.Lock()
        self._uses: Counter[str] = Counter()  # of artefacts, by digest
        self._background: set[asyncio.Task[None]] = set()
        self.fleet: Fleet

    def ready(self, name: str) -> dict[str, list[int]]:
        """Return versions of a model: ready to answer, to shadow, being loaded."""
        record = self._models.get(name, ModelRecord())
        found: dict[str, list[int]] = {"arms": [], "shadows": [], "loading": []}
        for number, version in record.versions.items():
            if version.entry.state == State.LOADING:
                found["loading"].append(number)
            elif version.placement is not None:
                if version.placement.answers:
                    found["arms"].append(number)
                if version.placement.shadows:
                    found["shadows"].append(number)
        return found

    def index(self) -> list[dict[str, str]]:
        """Return the repository index: loaded, failed, and never loaded models."""
        rows = []
        names = {*self._models, *self._offered()}
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
        async with self._store_lock:  # what earlier runs left
            await self._remove(partial(self._store.remove_unused, {*self._uses}))

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
        while True:
            record = self._models.setdefault(name, ModelRecord())
            async with record.lock:
                if self._models.get(name) is record:
                    await self._load(record, name, config_json, files)
                    return
            # While this load waited, one that failed has forgotten the model.

    async def _load(
        self,
        record: ModelRecord,
        name: str,
        config_json: str | None,
        files: dict[str, bytes] | None,
    ) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="baton-load-") as folder:
                definition = await asyncio.to_thread(
                    self._read, name, config_json, files, Path(folder)
                )
                record.reason = ""
                failures = await self._bring_up(record, definition)
        except GatewayError as error:
            if not record.versions:
                record.reason = error.message
                if self._ready and name not in self._offered():
                    del self._models[name]  # made-up names must not pile up
                await self._publish(name)
            raise
        if failures:
            raise LoadFailed("; ".join(failures))
        chosen = {source.version for source in definition.versions}
        if not files and config_json is None:
            # What the repository has come to want meanwhile is not taken away.
            again = await asyncio.to_thread(self._repository.read, name)
            chosen.update(source.version for source in again.versions)
        gone = [version for version in record.versions if version not in chosen]
        if gone:
            await self._retire(name, record, gone)

    async def unload(self, name: str) -> None:
        """Take a model out of service; what it has in flight is answered.

        Raises:
            InvalidRequest: It was never loaded.
        """
        record = self._models.get(name)
        if record is None or not (record.versions or record.reason):
            raise InvalidRequest(f"Model to be unloaded has not been served: '{name}'")
        async with record.lock:
            await self._retire(name, record, list(record.versions))

    async def close(self) -> None:
        """Stop what runs in the background."""
        for task in self._background:
            task.cancel()

    def _offered(self) -> tuple[str, ...]:
        """Return the repository's models; none while it cannot be read."""
        try:
            return self._repository.names()
        except LoadFailed as error:  # it names the folder: not for clients
            _log.error("repository_unreadable", reason=error.message)
            return ()

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
        ready = {n for n, one in record.versions.items() if one.placement is not None}
        fresh = {source.version for source in definition.versions} - ready
        for number in fresh:
            record.versions[number] = VersionRecord(VersionEntry(number, State.LOADING))
        if fresh:
            await self._publish(definition.name)
        failures = []
        for source in definition.versions:
            current = record.versions[source.version]
            try:
                async with self._store_lock:
                    artefact = await asyncio.to_thread(self._store.take_in, source.path)
                    self._uses[artefact.digest] += 1
                try:
                    await self._bring_up_one(
                        record, definition, source.version, artefact
                    )
                finally:
                    await self._drop(artefact.digest)
            except (GatewayError, ModelRefused, OSError) as error:
                reason = str(error)
                if isinstance(error, OSError):  # its text holds paths of ours
                    _log.exception("load_failed", model=definition.name)
                    reason = f"loading failed: {error.strerror or 'input or output'}"
                failures.append(
                    f"'{definition.name}' version {source.version}: {reason}"
                )
                if current.entry.state != State.READY:
                    entry = VersionEntry(source.version, State.UNAVAILABLE, reason)
                    record.versions[source.version] = VersionRecord(entry)
                    await self._publish(definition.name)
        return failures

    async def _bring_up_one(
        self,
        record: ModelRecord,
        definition: ModelDefinition,
        version: int,
        artefact: Artefact,
    ) -> None:
        recorded = definition.digests.get(version, artefact.digest)
        if artefact.digest != recorded:
            raise LoadFailed(
                f"its bytes changed since it was imported: they have digest "
                f"{artefact.digest[:12]}, and {recorded[:12]} is on record; import the "
                "same file again, which puts them back, or let another version answer"
            )
        current = record.versions[version]
        unchanged = (
            current.entry.state == State.READY
            and current.digest == artefact.digest
            and current.settings == definition.settings
            and current.placement is not None
            and current.placement.answers == (version in definition.answering)
            and current.placement.shadows == (version in definition.shadows)
        )
        if unchanged:
            return
        handle = self._next_handle
        self._next_handle += 1
        order = load_order(self._config, definition, version, handle, artefact.path)
        async with self._canaries:
            report = await self._canary(order)
        if report.error or report.spec is None:
            raise LoadFailed(report.error or "the canary gave no signature")
        for note in report.notes:
            _log.info(
                "model_note",
                model=definition.name,
                version=version,
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
            answers=version in definition.answering,
            shadows=version in definition.shadows,
        )
        serving = current.entry.state == State.READY
        await self.fleet.load(placement, one_by_one=serving)
        entry = ready_entry(self._config, definition, placement, report)
        record.versions[version] = VersionRecord(
            entry, placement, artefact.digest, definition.settings
        )
        self._uses[artefact.digest] += 1
        await self._publish(definition.name)
        _log.info(
            "version_ready",
            model=definition.name,
            version=version,
            provider=report.provider,
            max_batch_rows=report.spec.max_batch_rows,
            digest=artefact.digest[:12],
        )
        self._let_go(current)

    # -- down -------------------------------------------------------------------

    async def _retire(
        self, name: str, record: ModelRecord, versions: list[int]
    ) -> None:
        """Take versions out of service, then free them once their work is done."""
        retired = []
        for version in versions:
            current = record.versions[version]
            if current.entry.state == State.UNAVAILABLE:
                continue  # why it could not be loaded is worth more than "unloaded"
            retired.append(current)
            entry = VersionEntry(version, State.UNAVAILABLE, UNLOADED)
            record.versions[version] = VersionRecord(entry)
        await self._publish(name)
        for current in retired:
            self._let_go(current)

    def _let_go(self, version: VersionRecord) -> None:
        """Free what a version was loaded as, if it was, once its work is done."""
        if version.placement is None:
            return
        handle = version.placement.order.handle

        async def later() -> None:
            await self.fleet.released(handle)
            await self.fleet.unload(handle)
            await self._drop(version.digest)

        task = asyncio.get_running_loop().create_task(later())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _drop(self, digest: str) -> None:
        """Count a use less of a copy; one that no version needs is removed."""
        async with self._store_lock:
            self._uses[digest] -= 1
            if not self._uses[digest]:
                del self._uses[digest]
                await self._remove(partial(self._store.remove, digest))

    async def _remove(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except OSError as error:  # it costs space, no more
            _log.warning("artefacts_not_removed", reason=repr(error))

    async def _publish(self, *names: str) -> None:
        """Put what is served of these models in force in every front."""
        models = {name: self._entry(name) for name in names}
        await self.fleet.publish(models, ready=self._ready)

    def _entry(self, name: str) -> ModelEntry | None:
        record = self._models.get(name)
        if record is None or not (record.versions or record.reason):
            return None
        versions = {v: version.entry for v, version in record.versions.items()}
        return ModelEntry(name, versions, record.reason)

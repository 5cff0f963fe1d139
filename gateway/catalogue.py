"""The catalogue: what is served now, as one immutable snapshot.

The supervisor writes it, fronts swap it in one step. Nothing in it changes: a
new state of the world is a new catalogue with a higher revision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

from pydantic import TypeAdapter

from gateway.errors import (
    Code,
    InvalidRequest,
    NotReady,
    UnknownModel,
    unknown_model,
)
from gateway.traffic.table import LATEST, ModelTraffic, Weights
from workers.spec import ModelSpec

SHADOW_SUFFIX = ":shadow"
"""Of a model's name in the counters of its shadows, which are not the model's."""
UNLOADED = "unloaded"
"""Reason of a version that somebody took out of service."""


_KEPT = (
    "of a registered model, arms, shadows and versions with an alias are loaded, and "
    "the arms before them; `baton models alias` has another one loaded"
)


class NoVersions(NotReady):
    """The model is known, but none of its versions is meant to serve."""

    code: ClassVar[Code] = Code.NOT_FOUND
    label: ClassVar[str] = "not_found"


class State(StrEnum):
    """State of a version, by the names of Triton's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When a batch of a version leaves.

    Attributes:
        max_rows: Largest batch; also the largest request. 0: no batch dimension.
        max_bytes: Input bytes at which a batch is full.
        max_delay_ns: How long a batch may wait for company while a worker is free.
        target_rows: Rows at which it stops waiting for company.
        across_requests: Rows of several requests may share a batch.
    """

    max_rows: int
    max_bytes: int
    max_delay_ns: int = 0
    target_rows: int = 0
    across_requests: bool = True


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How requests of a model wait.

    Attributes:
        max_requests: Requests in flight per front before one is refused.
        priority_levels: Levels of the ``priority`` parameter, 1 the most urgent;
            0: the parameter is ignored.
        default_priority: Level of a request that names none.
        default_timeout_ns: Queue timeout of a request that names none; 0 for none.
        allow_timeout_override: Requests may bring a ``timeout`` of their own.
    """

    max_requests: int
    priority_levels: int = 0
    default_priority: int = 0
    default_timeout_ns: int = 0
    allow_timeout_override: bool = True


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version of a model.

    Attributes:
        version: Version number, a positive integer.
        state: Whether it serves.
        reason: Why it does not serve, for people.
        handle: Number of this load on the wire to workers.
        shadows: It is loaded in the shadows' pool (too).
        spec: Tensors; ``None`` before the first load succeeded.
        batching: When its batches leave.
        queue: How its requests wait.
        slowest_run_ns: Slowest warm-up run, the first idea of how long one takes.
        config: Complete model configuration, serialised protobuf in base64.
    """

    version: int
    state: State
    reason: str = ""
    handle: int = 0
    spec: ModelSpec | None = None
    batching: BatchPolicy = field(default_factory=lambda: BatchPolicy(0, 1))
    queue: QueuePolicy = field(default_factory=lambda: QueuePolicy(1))
    slowest_run_ns: int = 0
    config: str = ""
    shadows: bool = False


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model and its versions by number; ``reason``: why it has none."""

    name: str
    versions: dict[int, VersionEntry]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """One worker process: where it listens and what it has loaded.

    A worker of the shadows' pool has only those, and whatever time nobody else wants.
    """

    index: int
    pid: int
    path: str
    handles: frozenset[int]
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What leads from one catalogue to the next: no larger for all that stays.

    Attributes:
        base: Revision that they lead from.
        revision: Revision that they lead to.
        ready: As in `Catalogue`.
        models: Those that changed, by name; ``None``: gone.
        workers: All of them, each with the handles that it has got since, and those
            that it no longer has.
    """

    base: int
    revision: int
    ready: bool
    models: dict[str, ModelEntry | None]
    workers: tuple[tuple[WorkerEntry, frozenset[int]], ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything a front must know.

    Attributes:
        revision: Grows with every change.
        ready: The models asked for at start are loaded or have failed.
        models: By name.
        workers: Those that serve.
        fronts: Number of front processes, which share the workers.
        traffic: What was decided about a model's traffic, by its name.
        weights: What its policy made of that since.
    """

    revision: int = 0
    ready: bool = False
    models: dict[str, ModelEntry] = field(default_factory=dict)
    workers: tuple[WorkerEntry, ...] = ()
    fronts: int = 1
    traffic: dict[str, ModelTraffic] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)

    def changes(
        self,
        models: dict[str, ModelEntry | None],
        workers: tuple[WorkerEntry, ...],
        *,
        ready: bool,
    ) -> Changes:
        """Return what leads from here to where these models and workers are.

        Args:
            models: Those that change, by name; ``None``: gone.
            workers: All of them, with all of their handles.
            ready: As in `Catalogue`.
        """
        had = self._handles_by_pid()
        since = tuple(
            (
                replace(one, handles=one.handles - had[one.pid]),
                had[one.pid] - one.handles,
            )
            for one in workers
        )
        return Changes(self.revision, self.revision + 1, ready, models, since)

    def after(self, changes: Changes) -> Catalogue:
        """Return the catalogue that changes lead to; traffic stays as it is."""
        models = {**self.models, **changes.models}
        had = self._handles_by_pid()
        return replace(
            self,
            revision=changes.revision,
            ready=changes.ready,
            models={name: entry for name, entry in models.items() if entry is not None},
            workers=tuple(
                replace(one, handles=had[one.pid] - lost | one.handles)
                for one, lost in changes.workers
            ),
        )

    def _handles_by_pid(self) -> defaultdict[int, frozenset[int]]:
        those = {worker.pid: worker.handles for worker in self.workers}
        return defaultdict(frozenset, those)

    def with_traffic(
        self, model: str, traffic: ModelTraffic, weights: Weights | None = None
    ) -> Catalogue:
        """Return this catalogue with a decision about a model's traffic in force.

        Args:
            model: Its name.
            traffic: What was decided.
            weights: What its policy knows already; ``None``: the shares of the arms.
        """
        others = {name: w for name, w in self.weights.items() if name != model}
        if weights is not None:
            others[model] = weights
        table = {**self.traffic, model: traffic}
        return replace(self, traffic=table, weights=others)

    def find(self, model: str, version: str) -> VersionEntry:
        """Return the version that a request for `model` and `version` means.

        Args:
            model: Name as the client wrote it.
            version: Decimal integer, an alias, or empty for the champion. The alias
                ``latest``, and an empty one where no arms are set, mean the highest
                ready version that does not only shadow.

        Returns:
            The entry, in any state if it was named, ready otherwise.

        Raises:
            UnknownModel: There is no such model, version or alias.
            InvalidRequest: `version` can be none of these: the model has no aliases.
            NotReady: No version of the model serves.
            NoVersions: The same, because it was unloaded.
        """
        entry = self.models.get(model)
        if entry is None:
            raise unknown_model(model)
        traffic = self.traffic.get(model)
        champion = traffic.champion if traffic is not None else None
        if not version and champion is not None:
            version = str(champion.version)
        if not version:
            return _highest(entry, traffic)
        if traffic is not None and version in traffic.aliases:
            if version == LATEST:  # never one that is still to be loaded
                return _highest(entry, traffic)
            version = str(traffic.aliases[version])
        if not (version.isascii() and version.isdigit()) or len(version) > 18:
            if traffic is not None and traffic.aliases:
                aliases = ", ".join(sorted(traffic.aliases))
                raise UnknownModel(
                    f"'{model}' has no alias '{version}' (there are: {aliases}); name "
                    "one, or a version's number, or none to have one chosen"
                )
            raise InvalidRequest(
                f"failed to get model version from '{version}': a version of "
                f"'{model}' is a decimal integer, or empty for the latest"
            )
        found = entry.versions.get(int(version))
        if found is None:
            text = f"Request for unknown model: '{model}' version {int(version)} "
            hint = "" if traffic is None else f"; {_KEPT}"
            raise UnknownModel(f"{text}is not found{hint}")
        return found

    def serving(self, model: str, version: str) -> VersionEntry:
        """Return the version as `find` does, if it is ready.

        Raises:
            NotReady: It is known and does not serve; the message says why.
            UnknownModel: It only shadows.
        """
        found = self.find(model, version)
        traffic = self.traffic.get(model)
        if version and traffic is not None and _only_shadows(traffic, found.version):
            raise UnknownModel(
                f"'{model}' version {found.version} only shadows: its answers are "
                "for nobody. Make it an arm, or give it an alias to ask for"
            )
        if found.state != State.READY:
            hint = traffic is not None and found.reason == UNLOADED
            raise NotReady(_not_ready(model, found) + (f" ({_KEPT})" if hint else ""))
        return found

    def ready_versions(self, model: str) -> dict[int, VersionEntry]:
        """Return the versions of a model that serve, by number."""
        entry = self.models.get(model)
        versions = entry.versions if entry is not None else {}
        return {n: v for n, v in versions.items() if v.state == State.READY}

    def handles(self, models: Iterable[str]) -> set[int]:
        """Return the handles of all ready versions of those of the models it knows."""
        return {v.handle for m in models for v in self.ready_versions(m).values()}


def _highest(model: ModelEntry, traffic: ModelTraffic | None) -> VersionEntry:
    """Return the highest ready version; a shadow's answers are for nobody."""
    versions = [
        version
        for version in model.versions.values()
        if traffic is None or not _only_shadows(traffic, version.version)
    ]
    ready = [v for v in versions if v.state == State.READY]
    if ready:
        return max(ready, key=_number)
    if not versions:
        text = f"'{model.name}' has no available versions"
        why = model.reason.removeprefix(text).lstrip("; ")
        raise UnknownModel(f"{text}: {why}" if why else text)
    if all(v.reason == UNLOADED for v in versions):
        raise NoVersions(f"'{model.name}' has no available versions")
    raise NotReady(_not_ready(model.name, max(versions, key=_number)))


def _only_shadows(traffic: ModelTraffic, version: int) -> bool:
    named = {v for alias, v in traffic.aliases.items() if alias != LATEST}
    shadows = (shadow.version for shadow in traffic.shadows)
    return version not in named and version in shadows


def _number(entry: VersionEntry) -> int:
    return entry.version


def _not_ready(model: str, entry: VersionEntry) -> str:
    text = f"'{model}' version {entry.version} is not at ready state"
    return f"{text}: {entry.reason}" if entry.reason else text


CATALOGUE = TypeAdapter(Catalogue)
"""Reads and writes a `Catalogue` as JSON."""
CHANGES = TypeAdapter(Changes)
"""Reads and writes `Changes` as JSON."""

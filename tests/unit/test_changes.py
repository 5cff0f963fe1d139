"""What leads from one catalogue to the next, and how little that is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue import (
    CATALOGUE,
    CHANGES,
    Catalogue,
    ModelEntry,
    State,
    WorkerEntry,
)
from gateway.channel import Answer, Channel
from gateway.config import Config, WorkersConfig
from gateway.registry.lifecycle import Lifecycle
from gateway.registry.repository import Repository
from gateway.registry.store import ArtefactStore
from gateway.supervision.fleet import Fleet
from gateway.traffic.table import ModelTraffic, Weights
from tests.adversity.harness import put_model, slow_identity, until
from tests.unit.fakes import make_entry
from workers.spec import LOAD_ORDER, LOAD_REPORT, LoadOrder, LoadReport

handles = st.frozensets(st.integers(1, 12), max_size=6)
names = st.sampled_from(["a", "b", "c"])
versions = st.dictionaries(
    st.integers(1, 3), st.tuples(st.integers(1, 12), st.sampled_from(State))
)
models = st.dictionaries(names, versions)
workers = st.dictionaries(st.integers(1, 4), handles)


def _models(those: dict[str, dict[int, tuple[int, State]]]) -> dict[str, ModelEntry]:
    return {
        name: ModelEntry(
            name,
            {
                number: make_entry(handle, version=number, state=state)
                for number, (handle, state) in versions.items()
            },
        )
        for name, versions in those.items()
    }


def _workers(those: dict[int, frozenset[int]]) -> tuple[WorkerEntry, ...]:
    return tuple(WorkerEntry(pid, pid, f"{pid}", them) for pid, them in those.items())


@given(models, workers, models, workers, st.booleans())
def test_changes_lead_from_one_catalogue_to_the_other(
    before: dict[str, dict[int, tuple[int, State]]],
    workers_before: dict[int, frozenset[int]],
    after: dict[str, dict[int, tuple[int, State]]],
    workers_after: dict[int, frozenset[int]],
    ready: bool,
) -> None:
    traffic, weights = {"a": ModelTraffic(5)}, {"a": Weights(3, (1.0,))}
    old = Catalogue(
        7, True, _models(before), _workers(workers_before), 2, traffic, weights
    )
    wanted = Catalogue(
        8, ready, _models(after), _workers(workers_after), 2, traffic, weights
    )
    changed = {
        name: wanted.models.get(name)
        for name in {**old.models, **wanted.models}
        if old.models.get(name) != wanted.models.get(name)
    }
    changes = old.changes(changed, wanted.workers, ready=ready)
    sent = CHANGES.validate_json(CHANGES.dump_json(changes))
    assert sent == changes
    assert old.after(sent) == wanted


@given(models, workers)
def test_what_stays_is_not_sent(
    those: dict[str, dict[int, tuple[int, State]]], workers: dict[int, frozenset[int]]
) -> None:
    catalogue = Catalogue(models=_models(those), workers=_workers(workers))
    changes = catalogue.changes({}, catalogue.workers, ready=False)
    assert changes.models == {}
    assert all(not worker.handles and not lost for worker, lost in changes.workers)
    assert catalogue.after(changes) == replace(catalogue, revision=1)


class Peer(Channel):
    """A front or a worker: has in force, or loads, what it is told.

    Attributes:
        catalogue: In force.
        loaded: Handles.
        open: It is connected.
        nbytes: Heard so far.
    """

    def __init__(self) -> None:
        super().__init__(self._hear, self._close)
        self.open = True
        self.catalogue = Catalogue(revision=-1)
        self.loaded: set[int] = set()
        self.nbytes = 0
        self.held: list[Callable[[], None]] | None = None

    async def join(self, socket: Path, role: str, index: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, str(socket))
        self.hello({"role": role, "index": index, "pid": index, "path": role})

    def data_received(self, data: bytes) -> None:
        self.nbytes += len(data)
        super().data_received(data)

    def _close(self, _: Channel) -> None:
        self.open = False

    def _hear(self, _: Channel, message: dict[str, Any], answer: Answer) -> None:
        match message["op"]:
            case "catalogue":
                self.catalogue = CATALOGUE.validate_python(message["catalogue"])
                self.tell({"op": "listening", "address": "there"})
            case "changes":
                changes = CHANGES.validate_python(message["changes"])
                if changes.base != self.catalogue.revision:
                    answer({"missed": True})
                    return
                self.catalogue = self.catalogue.after(changes)
            case "load":
                order = LOAD_ORDER.validate_python(message["order"])
                self.loaded.add(order.handle)
                report = LOAD_REPORT.dump_python(LoadReport(order.handle))
                if self.held is not None:
                    self.held.append(partial(answer, report))
                    return
                answer(report)
            case "unload":
                self.loaded.discard(message["handle"])
        answer({"busy": []})
        ready = self.catalogue.handles(self.catalogue.models)
        placed = {h for worker in self.catalogue.workers for h in worker.handles}
        assert ready <= placed, "shown before a worker has it"


async def good(order: LoadOrder) -> LoadReport:
    return LoadReport(order.handle, spec=make_entry(order.handle).spec)


@contextlib.asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[Lifecycle, Peer, Peer]]:
    """A supervisor's own parts with two peers: a front, and a worker."""
    models = folder / "models"
    models.mkdir()
    config = Config(model_repository=models, workers=WorkersConfig(count=2))
    store = ArtefactStore(folder / "store", 1 << 30)
    lifecycle = Lifecycle(config, Repository(models), store, good)
    ignore: Any = lambda *_: None  # noqa: E731 - three callbacks of two kinds
    fleet = lifecycle.fleet = Fleet(
        config, on_healthy=ignore, on_hung=ignore, on_shadow=ignore
    )
    socket = folder / "control.sock"
    await fleet.start(socket)
    peers = Peer(), Peer()
    await peers[0].join(socket, "front", 0)
    await peers[1].join(socket, "worker", 0)
    await fleet.has_started(1, 1)
    try:
        yield lifecycle, *peers
    finally:
        for peer in peers:
            peer.close()
        fleet.close()
        left = fleet._workers, fleet.fronts._fronts
        await until(lambda: not any(left) and not any(peer.open for peer in peers))


async def test_a_change_is_no_larger_beside_many_models(tmp_path: Path) -> None:
    heard = {}
    async with gateway(tmp_path) as (lifecycle, front, worker):
        loaded = 0
        for size in (10, 300):
            while loaded < size:
                before = front.nbytes + worker.nbytes
                loaded += 1
                name = f"m{loaded:03}"
                put_model(tmp_path / "models", name, slow_identity(1))
                await lifecycle.load(name)
            heard[size] = front.nbytes + worker.nbytes - before
        assert heard[300] <= 1.5 * heard[10]
        assert len(front.catalogue.models) == 300
        assert front.catalogue.workers[0].handles == worker.loaded
        assert len(worker.loaded) == 300


async def test_a_worker_that_comes_during_a_load_gets_it_too(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (lifecycle, front, worker):
        put_model(tmp_path / "models", "m", slow_identity(1))
        held = worker.held = []
        loading = asyncio.create_task(lifecycle.load("m"))
        await until(lambda: held)
        late = Peer()
        await late.join(tmp_path / "control.sock", "worker", 1)
        await until(lambda: len(front.catalogue.workers) == 2)
        held.pop()()
        await loading
        assert [one.handles for one in front.catalogue.workers] == [{1}, {1}]
        assert late.loaded == {1}
        late.close()
        await until(lambda: not late.open and len(front.catalogue.workers) == 1)


async def test_a_front_that_missed_a_change_gets_everything(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (lifecycle, front, _):
        for name in ("a", "b"):
            put_model(tmp_path / "models", name, slow_identity(1))
        await lifecycle.load("a")
        front.catalogue = Catalogue(revision=-1)
        await lifecycle.load("b")
        assert [*front.catalogue.models] == ["a", "b"]

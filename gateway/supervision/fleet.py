"""The fleet: every process that is connected, and what workers have been told.

Loads go to workers, catalogues to fronts (`gateway.supervision.fronts`), in the order
that never shows a front a version before a worker has it, nor takes it from a worker
before every front has let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.catalogue import ModelEntry, WorkerEntry
from gateway.channel import Answer, Channel
from gateway.config import Config, worker_count
from gateway.errors import GatewayError, LoadFailed, Unsupported
from gateway.logs import get_logger
from gateway.registry.placement import Placement
from gateway.supervision.fronts import Fronts
from workers.spec import LOAD_ORDER, LOAD_REPORT, LoadOrder, LoadReport

_log = get_logger("fleet")

Operation = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""A request a front may make."""


@dataclass(eq=False)
class WorkerPeer:
    """One connected worker: what it has loaded, and whether fronts may use it.

    Attributes:
        handles: Loads it has ready.
        ordered: Loads asked of it and still wanted, not yet reported.
        failed: Loads it could not make; not asked again.
        serving: Fronts know of it.
        loading: Held while it loads: one at a time.
    """

    channel: Channel
    index: int
    pid: int
    path: str
    handles: set[int] = field(default_factory=set)
    ordered: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    serving: bool = False
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Fleet:
    """Talks to every process. Supervisor's loop only.

    Args:
        config: Devices and timeouts.
        on_healthy: Called with the pid of a process that reported in.
        on_hung: Called with the pid of a process that was found hanging.
        on_shadow: Called when there is something for the shadows' pool to load.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_healthy: Callable[[int], None],
        on_hung: Callable[[int], None],
        on_shadow: Callable[[], None],
    ) -> None:
        self._config = config
        self._on_shadow = on_shadow
        self._placed: dict[int, Placement] = {}
        self._on_healthy = on_healthy
        self._on_hung = on_hung
        self._workers: dict[Channel, WorkerPeer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.operations: dict[str, Operation] = {}
        self.fronts = Fronts(config.grpc.fronts, on_healthy=on_healthy, on_hung=on_hung)

    async def start(self, path: Path) -> None:
        """Listen for the processes on a Unix socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: Channel(self._on_message, self._on_closed), str(path)
        )

    async def has_started(self, fronts: int, workers: int) -> None:
        """Wait until so many fronts listen and workers serve for the first time."""
        while len(self.fronts.listening) < fronts or workers > sum(
            worker.serving for worker in self._workers.values()
        ):
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    # -- what the lifecycle asks ------------------------------------------------

    async def load(self, placement: Placement, *, one_by_one: bool) -> LoadReport:
        """Load a version in every worker that should have it, also later ones.

        Args:
            placement: What, and in how many workers.
            one_by_one: Leave the other workers to serve meanwhile.

        Returns:
            The report of a worker; an empty one where no worker is there yet (it
            will load when it comes).

        Raises:
            LoadFailed: A worker could not; none has it afterwards.
        """
        if placement.shadows:
            self._on_shadow()
        handle = placement.order.handle
        reports: list[LoadReport] = []
        # Again for those that began to serve meanwhile; whoever does from now on
        # looks at `_placed` first.
        while chosen := self._lacking(placement):
            if one_by_one:
                reports += [await self._load(worker, placement) for worker in chosen]
            else:
                loads = [self._load(worker, placement) for worker in chosen]
                reports += await asyncio.gather(*loads)
            failed = [report for report in reports if report.error]
            if failed:
                await self.unload(handle)
                raise LoadFailed(failed[0].error)
        self._placed[handle] = placement
        return reports[0] if reports else LoadReport(handle)

    async def unload(self, handle: int) -> None:
        """Free a load in every worker that has it."""
        for worker in tuple(self._workers.values()):
            worker.ordered.discard(handle)
            worker.failed.discard(handle)
            if handle in worker.handles:
                worker.handles.discard(handle)
                await self._unload(worker, handle)

    async def _unload(self, worker: WorkerPeer, handle: int) -> None:
        with contextlib.suppress(GatewayError):  # gone, with its memory
            await worker.channel.ask({"op": "unload", "handle": handle})

    async def publish(
        self, models: dict[str, ModelEntry | None], *, ready: bool
    ) -> None:
        """Put models that changed in force in every front, and wait until they are."""
        await self.fronts.publish(models, self._serving(), ready=ready)

    async def released(self, handle: int) -> None:
        """Wait until no front uses a load that the catalogue no longer has.

        Workers that come from now on do not get it.
        """
        self._placed.pop(handle, None)
        await self.fronts.released(handle)

    # -- workers ----------------------------------------------------------------

    def _in_pool(self, worker: WorkerPeer) -> bool:
        """Return whether a worker is one of the shadows' pool, who come last."""
        return worker.index >= worker_count(self._config)

    def _wants(self, worker: WorkerPeer, placement: Placement) -> bool:
        if self._in_pool(worker):
            return placement.shadows
        if not placement.answers:
            return False
        place = worker.index % self._config.workers.count
        return placement.share == 0 or place < placement.share

    def _lacking(self, placement: Placement) -> list[WorkerPeer]:
        """Return the workers that serve and should have a load, but have it not."""
        handle = placement.order.handle
        serving = (w for w in self._workers.values() if w.serving)
        lacking = (w for w in serving if handle not in w.handles)
        return [w for w in lacking if self._wants(w, placement)]

    def _order_for(self, worker: WorkerPeer, order: LoadOrder) -> LoadOrder:
        if order.settings.device != "cuda":
            return order
        workers = self._config.workers
        device = worker.index // workers.count % len(workers.device_ids)
        device_id = workers.device_ids[device]
        settings = dataclasses.replace(order.settings, device_id=device_id)
        return dataclasses.replace(order, settings=settings)

    async def _load(self, worker: WorkerPeer, placement: Placement) -> LoadReport:
        order = self._order_for(worker, placement.order)
        worker.ordered.add(order.handle)
        async with worker.loading:
            message = {"op": "load", "order": LOAD_ORDER.dump_python(order)}
            question = worker.channel.ask(message)
            limit_s = self._config.workers.load_timeout_s
            try:
                answer = await asyncio.wait_for(question, limit_s)
            except TimeoutError:
                self._on_hung(worker.pid)
                reason = f"loading took longer than {limit_s} s"
                return LoadReport(order.handle, error=reason)
            except GatewayError:
                reason = "the worker died while it loaded the model"
                return LoadReport(order.handle, error=reason)
            report = LOAD_REPORT.validate_python(answer)
            if report.error:
                worker.ordered.discard(order.handle)
            elif order.handle in worker.ordered:
                worker.ordered.discard(order.handle)
                worker.handles.add(order.handle)
            else:  # a worker that came back loaded it while it was replaced
                await self._unload(worker, order.handle)
            return report

    async def _reconcile(self, worker: WorkerPeer) -> None:
        """Load whatever a worker should have and has not; then let it serve."""
        while missing := self._missing(worker):  # more may come while these load
            for placement in missing:
                if worker.channel not in self._workers:
                    return
                if placement.order.handle not in self._placed:
                    continue
                report = await self._load(worker, placement)
                if report.error:
                    worker.failed.add(report.handle)
                    reason = report.error
                    _log.error("reload_failed", worker=worker.index, reason=reason)
        if worker.channel in self._workers:
            worker.serving = True
            self._arrived.set()
            await self.fronts.place(self._serving())

    def _serving(self) -> tuple[WorkerEntry, ...]:
        return tuple(
            WorkerEntry(w.index, w.pid, w.path, frozenset(w.handles), self._in_pool(w))
            for w in self._workers.values()
            if w.serving
        )

    def _missing(self, worker: WorkerPeer) -> list[Placement]:
        known = worker.handles | worker.failed
        return [
            placement
            for placement in self._placed.values()
            if placement.order.handle not in known and self._wants(worker, placement)
        ]

    # -- connections ------------------------------------------------------------

    def _on_message(
        self, channel: Channel, message: dict[str, Any], answer: Answer
    ) -> None:
        if "role" in message:
            self._hello(channel, message)
            return
        match message["op"]:
            case "counters":
                self.fronts.on_counters(channel, message)
            case "joined":
                self.fronts.counters.joined = message["health"]
            case "released":
                self.fronts.on_released(channel, message["handle"])
            case "listening":
                self.fronts.on_listening(channel, message["address"])
                self._arrived.set()
            case "hung":
                self._on_hung(message["pid"])
            case operation:
                self._spawn(self._operate(operation, message, answer))

    def _hello(self, channel: Channel, message: dict[str, Any]) -> None:
        index, pid = message["index"], message["pid"]
        if message["role"] == "front":
            self._spawn(self.fronts.hello(channel, index, pid))
        elif message["role"] == "controller":
            self._on_healthy(pid)
        else:
            worker = WorkerPeer(channel, index, pid, message["path"])
            self._workers[channel] = worker
            self._on_healthy(pid)
            self._spawn(self._reconcile(worker))

    def _on_closed(self, channel: Channel) -> None:
        self.fronts.closed(channel)
        if self._workers.pop(channel, None) is not None:
            self._spawn(self.fronts.place(self._serving()))

    async def _operate(
        self, operation: str, message: dict[str, Any], answer: Answer
    ) -> None:
        handler = self.operations.get(operation)
        if handler is None:
            answer(Unsupported(f"unknown operation '{operation}'"))
            return
        try:
            answer(await handler(message))
        except GatewayError as error:
            answer(error)
        except Exception:  # the edge: an operation must not end the gateway
            _log.exception("operation_failed", operation=operation)
            answer(GatewayError(f"'{operation}' failed; the server's log says why"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("task_failed", reason=repr(task.exception()))

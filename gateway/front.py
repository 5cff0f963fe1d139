"""A front process: gRPC in, batches to workers, nothing that learns or decides.

Started by the supervisor as ``python -m gateway.front``. It imports neither
onnxruntime nor anything of the registry, and keeps serving with its last
catalogue whatever happens to the others.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import uvloop

from gateway.catalogue import CATALOGUE, CHANGES, Catalogue, Changes, WorkerEntry
from gateway.channel import Answer, Channel
from gateway.clock import now_ns
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.feedback.frames import SOCKET
from gateway.feedback.ring import Ring
from gateway.logs import configure, get_logger
from gateway.preflight import unix_path
from gateway.serving.admission import Admission
from gateway.serving.answers import AnswerLog
from gateway.serving.dispatch import Dispatcher
from gateway.serving.health import HealthService
from gateway.serving.infer import InferService
from gateway.serving.inputs import Recorders, recorders
from gateway.serving.link import LinkSettings, WorkerLink
from gateway.serving.methods import methods
from gateway.serving.server import ServerService
from gateway.serving.shadow import Shadows
from gateway.serving.sink import MemorySink
from gateway.serving.state import FrontState
from gateway.traffic.table import MODEL_TRAFFIC, WEIGHTS
from gateway.transport.grpcio_listener import GrpcioListener
from gateway.transport.listener import Listener
from workers.process import die_with_parent

_log = get_logger("front")

_REPORT_PERIOD_S = 1.0
"""Counters are pushed this often, so that a kill -9 loses at most that much."""
_LOG_PATIENCE_S = 3.0
"""For the event log to take what is left when this process stops."""
_SHADOW_PATIENCE = 10
"""How many times longer a shadow's worker may be without an answer."""
_TIMER_NS = 10_000_000
"""A timer may fire this much early: uvloop counts in whole milliseconds."""


class Front:
    """Everything in one front process, wired together.

    Args:
        config: The gateway's configuration.
        index: Number of this front.
    """

    def __init__(self, config: Config, index: int) -> None:
        loop = asyncio.get_running_loop()
        self._config = config
        self._index = index
        self.state = FrontState()
        self.admission = Admission(
            config.admission.max_inflight_bytes, config.admission.pushback_ms
        )
        self.dispatcher = Dispatcher(
            loop,
            now_ns,
            self.admission,
            max_attempts=config.workers.max_attempts,
            pushback_ms=config.admission.pushback_ms,
        )
        self.dispatcher.on_idle_handle = self._handle_idle
        self._sink = MemorySink(config.traffic.memory_records)
        self._ring: Ring | None = None
        self._recorders: Recorders | None = None
        log: AnswerLog | None = None
        if config.feedback.enabled:
            self._ring = Ring(config.feedback, config.state_dir / SOCKET, now_ns)
            self._recorders = recorders(config, self._ring.counts)
            log = AnswerLog(self._ring, now_ns, self._recorders)
        self._shadows = Shadows(
            loop,
            self.dispatcher,
            self.admission,
            self._sink,
            now_ns=now_ns,
            max_bytes=config.admission.max_inflight_bytes,
            log=log,
        )
        self.infer = InferService(
            self.state,
            self.dispatcher,
            self.admission,
            now_ns=now_ns,
            default_timeout_ns=config.admission.default_timeout_ms * 1_000_000,
            max_stream_inflight=config.grpc.max_stream_inflight,
            max_stream_bytes=config.grpc.max_stream_bytes,
            sink=self._sink,
            shadows=self._shadows,
            log=log,
        )
        table = methods(
            self.infer,
            ServerService(self.state, self),
            HealthService(self.state),
            self.state,
        )
        own = config.grpc.transport == "own"
        kind = Listener if own else GrpcioListener
        self._listener: Listener | GrpcioListener = kind(table, config.grpc, now_ns)
        self._channel = Channel(self._on_control, self._on_control_lost)
        self._links: dict[int, WorkerLink] = {}
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._first_catalogue: asyncio.Future[None] = loop.create_future()
        self._stop = asyncio.Event()

    async def run(self, control_path: str, address: str) -> int:
        """Serve until told to stop, then drain.

        Returns:
            Exit code: 0 after a clean drain, 1 if calls had to be cut.
        """
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._channel, control_path)
        self._channel.hello({"role": "front", "index": self._index, "pid": os.getpid()})
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's ^C
        stopped = loop.create_task(self._stop.wait())
        await asyncio.wait(
            (self._first_catalogue, stopped), return_when=asyncio.FIRST_COMPLETED
        )
        if stopped.done():
            return 0
        # What exists now lives as long as the process: not looking at it again spares
        # clients the pauses of a full collection.
        gc.collect()
        gc.freeze()
        await self._listener.start(address)
        await self._listen_unix()
        self._channel.tell({"op": "listening", "address": address})
        reporter = loop.create_task(self._report_forever())
        await stopped
        clean = await self._drain()
        if self._ring is not None and (lost := await self._ring.close(_LOG_PATIENCE_S)):
            _log.error("predictions_not_logged", predictions=lost)
        reporter.cancel()
        self._report()
        self._channel.close()
        return 0 if clean else 1

    async def _listen_unix(self) -> None:
        path = unix_path(self._config.grpc, self._index)
        if path is not None and isinstance(self._listener, Listener):
            await self._listener.start_unix(path)

    async def _drain(self) -> bool:
        """Leave in the order that loses nothing: say so, wait, close, finish.

        Returns:
            Whether every call ended in time; otherwise those left were cut.
        """
        drain = self._config.drain
        _log.info("draining", front=self._index)
        self.state.drain()
        await asyncio.sleep(drain.pre_drain_ms / 1000)
        self.state.close()
        self.infer.drain_streams()
        closed_ns = now_ns()
        await self._listener.stop(drain.timeout_s)
        clean = now_ns() - closed_ns < drain.timeout_s * 1_000_000_000 - _TIMER_NS
        if not clean:
            _log.error("drain_cut", front=self._index, timeout_s=drain.timeout_s)
        return clean

    # -- the supervisor ---------------------------------------------------------

    def ask(
        self,
        operation: str,
        arguments: dict[str, Any],
        answer: Callable[[dict[str, Any]], None],
        fail: Callable[[GatewayError], None],
    ) -> None:
        """Ask the supervisor (`gateway.serving.server.Control`)."""

        def done(future: asyncio.Future[dict[str, Any]]) -> None:
            error = future.exception()
            if isinstance(error, GatewayError):
                fail(error)
            else:
                answer(future.result())

        self._channel.ask({"op": operation, **arguments}).add_done_callback(done)

    def _on_control(
        self, channel: Channel, message: dict[str, Any], answer: Answer
    ) -> None:
        match message["op"]:
            case "catalogue":
                catalogue = CATALOGUE.validate_python(message["catalogue"])
                answer(self._apply(catalogue))
            case "changes":
                answer(self._change(CHANGES.validate_python(message["changes"])))
            case "traffic":
                traffic = MODEL_TRAFFIC.validate_python(message["traffic"])
                weights = message["weights"]
                if weights is not None:
                    weights = WEIGHTS.validate_python(weights)
                catalogue = self.state.catalogue
                model = message["model"]
                now = catalogue.with_traffic(model, traffic, weights)
                self.state.swap(now, (model,))
                answer({})
            case "weights":
                weights = WEIGHTS.validate_python(message["weights"])
                self.infer.routers.reweigh(message["model"], weights)
            case "decisions":
                answer({"decisions": self._decisions(**message["of"])})
            case "report":
                self._report()
                answer({})

    def _on_control_lost(self, channel: Channel) -> None:
        self._stop.set()  # the supervisor is gone, and the kernel ends us with it

    def _change(self, changes: Changes) -> dict[str, Any]:
        catalogue = self.state.catalogue
        if changes.base != catalogue.revision:
            return {"missed": True}  # only the whole catalogue helps
        return self._apply(catalogue.after(changes), changes.models)

    def _apply(
        self, catalogue: Catalogue, changed: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Put a catalogue in force; say which loads are gone but still in use.

        Args:
            catalogue: All of it.
            changed: The models that are others in it, or gone; ``None``: perhaps all.
        """
        before = self.state.catalogue
        names = before.models if changed is None else changed
        if self._recorders is not None:
            self._recorders.look_at(catalogue, changed)
        gone = before.handles(names) - catalogue.handles(names)
        self.state.swap(catalogue, changed)
        busy = self.dispatcher.retain(catalogue, gone)
        self._follow_workers(catalogue)
        if not self._first_catalogue.done():
            self._first_catalogue.set_result(None)
        return {"busy": busy}

    def _decisions(self, model: str, count: int) -> list[dict[str, Any]]:
        """Return the last decisions about a model as JSON values, latest first."""
        behind_ns = time.time_ns() - now_ns()
        return [
            {
                "prediction_id": record.name.decode(),
                "time": (record.admitted_ns + behind_ns) / 1e9,
                "rows": record.rows,
                **record.choice.described(),
                **record.context._asdict(),
            }
            for record in self._sink.last(model, count)
        ]

    def _handle_idle(self, handle: int) -> None:
        self._channel.tell({"op": "released", "handle": handle})
        self.dispatcher.retain(self.state.catalogue, {handle})

    async def _report_forever(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_PERIOD_S)
            self._report()

    def _report(self) -> None:
        self._channel.tell({"op": "counters", **self._snapshot()})

    def _snapshot(self) -> dict[str, Any]:
        """Return what was counted: of versions, only where that is news."""
        versions = []
        for model, version, statistics in self.dispatcher.all_statistics():
            if statistics.changed:
                statistics.changed = False
                versions.append([model, version, statistics.snapshot()])
        transport = self._listener.statistics
        return {
            "versions": versions,
            "rejected": dict(self.infer.rejected),
            "arms": self.infer.routers.arms(),
            "ruled": self.infer.routers.arms(ruled=True),
            "shadows": self._shadows.snapshot(),
            "records": {
                "offered": self._sink.offered,
                "forgotten": self._sink.forgotten,
            },
            "log": {} if self._ring is None else dict(self._ring.counts),
            "transport": {
                "accepted": transport.accepted,
                "calls": transport.calls,
                "limits": dict(transport.limits),
            },
            "gauges": {
                "inflight_requests": self.admission.by_model(),
                "inflight_bytes": self.admission.inflight_bytes,
                "connections": transport.open,
                "buffered_bytes": transport.buffered_bytes,
                "unlogged": 0 if self._ring is None else self._ring.unacknowledged,
            },
        }

    # -- workers ----------------------------------------------------------------

    def _follow_workers(self, catalogue: Catalogue) -> None:
        wanted = {worker.pid: worker for worker in catalogue.workers}
        for pid, link in tuple(self._links.items()):
            if pid in wanted:
                link.handles = wanted[pid].handles
        for pid, worker in wanted.items():
            if pid not in self._links and pid not in self._connecting:
                task = asyncio.get_running_loop().create_task(self._connect(worker))
                self._connecting[pid] = task
        self.dispatcher.port_changed()

    async def _connect(self, worker: WorkerEntry) -> None:
        workers = self._config.workers
        shared = workers.shared_memory_min_bytes
        # One that gets time only when nobody else wants it is slow before it hangs.
        patience = _SHADOW_PATIENCE if worker.shadow else 1
        settings = LinkSettings(
            slot_bytes=self._config.batching.max_batch_bytes if shared else 0,
            arena_min_bytes=shared,
            hang_timeout_ns=workers.hang_timeout_ms * patience * 1_000_000,
            fronts=self.state.catalogue.fronts,
        )
        link = WorkerLink(
            worker,
            self.dispatcher,
            settings,
            now_ns=now_ns,
            on_lost=self._link_lost,
            on_hang=self._link_hangs,
        )
        try:
            await link.connect()
        except OSError as error:
            _log.warning("worker_unreachable", worker=worker.index, reason=str(error))
        else:
            self._links[worker.pid] = link
            for current in self.state.catalogue.workers:
                if current.pid == worker.pid:
                    link.handles = current.handles
            self.dispatcher.port_changed()
        finally:
            del self._connecting[worker.pid]

    def _link_lost(self, link: WorkerLink) -> None:
        self._links.pop(link.worker.pid, None)
        self.dispatcher.retain(self.state.catalogue, ())  # it may have been the last

    def _link_hangs(self, link: WorkerLink) -> None:
        self._channel.tell(
            {"op": "hung", "worker": link.worker.index, "pid": link.worker.pid}
        )


def main() -> None:
    """Parse the supervisor's arguments and run the front."""
    parser = argparse.ArgumentParser(prog="python -m gateway.front")
    parser.add_argument("--config", required=True, type=Path, help="configuration")
    parser.add_argument("--control", required=True, help="the supervisor's socket")
    parser.add_argument("--address", required=True, help="host:port to listen on")
    parser.add_argument("--index", required=True, type=int, help="number")
    parser.add_argument("--parent", required=True, type=int, help="supervisor's pid")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    config = Config.model_validate_json(arguments.config.read_text())
    configure(config.log.level, config.log.format, f"front-{arguments.index}")

    async def run() -> int:
        front = Front(config, arguments.index)
        return await front.run(arguments.control, arguments.address)

    sys.exit(uvloop.run(run()))


if __name__ == "__main__":
    main()

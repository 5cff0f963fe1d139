"""The controller process: wires registry, policies and the admin plane together."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gateway.channel import Answer, Channel
from gateway.clock import now_ns
from gateway.config import Config, GrpcConfig, worker_count
from gateway.controller.ground_truth import GroundTruth
from gateway.controller.learnt_files import LearntFiles
from gateway.controller.service import AdminService
from gateway.controller.traffic import TrafficControl
from gateway.errors import GatewayError, Unsupported
from gateway.feedback.joiner import collect_rarely
from gateway.logs import get_logger
from gateway.registry.importing import Import, take_in
from gateway.registry.registry import Registry
from gateway.registry.repository import registered
from gateway.registry.store import ArtefactStore
from gateway.registry.view import RepositoryView
from gateway.transport.listener import Listener

_log = get_logger("controller")

_GRACE_S = 5.0
_IMPORTS = 2
"""Sources that are read at a time; others wait."""
SOCKET = "admin.sock"
_T = TypeVar("_T")


class Controller:
    """Everything in the controller process.

    Args:
        config: The gateway's configuration.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, "disk")
        self._channel = Channel(self._on_control, lambda _: self._stop.set())
        self._stop = asyncio.Event()
        self._importing = asyncio.Semaphore(_IMPORTS)

    async def run(self, control_path: str) -> int:
        """Decide until told to stop.

        Returns:
            Exit code.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's ^C
        folder = self._config.state_dir / "registry"
        try:
            registry, view, store = await self._disk(
                partial(_open, folder, self._config)
            )
        except (GatewayError, OSError) as error:
            reason = error.message if isinstance(error, GatewayError) else str(error)
            _log.error("registry_unusable", folder=str(folder), reason=reason)
            return 1
        await loop.create_unix_connection(lambda: self._channel, control_path)
        traffic = TrafficControl(
            registry,
            view,
            self._channel.ask,
            self._disk,
            LearntFiles(folder / "learnt"),
            workers=worker_count(self._config),
            shadow_workers=self._config.traffic.shadow_workers,
        )
        service = AdminService(
            registry, partial(self._take_in, store), traffic, self._disk
        )
        self._channel.hello({"role": "controller", "index": 0, "pid": os.getpid()})
        await traffic.start()
        truth: GroundTruth | None = None
        if self._config.feedback.enabled:
            collect_rarely()
            truth = GroundTruth(self._config, self._channel.tell)
        listener = await self._listen(service)
        learning = loop.create_task(traffic.refresh_forever())
        finishing = loop.create_task(traffic.finish())
        await self._stop.wait()
        finishing.cancel()
        learning.cancel()
        await listener.stop(_GRACE_S)
        if truth is not None:
            await truth.stop()
        await traffic.keep()
        await self._disk(registry.close)
        self._channel.close()
        return 0

    async def _listen(self, service: AdminService) -> Listener:
        admin = self._config.admin
        grpc = GrpcConfig(max_connections=64, max_message_bytes=16 << 20)
        listener = Listener(service.methods(), grpc, now_ns)
        path = admin.unix_socket or self._config.state_dir / SOCKET
        await listener.start_unix(path, private=True)
        where = [f"unix:{path}"]
        if admin.port is not None:
            await listener.start(f"{admin.host}:{admin.port}")
            where.append(f"{admin.host}:{admin.port}")
        _log.info("admin", address=",".join(where))
        return listener

    async def _disk(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work)

    async def _take_in(self, store: ArtefactStore, source: str) -> tuple[Import, ...]:
        """Take models in, which may take minutes: decisions do not wait for it."""
        most = self._config.max_model_bytes
        async with self._importing:
            return await asyncio.to_thread(take_in, source, store, max_bytes=most)

    def _on_control(
        self, channel: Channel, message: dict[str, Any], answer: Answer
    ) -> None:
        answer(Unsupported(f"unknown operation '{message.get('op')}'"))


def _open(
    folder: Path, config: Config
) -> tuple[Registry, RepositoryView, ArtefactStore]:
    folder.mkdir(parents=True, exist_ok=True)
    store = ArtefactStore(folder / "artefacts", config.max_model_bytes)
    view = RepositoryView(registered(config.state_dir), store)
    return Registry(folder / "registry.sqlite"), view, store

"""``baton serve``: the supervisor, and everything it wires together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import TextIO

from prometheus_client import CollectorRegistry, start_http_server

from gateway.config import Config, worker_count
from gateway.errors import GatewayError
from gateway.feedback.log_file import partitions_fault
from gateway.logs import configure, get_logger
from gateway.preflight import faults, unix_in_use, unix_paths
from gateway.registry.lifecycle import Lifecycle
from gateway.registry.repository import Repository, registered, tables
from gateway.registry.store import ArtefactStore
from gateway.supervision.canary import canary
from gateway.supervision.children import Children, module
from gateway.supervision.exposition import GatewayCollector
from gateway.supervision.fleet import Fleet
from gateway.supervision.operations import operations
from workers.spec import LoadOrder, LoadReport

_log = get_logger("supervisor")

_MAX_PORT = 65_535


class StartError(Exception):
    """The gateway cannot start; one line with the way out."""


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        Exit code: 0 after a clean drain, 1 if it could not start or a step of the
        drain overran.
    """
    configure(config.log.level, config.log.format, "supervisor")
    run_dir = Path(tempfile.mkdtemp(prefix="baton-"))
    try:
        return asyncio.run(Gateway(config, run_dir).run())
    except (StartError, GatewayError) as error:
        _log.error("cannot_start", reason=str(error))
        return 1
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


class Gateway:
    """One gateway: the supervisor's own state.

    Args:
        config: The configuration.
        run_dir: Private folder for sockets, removed afterwards.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._config = config
        self._run_dir = run_dir
        self._stop = asyncio.Event()
        self._fatal = ""
        self._shadows_started = False
        self._reservations: list[socket.socket] = []
        workers = config.workers
        self._children = Children(
            workers.restart_backoff_ms / 1000,
            workers.max_restart_backoff_ms / 1000,
            self._give_up,
        )

    async def run(self) -> int:
        """Start, serve, drain; see `run`."""
        config = self._config
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        if found := faults(config):
            raise StartError("; ".join(found))
        if fault := _log_fault(config):
            raise StartError(fault)
        state_lock = _lock(config.state_dir)
        repository = Repository(
            config.model_repository,
            registered=registered(config.state_dir),
            batching=config.batching,
            admission=config.admission,
        )
        names = repository.names() if config.load == "all" else config.load
        await self._check_device()
        addresses = self._reserve_ports()
        if in_use := [*filter(None, map(unix_in_use, unix_paths(config.grpc)))]:
            raise StartError("; ".join(in_use))
        store = ArtefactStore(config.state_dir / "artefacts", config.max_model_bytes)
        lifecycle = Lifecycle(config, repository, store, self._canary)
        fleet = lifecycle.fleet = Fleet(
            config,
            on_healthy=self._children.healthy,
            on_hung=self._children.kill,
            on_shadow=self._start_shadows,
        )
        fleet.fronts.begin_with(tables(registered(config.state_dir)))
        fleet.operations.update(operations(lifecycle, repository, fleet))
        await fleet.start(self._run_dir / "control.sock")
        metrics_stop = self._serve_metrics(fleet)
        self._start_children(addresses)
        starting = loop.create_task(self._become_ready(lifecycle, fleet, names))
        await self._stop.wait()
        starting.cancel()
        await lifecycle.close()
        code = await self._drain()
        fleet.close()
        metrics_stop()
        state_lock.close()
        return code

    async def _become_ready(
        self, lifecycle: Lifecycle, fleet: Fleet, names: tuple[str, ...]
    ) -> None:
        try:
            await fleet.has_started(
                self._config.grpc.fronts, worker_count(self._config)
            )
            await lifecycle.start(names)
        except Exception as error:  # the edge: say why before the end
            _log.exception("start_failed")
            self._give_up(repr(error))
            return
        ready = sum(row["state"] == "READY" for row in lifecycle.index())
        _log.info(
            "ready",
            grpc=",".join(sorted(set(fleet.fronts.listening.values()))),
            metrics=self._metrics_address,
            versions=ready,
        )

    def _give_up(self, reason: str) -> None:
        self._fatal = reason
        self._stop.set()

    async def _drain(self) -> int:
        """Fronts first, so that workers have nothing left to answer; then workers."""
        drain = self._config.drain
        _log.info("draining", reason=self._fatal or "signal")
        limit_s = drain.pre_drain_ms / 1000 + drain.timeout_s + 5
        overrun = await self._children.stop("front", limit_s)
        # It takes the fronts' last predictions into the event log.
        overrun += await self._children.stop("controller", drain.timeout_s)
        overrun += await self._children.stop("shadow", drain.timeout_s)
        overrun += await self._children.stop("worker", drain.timeout_s)
        for name in overrun:
            _log.error("drain_overran", child=name)
        _log.info("stopped", overran=len(overrun))
        return 1 if overrun or self._fatal else 0

    # -- parts ------------------------------------------------------------------

    async def _check_device(self) -> None:
        """Refuse to start where a GPU is asked for and cannot be used (never CPU)."""
        if self._config.workers.device != "cuda":
            return
        for device_id in self._config.workers.device_ids:
            process = await asyncio.create_subprocess_exec(
                *module("workers.check"),
                "--device",
                str(device_id),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
            if process.returncode:
                raise StartError(output.decode().strip() or "CUDA is not usable")

    def _reserve_ports(self) -> list[str]:
        """Choose the fronts' addresses and hold their ports for as long as we live.

        A port is first bound without SO_REUSEPORT, which fails if anybody listens:
        two gateways on one port would silently share its traffic.
        """
        grpc = self._config.grpc
        addresses = []
        shared = grpc.port_mode == "shared"
        for index in range(1 if shared else grpc.fronts):
            port = grpc.port + index if grpc.port else 0
            if port > _MAX_PORT:
                raise StartError(
                    f"front {index} would listen on port {port}, above {_MAX_PORT}; "
                    "choose a lower --port (grpc.port)"
                )
            family = socket.AF_INET6 if ":" in grpc.host else socket.AF_INET
            try:
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((grpc.host, port))
                    port = probe.getsockname()[1]
                held = socket.socket(family, socket.SOCK_STREAM)
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                held.bind((grpc.host, port))
            except OSError as error:
                raise StartError(
                    f"cannot listen on {grpc.host}:{port}: {error.strerror}; choose "
                    "another with --port (grpc.port)"
                ) from error
            self._reservations.append(held)
            host = f"[{grpc.host}]" if family == socket.AF_INET6 else grpc.host
            addresses.append(f"{host}:{port}")
        return addresses * grpc.fronts if shared else addresses

    def _serve_metrics(self, fleet: Fleet) -> Callable[[], None]:
        metrics = self._config.metrics
        registry = CollectorRegistry(auto_describe=False)
        registry.register(GatewayCollector(fleet.fronts.counters, self._children))
        try:
            server, thread = start_http_server(
                metrics.port, metrics.host, registry=registry
            )
        except OSError as error:
            raise StartError(
                f"cannot serve metrics on {metrics.host}:{metrics.port}: "
                f"{error.strerror}; choose another with --metrics-port (metrics.port)"
            ) from error
        self._metrics_address = f"{metrics.host}:{server.server_port}"

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def _start_children(self, addresses: list[str]) -> None:
        config_path = self._run_dir / "config.json"
        config_path.write_text(self._config.model_dump_json())
        control = str(self._run_dir / "control.sock")
        parent = str(os.getpid())
        for index in range(worker_count(self._config)):
            self._children.start(
                f"worker-{index}", self._worker_command(index, control, parent)
            )
        for index, address in enumerate(addresses):
            arguments = {
                "--config": str(config_path),
                "--control": control,
                "--address": address,
                "--index": str(index),
                "--parent": parent,
            }
            command = [*module("gateway.front"), *_flat(arguments)]
            self._children.start(f"front-{index}", partial(list, command))
        arguments = {
            "--config": str(config_path),
            "--control": control,
            "--parent": parent,
        }
        command = [*module("gateway.controller"), *_flat(arguments)]
        # Fronts serve with the tables they have, whatever becomes of it.
        self._children.start("controller", partial(list, command), vital=False)

    def _start_shadows(self) -> None:
        """Start the shadows' pool, once there is something for it to do."""
        if self._shadows_started:
            return
        self._shadows_started = True
        control, parent = str(self._run_dir / "control.sock"), str(os.getpid())
        first = worker_count(self._config)
        for number in range(self._config.traffic.shadow_workers):
            command = self._worker_command(first + number, control, parent, "--idle")
            self._children.start(f"shadow-{number}", command, vital=False)

    def _worker_command(
        self, index: int, control: str, parent: str, *more: str
    ) -> Callable[[], list[str]]:
        generations = count()

        def command() -> list[str]:
            path = self._run_dir / f"worker-{index}-{next(generations)}.sock"
            arguments = {
                "--control": control,
                "--listen": str(path),
                "--worker": str(index),
                "--parent": parent,
            }
            return [*module("workers"), *_flat(arguments), *more]

        return command

    async def _canary(self, order: LoadOrder) -> LoadReport:
        return await canary(order, self._config.workers.load_timeout_s)


def _flat(arguments: dict[str, str]) -> list[str]:
    return [part for pair in arguments.items() for part in pair]


def _log_fault(config: Config) -> str:
    feedback = config.feedback
    if not feedback.enabled or feedback.kafka is not None:
        return ""
    return partitions_fault(config.state_dir, feedback.partitions)


def _lock(state_dir: Path) -> TextIO:
    """Take the state folder for this process alone; held until closed or death."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = (state_dir / "lock").open("w")
    except OSError as error:
        raise StartError(
            f"cannot use the state folder {state_dir}: {error.strerror}; choose "
            "another with --state-dir (state_dir)"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StartError(
            f"the state folder {state_dir} is in use by another gateway; give each "
            "its own with --state-dir (state_dir)"
        ) from None
    return file

"""How each server is started, asked and told to go."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from loadtest import baton, models
from loadtest.compare.cases import ECHO, NAIVE, TWIN, TWO_FRONTS, Setup
from loadtest.compare.targets import OURS
from loadtest.dialects import GRPC, Dialect
from loadtest.peers.catalogue import PEERS, Peer
from loadtest.processes import (
    ROOT,
    Server,
    ServerFailed,
    free_ports,
    running,
    server_ready,
)
from loadtest.wire import BadAnswer

READY_S = 60.0
BATONS = (OURS, TWIN, TWO_FRONTS)
ASK_S = 5.0
"""Wait for the first answer of a peer that is starting."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where servers run.

    Attributes:
        folder: Holds ``models``, takes logs.
        core: The core of servers that may use one; ``None`` for any.
        transport: Of Baton, as its configuration has it; empty for its default.
    """

    folder: Path
    core: int | None
    transport: str

    def model_file(self, name: str) -> Path:
        """Return the file of a model."""
        return models.model_file(self.folder / "models", name)

    def core_for(self, setup: Setup) -> int | None:
        """Return the only core of a server; ``None`` for any."""
        return self.core if setup.cores == 1 else None


@dataclass(frozen=True, slots=True)
class Contestant:
    """A running server.

    Attributes:
        name: In tables.
        server: Its processes and port.
        dialect: How it is asked.
        answers: Whether it scores rows; the echo does not.
    """

    name: str
    server: Server
    dialect: Dialect = GRPC
    answers: bool = True

    def stands_still(self, still: bool) -> None:
        """Stop a restless peer (SIGSTOP) while others are measured, or let it go on.

        It would take its share of the core of the one that is measured.
        """
        if self.name in PEERS and PEERS[self.name].restless:
            for process in self.server.family():
                with suppress(psutil.NoSuchProcess):
                    process.suspend() if still else process.resume()

    def goes_well(self) -> list[str]:
        """Stop the server; return what is wrong with how Baton went."""
        if self.name in BATONS:
            return [f"{self.name}: {each}" for each in self.server.stop(baton.EXIT_S)]
        self.server.end()
        return []


@contextmanager
def contestant(name: str, setup: Setup, place: Place) -> Iterator[Contestant]:
    """Run a server for a ``with`` block; it is ready when the block begins.

    Raises:
        ServerFailed: If it does not start; the message says why.
    """
    if name in PEERS:
        with _peer(PEERS[name], setup, place) as found:
            yield found
        return
    if name in BATONS:
        folder = place.folder / f"{name}-{'-'.join(setup.models)}-{setup.workers}"
        folder.mkdir(exist_ok=True)
        with baton.serving(
            folder,
            repository=place.folder / "models",
            fronts=2 if name == TWO_FRONTS else 1,
            settings=_settings(name, setup, place),
            core=place.core_for(setup),
        ) as server:
            server.wait_ready(READY_S)
            yield Contestant(name, server)
        return
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtest", name]
    command += [str(place.folder / "models")] if name == NAIVE else []
    command += ["--port", str(port)]
    log, core = place.folder / f"{name}.log", place.core_for(setup)
    with running(command, port=port, log=log, core=core) as server:
        server.wait_ready(READY_S, server_ready if name == NAIVE else listening)
        yield Contestant(name, server, answers=name != ECHO)


def _settings(name: str, setup: Setup, place: Place) -> dict[str, dict[str, object]]:
    transport = "grpcio" if name == TWIN else place.transport
    queue = setup.max_queue_requests
    return {
        "grpc": {"transport": transport} if transport else {},
        "workers": {"count": setup.workers, "intra_op_threads": 1},
        "admission": {"max_queue_requests": queue} if queue else {},
    }


@contextmanager
def _peer(peer: Peer, setup: Setup, place: Place) -> Iterator[Contestant]:
    if not peer.installed:
        raise ServerFailed(
            f"not installed; `python -m loadtest peers install {peer.name}` does it"
        )
    model = setup.models[0]
    ports = free_ports(3)
    row = np.zeros((1, *models.row_shape(model)), np.float32)
    request = peer.dialect.encode(model, row)

    def answers(port: int) -> bool:
        with suppress(BadAnswer):
            return bool(peer.dialect.ask(port, [request], timeout_s=ASK_S))
        return False

    with running(
        peer.command(place.model_file(model), ports),
        port=ports[0],
        log=place.folder / f"{peer.name}-{model}.log",
        core=place.core_for(setup),
        environment=peer_environment(peer),
    ) as server:
        server.wait_ready(peer.ready_s, answers)
        yield Contestant(peer.name, server, peer.dialect)


def peer_environment(peer: Peer) -> dict[str, str]:
    """Return the variables a peer is started with.

    Its own folder of programs comes first: some start their parts by name.
    """
    return {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{peer.python.parent}{os.pathsep}{os.environ['PATH']}",
        **dict(peer.environment),
    }


def listening(port: int) -> bool:
    """Tell whether a server of this machine takes connections."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False

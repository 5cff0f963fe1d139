"""The table of peers: what to install, how to start it and how to speak to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.dialects import GRPC, JSON_ROW, JSON_ROWS, RAW, Dialect
from loadtest.processes import ROOT

FOLDER = ROOT / ".peers"
"""A virtual environment for each peer; not in version control."""
RUNTIME = ("numpy", "onnxruntime==1.31.1")
"""The same ONNX Runtime as Baton's in the lock file."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server.

    Attributes:
        name: In tables and on the command line.
        version: As released on the package index.
        requirements: What to install.
        dialect: How it is asked.
        interpreters: Python interpreters to try, best first.
        refuses: Given an interpreter's version, says why it does not work with it;
            ``None`` if it does.
        environment: Variables it is started with.
        ready_s: Longest time until it answers.
        restless: Whether it is busy while nobody asks it anything.
    """

    name: str
    version: str
    requirements: tuple[str, ...]
    dialect: Dialect
    interpreters: tuple[str, ...] = (sys.executable,)
    refuses: Callable[[tuple[int, int, int]], str | None] = lambda _version: None
    environment: tuple[tuple[str, str], ...] = ()
    ready_s: float = 60.0
    restless: bool = False

    @property
    def folder(self) -> Path:
        """Where it is installed."""
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """The interpreter it runs under."""
        return self.folder / "bin" / "python"

    @property
    def marker(self) -> Path:
        """Written when the installation is complete; holds the requirements."""
        return self.folder / ".installed"

    @property
    def installed(self) -> bool:
        """Tell whether exactly these requirements are installed."""
        wanted = "\n".join(self.requirements)
        return self.marker.exists() and self.marker.read_text() == wanted

    def command(self, model: Path, ports: list[int]) -> list[str]:
        """Return its command line for one model file; the first port is asked."""
        module = f"loadtest.peers.{self.name}_server"
        return [str(self.python), "-m", module, str(model), *map(str, ports)]


def _triton_stub(version: tuple[int, int, int]) -> str | None:
    """Say whether Triton's Python stub runs with an interpreter's library.

    The stub of the bundled Triton 2.51 embeds a CPython 3.11 older than 3.11.4 and
    fails with a newer standard library (``_recursion_count`` in ``functools``).
    """
    if version[:2] == (3, 11) and version[2] < 4:
        return None
    found = ".".join(map(str, version))
    return f"its stub embeds CPython 3.11.0-3.11.3 and fails with {found}"


def _peer(name: str, package: str, version: str, dialect: Dialect) -> Peer:
    requirements = (f"{package}=={version}", *RUNTIME)
    return Peer(name, version, requirements, dialect)


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _peer("mosec", "mosec", "0.9.8", RAW),
        Peer(
            "pytriton",
            "0.7.0",
            ("nvidia-pytriton==0.7.0", *RUNTIME),
            GRPC,
            interpreters=(sys.executable, "/usr/bin/python3.11", "python3.11"),
            refuses=_triton_stub,
        ),
        _peer("mlserver", "mlserver", "1.7.1", GRPC),
        Peer(
            "litserve",
            "0.2.19",
            ("litserve==0.2.19", *RUNTIME),
            JSON_ROW,
            restless=True,  # measured: 14 % of a core
        ),
        Peer(
            "bentoml",
            "1.4.39",
            ("bentoml==1.4.39", *RUNTIME),
            JSON_ROWS,
            environment=(("BENTOML_DO_NOT_TRACK", "1"),),
        ),
        Peer(
            "ray",
            "2.60.0",
            ("ray[serve-grpc]==2.60.0", "protobuf>=7.36,<8", *RUNTIME),
            GRPC,
            environment=(("RAY_USAGE_STATS_ENABLED", "0"),),
            ready_s=120.0,
            restless=True,  # measured: 15 % of a core
        ),
    )
}

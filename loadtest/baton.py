"""How Baton is configured and started here: a file of its own, free ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from loadtest.processes import Server, free_ports, running

PRE_DRAIN_MS = 200
DRAIN_S = 10
EXIT_S = PRE_DRAIN_MS / 1000 + DRAIN_S + 2
"""Drain as configured, and two seconds for the processes to end."""


def command(config: Path) -> list[str]:
    """Return the command line of ``baton serve``."""
    return [sys.executable, "-m", "gateway", "serve", str(config)]


@contextmanager
def serving(
    folder: Path, *, fronts: int = 1, core: int | None = None
) -> Iterator[Server]:
    """Run Baton with one worker over ``folder/models`` for a ``with`` block.

    Args:
        folder: Holds the models; takes configuration, state and log.
        fronts: Front processes.
        core: The only core of all its processes; ``None`` for any.

    Yields:
        The server, started but not yet ready.
    """
    port, metrics_port = free_ports(2)
    settings = {
        "model_repository": str(folder / "models"),
        "state_dir": str(folder / "state"),
        "grpc": {"port": port, "fronts": fronts},
        "metrics": {"port": metrics_port},
        "workers": {"count": 1},
        "drain": {"pre_drain_ms": PRE_DRAIN_MS, "timeout_s": DRAIN_S},
    }
    config = folder / "baton.yaml"
    config.write_text(yaml.safe_dump(settings))
    log = folder / "baton.log"
    with running(command(config), port=port, log=log, core=core) as server:
        yield server

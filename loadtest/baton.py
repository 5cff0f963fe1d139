"""How Baton is configured and started here: a file of its own, free ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from loadtest.processes import Server, free_ports, running

PRE_DRAIN_MS = 200
DRAIN_S = 10
EXIT_S = PRE_DRAIN_MS / 1000 + DRAIN_S + 2
"""Drain as configured, and two seconds for the processes to end."""


def command(config: Path, module: str = "gateway") -> list[str]:
    """Return the command line of ``baton serve``, or of a module that serves so."""
    return [sys.executable, "-m", module, "serve", str(config)]


@contextmanager
def serving(
    folder: Path,
    *,
    repository: Path | None = None,
    fronts: int = 1,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    core: int | None = None,
    module: str = "gateway",
) -> Iterator[Server]:
    """Run Baton with one worker for a ``with`` block.

    Args:
        folder: Takes configuration, state and log.
        repository: Holds the models; ``None`` for ``folder/models``.
        fronts: Front processes.
        settings: Fields of configuration sections that win over those here.
        core: The only core of all its processes; ``None`` for any.
        module: That serves; another one than Baton's own, to measure what it changes.

    Yields:
        The server, started but not yet ready.
    """
    port, metrics_port = free_ports(2)
    sections: dict[str, dict[str, object]] = {
        "grpc": {"port": port, "fronts": fronts},
        "metrics": {"port": metrics_port},
        "workers": {"count": 1},
        "drain": {"pre_drain_ms": PRE_DRAIN_MS, "timeout_s": DRAIN_S},
    }
    for name, fields in (settings or {}).items():
        sections.setdefault(name, {}).update(fields)
    whole: dict[str, object] = {
        "model_repository": str(repository or folder / "models"),
        "state_dir": str(folder / "state"),
        **sections,
    }
    config = folder / "baton.yaml"
    config.write_text(yaml.safe_dump(whole))
    log = folder / "baton.log"
    with running(command(config, module), port=port, log=log, core=core) as server:
        yield server

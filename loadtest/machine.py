"""The machine that is measured on: what it is, and who runs on which core."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.processes import ROOT

PACKAGES = ("grpcio", "numpy", "onnxruntime-gpu", "onnxruntime", "protobuf", "uvloop")

Json = dict[str, object]


def choose_cores(available: Sequence[int]) -> tuple[int | None, int | None]:
    """Return a core for the servers and one for the load, if there are two.

    Two threads of one physical core are no two cores: they slow each other.
    """
    server = available[0]
    path = Path(f"/sys/devices/system/cpu/cpu{server}/topology/thread_siblings_list")
    siblings: set[int] = {server}
    if path.exists():
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            siblings.update(range(int(first), int(last or first) + 1))
    others = [core for core in available if core not in siblings]
    return (server, others[0]) if others else (None, None)


def machine() -> Json:
    """Return what the numbers were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": _commit(),
        "command": " ".join(["python", "-m", "loadtest", *sys.argv[1:]]),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # either of the onnxruntime distributions
    return found


def _commit() -> str:
    """Return the commit, with ``+changes`` where the checkout differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()

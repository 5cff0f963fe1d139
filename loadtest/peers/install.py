"""``python -m loadtest peers``: installs the peers, each where it disturbs nobody."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from loadtest.peers.catalogue import FOLDER, Peer
from loadtest.processes import ROOT

INSTALL_S = 900
"""Ray alone brings 100 MB."""
SHOWN = 400
"""Characters of an installer's complaint that are shown."""


class NotInstalled(Exception):
    """A peer could not be installed; the message is one line."""


def interpreter(peer: Peer) -> str:
    """Return the first interpreter that a peer works with.

    Raises:
        NotInstalled: If there is none.
    """
    refusals = []
    for candidate in peer.interpreters:
        path = shutil.which(candidate)
        if path is None:
            refusals.append(f"{candidate}: not there")
            continue
        refusal = peer.refuses(_version(path))
        if refusal is None:
            return path
        refusals.append(f"{candidate}: {refusal}")
    raise NotInstalled(f"{peer.name}: no interpreter: {'; '.join(refusals)}")


def _version(python: str) -> tuple[int, int, int]:
    code = "import sys, json; print(json.dumps(sys.version_info[:3]))"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    major, minor, micro = json.loads(done.stdout)
    return major, minor, micro


def install(peer: Peer) -> None:
    """Install a peer into its folder, anew unless its requirements are there.

    Raises:
        NotInstalled: If that fails.
    """
    if peer.installed:
        return
    python = interpreter(peer)
    _make_folder()
    # pip comes from here: Debian's interpreter has none for virtual environments.
    _run(
        peer.name, [python, "-m", "venv", "--clear", "--without-pip", str(peer.folder)]
    )
    pip = [sys.executable, "-m", "pip", "--python", str(peer.python), "install"]
    _run(
        peer.name, [*pip, "--quiet", "--disable-pip-version-check", *peer.requirements]
    )
    peer.marker.write_text("\n".join(peer.requirements))


def _make_folder(folder: Path = FOLDER) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:  # a file, or a link to what is gone
        raise NotInstalled(f"{folder} is no folder (remove it)") from None


def _run(name: str, command: list[str], folder: Path = ROOT) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_S,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{name}: not done in {INSTALL_S} s") from error
    if done.returncode:
        complaint = " ".join(done.stderr.split())[-SHOWN:]
        raise NotInstalled(f"{name}: {complaint}")


def install_all(peers: Iterable[Peer]) -> list[str]:
    """Install peers one after the other, say so, and return what went wrong."""
    problems = []
    for peer in peers:
        print(f"{peer.name} {peer.version} ... ", end="", flush=True)
        try:
            install(peer)
        except NotInstalled as error:
            problems.append(str(error))
            print(f"no: {error}", flush=True)
        else:
            print("installed", flush=True)
    return problems


def go_client() -> Path:
    """Return the grpc-go client, built with the Go toolchain if it is not yet.

    Raises:
        NotInstalled: If there is no toolchain, or the build fails.
    """
    program, source = FOLDER / "goclient", ROOT / "loadtest" / "goclient"
    newest = max(path.stat().st_mtime for path in source.iterdir())
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    if shutil.which("go") is None:
        raise NotInstalled("grpc-go: no Go toolchain (`go` is not on the PATH)")
    _make_folder()
    _run("grpc-go", ["go", "build", "-o", str(program), "."], source)
    return program

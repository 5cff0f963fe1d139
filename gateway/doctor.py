"""``baton doctor``: whether this machine can serve, and what to do where it cannot.

ONNX Runtime is tried in a process of its own: the gateway never imports it, and
a broken CUDA set-up may end the process that does.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from gateway.config import Config
from gateway.config_file import ConfigError, load_config
from gateway.preflight import faults, unix_in_use, unix_paths

Status = Literal["ok", "warn", "fail"]

_PACKAGES = (
    *("baton-gateway", "grpcio", "grpcio-health-checking", "grpcio-reflection"),
    *("numpy", "protobuf", "pydantic", "pydantic-settings", "pyyaml", "uvloop"),
    *("aiokafka", "river", "prometheus-client", "rich", "typer"),
)
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")

_PROBE = """
import base64, json, sys
import onnxruntime as ort
cuda = "not part of this build"
if "CUDAExecutionProvider" in ort.get_available_providers():
    try:
        ort.preload_dlls()
        session = ort.InferenceSession(
            base64.b64decode(sys.argv[1]), providers=["CUDAExecutionProvider"]
        )
        session.run(None, {"x": [1.0]})
        used = "CUDAExecutionProvider" in session.get_providers()
        cuda = "" if used else "the CUDA libraries or the driver did not load"
    except Exception as error:
        cuda = str(error)
providers = ort.get_available_providers()
print(json.dumps({"version": ort.__version__, "providers": providers, "cuda": cuda}))
"""

_PROBE_MODEL = (
    "CAg6MgoLCgF4EgF5IgNOZWcSAWRaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)
"""A model of one Neg node: x float32, shape (1,), to y (IR 8, opset 13), base64."""

_MIN_OPEN_FILES, _GOOD_OPEN_FILES = 256, 4096


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: ``fail`` is for what ``baton serve`` cannot do without.
        detail: What was found.
        fix: The way out; empty where all is well.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def run_checks(config_file: Path | None) -> list[Check]:
    """Look at everything that serving depends on. Blocks for some seconds.

    Args:
        config_file: As for ``baton serve``; ``None`` for environment and defaults.

    Returns:
        The findings; what needs a valid configuration is left out without one.
    """
    checks = [*_python(), *_packages()]
    try:
        config = load_config(config_file, {})
    except ConfigError as error:
        fix = "correct it; `baton config schema` lists every setting"
        checks.extend(Check("config", "fail", line, fix) for line in error.problems)
        checks.extend(_onnxruntime(cuda_required=False))
    else:
        checks.append(
            Check("config", "ok", str(config_file or "defaults, environment"))
        )
        checks.extend(_onnxruntime(cuda_required=config.workers.device == "cuda"))
        checks.extend(_ports(config))
        checks.extend(_listening(config))
        checks.append(_repository(config))
        checks.append(_state_dir(config))
    checks.extend((_open_files(), _shared_memory()))
    return checks


def _python() -> Iterator[Check]:
    python = f"{platform.python_version()} ({sys.executable})"
    yield Check("python", "ok", python)  # pip refuses versions that are too old.
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    if sys.platform == "linux":
        yield Check("platform", "ok", f"{system}, {cores} cores")
    else:
        yield Check("platform", "warn", system, "Baton is tested on Linux only")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    versions = {package: _version(package) for package in _PACKAGES}
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        fix = "pip install baton-gateway (into this environment)"
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", fix)
    else:
        yield Check("packages", "ok", found)


def _onnxruntime(*, cuda_required: bool) -> Iterator[Check]:
    """Check the installation and, in a child process, what it can do."""
    installed = [name for name in _RUNTIMES if _version(name) is not None]
    names = ", ".join(f"{name} {_version(name)}" for name in installed)
    if len(installed) != 1:
        fix = "pip install onnxruntime-gpu (or onnxruntime for CPU only)"
        if installed:  # Both write the same folder: the last one wins, in part.
            fix = "pip uninstall -y onnxruntime onnxruntime-gpu, then install one"
        yield Check("onnxruntime", "fail", names or "not installed", fix)
        return
    try:
        child = subprocess.run(  # noqa: S603 (our own constants, no shell)
            [sys.executable, "-P", "-c", _PROBE, _PROBE_MODEL],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        # The last line: preload_dlls prints what it could not find.
        found = json.loads(child.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        fix = f"reinstall it: pip install --force-reinstall {installed[0]}"
        yield Check("onnxruntime", "fail", f"{names}: {lines[-1]}", fix)
        return
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        fix = "run `python -c 'import onnxruntime'` and see where it hangs"
        yield Check("onnxruntime", "fail", f"{names}: no answer", fix)
        return
    yield Check("onnxruntime", "ok", f"{names}: {', '.join(found['providers'])}")
    why_not = " ".join(str(found["cuda"]).split())[:200]
    if not why_not:
        yield Check("cuda", "ok", "a model ran on the GPU")
    elif cuda_required:
        fix = (
            "install NVIDIA's driver and pip install 'onnxruntime-gpu[cuda,cudnn]', "
            "or set workers.device to cpu"
        )
        yield Check("cuda", "fail", f"not usable: {why_not}", fix)
    else:
        yield Check("cuda", "ok", f"not usable ({why_not}); workers.device is cpu")


def _ports(config: Config) -> Iterator[Check]:
    grpc, metrics = config.grpc, config.metrics
    count = grpc.fronts if grpc.port_mode == "each" and grpc.port else 1
    wanted = [(grpc.host, grpc.port + index, "--port") for index in range(count)]
    wanted.append((metrics.host, metrics.port, "--metrics-port"))
    for host, port, flag in wanted:
        problem = _bind(host, port)
        name = f"port {port}"
        if problem is None:
            yield Check(name, "ok", f"free on {host}" if port else "any free one")
        else:
            fix = f"stop what listens there, or choose another with {flag}"
            yield Check(name, "fail", f"{host}: {problem}", fix)


def _listening(config: Config) -> Iterator[Check]:
    """Check what fronts listen with beside a free port."""
    grpc = config.grpc
    found = [*faults(config), *filter(None, map(unix_in_use, unix_paths(grpc)))]
    for fault in found:
        detail, _, fix = fault.rpartition(" (")
        yield Check("listening", "fail", detail, fix.removesuffix(")"))
    if not found and grpc.tls is not None:
        yield Check("tls", "ok", str(grpc.tls.certificate))
    if not found and grpc.unix_socket is not None:
        yield Check("unix socket", "ok", str(grpc.unix_socket))


def _bind(host: str, port: int) -> str | None:
    """Return why the address cannot be listened on, or ``None``."""
    if port > 65535:  # getaddrinfo would take it modulo 65536.
        return "above 65535"
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            # Without this a server that stopped a minute ago still counts.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _repository(config: Config) -> Check:
    """List the models, by Triton's layout: folders with numbered folders."""
    root = config.model_repository
    fix = "name it with --model-repository (its layout: MODEL/1/model.onnx)"
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
        models = {folder.name: _numbered(folder) for folder in folders}
    except OSError as error:
        return Check("models", "fail", f"{root}: {error.strerror}", fix)
    models = {name: versions for name, versions in models.items() if versions}
    if config.load != "all":
        absent = [name for name in config.load if name not in models]
        if absent:
            detail = f"{root}: no {', '.join(absent)}, which `load` names"
            return Check("models", "fail", detail, fix)
    if not models:
        return Check("models", "warn", f"{root}: no model", fix)
    names = ", ".join(
        f"{name} ({', '.join(map(str, versions))})" for name, versions in models.items()
    )
    return Check("models", "ok", f"{root}: {names}")


def _numbered(folder: Path) -> list[int]:
    return sorted(
        int(entry.name)
        for entry in folder.iterdir()
        if entry.name.isascii() and entry.name.isdigit() and entry.is_dir()
    )


def _state_dir(config: Config) -> Check:
    """Check that the folder, or the first one above it that exists, is writable."""
    folder = config.state_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Check("state", "ok", str(config.state_dir))
    fix = "choose a folder that can be written with --state-dir"
    return Check("state", "fail", f"{folder} cannot be written", fix)


def _open_files() -> Check:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = limit == resource.RLIM_INFINITY
    detail = "unlimited" if unlimited else str(limit)
    if unlimited or limit >= _GOOD_OPEN_FILES:
        return Check("open files", "ok", detail)
    status: Status = "fail" if limit < _MIN_OPEN_FILES else "warn"
    fix = "ulimit -n 65536 (systemd: LimitNOFILE=65536); a connection takes one"
    return Check("open files", status, detail, fix)


def _shared_memory() -> Check:
    """Check for anonymous memory files, which carry large batches to workers."""
    try:
        file = os.memfd_create("baton-doctor")
    except (AttributeError, OSError) as error:
        fix = "large batches take the socket instead: slower, not wrong"
        return Check("shared memory", "warn", f"no memory files: {error}", fix)
    os.close(file)
    return Check("shared memory", "ok", "anonymous memory files")

"""Whether this machine can run CUDA sessions, and how they are set up.

A version ordered on ``cuda`` never runs on the CPU instead: it would answer, fifty
times slower, and nobody would know why. So every reason is looked for beforehand
and named with its way out. Pure apart from `look_at_driver`
and `library_error`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from workers.spec import SessionSettings

PROVIDER = "CUDAExecutionProvider"
"""Name of the execution provider in onnxruntime."""

WAY_OUT = "or set the model's device to cpu"
"""The end of every refusal: the choice that is always open."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver as this process sees it.

    Attributes:
        devices: GPUs visible to this process.
        cuda_major: Newest CUDA major version the driver can run; 0 if unknown.
    """

    devices: int
    cuda_major: int


def look_at_driver() -> Driver | None:
    """Ask the NVIDIA driver for its GPUs; ``None`` where there is no driver.

    onnxruntime itself offers its CUDA provider wherever it was built with one and
    falls back in silence where no GPU is found, hence the driver's own answer.

    Source: CUDA driver API: cuInit, cuDeviceGetCount, cuDriverGetVersion.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    devices, version = ctypes.c_int(0), ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(version))
    if library.cuInit(0) == 0:
        library.cuDeviceGetCount(ctypes.byref(devices))
    return Driver(devices.value, version.value // 1000)


def why_unavailable(
    providers: list[str], driver: Driver | None, device_id: int, built_for: str
) -> str:
    """Say why a CUDA session cannot be opened here; empty if nothing speaks against.

    Args:
        providers: What ``onnxruntime.get_available_providers`` lists.
        driver: What `look_at_driver` found.
        device_id: The GPU asked for.
        built_for: CUDA version of this onnxruntime, such as ``13.0``; empty if none.

    Returns:
        What is missing and the way out, one line.
    """
    if PROVIDER not in providers:
        return (
            "device is cuda, but this onnxruntime has no CUDA support; install "
            f"onnxruntime-gpu (and not onnxruntime beside it) {WAY_OUT}"
        )
    if driver is None:
        return (
            "device is cuda, but there is no NVIDIA driver here (libcuda.so.1 is "
            f"missing); install it, give the container its GPUs, {WAY_OUT}"
        )
    if driver.devices == 0:
        return (
            "device is cuda, but the NVIDIA driver shows no GPU to this process; "
            f"check nvidia-smi and CUDA_VISIBLE_DEVICES {WAY_OUT}"
        )
    if device_id >= driver.devices:
        return (
            f"device is cuda:{device_id}, but there are {driver.devices} GPUs, "
            f"numbered from 0; choose another device_id {WAY_OUT}"
        )
    major = int(built_for.split(".", maxsplit=1)[0] or 0)
    if 0 < driver.cuda_major < major:
        return (
            f"this onnxruntime needs CUDA {major}, the NVIDIA driver ends at CUDA "
            f"{driver.cuda_major}; update the driver {WAY_OUT}"
        )
    return ""


def library_error(folder: Path) -> str:
    """Ask the loader which library the CUDA provider misses; empty if none.

    Args:
        folder: Where onnxruntime keeps its libraries.
    """
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return ""


def why_fallen_back(library_error: str) -> str:
    """Say why onnxruntime made a session without CUDA although there is a GPU.

    Args:
        library_error: What the loader said of the CUDA provider's library; empty
            if it gave no reason.
    """
    reason = library_error or "onnxruntime gave no reason"
    return (
        f"device is cuda, but onnxruntime could not load its CUDA provider ({reason}); "
        f"install CUDA and cuDNN with 'pip install onnxruntime-gpu[cuda,cudnn]' "
        f"{WAY_OUT}"
    )


def provider_options(settings: SessionSettings) -> dict[str, str]:
    """Return the options of the CUDA provider.

    Heuristic convolution search: the default tries every algorithm at every new
    shape, seconds each. The arena grows as requested: doubling takes memory that
    other versions on the GPU need. Copies stay in the compute stream: the other
    setting races.

    Source: onnxruntime, "CUDA Execution Provider", configuration options.
    """
    options = {
        "device_id": str(settings.device_id),
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "1",
    }
    if settings.gpu_memory_bytes:
        options["gpu_mem_limit"] = str(settings.gpu_memory_bytes)
    if settings.cuda_graphs:
        options["enable_cuda_graph"] = "1"
    return options

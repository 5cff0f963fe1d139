"""Downloading a model from any URL that fsspec knows (extra ``remote``)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from gateway.errors import InvalidRequest, LoadFailed

MAX_FILES = 10_000
_CHUNK_BYTES = 1 << 20


def download(url: str, folder: Path, *, max_bytes: int) -> Path:
    """Copy a file, or all files below a folder, to an empty folder here.

    Args:
        url: Such as ``s3://bucket/models`` or ``https://host/model.onnx``.
        folder: Where to.
        max_bytes: Most bytes that are copied.

    Returns:
        The copied file or folder, under its own name.

    Raises:
        InvalidRequest: It is no URL, or there is nothing at it; fsspec, or what it
            needs for the URL, is not installed; or it is more than `max_bytes` or
            `MAX_FILES`.
        LoadFailed: It cannot be read.
    """
    shown = without_credentials(url)
    try:
        import fsspec
    except ImportError as error:
        raise InvalidRequest(
            f"{shown}: URLs need fsspec: install the extra `remote`, which in a "
            "checkout is `pip install '.[remote]'`"
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(url)
        name = PurePosixPath(urlsplit(str(path)).path.rstrip("/")).name or "model"
        target = folder / name
        if system.isfile(path):
            _copy(system, {path: target}, shown, max_bytes)
        else:
            _copy(system, _below(system, path, target, shown), shown, max_bytes)
    except (ImportError, ValueError) as error:
        raise InvalidRequest(f"{shown}: cannot be used: {error}") from error
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # fsspec's HTTP, where nobody answers
            reason = str(error.__cause__).replace(url, shown)
            raise LoadFailed(f"{shown}: cannot be reached: {reason[:300]}") from error
        raise InvalidRequest(f"{shown}: there is nothing at this URL") from error
    except Exception as error:  # each of fsspec's file systems raises its own
        if isinstance(error, InvalidRequest):
            raise
        reason = f"{type(error).__name__}: {error}".replace(url, shown)
        raise LoadFailed(f"{shown}: cannot be read: {reason[:300]}") from error
    return target


def without_credentials(url: str) -> str:
    """Return a URL without user, password, query and fragment: it goes on record.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidRequest(f"the source is no URL: {error}") from None
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path, "", ""))


def _below(system: object, path: str, target: Path, shown: str) -> dict[str, Path]:
    """Return every file below a folder, and where it goes."""
    root = path.rstrip("/")
    found = system.find(root)  # type: ignore[attr-defined]
    if not found:
        system.info(root)  # type: ignore[attr-defined]  # which raises why, if it can
        raise FileNotFoundError(path)
    if len(found) > MAX_FILES:
        raise InvalidRequest(
            f"{shown}: holds {len(found)} files, and at most {MAX_FILES} are copied; "
            "name the model's own folder"
        )
    files = {}
    for file in found:
        relative = PurePosixPath(str(file).removeprefix(root).lstrip("/"))
        if not relative.parts or ".." in relative.parts:
            raise InvalidRequest(f"{shown}: {file} is not below it")
        files[str(file)] = target / relative
    return files


def _copy(system: object, files: dict[str, Path], shown: str, max_bytes: int) -> None:
    left = max_bytes
    for path, target in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            system.open(path, "rb") as source,  # type: ignore[attr-defined]
            target.open("xb") as copy,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise InvalidRequest(
                        f"{shown}: has more than max_model_bytes, {max_bytes}; raise "
                        "it, or name the model's own folder"
                    )
                copy.write(chunk)

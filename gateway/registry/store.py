"""Verified, read-only copies of model files, named by what they contain.

A repository changes under our hands: somebody overwrites a file while a worker
reads it, or deletes the version that a restarted worker needs. So workers load
only from here, where a file is whole, checked, and stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.verify import ModelRefused, check_digest, open_beneath, verify_model

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model taken in.

    Attributes:
        digest: SHA-256 over names and digests of its files, in hexadecimal.
        path: The ONNX file, its external data beside it.
    """

    digest: str
    path: Path


class ArtefactStore:
    """A folder of artefacts, ``<root>/sha256/<digest>/``. One gateway owns a root.

    Making one deletes what a run that died had not finished.

    All calls block on the disk: call them from a thread. `take_in` may run in
    several threads at a time; not while `remove` or `remove_unused` runs, which could
    remove what it just found to be there already.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._folder = root / "sha256"
        self._max_bytes = max_bytes
        self._keeping = threading.Lock()
        self._folder.mkdir(parents=True, exist_ok=True)
        for pattern in (".new-*", ".old-*"):
            for left_over in self._folder.glob(pattern):
                _remove(left_over)

    def take_in(self, source: Path, *, name: str | None = None) -> Artefact:
        """Copy a model file and its external data, check the copy, and keep it.

        Args:
            source: The ONNX file, perhaps with a ``.sha256`` beside it. Nothing
                outside its folder is read, whatever it refers to.
            name: What the copy of the ONNX file is called; ``None`` for as it is.

        Returns:
            The artefact, the same one for the same names and bytes.

        Raises:
            ModelRefused: It must not be loaded, or could not be copied (disk full).
                Nothing of it is left in the store.
        """
        # The source first: its external names must be known good before they are
        # opened. The copy again: the source may have changed since.
        references = verify_model(source, max_bytes=self._max_bytes)
        name = name or source.name
        try:
            # A sibling of its final place, so that a read-only folder can be moved.
            folder = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
            try:
                files = _copy(source, name, references.external_files, folder)
                check_digest(source, files[name])
                copy = folder / name
                if verify_model(copy, max_bytes=self._max_bytes) != references:
                    raise ModelRefused(
                        f"{source.name}: changed while it was copied; load it again"
                    )
                digest = _digest(files)
                with self._keeping:
                    self._keep(folder, digest, files)
            finally:
                _remove(folder)
        except OSError as error:
            raise ModelRefused(
                f"{source.name}: cannot be copied into the artefact store: "
                f"{error.strerror}; free space in state_dir or make it writable"
            ) from error
        return Artefact(digest, self.folder(digest) / name)

    def folder(self, digest: str) -> Path:
        """Return where an artefact is, or would be."""
        return self._folder / digest

    def remove_unused(self, keep: set[str]) -> None:
        """Delete every artefact whose digest is not in `keep`.

        A worker that still has its files open is not disturbed.
        """
        for artefact in self._folder.glob("[0-9a-f]*"):
            if artefact.name not in keep:
                self.remove(artefact.name)

    def remove(self, digest: str) -> None:
        """Delete an artefact, which is there, likewise."""
        # Renamed first: dying half-way must not leave half an artefact.
        target, doomed = self.folder(digest), self._folder / f".old-{digest}"
        target.rename(doomed)
        _remove(doomed)

    def _keep(self, folder: Path, digest: str, files: dict[str, str]) -> None:
        """Give a complete folder its name, unless it is there, and still is that."""
        for parent, _, names in os.walk(folder, topdown=False):
            for name in names:
                os.chmod(os.path.join(parent, name), 0o444)
            os.chmod(parent, 0o555)  # noqa: S103 - workers may run as another user
            sync_folder(parent)
        target = self.folder(digest)
        if target.is_dir() and not _holds(target, files):
            self.remove(digest)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        sync_folder(self._folder)


def _copy(
    source: Path, name: str, external: tuple[str, ...], folder: Path
) -> dict[str, str]:
    """Copy the files to disk and return the SHA-256 of each by its relative name."""
    digests = {name: _copy_one(os.open(source, os.O_RDONLY), folder, name)}
    for other in external:
        digests[other] = _copy_one(open_beneath(source.parent, other), folder, other)
    return digests


def _copy_one(opened: int, folder: Path, name: str) -> str:
    digest = hashlib.sha256()
    with open(opened, "rb") as original:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # "x": a name that is another one on this file system must not overwrite it.
        with target.open("xb") as copy:
            while chunk := original.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
    return digest.hexdigest()


def _holds(folder: Path, files: dict[str, str]) -> bool:
    """Return whether a folder has these files, by their SHA-256."""
    try:
        for name, digest in files.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return False
    except OSError:
        return False
    return True


def _digest(files: dict[str, str]) -> str:
    """Return the SHA-256 of the manifest: names and digests, sorted, as JSON."""
    manifest = json.dumps(sorted(files.items()), separators=(",", ":"))
    return hashlib.sha256(manifest.encode()).hexdigest()


def sync_folder(folder: str | Path) -> None:
    """Make names and renames in a folder survive a power cut."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(folder: Path) -> None:
    """Delete a folder, read-only or gone already."""
    with suppress(FileNotFoundError):
        for parent, _, _ in os.walk(folder):
            os.chmod(parent, 0o700)
        shutil.rmtree(folder)

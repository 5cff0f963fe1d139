"""The registry as a model repository: folders that the loader reads, and nobody edits.

``<root>/<model>/<version>/`` holds hard links into the artefact store, ``config.pbtxt``
names the versions to load, and ``traffic.json`` says who answers. They change by
renames alone, so that a reader finds the old or the new state, also after kill -9 and
without a controller.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from google.protobuf import text_format

from gateway.errors import LoadFailed
from gateway.protocol.model_config_pb2 import ModelConfig
from gateway.registry.decisions import wanted
from gateway.registry.model_config import ANSWERING, DIGESTS, SHADOWS
from gateway.registry.records import Model
from gateway.registry.repository import TRAFFIC
from gateway.registry.store import ArtefactStore, sync_folder
from gateway.traffic.table import MODEL_TRAFFIC

CONFIG = "config.pbtxt"
_NEW, _OLD = ".new-", ".old-"


class RepositoryView:
    """A folder in Triton's layout that shows what the registry wants loaded.

    One process writes it; calls block on the disk. Making one deletes what a run that
    died had not finished.
    """

    def __init__(self, root: Path, store: ArtefactStore) -> None:
        self._root = root
        self._store = store
        root.mkdir(parents=True, exist_ok=True)
        for pattern in (f"{_NEW}*", f"{_OLD}*", f"*/{_NEW}*", f"*/{_OLD}*"):
            for left_over in root.glob(pattern):
                _remove(left_over)

    def materialise(
        self,
        model: Model,
        *,
        more: Collection[int] = (),
        shadows: Collection[int] = (),
    ) -> tuple[int, ...]:
        """Show a model as it is; repairs what is missing or was changed.

        Args:
            model: As recorded.
            more: Versions to load besides those that the record wants, where they
                may serve.
            shadows: Versions to shadow besides those.

        Versions that are no longer wanted keep their folders, which cost no space,
        so that a loader that has just read the old configuration still finds them.

        Returns:
            The versions to load; where there are none, the model is not shown.

        Raises:
            LoadFailed: The folder cannot be written, or an artefact is gone.
        """
        answering, watching = wanted_with(model, more, shadows)
        versions = tuple(sorted(answering | watching))
        config = config_of(model, answering, watching) if versions else b""
        target = self._root / model.name
        try:
            if not versions:
                self._discard(target)
                return ()
            if target.is_dir() and not target.is_symlink():
                self._fill(target, model, versions, config)
                return versions
            self._discard(target)
            # Whole before it has its name: half a model would be served as it is.
            folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._root))
            folder.chmod(0o755)  # workers may run as another user
            self._fill(folder, model, versions, config)
            folder.rename(target)
            sync_folder(self._root)
        except OSError as error:
            raise LoadFailed(
                f"{model.name}: cannot be shown in {self._root}: {error.strerror}; "
                "free space in state_dir, make it writable, or restore the artefacts"
            ) from error
        return versions

    def config(self, name: str) -> bytes | None:
        """Return what is to be loaded of a model; ``None`` if it is not shown."""
        return _read(self._root / name / CONFIG)

    def names(self) -> tuple[str, ...]:
        """Return the models that are shown, sorted."""
        shown = (one.name for one in self._root.iterdir() if one.is_dir())
        return tuple(sorted(name for name in shown if not name.startswith(".")))

    def remove(self, name: str) -> None:
        """Show a model no longer."""
        self._discard(self._root / name)

    def _fill(
        self,
        folder: Path,
        model: Model,
        versions: tuple[int, ...],
        config: bytes,
    ) -> None:
        for number in versions:
            artefact = self._store.folder(model.versions[number].digest)
            self._show(artefact, folder / str(number))
        _put(folder / CONFIG, config)
        _put(folder / TRAFFIC, MODEL_TRAFFIC.dump_json(model.traffic))

    def _show(self, artefact: Path, target: Path) -> None:
        """Make a folder of hard links to an artefact's files, if it is not that yet."""
        files = [
            path.relative_to(artefact)
            for path in sorted(artefact.rglob("*"))
            if path.is_file()
        ]
        if not files:
            raise OSError(0, f"artefact {artefact.name} is gone from the store")
        if all(_same(artefact / file, target / file) for file in files):
            return
        self._discard(target)
        folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=target.parent))
        folder.chmod(0o755)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.link(artefact / file, folder / file)
        for parent, _, _ in os.walk(folder):
            sync_folder(parent)
        folder.rename(target)
        sync_folder(target.parent)

    def _discard(self, path: Path) -> None:
        """Take a path away in one step, and then delete it."""
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            doomed = Path(tempfile.mkdtemp(prefix=_OLD, dir=path.parent))
            path.rename(doomed / "x")
            _remove(doomed)


def config_of(
    model: Model, answering: Collection[int], shadows: Collection[int]
) -> bytes:
    """Return a model's ``config.pbtxt``: the champion's, with the versions to load.

    It says what their bytes must be, so that no others are loaded in their place.
    Without arms it is that of the highest version.
    """
    versions = sorted({*answering, *shadows})
    champion = model.traffic.champion
    leading = champion.version if champion else versions[-1]
    config = ModelConfig()
    text_format.Parse(model.versions[leading].config, config)
    config.name = model.name
    config.version_policy.specific.versions.extend(versions)
    digests = (f"{version}={model.versions[version].digest}" for version in versions)
    config.parameters[DIGESTS].string_value = ",".join(digests)
    for name, those in ((SHADOWS, shadows), (ANSWERING, answering)):
        if shadows:  # else all answer
            text = ",".join(str(version) for version in versions if version in those)
            config.parameters[name].string_value = text
    return text_format.MessageToString(config).encode()


def wanted_with(
    model: Model, more: Collection[int], shadows: Collection[int]
) -> tuple[set[int], set[int]]:
    """Return the versions that answer, and those that shadow; some may do both."""
    answering, watching = wanted(model)
    answering |= {version for version in more if model.may_serve(version)}
    return answering, watching | ({*shadows} & {*model.versions})


def _put(target: Path, content: bytes) -> None:
    """Give a file other content in one step, if it has not that already."""
    if _read(target) == content:
        return
    handle, name = tempfile.mkstemp(prefix=_NEW, dir=target.parent)
    with open(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, target)
    sync_folder(target.parent)


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()

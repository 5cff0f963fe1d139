"""The model repository: which models and versions a folder in Triton's layout offers.

``<root>/<model>/<version>/model.onnx``, with an optional ``config.pbtxt`` and
``warmup/`` in the model's folder. Reads names and configurations, never a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gateway.catalogue import SHADOW_SUFFIX
from gateway.config import AdmissionConfig, BatchingConfig
from gateway.errors import (
    ChangeRefused,
    InvalidRequest,
    LoadFailed,
    UnknownModel,
    unknown_model,
)
from gateway.protocol.model_config_pb2 import ModelConfig
from gateway.registry.config_text import parse_json, parse_pbtxt, refused
from gateway.registry.model_config import (
    ANSWERING,
    DIGESTS,
    SHADOWS,
    ModelSettings,
    derive_settings,
)
from gateway.traffic.table import LATEST, MODEL_TRAFFIC, ModelTraffic

DEFAULT_FILE = "model.onnx"
TRAFFIC = "traffic.json"
"""File with the traffic of a model that the registry keeps."""
MAX_CONFIG_BYTES = 1 << 20
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_OVERRIDE = "file:"


@dataclass(frozen=True, slots=True)
class VersionSource:
    """A version to load.

    Attributes:
        version: Its number, at least 1.
        path: Its ONNX file.
    """

    version: int
    path: Path


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """What the repository says about a model.

    Attributes:
        name: Model name.
        versions: Versions its version policy chooses, ascending, at least one.
        settings: How to serve it.
        declared_config: Its configuration as written; ``None`` if it has none.
        notes: Worth a log line: what was ignored, and why.
        answering: Versions that answer clients.
        shadows: Versions that get copies of requests.
        digests: Of the artefacts that versions must be, where that is on record.
    """

    name: str
    versions: tuple[VersionSource, ...]
    settings: ModelSettings
    declared_config: ModelConfig | None
    notes: tuple[str, ...]
    answering: frozenset[int] = frozenset()
    shadows: frozenset[int] = frozenset()
    digests: Mapping[int, str] = field(default_factory=dict)


class Repository:
    """A folder of models. Calls block on the disk and see its state of the moment.

    Args:
        root: The folder.
        registered: Folder that the registry keeps in the same layout; what it holds
            of a model is used in place of what `root` does.
        batching: Server defaults.
        admission: Server defaults.
    """

    def __init__(
        self,
        root: Path,
        *,
        registered: Path | None = None,
        batching: BatchingConfig | None = None,
        admission: AdmissionConfig | None = None,
    ) -> None:
        self._root = root
        self._registered = registered
        self._batching = batching or BatchingConfig()
        self._admission = admission or AdmissionConfig()

    def names(self) -> tuple[str, ...]:
        """Return the models' names, sorted; hidden folders are none.

        Raises:
            LoadFailed: The repository cannot be read.
        """
        try:
            folders = {entry.name for entry in self._root.iterdir() if entry.is_dir()}
            if self._registered is not None and self._registered.is_dir():
                folders.update(entry.name for entry in self._registered.iterdir())
        except OSError as error:
            raise LoadFailed(
                f"the model repository {self._root} cannot be read: {error.strerror}; "
                "set model_repository to a folder of models"
            ) from error
        return tuple(sorted(name for name in folders if not name_fault(name)))

    def is_registered(self, name: str) -> bool:
        """Return whether the registry decides what is served of a model."""
        kept = self._registered
        return kept is not None and not name_fault(name) and (kept / name).is_dir()

    def check_free(self, name: str) -> None:
        """Refuse to decide what is served of a model past the registry.

        Raises:
            ChangeRefused: The registry has it, and with it approval and audit.
        """
        if self.is_registered(name):
            raise ChangeRefused(
                f"'{name}' is in the registry, which alone decides what is served of "
                "it: see `baton models` and `baton traffic`"
            )

    def read(self, name: str, *, config_json: str | None = None) -> ModelDefinition:
        """Return what there is to load of a model.

        Args:
            name: Model name.
            config_json: A configuration to use in place of its ``config.pbtxt``.

        Raises:
            UnknownModel: There is no such model, or no version of it.
            ConfigRefused: Its configuration is wrong or asks for what we do not do.
            LoadFailed: Its folder cannot be read.
        """
        folder = self._root / name
        try:
            if self._registered is not None and self.is_registered(name):
                folder = self._registered / name
            if name_fault(name) or not folder.is_dir():
                raise unknown_model(name)
            config, unknown = read_config(name, folder, config_json)
            settings, ignored = derive_settings(
                name,
                config,
                folder=folder,
                batching=self._batching,
                admission=self._admission,
            )
            found, skipped = find_versions(name, folder, config or ModelConfig())
        except OSError as error:
            raise LoadFailed(f"{name}: cannot be read: {error.strerror}") from error
        versions, absent = _chosen(name, found, config or ModelConfig())
        notes = (*unknown, *ignored, *skipped, *absent)
        notes += _left_out(self._root / name, folder)
        if not versions:
            way_out = () if found else (f"put the first at {name}/1/{DEFAULT_FILE}",)
            raise UnknownModel(
                "; ".join((f"'{name}' has no available versions", *notes, *way_out))
            )
        extra = config or ModelConfig()
        shadows = _versions(name, extra, SHADOWS)
        chosen = frozenset(source.version for source in versions)
        return ModelDefinition(
            name,
            versions,
            settings,
            config,
            notes,
            _versions(name, extra, ANSWERING) if shadows else chosen,
            shadows,
            _digests(name, extra),
        )


def _left_out(own: Path, folder: Path) -> tuple[str, ...]:
    """Say of a registered model which newer versions its own folder has."""
    try:
        table = MODEL_TRAFFIC.validate_json((folder / TRAFFIC).read_bytes())
        there = [int(entry.name) for entry in own.iterdir() if entry.name.isdigit()]
    except (OSError, ValueError):  # it has no folder of its own, or no registry
        return ()
    others = sorted(v for v in there if v > table.aliases.get(LATEST, 0))
    if own == folder or not others:
        return ()
    return (
        f"versions {', '.join(map(str, others))} of its folder in the model repository "
        "are not looked at: the registry has this model; `baton models import` takes "
        "them in",
    )


def tables(registered: Path) -> dict[str, ModelTraffic]:
    """Return the traffic of all models that the registry keeps, as it last was.

    Raises:
        LoadFailed: One cannot be read; it names the file and the way out.
    """
    found = {}
    for file in sorted(registered.glob(f"*/{TRAFFIC}")):
        try:
            found[file.parent.name] = MODEL_TRAFFIC.validate_json(file.read_bytes())
        except (OSError, ValueError) as error:
            raise LoadFailed(
                f"{file} cannot be read: {error}; delete it: the controller writes it "
                "again"
            ) from error
    return found


def registered(state_dir: Path) -> Path:
    """Return the folder in which the registry keeps what is to be served."""
    return state_dir / "registry" / "repository"


def write_override(name: str, files: dict[str, bytes], target: Path) -> None:
    """Lay files of a load request out as a repository that holds one model.

    Args:
        name: Model name.
        files: Parameter name, such as ``file:1/model.onnx``, to content.
        target: An empty folder, for `Repository`.

    Raises:
        InvalidRequest: A name would leave the model's folder.
        LoadFailed: The files cannot be written.
    """
    fault = name_fault(name)
    if fault:
        raise InvalidRequest(f"model name {name[:100]!r} {fault}")
    for parameter, content in files.items():
        path = PurePosixPath(parameter.removeprefix(_OVERRIDE))
        if not parameter.startswith(_OVERRIDE) or not _stays_below(path):
            raise InvalidRequest(
                f"parameter {parameter[:100]!r} must be '{_OVERRIDE}' and a relative "
                f"path in the model's folder, such as '{_OVERRIDE}1/{DEFAULT_FILE}'"
            )
        try:
            file = target / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as opened:
                opened.write(content)
        except OSError as error:
            raise LoadFailed(
                f"{name}: {str(path)!r} cannot be written: {error.strerror}"
            ) from error


def name_fault(name: str) -> str:
    """Return what is wrong with a model name, or an empty string."""
    if not 0 < len(name.encode(errors="replace")) <= 255:
        return "must have 1 to 255 bytes"
    if name.startswith("."):
        return "must not start with a dot"
    if name.endswith(SHADOW_SUFFIX):
        return f"must not end in '{SHADOW_SUFFIX}': counters of shadows have such names"
    if not name.isprintable() or set(name) & set("/\\"):
        return "must not hold path separators or control characters"
    return ""


def _versions(name: str, config: ModelConfig, parameter: str) -> frozenset[int]:
    if parameter not in config.parameters:
        return frozenset()
    text = config.parameters[parameter].string_value
    try:
        return frozenset(int(number) for number in text.split(",") if number)
    except ValueError:
        raise refused(
            name, f"parameter {parameter} {text!r} must be as in '2,3'"
        ) from None


def _digests(name: str, config: ModelConfig) -> dict[int, str]:
    if DIGESTS not in config.parameters:
        return {}
    text = config.parameters[DIGESTS].string_value
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    try:
        return {int(number): digest for number, _, digest in pairs}
    except ValueError:
        raise refused(
            name, f"parameter {DIGESTS} {text[:200]!r} must be as in '1=DIGEST'"
        ) from None


def _stays_below(path: PurePosixPath) -> bool:
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and str(path).isprintable()
    )


def read_config(
    name: str, folder: Path, config_json: str | None = None
) -> tuple[ModelConfig | None, tuple[str, ...]]:
    """Return a model's configuration, ``None`` if it has none, and notes on it."""
    if config_json is not None:
        return parse_json(config_json, f"{name}: config parameter")
    source = f"{name}/config.pbtxt"
    try:
        with (folder / "config.pbtxt").open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return None, ()
    if len(data) > MAX_CONFIG_BYTES:
        raise refused(source, f"is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return parse_pbtxt(data.decode(), source)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refused(f"{source}:{line}", "is not UTF-8 text") from error


def find_versions(
    name: str, folder: Path, config: ModelConfig
) -> tuple[tuple[VersionSource, ...], tuple[str, ...]]:
    """Return every version there is, ascending, and notes on what is none."""
    file = config.default_model_filename or DEFAULT_FILE
    if len(PurePosixPath(file).parts) != 1 or not _stays_below(PurePosixPath(file)):
        raise refused(
            name, f"default_model_filename {file!r} must be a plain file name"
        )
    found, notes = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name == "warmup" or entry.name.startswith(".") or not entry.is_dir():
            continue
        path = entry / file
        if path.is_dir():
            path /= DEFAULT_FILE  # Triton's layout of models with external data
        if not _VERSION.fullmatch(entry.name):
            reason = "is no version: a version is a whole number such as 1, not 01"
        elif not path.is_file():
            reason = f"holds no {file}"
        else:
            found.append(VersionSource(int(entry.name), path))
            continue
        notes.append(f"{name}: folder {entry.name!r} {reason}")
    return tuple(sorted(found, key=lambda source: source.version)), tuple(notes)


def _chosen(
    name: str, found: tuple[VersionSource, ...], config: ModelConfig
) -> tuple[tuple[VersionSource, ...], tuple[str, ...]]:
    """Apply the version policy: the latest one, where nothing is declared."""
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return found, ()
    if choice == "specific":
        wanted = set(policy.specific.versions)
        absent = sorted(wanted - {source.version for source in found})
        notes = tuple(
            f"{name}: version {version} of version_policy is not there"
            for version in absent
        )
        return tuple(source for source in found if source.version in wanted), notes
    return found[-max(1, policy.latest.num_versions) :], ()

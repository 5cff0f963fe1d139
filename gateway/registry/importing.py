"""Importing models: from files, folders, Triton repositories, URLs and MLflow.

Whatever it comes from, a model is taken into the artefact store under one name, so that
the same bytes are one artefact. Nothing here changes the registry.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import yaml
from google.protobuf import text_format

from featurizer.datatypes import BY_ONNX_TYPE
from gateway.config import AdmissionConfig, BatchingConfig
from gateway.errors import InvalidRequest, LoadFailed
from gateway.protocol.model_config_pb2 import ModelConfig
from gateway.registry.mlflow import MLFLOW, fetch
from gateway.registry.model_config import derive_settings
from gateway.registry.records import (
    Candidate,
    Lineage,
    Metadata,
    Signature,
    Tensor,
    Version,
    metadata_from,
)
from gateway.registry.remote import download, without_credentials
from gateway.registry.repository import DEFAULT_FILE, find_versions, read_config
from gateway.registry.store import ArtefactStore
from workers.borders import read_borders
from workers.signature import Port
from workers.verify import ModelRefused

METADATA_FILES = ("baton.yaml", "baton.yml", "baton.json")
MAX_METADATA_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Import:
    """A model found at a source.

    Attributes:
        model: Name it has there; the registry's may differ.
        candidates: Its versions, in the store.
    """

    model: str
    candidates: tuple[Candidate, ...]


def take_in(source: str, store: ArtefactStore, *, max_bytes: int) -> tuple[Import, ...]:
    """Take all models at a source into the artefact store.

    Args:
        source: An ONNX file; a folder with one, and perhaps ``config.pbtxt`` and
            ``baton.yaml`` or ``baton.json`` beside it; a model folder or a repository
            in Triton's layout; an fsspec URL of any of these; or
            ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` of an MLflow registry.
        store: Where to.
        max_bytes: Most bytes that are downloaded.

    Raises:
        InvalidRequest: There is no model at the source, or what describes it is wrong.
        LoadFailed: A model was refused or could not be read.
    """
    if "://" not in source and not source.startswith(MLFLOW):
        return _take_in_path(Path(source).absolute(), store, source)
    with tempfile.TemporaryDirectory(prefix="baton-import-") as folder:
        if not source.startswith(MLFLOW):
            path = download(source, Path(folder), max_bytes=max_bytes)
            return _take_in_path(path, store, without_credentials(source))
        fetched = fetch(source, Path(folder))
        made = _take_in_file(fetched.path, store, source, fetched.model)
        return (Import(fetched.model, (replace(made, metadata=fetched.metadata),)),)


def kept(
    there: Mapping[int, Version],
    candidates: Iterable[Candidate],
    fields: Mapping[str, object],
) -> Iterator[str]:
    """Yield notes on what a source says of versions otherwise than they keep it.

    Args:
        there: The model's versions before the import.
        candidates: What was imported.
        fields: Of the metadata, that the import replaced; known to be right.
    """
    lineage = cast("Mapping[str, object]", fields.get("lineage", {}))
    replaced = {*fields, *(f"lineage.{name}" for name in lineage)}
    for one in candidates:
        old = there.get(one.version or 0)
        if old is None or old.digest != one.digest:
            continue
        known = _said(old.metadata)
        names = [
            name
            for name, value in _said(one.metadata).items()
            if name not in replaced and value not in ("", known[name])
        ]
        if old.config != one.config:
            names.append("config.pbtxt")
        if names:
            yield (
                f"version {old.version} was there already, and keeps what was known of "
                f"it: the source has other {', '.join(names)} (`baton models describe` "
                "replaces metadata; another configuration is a new version)"
            )


def _said(metadata: Metadata) -> dict[str, object]:
    """Return what there is to say, by the name of its field; empty for nothing.

    Not where it was read from: a copy may lie anywhere.
    """
    value = asdict(metadata)
    lineage = value.pop("lineage")
    del lineage["source"]
    parts = {f"lineage.{name}": part for name, part in lineage.items()}
    return {name: part or "" for name, part in (value | parts).items()}


def _take_in_path(path: Path, store: ArtefactStore, source: str) -> tuple[Import, ...]:
    try:
        name = path.stem if path.is_file() else path.name
        if path.is_file():
            return (Import(name, (_take_in_file(path, store, source, name),)),)
        if not path.is_dir():
            raise InvalidRequest(
                f"{source}: there is nothing; name an ONNX file, a folder, a URL, or "
                "models:/NAME@ALIAS"
            )
        file = _only_model(path)
        if file is not None:
            made = _take_in_file(file, store, source, name)
            made = _described(made, path, name, source)
            return (Import(name, (made,)),)
        found = tuple(_triton(path, store, source.rstrip("/")))
    except OSError as error:
        raise LoadFailed(f"{source}: cannot be read: {error.strerror}") from error
    if not found:
        raise InvalidRequest(
            f"{source}: holds no {DEFAULT_FILE} and is no model repository, which has "
            f"MODEL/VERSION/{DEFAULT_FILE}"
        )
    return found


def _only_model(folder: Path) -> Path | None:
    """Return the ONNX file of a folder that holds one version."""
    if (folder / DEFAULT_FILE).is_file():
        return folder / DEFAULT_FILE
    files = [path for path in sorted(folder.glob("*.onnx")) if path.is_file()]
    if len(files) > 1:
        raise InvalidRequest(
            f"{folder.name}: holds {len(files)} ONNX files; name the one to import"
        )
    return files[0] if files else None


def _triton(root: Path, store: ArtefactStore, source: str) -> Iterator[Import]:
    """Yield the model whose folder this is, or else the models in its folders."""
    made = _triton_model(root, store, source)
    if made is not None:
        yield made
        return
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            made = _triton_model(folder, store, f"{source}/{folder.name}")
            if made is not None:
                yield made


def _triton_model(folder: Path, store: ArtefactStore, source: str) -> Import | None:
    name = folder.name
    config, _ = read_config(name, folder)
    found, skipped = find_versions(name, folder, config or ModelConfig())
    if not found:
        return None
    served = config.version_policy.specific.versions if config is not None else ()
    candidates = []
    for version in found:
        where = f"{source}/{version.version}"
        made = _take_in_file(version.path, store, where, name)
        made = _described(made, folder, name, where, version.path.parent)
        candidates.append(
            replace(
                made,
                version=version.version,
                notes=(*made.notes, *skipped),
                waits=bool(served) and version.version not in served,
            )
        )
    return Import(name, tuple(candidates))


def _take_in_file(
    file: Path, store: ArtefactStore, source: str, name: str
) -> Candidate:
    try:
        artefact = store.take_in(file, name=DEFAULT_FILE)
    except ModelRefused as refusal:
        raise LoadFailed(f"{name}: {refusal}") from refusal
    metadata = Metadata(lineage=Lineage(source=source))
    return Candidate(artefact.digest, read_signature(artefact.path), metadata=metadata)


def _described(
    candidate: Candidate, folder: Path, name: str, source: str, *more: Path
) -> Candidate:
    """Add the configuration of a folder, and the metadata of it and of others."""
    config, notes = read_config(name, folder)
    text, left_out = _config_text(name, folder, config)
    metadata: dict[str, object] = {}
    for place in (folder, *more):
        metadata |= _read_metadata(place)
    made = metadata_from(metadata, f"{source}/{METADATA_FILES[0]}")
    if not made.lineage.source:
        made = replace(made, lineage=replace(made.lineage, source=source))
    notes = (*candidate.notes, *notes, *left_out)
    return replace(candidate, config=text, metadata=made, notes=notes)


def read_signature(path: Path) -> Signature:
    """Read what a model file in the store takes and gives."""
    graph, open_ranks = read_borders(path)

    def tensor(port: Port) -> Tensor:
        datatype = BY_ONNX_TYPE.get(port.onnx_type)
        shape = None if port.name in open_ranks else port.shape
        return Tensor(port.name, datatype.name if datatype else port.onnx_type, shape)

    return Signature(
        tuple(tensor(port) for port in graph.inputs if not port.has_default),
        tuple(tensor(port) for port in graph.outputs),
    )


def _config_text(
    name: str, folder: Path, config: ModelConfig | None
) -> tuple[str, tuple[str, ...]]:
    """Return a configuration as the registry keeps it, with notes on what it leaves."""
    if config is None:
        return "", ()
    defaults = BatchingConfig(), AdmissionConfig()
    _, notes = derive_settings(
        name, config, folder=folder, batching=defaults[0], admission=defaults[1]
    )
    kept = ModelConfig()
    kept.CopyFrom(config)
    # The registry decides on name, file and versions.
    for field in ("name", "default_model_filename", "version_policy"):
        kept.ClearField(field)
    del kept.model_warmup[:]
    for run in config.model_warmup:
        if any(value.input_data_file for value in run.inputs.values()):
            note = "its data files are not imported; use zero_data or random_data"
            notes = (*notes, f"{name}: model_warmup '{run.name}' is left out: {note}")
        else:
            kept.model_warmup.add().CopyFrom(run)
    return text_format.MessageToString(kept), notes


def _read_metadata(folder: Path) -> dict[str, object]:
    there = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(there) > 1:
        names = " and ".join(path.name for path in there)
        raise InvalidRequest(f"{folder.name}: has {names}; keep one of them")
    if not there:
        return {}
    where = f"{folder.name}/{there[0].name}"
    with there[0].open("rb") as file:
        data = file.read(MAX_METADATA_FILE_BYTES + 1)
    if len(data) > MAX_METADATA_FILE_BYTES:
        raise InvalidRequest(f"{where}: has more than {MAX_METADATA_FILE_BYTES} bytes")
    try:
        # JSON is YAML, but for tabs and a few characters; so each as what it is.
        is_json = there[0].suffix == ".json"
        value = json.loads(data) if is_json else yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"{where}: cannot be read: {reason}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: is not a mapping of metadata fields")
    return value

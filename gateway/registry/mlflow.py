"""Fetching a version from an MLflow model registry (extra ``mlflow``).

The registry is where ``MLFLOW_REGISTRY_URI`` or ``MLFLOW_TRACKING_URI`` says, as for
MLflow's own tools.

Source: MLflow, "Model Registry Workflows": ``models:/NAME/VERSION`` and
``models:/NAME@ALIAS``; "MLflow Models": ``flavors.onnx.data`` of the file MLmodel.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from gateway.errors import InvalidRequest, LoadFailed
from gateway.registry.records import Lineage, Metadata
from workers.verify import shown

MLFLOW = "models:/"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>[0-9]+))")
_WHERE = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_MAX_TEXT = 4096
_MAX_PARAMETERS = 1000


@dataclass(frozen=True, slots=True)
class Fetched:
    """A version of an MLflow registry, downloaded.

    Attributes:
        model: Its registered name.
        path: Its ONNX file.
        metadata: What MLflow knows of it.
    """

    model: str
    path: Path
    metadata: Metadata


def fetch(uri: str, folder: Path) -> Fetched:
    """Download a version and what is known about it.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        folder: Where to; empty.

    Raises:
        InvalidRequest: The URI is wrong, MLflow is not installed, or the version holds
            no ONNX model.
        LoadFailed: MLflow could not be reached, or has no such version.
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise InvalidRequest(
            f"{uri}: is not models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    try:
        from mlflow import MlflowClient
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise InvalidRequest(
            f"{uri}: MLflow is not installed: install the extra `mlflow`, which in a "
            "checkout is `pip install '.[mlflow]'`"
        ) from error
    try:
        client = MlflowClient()
        if parts["alias"]:
            found = client.get_model_version_by_alias(parts["name"], parts["alias"])
        else:
            found = client.get_model_version(parts["name"], parts["number"])
        source = client.get_model_version_download_uri(found.name, found.version)
        path = download_artifacts(artifact_uri=source, dst_path=str(folder))
        run = client.get_run(found.run_id).data if found.run_id else None
    except (MlflowException, ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        named = any(os.environ.get(name) for name in _WHERE)
        hint = (
            "" if named else f"; {' or '.join(_WHERE)} of the gateway says where it is"
        )
        raise LoadFailed(f"{uri}: MLflow says: {reason}{hint}") from error
    tags = run.tags if run else {}
    parameters = dict(sorted(run.params.items())[:_MAX_PARAMETERS]) if run else {}
    metrics = run.metrics if run else {}
    lineage = Lineage(
        source=f"models:/{found.name}/{found.version}",
        code_commit=_cut(tags.get("mlflow.source.git.commit", "")),
        run_id=_cut(found.run_id or ""),
        parameters={key: _cut(value) for key, value in parameters.items()},
    )
    metadata = Metadata(
        description=_cut(found.description or ""),
        owner=_cut(found.user_id or tags.get("mlflow.user", "")),
        metrics={key: x for key, x in sorted(metrics.items()) if math.isfinite(x)},
        lineage=lineage,
    )
    return Fetched(found.name, _onnx_file(Path(path), uri), metadata)


def _onnx_file(path: Path, uri: str) -> Path:
    """Return the ONNX file of a model's folder: the flavour's, or the only one."""
    if path.is_file():
        return path
    named = _flavour_file(path, uri)
    places = [named] if named else sorted(path.rglob("*.onnx"))
    # With external data, the flavour names a folder.
    files = [
        file
        for place in places
        for file in (sorted(place.rglob("*.onnx")) if place.is_dir() else [place])
        if file.is_file()
    ]
    files = list(dict.fromkeys(files))
    if len(files) != 1:
        raise InvalidRequest(
            f"{uri}: holds {len(files) or 'no'} ONNX files; log the model with "
            "mlflow.onnx, or register a folder with one model.onnx"
        )
    return files[0]


def _flavour_file(folder: Path, uri: str) -> Path | None:
    try:
        text = (folder / "MLmodel").read_bytes()
        value = yaml.safe_load(text)
        data = value["flavors"]["onnx"]["data"]
    except (FileNotFoundError, KeyError, TypeError):
        return None
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidRequest(f"{uri}: its MLmodel cannot be read") from error
    path = folder / str(data)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidRequest(f"{uri}: its MLmodel names {shown(data)}, outside of it")
    return path


def _cut(text: str) -> str:
    return str(text)[:_MAX_TEXT]

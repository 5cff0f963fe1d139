"""Importing: the same bytes are one artefact, whatever source they come from."""

from __future__ import annotations

import functools
import json
import socket
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateway.errors import InvalidRequest, LoadFailed
from gateway.registry.importing import Import, take_in
from gateway.registry.records import Lineage, Metadata, Signature, Tensor
from gateway.registry.remote import without_credentials
from gateway.registry.store import ArtefactStore
from tests import onnx_models

from .test_artefact_store import external_model

MODEL = onnx_models.logistic_regression(4)
OTHER = onnx_models.logistic_regression(5)
SIGNATURE = Signature(
    (Tensor("x", "FP32", (-1, 4)),), (Tensor("probabilities", "FP32", (-1, 2)),)
)
MAX_BYTES = 1 << 20


def put(root: Path, path: str, content: bytes | str = MODEL) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "store", MAX_BYTES)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def taken(source: Path | str, store: ArtefactStore) -> tuple[Import, ...]:
    return take_in(str(source), store, max_bytes=MAX_BYTES)


def test_a_file_is_one_version(source: Path, store: ArtefactStore) -> None:
    file = put(source, "fraud.onnx")
    (found,) = taken(file, store)
    assert found.model == "fraud"
    (made,) = found.candidates
    assert (made.version, made.config, made.notes) == (None, "", ())
    assert made.signature == SIGNATURE
    assert made.metadata == Metadata(lineage=Lineage(source=str(file)))
    assert (store.folder(made.digest) / "model.onnx").read_bytes() == MODEL


def test_the_same_bytes_are_one_artefact(source: Path, store: ArtefactStore) -> None:
    paths = [
        put(source, "a.onnx"),
        put(source, "one/net.onnx").parent,
        put(source, "models/m/3/model.onnx").parents[2],
        f"file://{put(source, 'b.onnx')}",
    ]
    digests = {taken(path, store)[0].candidates[0].digest for path in paths}
    assert len(digests) == 1
    assert len([*store.folder("x").parent.iterdir()]) == 1


@pytest.mark.parametrize("name", ["baton.yaml", "baton.yml", "baton.json"])
def test_a_folder_may_describe_its_version(
    source: Path, store: ArtefactStore, name: str
) -> None:
    put(source, "model.onnx")
    put(source, "config.pbtxt", 'name: "source" max_batch_size: 8 dynamic_batching {}')
    said = {
        "owner": "ada",
        "metrics": {"auc": 0.91},
        "lineage": {"code_commit": "abc", "parameters": {"depth": "3"}},
    }
    put(source, name, json.dumps(said))
    (found,) = taken(source, store)
    (made,) = found.candidates
    assert found.model == "source"
    assert made.metadata.owner == "ada"
    assert made.metadata.metrics == {"auc": 0.91}
    assert made.metadata.lineage == Lineage(
        source=str(source), code_commit="abc", parameters={"depth": "3"}
    )
    assert made.config == "max_batch_size: 8\ndynamic_batching {\n}\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"baton.yaml": "a: [", "model.onnx": MODEL}, "baton.yaml: cannot be read"),
        ({"baton.json": "{", "model.onnx": MODEL}, "baton.json: cannot be read"),
        ({"baton.json": "[1]", "model.onnx": MODEL}, "not a mapping"),
        ({"baton.yaml": "colour: x", "model.onnx": MODEL}, "colour"),
        ({"baton.yaml": "x: " + "y" * (1 << 20), "model.onnx": MODEL}, "more than"),
        ({"baton.yaml": "", "baton.json": "{}", "model.onnx": MODEL}, "keep one"),
        ({"a.onnx": MODEL, "b.onnx": MODEL}, "2 ONNX files"),
        ({"readme.md": "none"}, "no model.onnx and is no model repository"),
        ({"m/one/model.onnx": MODEL}, "no model.onnx and is no model repository"),
    ],
)
def test_a_folder_that_is_wrong_is_refused(
    source: Path, store: ArtefactStore, files: dict[str, str | bytes], message: str
) -> None:
    for name, content in files.items():
        put(source, name, content)
    with pytest.raises(InvalidRequest, match=message):
        taken(source, store)


def test_what_is_not_there_is_named(source: Path, store: ArtefactStore) -> None:
    with pytest.raises(InvalidRequest, match="there is nothing"):
        taken(source / "absent", store)


def test_a_bad_model_or_configuration_is_refused(
    source: Path, store: ArtefactStore
) -> None:
    file = put(source, "model.onnx", MODEL[:40])
    with pytest.raises(LoadFailed, match="truncated"):
        taken(file, store)
    put(source, "model.onnx")
    put(source, "config.pbtxt", 'backend: "python"')
    with pytest.raises(LoadFailed, match="only ONNX models"):
        taken(source, store)


def test_a_triton_repository_gives_all_models_and_versions(
    source: Path, store: ArtefactStore
) -> None:
    put(source, "a/1/net.onnx")
    put(source, "a/12/net.onnx", OTHER)
    put(source, "a/x/net.onnx", OTHER)
    put(
        source,
        "a/config.pbtxt",
        'name: "a" default_model_filename: "net.onnx" max_batch_size: 4 '
        "version_policy { specific { versions: 1 } } "
        'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { '
        'data_type: TYPE_FP32 dims: 4 input_data_file: "x" } } } '
        'model_warmup { name: "z" batch_size: 1 inputs { key: "x" value { '
        "data_type: TYPE_FP32 dims: 4 zero_data: true } } }",
    )
    put(source, "a/warmup/x", b"\0" * 16)
    put(source, "a/baton.yaml", "owner: ada")
    put(source, "a/12/baton.yaml", "stage: staging")
    put(
        source,
        "b/2/model.onnx/model.onnx",
        external_model("w.bin", 3).SerializeToString(),
    )
    put(source, "b/2/model.onnx/w.bin", b"abc")
    put(source, ".hidden/1/model.onnx")
    put(source, "empty/readme", "none")
    a, b = taken(source, store)
    assert (a.model, b.model) == ("a", "b")
    assert [made.version for made in a.candidates] == [1, 12]
    one, twelve = a.candidates
    assert (one.waits, twelve.waits) == (False, True), "1 is what it serves"
    assert (one.metadata.owner, one.metadata.stage) == ("ada", "")
    assert (twelve.metadata.owner, twelve.metadata.stage) == ("ada", "staging")
    assert twelve.metadata.lineage.source == f"{source}/a/12"
    assert "net.onnx" not in one.config
    assert "version_policy" not in one.config
    assert 'name: "z"' in one.config
    assert 'name: "w"' not in one.config
    assert any("model_warmup 'w' is left out" in note for note in one.notes)
    (two,) = b.candidates
    assert (two.version, two.waits) == (2, False)
    assert (store.folder(two.digest) / "w.bin").read_bytes() == b"abc"
    (again,) = taken(source / "a", store)
    assert [made.digest for made in again.candidates] == [
        made.digest for made in a.candidates
    ]


def test_external_data_that_takes_the_models_name_is_refused(
    source: Path, store: ArtefactStore
) -> None:
    put(source, "net.onnx", external_model("model.onnx", 3).SerializeToString())
    put(source, "model.onnx", b"abc")
    with pytest.raises(LoadFailed, match="cannot be copied"):
        taken(source / "net.onnx", store)


@pytest.fixture
def server(source: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(source))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


def test_a_url_is_downloaded(source: Path, store: ArtefactStore, server: str) -> None:
    put(source, "models/fraud.onnx")
    url = f"{server}/models/fraud.onnx?token=secret"
    (found,) = taken(url, store)
    assert found.model == "fraud"
    assert found.candidates[0].signature == SIGNATURE
    source_said = found.candidates[0].metadata.lineage.source
    assert source_said == f"{server}/models/fraud.onnx"
    with pytest.raises(InvalidRequest, match="nothing at this URL"):
        taken(f"{server}/absent.onnx", store)


def test_nobody_at_a_url_is_not_nothing_at_it(store: ArtefactStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(LoadFailed, match=f"cannot be reached: .*:{port}") as caught:
        taken(f"http://127.0.0.1:{port}/m.onnx?token=secret", store)
    assert "secret" not in caught.value.message


def test_a_folder_of_a_url_is_downloaded(store: ArtefactStore) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/repo/m/1/model.onnx", MODEL)
    memory.pipe("/repo/m/config.pbtxt", b"max_batch_size: 2")
    memory.pipe("/repo/n/5/model.onnx", OTHER)
    try:
        m, n = taken("memory://repo", store)
        assert (m.model, n.model) == ("m", "n")
        assert m.candidates[0].config == "max_batch_size: 2\n"
        assert n.candidates[0].version == 5
        assert n.candidates[0].metadata.lineage.source == "memory://repo/n/5"
        with pytest.raises(InvalidRequest, match="max_model_bytes, 10"):
            take_in("memory://repo", store, max_bytes=10)
        with pytest.raises(InvalidRequest, match="nothing"):
            taken("memory://absent", store)
    finally:
        memory.rm("/repo", recursive=True)


def test_a_url_of_an_unknown_kind_is_refused(store: ArtefactStore) -> None:
    with pytest.raises(InvalidRequest, match="cannot be used"):
        taken("strange://x/y", store)


def test_credentials_do_not_go_on_record() -> None:
    url = "https://user:pass@host:1/a/b.onnx?sig=1#x"
    assert without_credentials(url) == "https://host:1/a/b.onnx"


@pytest.mark.parametrize("uri", ["models:/", "models:/m", "models:/m/x", "models:/m@"])
def test_an_mlflow_uri_that_is_wrong_is_refused(store: ArtefactStore, uri: str) -> None:
    with pytest.raises(InvalidRequest, match="models:/NAME@ALIAS"):
        taken(uri, store)


@pytest.mark.parametrize("source", ["https://[", "s3://[/a"])
def test_what_is_no_url_is_refused(store: ArtefactStore, source: str) -> None:
    with pytest.raises(InvalidRequest, match="the source is no URL"):
        taken(source, store)


def test_a_name_that_no_file_can_have_is_refused(store: ArtefactStore) -> None:
    with pytest.raises(LoadFailed, match="cannot be read: File name too long"):
        taken("/" + "x" * 300, store)


@pytest.mark.filterwarnings("ignore")
def test_without_an_mlflow_registry_it_is_said_what_names_one(
    tmp_path: Path, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow looks for a file of its own
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    with pytest.raises(LoadFailed, match=r"MLflow says: .*; MLFLOW_TRACKING_URI or"):
        taken("models:/a@b", store)


@pytest.mark.filterwarnings("ignore")
def test_a_version_of_an_mlflow_registry_is_fetched_with_its_run(
    tmp_path: Path,
    source: Path,
    store: ArtefactStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    artefacts = (tmp_path / "artefacts").as_uri()
    run = client.create_run(client.create_experiment("e", artefacts)).info
    client.log_param(run.run_id, "depth", 3)
    client.log_metric(run.run_id, "auc", 0.91)
    client.set_tag(run.run_id, "mlflow.source.git.commit", "abc")
    put(source, "model.onnx")
    put(source, "MLmodel", "flavors: {onnx: {data: model.onnx}}")
    client.log_artifacts(run.run_id, str(source), "model")
    client.create_registered_model("fraud")
    at = f"{run.artifact_uri}/model"
    version = client.create_model_version("fraud", at, run.run_id)
    client.set_registered_model_alias("fraud", "champion", version.version)
    for name in ("models:/fraud@champion", "models:/fraud/1"):
        (found,) = taken(name, store)
        (made,) = found.candidates
        assert (found.model, made.signature) == ("fraud", SIGNATURE)
        assert made.metadata.metrics == {"auc": 0.91}
        assert made.metadata.lineage == Lineage(
            source="models:/fraud/1",
            code_commit="abc",
            run_id=run.run_id,
            parameters={"depth": "3"},
        )
    with pytest.raises(LoadFailed, match="MLflow says"):
        taken("models:/fraud@absent", store)
    put(source, "MLmodel", "flavors: {onnx: {data: ../../x.onnx}}")
    client.log_artifacts(run.run_id, str(source), "model")
    with pytest.raises(InvalidRequest, match="outside"):
        taken("models:/fraud/1", store)

"""The model repository: names, versions and configurations of a folder of models."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import BatchingConfig
from gateway.errors import InvalidRequest, LoadFailed, UnknownModel
from gateway.registry.config_text import ConfigRefused
from gateway.registry.repository import (
    ModelDefinition,
    Repository,
    VersionSource,
    write_override,
)


def put(root: Path, path: str, content: str | bytes = b"") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def numbers(definition: ModelDefinition) -> list[int]:
    return [source.version for source in definition.versions]


def test_names_are_the_visible_folders_in_order(tmp_path: Path) -> None:
    for path in ("b/1/model.onnx", "a/x", ".hidden/x", "back\\slash/x", "file"):
        put(tmp_path, path)
    assert Repository(tmp_path).names() == ("a", "b")


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="set model_repository"):
        Repository(tmp_path / "absent").names()


def test_the_latest_version_is_chosen_by_its_number(tmp_path: Path) -> None:
    for version in (2, 9, 10):
        put(tmp_path, f"m/{version}/model.onnx")
    definition = Repository(
        tmp_path, batching=BatchingConfig(max_queue_delay_us=3)
    ).read("m")
    assert definition.name == "m"
    path = tmp_path / "m" / "10" / "model.onnx"
    assert definition.versions == (VersionSource(10, path),)
    assert definition.declared_config is None
    assert definition.settings.max_queue_delay_us == 3
    assert definition.notes == ()


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("latest { num_versions: 2 }", [9, 10]),
        ("latest { }", [10]),
        ("latest { num_versions: 9 }", [2, 9, 10]),
        ("all { }", [2, 9, 10]),
        ("specific { versions: [ 9, 2, 7 ] }", [2, 9]),
    ],
)
def test_the_version_policy_is_applied(
    tmp_path: Path, policy: str, versions: list[int]
) -> None:
    for version in (2, 9, 10):
        put(tmp_path, f"m/{version}/model.onnx")
    put(tmp_path, "m/config.pbtxt", f"version_policy {{ {policy} }}")
    definition = Repository(tmp_path).read("m")
    assert numbers(definition) == versions
    missing = ("m: version 7 of version_policy is not there",)
    assert definition.notes == (missing if "7" in policy else ())


def test_what_is_no_version_is_noted_and_skipped(tmp_path: Path) -> None:
    for folder in ("1", "01", "0", "v2", "9" * 19, "warmup", ".tmp"):
        put(tmp_path, f"m/{folder}/model.onnx")
    put(tmp_path, "m/3/other.onnx")
    put(tmp_path, "m/labels.txt")
    definition = Repository(tmp_path).read("m")
    assert numbers(definition) == [1]
    skipped = [note.split("'")[1] for note in definition.notes]
    assert skipped == ["0", "01", "3", "9" * 19, "v2"]
    assert "m: folder '3' holds no model.onnx" in definition.notes


def test_a_model_file_may_have_another_name_or_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "m/1/net.onnx")
    put(tmp_path, "m/config.pbtxt", 'default_model_filename: "net.onnx"')
    path = put(tmp_path, "folder/1/model.onnx/model.onnx")
    repository = Repository(tmp_path)
    assert repository.read("m").versions[0].path == tmp_path / "m" / "1" / "net.onnx"
    assert repository.read("folder").versions == (VersionSource(1, path),)


@pytest.mark.parametrize("file", ["../x", "/etc/x", "a/b", "..", "."])
def test_a_model_file_outside_its_version_is_refused(tmp_path: Path, file: str) -> None:
    put(tmp_path, "m/1/model.onnx")
    put(tmp_path, "m/config.pbtxt", f'default_model_filename: "{file}"')
    with pytest.raises(ConfigRefused, match="must be a plain file name"):
        Repository(tmp_path).read("m")


@pytest.mark.parametrize(
    "name", ["absent", "", ".", "..", "../m", "a/b", ".m", "m\n", "m\0", "m" * 256]
)
def test_an_unknown_or_impossible_name_is_not_found(tmp_path: Path, name: str) -> None:
    put(tmp_path, "m/1/model.onnx")
    with pytest.raises(UnknownModel) as caught:
        Repository(tmp_path / "m").read(name)
    message = f"Request for unknown model: '{name}' is not found"
    assert caught.value.message.startswith(message)
    assert ("names no model" in caught.value.message) == (name == "")


def test_a_model_without_versions_is_not_found_and_says_why(tmp_path: Path) -> None:
    put(tmp_path, "m/v1/model.onnx")
    with pytest.raises(UnknownModel, match=r"^'m' has no available versions; .*'v1'"):
        Repository(tmp_path).read("m")
    put(tmp_path, "flat/model.onnx")
    with pytest.raises(UnknownModel, match=r"; put the first at flat/1/model\.onnx$"):
        Repository(tmp_path).read("flat")


def test_a_broken_configuration_is_refused_with_its_line(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx")
    for content in (b"max_batch_size: 1\nnope nope", b'name: "m"\n\xff'):
        put(tmp_path, "m/config.pbtxt", content)
        with pytest.raises(ConfigRefused, match=r"^m/config\.pbtxt:2: "):
            Repository(tmp_path).read("m")
    put(tmp_path, "m/config.pbtxt", b"#" * (1 << 21))
    with pytest.raises(ConfigRefused, match="is larger than"):
        Repository(tmp_path).read("m")


def test_a_configuration_that_cannot_be_read_is_a_failed_load(tmp_path: Path) -> None:
    put(tmp_path, "m/config.pbtxt/file")
    with pytest.raises(LoadFailed, match="m: cannot be read: Is a directory"):
        Repository(tmp_path).read("m")


def test_a_configuration_in_json_replaces_the_file(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx")
    put(tmp_path, "m/config.pbtxt", "max_batch_size: 4")
    repository = Repository(tmp_path)
    assert repository.read("m").settings.max_batch_rows == 4
    definition = repository.read("m", config_json='{"max_batch_size": 8, "new": 1}')
    assert definition.settings.max_batch_rows == 8
    assert definition.notes == (
        "m: config parameter: the unknown field ModelConfig.new is ignored",
    )


def test_files_of_a_load_request_become_a_repository(tmp_path: Path) -> None:
    files = {"file:7/model.onnx": b"model", "file:7/sub/w.bin": b"weights"}
    write_override("m", files, tmp_path)
    definition = Repository(tmp_path).read("m", config_json="{}")
    assert numbers(definition) == [7]
    assert definition.versions[0].path.read_bytes() == b"model"
    assert (tmp_path / "m/7/sub/w.bin").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "parameter",
    [
        "file:",
        "file:.",
        "file:../x",
        "file:1/../../../x",
        "file:/x",
        "file:1/a\0",
        "1/model.onnx",
    ],
)
def test_files_of_a_load_request_stay_in_the_models_folder(
    tmp_path: Path, parameter: str
) -> None:
    with pytest.raises(InvalidRequest, match="must be 'file:' and a relative path"):
        write_override("m", {parameter: b""}, tmp_path / "target")
    assert not list(tmp_path.rglob("x"))


@given(
    name=st.sampled_from(["", "..", ".m", "a/b", "a\\b", "m" * 256, "\ud800", "a\t"])
)
def test_a_load_request_needs_a_possible_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match="model name"):
        write_override(name, {"file:1/model.onnx": b""}, Path("never-made"))
    assert not Path("never-made").exists()


def test_files_that_contradict_each_other_are_a_failed_load(tmp_path: Path) -> None:
    files = {"file:1": b"", "file:1/model.onnx": b""}
    with pytest.raises(LoadFailed, match="cannot be written"):
        write_override("m", files, tmp_path)

"""The artefact store keeps whole, verified, read-only copies, and nothing else."""

from __future__ import annotations

import hashlib
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

from gateway.registry import store as store_module
from gateway.registry.store import Artefact, ArtefactStore
from workers.verify import ModelRefused, VerifiedModel

MAX_BYTES = 1 << 24


def external_model(location: str, size: int) -> ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[size])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(size))
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [size])
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "g", [], [y], initializer=[tensor])
    imports = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with external data in a subfolder."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "w.bin").write_bytes(bytes(range(200)))
    path = folder / "model.onnx"
    path.write_bytes(external_model("sub/w.bin", 200).SerializeToString())
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> ArtefactStore:
    return ArtefactStore(root, MAX_BYTES)


@contextmanager
def full_disk() -> Iterator[None]:
    """A disk that takes no more than 4 KiB of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(root: Path) -> list[str]:
    return sorted(entry.name for entry in (root / "sha256").iterdir())


def test_an_artefact_holds_the_model_and_its_external_data(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    artefact = store.take_in(source)
    assert artefact.path == root / "sha256" / artefact.digest / "model.onnx"
    assert artefact.path.read_bytes() == source.read_bytes()
    weights = artefact.path.parent / "sub" / "w.bin"
    assert weights.read_bytes() == bytes(range(200))
    assert contents(root) == [artefact.digest]
    for path in (weights, weights.parent, artefact.path, artefact.path.parent):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o222


def test_the_same_bytes_are_one_artefact_and_other_bytes_another(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    first = store.take_in(source)
    assert store.take_in(source) == first
    (source.parent / "sub" / "w.bin").write_bytes(bytes(200))
    second = store.take_in(source)
    assert second.digest != first.digest
    assert contents(root) == sorted([first.digest, second.digest])


def test_an_artefact_that_was_spoilt_is_put_back(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    artefact = store.take_in(source)
    weights = artefact.path.parent / "sub" / "w.bin"
    for spoilt in (bytes(200), None):
        weights.parent.chmod(0o755)
        weights.chmod(0o644)
        if spoilt is None:
            weights.unlink()
        else:
            weights.write_bytes(spoilt)
        assert store.take_in(source) == artefact
        assert weights.read_bytes() == bytes(range(200))
        assert contents(root) == [artefact.digest]


def test_an_artefact_outlives_its_source_and_the_process(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    artefact = store.take_in(source)
    model = source.read_bytes()
    source.write_bytes(b"overwritten")
    ArtefactStore(root, MAX_BYTES)
    assert artefact.path.read_bytes() == model


def test_a_refused_model_leaves_nothing(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(ModelRefused, match=r"model\.onnx: is truncated"):
        store.take_in(source)
    assert contents(root) == []


def test_nothing_outside_the_models_folder_is_opened(
    store: ArtefactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = source.parent.parent / "secret.bin"
    outside.write_bytes(bytes(200))
    (source.parent / "link.bin").symlink_to(outside)
    os_open, opened = os.open, []

    def record(path: object, *args: object, **options: object) -> int:
        opened.append(str(path))
        return os_open(path, *args, **options)

    monkeypatch.setattr(os, "open", record)
    for location in ("../secret.bin", "link.bin", str(outside)):
        source.write_bytes(external_model(location, 200).SerializeToString())
        with pytest.raises(ModelRefused):
            store.take_in(source)
    assert not [path for path in opened if "secret" in path]


def test_the_digest_file_of_the_source_counts_for_the_copy(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    beside = source.with_name("model.onnx.sha256")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    beside.write_text(f"{digest}  model.onnx\n")
    artefact = store.take_in(source)
    assert not artefact.path.with_name(beside.name).exists()
    beside.write_text(f"{'0' * 64}  model.onnx\n")
    with pytest.raises(ModelRefused, match="its SHA-256 is"):
        store.take_in(source)
    assert contents(root) == [artefact.digest]


@pytest.mark.parametrize(
    ("location", "reason"), [("other.bin", "No such file"), ("", "changed while")]
)
def test_a_model_that_changes_while_it_is_copied_is_refused(
    root: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
    reason: str,
) -> None:
    store = ArtefactStore(root, MAX_BYTES)
    verify = store_module.verify_model
    source.with_name("other.bin").write_bytes(bytes(200))
    changed = external_model(location, 200)
    if not location:
        changed.graph.initializer[0].data_location = TensorProto.DEFAULT

    def verify_then_change(path: Path, *, max_bytes: int) -> VerifiedModel:
        verified = verify(path, max_bytes=max_bytes)
        source.write_bytes(changed.SerializeToString())
        return verified

    monkeypatch.setattr(store_module, "verify_model", verify_then_change)
    with pytest.raises(ModelRefused, match=reason):
        store.take_in(source)
    assert contents(root) == []


def test_a_full_disk_is_named_and_leaves_nothing(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    (source.parent / "sub" / "w.bin").write_bytes(bytes(1 << 16))
    with full_disk(), pytest.raises(ModelRefused, match=r"store: .*; free space"):
        store.take_in(source)
    assert contents(root) == []


def test_what_a_dead_run_left_is_cleaned_at_the_start(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    artefact = store.take_in(source)
    for name in (".new-abc", ".old-def"):
        left_over = root / "sha256" / name
        (left_over / "sub").mkdir(parents=True)
        (left_over / "sub" / "w.bin").write_bytes(b"half")
        left_over.chmod(0o555)
    ArtefactStore(root, MAX_BYTES)
    assert contents(root) == [artefact.digest]


def test_only_unused_artefacts_are_removed(
    store: ArtefactStore, root: Path, source: Path
) -> None:
    kept: Artefact = store.take_in(source)
    (source.parent / "sub" / "w.bin").write_bytes(bytes(200))
    dropped = store.take_in(source)
    with dropped.path.open("rb") as in_use:
        store.remove_unused({kept.digest})
        assert in_use.read() == source.read_bytes()
    assert contents(root) == [kept.digest]
    store.remove_unused(set())
    assert contents(root) == []
    assert store.take_in(source) == dropped

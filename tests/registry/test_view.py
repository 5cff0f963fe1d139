"""The registry as a repository: the loader finds what the registry wants loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from gateway.errors import ChangeRefused, LoadFailed, UnknownModel
from gateway.protocol.model_config_pb2 import ModelConfig
from gateway.registry import decisions
from gateway.registry import view as view_module
from gateway.registry.importing import take_in
from gateway.registry.records import Candidate, Metadata, Model, Signature, Version
from gateway.registry.repository import Repository
from gateway.registry.store import ArtefactStore
from gateway.registry.view import RepositoryView, wanted_with
from gateway.traffic.table import Arm, ModelTraffic, Role, Shadow
from tests import onnx_models

from .registries import only, split
from .test_artefact_store import full_disk


class Shown:
    """A store, a view of it, and model ``m`` with three versions."""

    def __init__(self, folder: Path) -> None:
        self.store = ArtefactStore(folder / "artefacts", 1 << 20)
        self.root = folder / "repository"
        self.view = RepositoryView(self.root, self.store)
        candidates = []
        for number in range(3):
            source = folder / f"{number}.onnx"
            model = onnx.load_from_string(onnx_models.logistic_regression(4))
            model.producer_name = f"producer {number}"
            source.write_bytes(model.SerializeToString())
            (found,) = take_in(str(source), self.store, max_bytes=1 << 20)
            candidates += found.candidates
        self.candidates: list[Candidate] = candidates
        made, _ = decisions.import_versions(Model("m"), candidates, "ada", "now")
        self.model = replace(made, revision=1)

    def read(self) -> tuple[list[int], ModelConfig]:
        definition = Repository(self.root).read("m")
        assert definition.declared_config is not None
        for source in definition.versions:
            digest = self.model.versions[source.version].digest
            original = self.store.folder(digest) / "model.onnx"
            assert source.path.samefile(original)
        return [one.version for one in definition.versions], definition.declared_config


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    return Shown(tmp_path)


def test_the_loader_reads_the_wanted_versions(shown: Shown) -> None:
    assert shown.view.materialise(shown.model) == (3,)
    versions, config = shown.read()
    assert versions == [3]
    assert config.name == "m"
    assert "shadow_versions" not in config.parameters
    traffic = ModelTraffic(arms=only(2), shadows=(Shadow(1), Shadow(3)))
    model = decisions.set_traffic(shown.model, traffic)
    model = decisions.set_alias(model, "blue", 3)
    assert shown.view.materialise(model) == (1, 2, 3)
    versions, config = shown.read()
    assert versions == [1, 2, 3]
    # 3 answers those who ask for the alias as well.
    assert config.parameters["shadow_versions"].string_value == "1,3"
    assert config.parameters["answering_versions"].string_value == "2,3"
    assert Repository(shown.root).names() == shown.view.names() == ("m",)


def test_newer_versions_beside_the_registry_are_said_to_be_left_out(
    shown: Shown, tmp_path: Path
) -> None:
    shown.view.materialise(shown.model)
    own = tmp_path / "models"
    repository = Repository(own, registered=shown.root)
    (own / "m" / "1").mkdir(parents=True)  # imported, and not loaded
    assert repository.read("m").notes == ()
    assert repository.is_registered("m")
    for version in ("7", "4"):
        (own / "m" / version).mkdir()
    (note,) = repository.read("m").notes
    assert "versions 4, 7 of its folder" in note
    with pytest.raises(ChangeRefused, match="baton traffic"):
        repository.check_free("m")
    repository.check_free("other")
    repository.check_free("..")


def test_the_champions_configuration_counts(shown: Shown) -> None:
    versions = {
        number: replace(version, config=f"max_batch_size: {number}\n")
        for number, version in shown.model.versions.items()
    }
    model = decisions.set_traffic(
        replace(shown.model, versions=versions), split(0.5, 0.5)
    )
    shown.view.materialise(model)
    assert shown.read()[1].max_batch_size == 1


def test_showing_again_changes_nothing(shown: Shown) -> None:
    def inodes() -> dict[str, int]:
        return {str(path): path.stat().st_ino for path in shown.root.rglob("*")}

    shown.view.materialise(shown.model)
    before = inodes()
    assert shown.view.materialise(shown.model) == (3,)
    assert inodes() == before


def test_versions_no_longer_wanted_stay_for_those_who_read_before(shown: Shown) -> None:
    shown.view.materialise(shown.model)
    moved = decisions.set_alias(shown.model, "champion", 1)
    moved = replace(moved, traffic=replace(moved.traffic, aliases={"champion": 1}))
    shown.view.materialise(moved)
    assert shown.read()[0] == [1]
    assert (shown.root / "m" / "3" / "model.onnx").is_file()


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: (m / "config.pbtxt").unlink(),
        lambda m: (m / "config.pbtxt").write_text("garbage {"),
        lambda m: (m / "3" / "model.onnx").unlink(),
        lambda m: (m / "3").rename(m / "4"),
        lambda m: (m / "3").rename(m / ".new-x"),
        lambda m: m.rename(m.parent / ".new-y"),
        lambda m: (m.rename(m.parent / ".old-y"), m.write_text("a file")),
        lambda m: (m.rename(m.parent / "n"), m.symlink_to(m.parent / "n")),
        lambda m: (
            (m / "3" / "model.onnx").unlink(),
            (m / "3" / "model.onnx").write_bytes(b"other"),
        ),
    ],
)
def test_what_was_damaged_is_repaired(shown: Shown, damage: object) -> None:
    shown.view.materialise(shown.model)
    damage(shown.root / "m")  # type: ignore[operator]
    view = RepositoryView(shown.root, shown.store)
    view.materialise(shown.model)
    assert shown.read()[0] == [3]
    assert [*shown.root.rglob(".*")] == []


def test_a_model_nothing_of_which_may_serve_is_not_shown(shown: Shown) -> None:
    shown.view.materialise(shown.model)
    closed = replace(shown.model, require_approval=True)
    assert shown.view.materialise(closed) == ()
    with pytest.raises(UnknownModel):
        Repository(shown.root).read("m")
    assert shown.view.materialise(shown.model) == (3,)
    shown.view.remove("m")
    assert shown.view.names() == ()


def test_a_lost_artefact_is_named(shown: Shown) -> None:
    model = shown.model
    broken = replace(model.versions[3], digest="0" * 64)
    with pytest.raises(LoadFailed, match=r"artefact 0{64} is gone"):
        shown.view.materialise(replace(model, versions={**model.versions, 3: broken}))


def test_a_full_disk_leaves_what_was_shown(shown: Shown) -> None:
    shown.view.materialise(shown.model)
    huge = 'parameters { key: "k" value { string_value: "' + "x" * 8192 + '" } }'
    version = replace(shown.model.versions[3], config=huge)
    model = replace(shown.model, versions={**shown.model.versions, 3: version})
    with full_disk(), pytest.raises(LoadFailed, match="free space"):
        shown.view.materialise(model)
    assert shown.read()[0] == [3]
    shown.view.materialise(model)
    assert "k" in shown.read()[1].parameters


def test_links_cost_no_space(shown: Shown) -> None:
    shown.view.materialise(shown.model)
    assert os.stat(shown.root / "m" / "3" / "model.onnx").st_nlink == 2


def test_a_shadow_that_is_to_answer_is_loaded_to_answer() -> None:
    version = Version(1, "d", Signature(), "", Metadata(), "ann", "")
    shadowed = ModelTraffic(
        arms=(Arm(1, Role.CHAMPION, 1.0),),
        shadows=(Shadow(2), Shadow(4)),
        aliases={"latest": 4, "blue": 3},
    )
    versions = {n: replace(version, version=n) for n in (1, 2, 3, 4)}
    model = Model("m", versions=versions, traffic=shadowed)
    assert wanted_with(model, (), ()) == ({1, 3}, {2, 4}), "latest is no reason"
    assert wanted_with(model, {2}, ()) == ({1, 2, 3}, {2, 4})
    assert wanted_with(model, {9}, {3, 9}) == ({1, 3}, {2, 3, 4})


class Killed(BaseException):
    """What kill -9 does to the rest of a function."""


@pytest.mark.parametrize("fresh", [True, False])
def test_dying_at_any_step_leaves_the_old_or_the_new(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    steps = [
        (os, "link"),
        (os, "replace"),
        (os, "chmod"),
        (Path, "rename"),
        (view_module, "sync_folder"),
        (view_module.tempfile, "mkdtemp"),
        (view_module.tempfile, "mkstemp"),
    ]
    shadows = ModelTraffic(arms=only(1), shadows=(Shadow(2),))
    new = decisions.set_traffic(shown.model, shadows)
    for fatal in range(100):
        shown.view.remove("m")
        if not fresh:
            shown.view.materialise(shown.model)
            shutil.rmtree(shown.root / "m" / "1", ignore_errors=True)
            shutil.rmtree(shown.root / "m" / "2", ignore_errors=True)
        left = [fatal]

        def step(original: Callable[..., object]) -> Callable[..., object]:
            def counted(*args: object, **kwargs: object) -> object:
                if left[0] == 0:  # noqa: B023
                    raise Killed
                left[0] -= 1  # noqa: B023
                return original(*args, **kwargs)

            return counted

        with monkeypatch.context() as patched:
            for owner, name in steps:
                patched.setattr(owner, name, step(getattr(owner, name)))
            try:
                shown.view.materialise(new)
            except Killed:
                pass
            else:
                break
        try:
            versions, _ = shown.read()
        except UnknownModel:
            assert fresh
        else:
            assert versions in ([1, 2, 3], [3])
        shown.view = RepositoryView(shown.root, shown.store)
        assert shown.view.materialise(new) == (1, 2, 3)
        assert shown.read()[0] == [1, 2, 3]
        assert [*shown.root.rglob(".*")] == []
    assert 10 < fatal < 99

"""What a failed load leaves behind, and what of it clients are told."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from gateway.catalogue import ModelEntry
from gateway.config import Config
from gateway.errors import LoadFailed
from gateway.registry.lifecycle import Lifecycle
from gateway.registry.placement import Placement
from gateway.registry.repository import Repository
from gateway.registry.store import ArtefactStore
from tests.adversity.harness import put_model, slow_identity
from workers.spec import LoadOrder, LoadReport


class NoFleet:
    """No process anywhere."""

    async def load(self, placement: Placement, *, one_by_one: bool) -> LoadReport:
        raise AssertionError("nothing gets that far")

    async def unload(self, handle: int) -> None:
        """Nothing to free."""

    async def publish(
        self, models: dict[str, ModelEntry | None], *, ready: bool
    ) -> None:
        """Nobody listens."""

    async def released(self, handle: int) -> None:
        """Nobody uses it."""


async def refuse(order: LoadOrder) -> LoadReport:
    return LoadReport(order.handle, error="no good")


def make_lifecycle(folder: Path) -> Lifecycle:
    models = folder / "models"
    put_model(models, "m", slow_identity(1))
    store = ArtefactStore(folder / "store", 1 << 30)
    config = Config(model_repository=models)
    lifecycle = Lifecycle(config, Repository(models), store, refuse)
    lifecycle.fleet = NoFleet()
    return lifecycle


async def test_the_copy_of_a_version_that_failed_is_removed(tmp_path: Path) -> None:
    lifecycle = make_lifecycle(tmp_path)
    left_over = tmp_path / "store" / "sha256" / ("0" * 64)
    with pytest.raises(LoadFailed, match="no good"):
        await lifecycle.load("m")
    assert list((tmp_path / "store" / "sha256").iterdir()) == []
    left_over.mkdir()
    await lifecycle.start(["m"])
    assert not left_over.exists()


async def test_a_failing_disk_is_named_without_our_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", str(tmp_path))

    monkeypatch.setattr(ArtefactStore, "take_in", fail)
    lifecycle = make_lifecycle(tmp_path)
    with pytest.raises(LoadFailed) as failure:
        await lifecycle.load("m")
    reason = "loading failed: Input/output error"
    assert failure.value.message == f"'m' version 1: {reason}"
    assert [row["reason"] for row in lifecycle.index()] == [reason]


async def test_the_index_does_without_a_repository_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    lifecycle = make_lifecycle(tmp_path)
    with pytest.raises(LoadFailed):
        await lifecycle.load("m")
    (tmp_path / "models").rename(tmp_path / "gone")
    assert [row["name"] for row in lifecycle.index()] == ["m"]


async def test_a_model_that_failed_keeps_its_reason_when_it_is_unloaded(
    tmp_path: Path,
) -> None:
    lifecycle = make_lifecycle(tmp_path)
    with pytest.raises(LoadFailed):
        await lifecycle.load("m")
    await lifecycle.unload("m")
    (row,) = lifecycle.index()
    assert (row["state"], row["reason"]) == ("UNAVAILABLE", "no good")

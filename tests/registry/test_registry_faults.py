"""The registry under faults: killed at any point, on a full disk, in any order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.errors import GatewayError, RegistryUnavailable, UnknownModel
from gateway.registry.database import Database
from gateway.registry.decisions import wanted
from gateway.registry.records import Change, Model
from gateway.registry.registry import Registry
from gateway.traffic.table import Arm, ModelTraffic

from .registries import by, candidate, only, opened, split

ROOT = Path(__file__).parents[2]
KILLS = 20 * max(1, int(os.environ.get("ADVERSITY_REPEAT", "1")) // 4)


def test_kill_9_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    """What was acknowledged is there; of what was not, all or nothing."""
    path = tmp_path / "registry.sqlite"
    draw = random.Random(5)
    acknowledged = (0, "")
    for attempt in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.registry.changing", path, str(attempt)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        # The kill falls somewhere within the changes after these.
        lines = [process.stdout.readline() for _ in range(draw.randint(1, 30))]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        whole = [line.split() for line in lines if line.endswith(b"\n")]
        acknowledged = int(whole[-1][0]), whole[-1][1].decode()
        registry = Registry(path)
        verdict = registry.verify(expect=acknowledged[1])
        assert verdict.sound, verdict
        # One change at a time is under way: at most that one was not acknowledged.
        assert verdict.entries - acknowledged[0] in (0, 1)
        model = registry.model("m")
        (newest,) = registry.history(limit=1)
        assert model.revision == newest.to_revision
        assert registry.traffic("m", model.revision) == model.traffic
        registry.close()


def test_a_full_disk_refuses_changes_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    with opened(path) as registry:
        registry.import_versions("m", [candidate(x) for x in "ab"], by())
        connection = registry._database._connection
        assert connection is not None
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        accepted = fill(registry)
        before, head = registry.model("m"), registry.verify()
        assert before.revision == accepted + 1
        with pytest.raises(RegistryUnavailable, match=r"full.*free space"):
            registry.set_alias("m", "a", 1, by("x" * 4000, "y" * 4000))
        assert (registry.model("m"), registry.verify()) == (before, head)
        connection.execute("PRAGMA max_page_count = 1000000")
        assert registry.set_alias("m", "a", 1, by()).revision == before.revision + 1
        assert registry.verify().sound


def fill(registry: Registry) -> int:
    """Change until it is refused; return how often it was not."""
    for accepted in range(10_000):
        before = registry.model("m")
        try:
            registry.set_alias("m", "champion", accepted % 2 + 1, by(reason="z" * 4000))
        except RegistryUnavailable:
            assert registry.model("m") == before
            return accepted
    raise AssertionError("the disk is never full")


ON_TMPFS = """
import sys
from pathlib import Path
from gateway.errors import RegistryUnavailable
from tests.registry.registries import by, candidate, opened
from tests.registry.test_registry_faults import fill
folder = Path(sys.argv[1])
with opened(folder / "registry.sqlite") as registry:
    registry.import_versions("m", [candidate(x) for x in "ab"], by())
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(100_000))
    accepted = fill(registry)
    assert accepted > 0
    verdict = registry.verify()
    assert verdict.sound, verdict
    assert verdict.entries == accepted + 1, verdict
    ballast.unlink()
    assert registry.set_alias("m", "a", 1, by()).seq == accepted + 2
    assert registry.verify().sound
with opened(folder / "registry.sqlite") as registry:
    assert registry.verify().entries == accepted + 2
print("done", accepted)
"""


def test_a_disk_that_is_really_full_refuses_changes(tmp_path: Path) -> None:
    """On a file system of 1 MiB, mounted in a name space of its own."""
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    try:
        able = subprocess.run([*unshare, mount], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if able.returncode:
        pytest.skip("name spaces are not allowed here")
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(ON_TMPFS)
    done = subprocess.run(
        [*unshare, f"{mount} && exec {sys.executable} {script} {tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done ")
    assert [*tmp_path.iterdir()] == []


def test_a_change_that_fails_half_way_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "registry.sqlite") as registry:
        registry.import_versions("m", [candidate()], by())
        before, head = registry.model("m"), registry.verify()
        connection = registry._database._connection
        assert connection is not None
        for table in ("audit", "models", "revisions", "operations"):
            # models are updated; into the others a row is inserted.
            verb = "UPDATE" if table == "models" else "INSERT"
            connection.execute(
                f"CREATE TEMP TRIGGER breaks BEFORE {verb} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'broken'); END"
            )
            with pytest.raises(RegistryUnavailable, match="broken"):
                registry.set_alias("m", "a", 1, by())
            connection.execute("DROP TRIGGER breaks")
            assert (registry.model("m"), registry.verify()) == (before, head)
        assert registry.set_alias("m", "a", 1, by()).revision == 2


def test_a_program_error_within_a_transaction_undoes_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "registry.sqlite")

    def fail() -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO audit VALUES (1, x'00', 'h')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as connection:
        count = connection.execute("SELECT count(*) FROM audit").fetchone()[0]
    assert count == 0
    database.close()


class Machine(RuleBasedStateMachine):
    """Random work on a registry, beside the simplest model of what it must do.

    The model knows arms and aliases, who approved what, and, as a stack, the decisions
    that a rollback returns to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "registry.sqlite"
        self.registry = Registry(self.path)
        self.count = 0
        self.revision = 0
        self.entries = 0
        self.arms: tuple[Arm, ...] = ()
        self.aliases: dict[str, int] = {}
        self.approved: set[int] = set()
        self.required = False
        self.stack: list[tuple[Arm, ...]] = []
        self.last: tuple[str, int] | None = None

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    def allowed(self, arms: tuple[Arm, ...]) -> bool:
        return all(0 < arm.version <= self.count for arm in arms) and (
            not self.required or all(arm.version in self.approved for arm in arms)
        )

    def decided(self, arms: tuple[Arm, ...]) -> None:
        if arms != self.arms:
            if self.arms:
                self.stack.append(self.arms)
            self.arms = arms
        self.aliases["champion"] = arms[0].version

    def attempt(self, work: object, fits: bool) -> bool:
        change: Change = by("ada", "test", expected_revision=self.revision)
        before = self.state()
        try:
            done = work(change)  # type: ignore[operator]
        except GatewayError as error:
            if fits:
                raise AssertionError(f"refused: {error}") from error
            return False
        assert fits
        # What is so already is no change.
        assert done.applied == (self.state() != before)
        self.revision += done.applied
        self.entries += 1
        return True

    def state(self) -> object:
        """Return what the model is, but for the number of its revision."""
        try:
            model: Model = self.registry.model("m")
        except UnknownModel:
            return None
        return replace(model, revision=0, traffic=replace(model.traffic, revision=0))

    @rule(more=st.integers(1, 2))
    def import_some(self, more: int) -> None:
        found = [candidate(str(self.count + n)) for n in range(more)]
        self.attempt(lambda c: self.registry.import_versions("m", found, c), True)
        self.count += more
        self.aliases["latest"] = self.count
        if self.revision == 1:
            self.decided(only(self.count))

    @precondition(lambda self: self.count)
    @rule(version=st.integers(1, 6), alias=st.sampled_from(["a", "b"]))
    def alias(self, version: int, alias: str) -> None:
        fits = version <= self.count and (not self.required or version in self.approved)
        if self.attempt(
            lambda c: self.registry.set_alias("m", alias, version, c), fits
        ):
            self.aliases[alias] = version

    @precondition(lambda self: self.count)
    @rule(version=st.integers(1, 6))
    def promote(self, version: int) -> None:
        fits = self.allowed(only(version)) and len(self.arms) < 2
        if self.attempt(
            lambda c: self.registry.set_alias("m", "champion", version, c), fits
        ):
            self.decided(only(version))

    @precondition(lambda self: self.count)
    @rule(share=st.sampled_from([0.0, 0.25, 0.5]))
    def share(self, share: float) -> None:
        traffic = split(1 - share, share)
        if self.attempt(
            lambda c: self.registry.set_traffic("m", traffic, c),
            self.allowed(traffic.arms),
        ):
            self.decided(traffic.arms)

    @precondition(lambda self: self.count)
    @rule(version=st.integers(1, 6), actor=st.sampled_from(["ada", "bob"]))
    def approve(self, version: int, actor: str) -> None:
        fits = actor != "ada" and version <= self.count
        if self.attempt(
            lambda c: self.registry.approve("m", version, replace(c, actor=actor)), fits
        ):
            self.approved.add(version)

    @precondition(lambda self: self.count)
    @rule(required=st.booleans())
    def require(self, required: bool) -> None:
        kept, self.required = self.required, required
        named = {v for name, v in self.aliases.items() if name != "latest"}
        fits = self.allowed(self.arms) and (not required or named <= self.approved)
        if not self.attempt(
            lambda c: self.registry.require_approval("m", required, c), fits
        ):
            self.required = kept

    @precondition(lambda self: self.count)
    @rule()
    def rollback(self) -> None:
        stack = list(self.stack)
        while stack and stack[-1] == self.arms:
            stack.pop()
        fits = bool(stack) and self.allowed(stack[-1])
        if self.attempt(lambda c: self.registry.rollback("m", c), fits):
            self.arms = stack.pop()
            self.stack = stack
            self.aliases["champion"] = self.arms[0].version

    @precondition(lambda self: self.count)
    @rule(off=st.integers(1, 3))
    def come_late(self, off: int) -> None:
        change = by(expected_revision=self.revision - off)
        with pytest.raises(GatewayError, match=f"at revision {self.revision}"):
            self.registry.set_alias("m", "a", 1, change)

    @precondition(lambda self: self.count and not (self.required and not self.approved))
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        free = self.approved if self.required else range(1, self.count + 1)
        version = data.draw(st.sampled_from(sorted(free)))
        change = by(operation_id=f"op {self.entries}")
        first = self.registry.set_alias("m", "a", version, change)
        assert self.registry.set_alias("m", "a", version, change) == first
        assert first.applied == (self.aliases.get("a") != version)
        self.aliases["a"] = version
        self.revision += first.applied
        self.entries += 1

    @rule()
    def reopen(self) -> None:
        self.registry.close()
        self.registry = Registry(self.path)

    @invariant()
    def is_as_modelled(self) -> None:
        if not self.count:
            return
        model: Model = self.registry.model("m")
        traffic: ModelTraffic = model.traffic
        assert (model.revision, traffic.revision) == (self.revision, self.revision)
        assert [*model.versions] == [*range(1, self.count + 1)]
        assert traffic.arms == self.arms
        assert traffic.aliases == self.aliases
        assert {v for v in model.versions if model.versions[v].approved_by} == (
            self.approved
        )
        live = {arm.version for arm in traffic.arms if arm.share}
        assert live <= wanted(model)[0]
        verdict = self.registry.verify()
        assert verdict.sound, verdict
        assert verdict.entries == self.entries


TestRandomWork = Machine.TestCase
TestRandomWork.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None
)

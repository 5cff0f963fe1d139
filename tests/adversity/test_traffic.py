"""Changes of traffic under load and under faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.client_rpc import ClientError
from gateway.protocol import admin_pb2 as admin
from gateway.protocol import inference_pb2 as pb
from gateway.registry.registry import Registry
from tests.adversity.harness import (
    REPEAT,
    SEED,
    Load,
    nothing_in_flight,
    quiet_port,
    show,
    slow_identity,
    until,
)
from tests.adversity.routed import Askers, Decision, misrouted
from tests.gateway_process import gateway, wait_for
from tests.traffic.served import MODEL, Served, serving, table
from tests.versions import says

QUICK = {"restart_backoff_ms": 20, "max_restart_backoff_ms": 100, "count": 2}


def _now(*versions: int) -> Decision:
    now = time.monotonic()
    return Decision(frozenset(versions), now, now)


async def _decide(change: Callable[[], Any], *versions: int) -> Decision:
    asked = time.monotonic()
    await asyncio.to_thread(change)
    return Decision(frozenset(versions), asked, time.monotonic())


def _verified(served: Served) -> int:
    """Return how many entries the audit log has, all as they were written."""
    registry = Registry(served.registry, read_only=True)
    try:
        verdict = registry.verify()
    finally:
        registry.close()
    assert verdict.fault == ""
    return verdict.entries


def _ready(served: Served) -> set[int]:
    index = served.running.call(
        "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse
    )
    return {int(m.version) for m in index.models if m.state == "READY"}


# -- F10: a storm of changes ----------------------------------------------------------


async def test_promotions_and_rollbacks_fail_no_request_and_leak_no_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F10: 50 changes in 10 s; every answer from a version that was in force."""
    with serving(
        tmp_path, versions=range(1, 6), grpc={"fronts": 2}, workers={"count": 2}
    ) as served:
        served.set({1: 1.0})
        decisions = [_now(1)]
        async with Askers([served.running.address], each=6, streams=2) as askers:
            await askers.answered(20)
            for version in (3, 4):  # loaded for this, and let go of afterwards
                promote = served.change(), "champion", version
                decisions.append(
                    await _decide(lambda p=promote: served.admin.set_alias(*p), version)
                )
            decisions.append(await _decide(lambda: served.set({1: 1.0}), 1))
            decisions.append(await _decide(lambda: served.set({2: 1.0}), 2))
            started = time.monotonic()
            for turn in range(50 * REPEAT):
                if turn % 2:
                    change = served.change("promote")
                    decisions.append(
                        await _decide(
                            lambda c=change: served.admin.set_alias(c, "champion", 2), 2
                        )
                    )
                else:
                    change = served.change("back")
                    decisions.append(
                        await _decide(lambda c=change: served.admin.rollback(c), 1)
                    )
            took_s = time.monotonic() - started
            await askers.answered(20)
        figures = (
            f"F10: {50 * REPEAT} promotions and rollbacks in {took_s:.1f} s, "
            f"{len(askers.answers)} answers, {len(askers.failures)} failed"
        )
        with capsys.disabled():
            show(figures)
        assert askers.failures == []
        assert misrouted(askers.answers, decisions) == []
        assert took_s < 10 * REPEAT
        await until(lambda: _ready(served) == {1, 2, 5})  # 5 is the latest
        artefacts = served.state / "artefacts" / "sha256"
        await until(lambda: len(list(artefacts.iterdir())) == 3)
        await nothing_in_flight(served.running)
        assert _verified(served) >= 50 * REPEAT


async def test_a_change_is_in_force_everywhere_at_once_and_in_one_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In every front within 100 ms; no front ever mixes the arms of two tables."""
    port = quiet_port(random.Random(SEED), 3)
    with serving(
        tmp_path,
        versions=range(1, 5),
        grpc={"fronts": 3, "port": port, "port_mode": "each"},
        workers={"count": 1},
    ) as served:
        tables = [{1: 0.5, 2: 0.5}, {3: 0.5, 4: 0.5}]
        for shares in tables:  # so that both are loaded
            served.set(shares)
        decisions = [_now(3, 4)]
        addresses = [f"127.0.0.1:{port + number}" for number in range(3)]
        async with Askers(addresses, each=1, streams=0) as askers:
            for turn in range(20 * REPEAT):
                await askers.answered(12)
                shares = tables[turn % 2]
                decisions.append(await _decide(lambda s=shares: served.set(s), *shares))
            await askers.answered(12)
        assert askers.failures == []
        assert misrouted(askers.answers, decisions) == []
        took = []
        for address in addresses:
            mine = [one for one in askers.answers if one.address == address]
            mine.sort(key=lambda one: one.asked_s)
            sides = [one.version > 2 for one in mine]
            steps = [
                one
                for before, side, one in zip(sides, sides[1:], mine[1:], strict=False)
                if before != side
            ]
            # Each change is one step: with two, or with arms of both, there are more.
            assert len(steps) == len(decisions) - 1
            for step, decision in zip(steps, decisions[1:], strict=True):
                took.append(step.got_s - decision.asked_s)
        took.sort()
        acknowledged = sorted(d.acknowledged_s - d.asked_s for d in decisions[1:])
        with capsys.disabled():
            show(
                f"change in force in 3 fronts: first answer after median "
                f"{took[len(took) // 2] * 1000:.0f} ms, worst {took[-1] * 1000:.0f} ms;"
                f" acknowledged after median "
                f"{acknowledged[len(acknowledged) // 2] * 1000:.0f} ms"
            )
        assert took[len(took) // 2] < 0.1
        assert took[-1] < 1.0


# -- F12, F31: whoever decides dies ---------------------------------------------------


def _kill(served: Served, role: str) -> None:
    for pid in served.running.pids(role):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _champion(served: Served) -> int:
    """Return the champion on record, read from the disk."""
    registry = Registry(served.registry, read_only=True)
    try:
        champion = registry.traffic(MODEL).champion
    finally:
        registry.close()
    assert champion is not None
    return champion.version


async def test_a_controller_killed_in_a_change_leaves_the_old_or_the_new_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F12: killed at random moments of a change, which is then asked for again."""
    rng = random.Random(SEED)
    kills, old_kept = 5 * REPEAT, 0
    with serving(
        tmp_path, versions=(1, 2), grpc={"fronts": 2}, workers=QUICK
    ) as served:
        served.set({2: 1.0})
        served.set({1: 1.0})
        now = 1
        async with Askers([served.running.address], each=2) as askers:
            for _ in range(kills):
                new = 3 - now
                change = served.change("storm")

                def ask(change: Any = change, new: int = new) -> bool:
                    try:
                        served.admin.set_traffic(change, table({new: 1.0}))
                    except ClientError:
                        return False
                    return True

                asked = asyncio.create_task(asyncio.to_thread(ask))
                await asyncio.sleep(rng.uniform(0, 0.04))  # the fault's moment
                before = len(askers.answers)
                _kill(served, "controller")
                acknowledged = await asked
                assert _verified(served) > 0
                recorded = _champion(served)
                assert recorded == new if acknowledged else recorded in {now, new}
                old_kept += recorded == now
                await until(lambda n=before: len(askers.answers) > n)
                await until(lambda: asyncio.to_thread(served.admin_is_up))
                started = time.monotonic()
                await askers.answered(10)
                said = {a.version for a in askers.answers if a.asked_s > started}
                assert said == {recorded}
                # The same operation again is done, once, whatever became of it.
                assert await asyncio.to_thread(ask)
                started = time.monotonic()
                await askers.answered(10)
                said = {a.version for a in askers.answers if a.asked_s > started}
                assert said == {new}
                now = new
        assert askers.failures == []
        with capsys.disabled():
            show(
                f"F12: {kills} kills of the controller in a change, {old_kept} left "
                f"the old table, {len(askers.answers)} answers, none failed"
            )
        entries = served.admin.audit(limit=1000)
        operations = [entry["evidence"]["operation"] for entry in entries]
        assert len(operations) == len(set(operations))


async def test_an_import_cut_short_is_finished_when_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    """Or by the next controller; a model on record is served."""
    rng = random.Random(SEED)
    with serving(tmp_path, versions=(1,), workers=QUICK) as served:
        for turn in range(3 * REPEAT):
            name = f"late-{turn}"
            change = {"model": name, "operation_id": f"import-{turn}"}

            def take_in(change: Any = change) -> bool:
                try:
                    served.take_in("1", says(1), **change)
                except ClientError:
                    return False
                return True

            entries = served.admin.audit(limit=1000)
            recorded = sum(entry["model"] == name for entry in entries)
            asked = asyncio.create_task(asyncio.to_thread(take_in))
            if turn % 3 == 0:  # right after it is on record, and not yet loaded
                registry = Registry(served.registry, read_only=True)
                await until(lambda r=registry, n=name: n in r.names(), every_s=0.001)
                registry.close()
            else:
                await asyncio.sleep(rng.uniform(0, 0.3))
            _kill(served, "controller")
            await asked
            await until(lambda: asyncio.to_thread(served.admin_is_up))
            assert await asyncio.to_thread(take_in)
            assert len(served.admin.audit(name)) == recorded + 1
            request = pb.ModelReadyRequest(name=name)
            await until(
                lambda r=request: (
                    served.running.call("ModelReady", r, pb.ModelReadyResponse).ready
                )
            )


async def test_a_front_that_starts_without_a_controller_has_the_table(
    tmp_path: Path,
) -> None:
    """With the controller standing still, and with what a bandit learnt."""
    with serving(tmp_path, grpc={"fronts": 1}, workers=QUICK) as served:
        served.set({2: 0.5, 3: 0.5}, "thompson", policy={"refresh_s": 0.05})
        _teach(served, 3)
        await until(lambda: _weights(served)[3] > 0.9)
        [controller] = served.running.pids("controller")
        os.kill(controller, signal.SIGSTOP)
        try:
            [front] = served.running.pids("front")
            os.kill(front, signal.SIGKILL)
            await until(lambda: served.running.pids("front") not in ([front], []))
            await until(lambda: asyncio.to_thread(served.running.ready))
            drawn = await asyncio.to_thread(served.drawn, 300)
        finally:
            os.kill(controller, signal.SIGCONT)
        assert set(drawn) <= {2, 3}
        assert drawn[3] > 240
        [new] = served.running.pids("front")
        assert new != front


async def test_the_table_outlives_a_kill_of_the_supervisor_and_a_restart(
    tmp_path: Path,
) -> None:
    """Nobody answers by the repository's highest version meanwhile."""
    port = quiet_port(random.Random(SEED))
    with serving(tmp_path, grpc={"fronts": 2, "port": port}, workers=QUICK) as served:
        served.set({1: 0.5, 2: 0.5})
        served.admin.set_alias(served.change(), "best", 2)
        for end in ("kill", "terminate"):
            if end == "kill":
                os.kill(served.running.process.pid, signal.SIGKILL)
                await asyncio.to_thread(served.running.process.wait)
            else:
                assert await asyncio.to_thread(served.running.terminate) == 0
            assert _verified(served) > 0
            await asyncio.to_thread(served.running.restart)
            drawn = await asyncio.to_thread(served.drawn, 100)
            assert set(drawn) == {1, 2}
            assert served.said("best") == 2
            await until(lambda: asyncio.to_thread(served.admin_is_up))
            assert set(served.drawn(100)) == {1, 2}


# -- F31: what a bandit learnt ---------------------------------------------------------


def _weights(served: Served) -> dict[int, float]:
    return {arm["version"]: arm["weight"] for arm in served.shown()["arms"]}


def _teach(served: Served, good: int, count: int = 200) -> None:
    served.drawn(count)
    items = [
        admin.RewardRequest.Item(
            version=one["version"],
            reward=float(one["version"] == good),
            propensity=one["propensity"],
            time=one["time"],
        )
        for one in served.admin.decisions(MODEL, count)
    ]
    assert served.admin.reward(MODEL, items).taken == len(items)


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    with serving(folder, grpc={"fronts": 2}, workers=QUICK) as served:
        yield served


@pytest.mark.parametrize("fault", ["deleted", "truncated", "old", "garbage", "foreign"])
async def test_a_bandit_whose_state_is_spoilt_keeps_its_limits(
    bandit: Served, fault: str
) -> None:
    """F31: served on with safe weights, and learns again."""
    served = bandit
    policy = {"refresh_s": 0.05, "cap": 0.7, "floor": 0.1}
    served.set({1: 1.0})
    served.set({1: 0.5, 2: 0.5}, "thompson", policy=policy)
    file = served.state / "registry" / "learnt" / f"{MODEL}.json"
    _teach(served, 1)
    await until(lambda: _weights(served)[1] > 0.65)
    began = time.time()
    await until(lambda: file.exists() and file.stat().st_mtime > began)
    old = file.read_bytes()
    _teach(served, 2, 400)
    _teach(served, 2, 400)
    await until(lambda: _weights(served)[2] > 0.65)
    async with Askers([served.running.address], each=2) as askers:
        _kill(served, "controller")  # writes nothing
        match fault:
            case "deleted":
                file.unlink()
            case "truncated":
                file.write_bytes(old[: len(old) // 2])
            case "old":
                file.write_bytes(old)
            case "garbage":
                file.write_bytes(b"\x00\xff" * 1000)
            case "foreign":  # whole and valid, but of other limits
                body = old.replace(b'"weights":[', b'"weights":[0.999,0.001],"_":[', 1)
                assert body != old
                file.write_bytes(body)
        await until(lambda: asyncio.to_thread(served.admin_is_up))
        seen = [await asyncio.to_thread(_weights, served) for _ in range(10)]
        decisions = served.admin.decisions(MODEL, 1000)
        await askers.answered(50)
    for weights in seen:
        assert max(weights.values()) <= 0.7 + 1e-9, weights
        assert min(weights.values()) >= 0.1 - 1e-9, weights
    assert max(one["propensity"] for one in decisions) <= 0.7 + 1e-9
    assert askers.failures == []
    assert _verified(served) > 0
    _teach(served, 1, 400)
    _teach(served, 1, 400)
    await until(lambda: _weights(served)[1] > 0.65)


async def test_limits_hold_at_once_when_they_are_tightened(bandit: Served) -> None:
    policy = {"refresh_s": 0.05, "cap": 0.95, "floor": 0.02}
    bandit.set({1: 1.0})
    bandit.set({1: 0.5, 2: 0.5}, "thompson", policy=policy)
    _teach(bandit, 2, 400)
    _teach(bandit, 2, 400)
    await until(lambda: _weights(bandit)[2] > 0.9)
    # No refresh is due before the test has ended.
    bandit.set(
        {1: 0.5, 2: 0.5}, "thompson", policy={**policy, "cap": 0.6, "refresh_s": 3600}
    )
    revision = bandit.shown()["table"]["revision"]
    bandit.drawn(200)
    found = bandit.admin.decisions(MODEL, 200)
    assert {one["revision"] for one in found} == {revision}
    assert max(one["propensity"] for one in found) <= 0.6 + 1e-9


# -- F19: nowhere to write ------------------------------------------------------------


async def test_a_change_that_cannot_be_recorded_is_refused(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F19: the disk is full; what serves goes on, and a change works again later."""
    models = tmp_path / "models"
    models.mkdir()
    with serving(
        models, grpc={"fronts": 2}, workers=QUICK, state_dir=str(small_disk)
    ) as served:
        served.set({2: 1.0})
        served.set({1: 1.0})
        entries = _verified(served)
        async with Askers([served.running.address], each=2) as askers:
            await askers.answered(10)
            ballast = small_disk / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
            with pytest.raises(ClientError) as caught:
                await asyncio.to_thread(served.set, {2: 1.0})
            with pytest.raises(ClientError):
                await asyncio.to_thread(served.take_in, "9", says(9))
            with capsys.disabled():
                show(f"F19: {caught.value}")
            assert _verified(served) == entries
            assert _champion(served) == 1
            full = time.monotonic()
            await askers.answered(50)
            assert {a.version for a in askers.answers if a.asked_s > full} == {1}
            ballast.unlink()
            await asyncio.to_thread(served.set, {2: 1.0})
            freed = time.monotonic()
            await askers.answered(20)
            assert {a.version for a in askers.answers if a.asked_s > freed} == {2}
        assert askers.failures == []
        assert _verified(served) == entries + 1


# -- changes while nobody else gets through -------------------------------------------


async def test_a_rollback_takes_less_than_two_seconds_under_overload(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten times what the workers can do is asked for."""
    with gateway(
        tmp_path,
        grpc={"fronts": 2},
        workers={"count": 1},
        batching={"max_batch_rows": 4},
    ) as running:
        served = Served(running)
        with served.admin:
            wait_for(served.admin_is_up)
            served.take_in("1", slow_identity(10_000))  # some 30 ms a run
            served.take_in("2", slow_identity(10_001))
            served.set({2: 1.0})
            load = Load(
                [running.address],
                [MODEL],
                concurrency=256,
                timeout_s=0.3,
                rng=random.Random(SEED),
                service_config=False,
                channels=8,
            )
            took = []
            async with load:
                await load.answered(30)
                for turn in range(6):
                    change = served.change("back")
                    started = time.monotonic()
                    if turn % 2:
                        await asyncio.to_thread(
                            served.admin.set_alias, change, "champion", 2
                        )
                    else:
                        await asyncio.to_thread(served.admin.rollback, change)
                        took.append(time.monotonic() - started)
                    await load.answered(30)
            assert load.wrong == []
            assert load.sent > 10 * load.codes()["OK"]
            with capsys.disabled():
                show(
                    f"rollback under overload: worst of {len(took)} "
                    f"{max(took) * 1000:.0f} ms; {dict(load.codes())}"
                )
            assert max(took) < 2

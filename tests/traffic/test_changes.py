"""Changes that meet others, loads that take long, and what may answer meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from onnx import helper

from gateway.client_rpc import ClientError
from gateway.errors import Code
from gateway.protocol import inference_pb2 as pb
from gateway.registry.registry import Registry
from tests.adversity.harness import slow_identity
from tests.gateway_process import SERVICE, wait_for
from tests.onnx_models import build, info
from tests.traffic.served import MODEL, Served, code_of, serving, table
from tests.versions import ask, says

QUICK = {"restart_backoff_ms": 20, "max_restart_backoff_ms": 100, "count": 1}
SLOW = slow_identity(150_000)
"""Takes seconds to load, as a run takes half of one."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    with serving(folder, grpc={"fronts": 2}, workers=QUICK) as found:
        yield found


def _states(served: Served, model: str = MODEL) -> dict[int, str]:
    index = served.running.call(
        "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse
    )
    found = [one for one in index.models if one.name == model and one.version]
    return {int(one.version): one.state for one in found}


def _refused(served: Served, version: str) -> str:
    """Return what is said to a client who asks for a version and may not have it."""
    with pytest.raises(grpc.RpcError) as caught:
        served.said(version)
    assert code_of(caught.value) in {"NOT_FOUND", "UNAVAILABLE"}
    return str(caught.value.details())


def _verified(served: Served) -> None:
    registry = Registry(served.registry, read_only=True)
    try:
        assert registry.verify().fault == ""
    finally:
        registry.close()


def test_what_nobody_approved_answers_nobody(served: Served) -> None:
    """By policy, number or alias; also what answered before that was required."""
    served.set({1: 1.0})
    served.set({2: 1.0})
    assert (served.said("1"), served.said("latest")) == (1, 3)
    served.admin.approve(served.change(actor="carl"), 2)
    served.admin.require_approval(served.change(), required=True)
    try:
        wait_for(lambda: _states(served)[1] == _states(served)[3] == "UNAVAILABLE")
        assert "baton models alias" in _refused(served, "1")
        assert served.said("latest") == served.said() == 2
        served.set({2: 1.0}, shadows=[{"version": 3}])
        wait_for(lambda: _states(served)[3] == "READY")
        assert "only shadows" in _refused(served, "3")
        for ask in (
            lambda: served.admin.set_alias(served.change(), "best", 3),
            lambda: served.set({2: 1.0, 1: 0.0}),
        ):
            with pytest.raises(ClientError, match="not approved"):
                ask()
        assert served.said("latest") == 2
        served.admin.approve(served.change(actor="carl"), 1)
        served.set({1: 1.0})
        assert served.said() == 1
    finally:
        served.admin.require_approval(served.change(), required=False)


def test_the_latest_is_the_newest_that_serves(served: Served) -> None:
    served.set({1: 1.0})
    assert served.said("latest") == 3
    node = helper.make_node("NoSuchThing", ["x"], ["y"])
    x, y = (info(name, helper.TensorProto.FLOAT, ["N", 1]) for name in "xy")
    broken = served.take_in("broken", build([node], [x], [y]))
    (number,) = broken.versions
    assert any("NoSuchThing" in note for note in broken.notes)
    assert _states(served)[number] == "UNAVAILABLE"
    assert served.said("latest") == 3
    (better,) = served.take_in("better", says(42)).versions
    assert better == number + 1
    assert served.said("latest") == 42


def _while_loading(served: Served, model: str, check: Callable[[], None]) -> None:
    """Import a version that takes seconds to load, and look at the world meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        importing = pool.submit(served.take_in, f"slow-{model}", SLOW, model=model)
        wait_for(lambda: "LOADING" in _states(served, model).values())
        check()
        assert "LOADING" in _states(served, model).values(), "too quick to tell"
        importing.result()
    assert "LOADING" not in _states(served, model).values()


@pytest.mark.parametrize("model", ["another", MODEL])
def test_a_rollback_waits_for_no_load(served: Served, model: str) -> None:
    served.set({1: 1.0})
    served.set({2: 1.0})
    newest = served.said("latest")

    def back() -> None:
        started = time.monotonic()
        served.admin.rollback(served.change())
        assert time.monotonic() - started < 1
        assert served.said() == 1
        assert served.said("latest") == newest

    _while_loading(served, model, back)
    assert served.said() == 1


def test_an_import_that_is_repeated_waits_for_the_first(served: Served) -> None:
    change = {"model": "twice", "operation_id": "import-twice"}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(served.take_in, "first", SLOW, **change)
        wait_for(lambda: "LOADING" in _states(served, "twice").values())
        again = pool.submit(served.take_in, "first", SLOW, **change).result()
        assert _states(served, "twice") == {1: "READY"}
        assert again.audit_seq == first.result().audit_seq


def test_a_table_that_loads_is_refused_after_a_rollback(served: Served) -> None:
    """Who rolled back must not find it undone by what was asked for earlier."""
    for number, content in enumerate(
        [slow_identity(1), slow_identity(2), SLOW, slow_identity(4)]
    ):
        served.take_in(f"two-{number}", content, model="two")
    served.admin.set_traffic(served.change(model="two"), table({2: 1.0}))
    wait_for(lambda: _states(served, "two")[3] == "UNAVAILABLE")
    with ThreadPoolExecutor(1) as pool:
        change = served.change(model="two")
        asked = pool.submit(served.admin.set_traffic, change, table({3: 1.0}))
        wait_for(lambda: _states(served, "two")[3] == "LOADING")
        served.admin.rollback(served.change(model="two"))
        with pytest.raises(ClientError, match="rolled back by somebody") as caught:
            asked.result()
    assert caught.value.code is Code.ABORTED
    (now,) = served.admin.traffic("two")
    assert [arm["version"] for arm in now["table"]["arms"]] == [1]
    # What was loaded for it is let go of.
    wait_for(lambda: _states(served, "two")[3] == "UNAVAILABLE")


def test_the_data_port_decides_nothing_of_a_registered_model(served: Served) -> None:
    """There is no approval there, and no audit log."""
    served.set({2: 1.0})
    load = pb.RepositoryModelLoadRequest(model_name=MODEL)
    served.running.call("RepositoryModelLoad", load, pb.RepositoryModelLoadResponse)
    config = pb.RepositoryModelLoadRequest(model_name=MODEL)
    config.parameters[
        "config"
    ].string_param = '{"version_policy": {"specific": {"versions": [1, 3]}}}'
    files = pb.RepositoryModelLoadRequest(model_name=MODEL)
    files.parameters["config"].string_param = "{}"
    files.parameters["file:2/model.onnx"].bytes_param = says(77)
    for request in (config, files):
        with pytest.raises(grpc.RpcError) as caught:
            served.running.call(
                "RepositoryModelLoad", request, pb.RepositoryModelLoadResponse
            )
        assert code_of(caught.value) == "FAILED_PRECONDITION"
        assert "baton traffic" in str(caught.value.details())
    unload = pb.RepositoryModelUnloadRequest(model_name=MODEL)
    with pytest.raises(grpc.RpcError) as caught:
        served.running.call(
            "RepositoryModelUnload", unload, pb.RepositoryModelUnloadResponse
        )
    assert code_of(caught.value) == "FAILED_PRECONDITION"
    assert served.drawn(20) == {2: 20}


def test_a_champion_of_another_signature_is_noted(served: Served) -> None:
    name = "misfit"
    served.take_in("one", says(1), model=name)
    served.take_in("other", slow_identity(1), model=name)
    dry = served.change(model=name, dry_run=True)
    told = served.admin.set_alias(dry, "champion", 2)
    assert any("cannot stand in for champion 1" in note for note in told.notes)
    done = served.admin.set_alias(served.change(model=name), "champion", 2)
    assert done.applied
    assert any("cannot stand in for champion 1" in note for note in done.notes)


def test_of_two_changes_at_one_moment_one_is_made(served: Served) -> None:
    for turn in range(10):
        revision = served.set({1: 1.0 - turn / 100, 2: turn / 100}).revision
        start = threading.Barrier(2)

        def ask(version: int, now: int = revision, at: Any = start) -> str:
            change = served.change(expected_revision=now)
            at.wait()
            try:
                served.admin.set_traffic(change, table({version: 1.0}))
            except ClientError as error:
                return f"{error.code.name}: {error}"
            return "made"

        with ThreadPoolExecutor(2) as pool:
            found = sorted(pool.map(ask, (1, 2)))
        assert found[0].startswith("ABORTED")
        assert f"not {revision}" in found[0]
        assert found[1] == "made"
        (arm,) = served.shown()["table"]["arms"]
        assert served.drawn(10) == {arm["version"]: 10}
    _verified(served)


def test_a_front_that_comes_in_a_change_ends_with_the_new_table(
    served: Served,
) -> None:
    stop = threading.Event()

    def change_on() -> int:
        turn = 0
        while not stop.is_set():
            turn += 1
            served.set({1 + turn % 2: 1.0})
        return turn

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change_on)
        try:
            for _ in range(3):
                before = set(served.running.pids("front"))
                assert len(before) == 2
                os.kill(max(before), signal.SIGKILL)
                wait_for(lambda b=before: len(set(served.running.pids("front")) - b))
                wait_for(lambda: len(served.running.pids("front")) == 2)
        finally:
            stop.set()
        last = 1 + changing.result() % 2
    for _ in range(20):  # each over a connection of its own, to either front
        own = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(served.running.address, own) as channel:
            rpc = channel.unary_unary(
                SERVICE + "ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            said = rpc(ask(MODEL), timeout=10, wait_for_ready=True)
            assert said.model_version == str(last)


def test_going_back_takes_no_loading_also_after_a_restart(tmp_path: Path) -> None:
    """Of the controller, and of the whole gateway."""
    with serving(tmp_path, versions=(1,), workers=QUICK) as served:
        served.take_in("slow", says(2))
        served.take_in("third", says(3))
        served.set({2: 1.0})
        served.set({3: 1.0})
        for end in ("controller", "gateway"):
            if end == "controller":
                (pid,) = served.running.pids("controller")
                os.kill(pid, signal.SIGKILL)
                wait_for(
                    lambda p=pid: served.running.pids("controller") not in ([p], [])
                )
            else:
                assert served.running.terminate() == 0
                served.running.restart()
            wait_for(served.admin_is_up)
            wait_for(
                lambda: (
                    {2, 3} <= {n for n, s in _states(served).items() if s == "READY"}
                )
            )
            loads = served.running.log_text().count("version_ready")
            served.admin.rollback(served.change())
            assert served.said() == 2
            assert served.running.log_text().count("version_ready") == loads
            served.set({3: 1.0})


def test_a_lost_artefact_takes_no_other_model_along(tmp_path: Path) -> None:
    """Nor the admin plane, over which it can be mended."""
    with serving(tmp_path, versions=(1, 2), workers=QUICK) as served:
        served.take_in("lost", says(7), model="lost")
        registry = Registry(served.registry, read_only=True)
        digest = registry.model("lost").versions[1].digest
        registry.close()
        assert served.running.terminate() == 0
        for folder in (
            served.state / "registry" / "artefacts" / "sha256" / digest,
            served.state / "registry" / "repository" / "lost",
        ):
            assert folder.is_dir()
            for parent, _, _ in os.walk(folder):
                os.chmod(parent, 0o700)
            shutil.rmtree(folder)
        served.running.restart()
        wait_for(served.admin_is_up)
        assert "not_shown" in served.running.log_text()
        assert served.said() == 1
        served.set({2: 1.0})
        assert served.said() == 2
        served.take_in("lost", says(7), model="lost")
        served.admin.set_alias(served.change(model="lost"), "champion", 2)
        wait_for(lambda: _states(served, "lost").get(2) == "READY")

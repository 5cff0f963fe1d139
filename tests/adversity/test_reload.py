"""Reloads, storms of them, and files that must not be served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, external_data_helper, helper
from onnx.numpy_helper import from_array

from gateway.protocol import inference_pb2 as pb
from tests.adversity.harness import (
    REPEAT,
    SEED,
    Load,
    load_model,
    nothing_in_flight,
    own_bytes,
    put_model,
    quiet_port,
    show,
    slow_identity,
    unload_model,
    until,
)
from tests.gateway_process import GatewayProcess, gateway
from tests.onnx_models import FLOAT, INT64, build, identity, info

OK = grpc.StatusCode.OK


def _load(running: GatewayProcess, models: list[str], seed: int = SEED) -> Load:
    return Load(
        [running.address],
        models,
        concurrency=8,
        timeout_s=10.0,
        rng=random.Random(seed),
        pause_s=0.01,
        service_config=False,
        channels=4,
    )


# -- F10: storm ---------------------------------------------------------------------


def _heavy(turn: int) -> bytes:
    """Make a model like `slow_identity` with 16 MB of weights, new each turn."""
    weights = np.zeros((2000, 2000), np.float32)
    weights[0, 0] = turn
    return build(
        [
            helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
            helper.make_node("Gather", ["w", "one"], ["row"], axis=0),
            helper.make_node("Slice", ["row", "one", "three", "one"], ["two"]),
            helper.make_node("Mul", ["f", "two"], ["z"]),
            helper.make_node("Cast", ["z"], ["zero"], to=INT64),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [info("x", INT64, ["N", 2])],
        [info("y", INT64, ["N", 2])],
        [
            from_array(weights, "w"),
            from_array(np.array([1], np.int64), "one"),
            from_array(np.array([3], np.int64), "three"),
        ],
    )


async def test_a_reload_storm_fails_no_request_and_leaks_no_session(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F10: changed files, changed configurations, loads and unloads side by side.

    The weights make every session 16 MB, so that leaked ones show in the workers:
    the allocators keep some 30 MB each, however many reloads there are.
    """
    leak_bytes = 6 * REPEAT * 2 * 2000 * 2000 * 4
    put_model(tmp_path, "heavy", _heavy(0))
    put_model(tmp_path, "tuned", slow_identity(500))
    put_model(tmp_path, "comes_and_goes", slow_identity(10))
    with gateway(tmp_path, grpc={"fronts": 2}, workers={"count": 2}) as running:
        workers = running.pids("workers")
        load = _load(running, ["heavy", "tuned"])
        answers: list[tuple[grpc.StatusCode, str]] = []

        async def change_files(times: int) -> None:
            for turn in range(times):
                put_model(tmp_path, "heavy", _heavy(turn + 1))
                answers.append(await load_model(running, "heavy"))

        async def change_config(times: int) -> None:
            for turn in range(times):
                config = {"max_batch_size": 8 << turn % 3}
                answers.append(await load_model(running, "tuned", config))

        async def come_and_go(times: int) -> None:
            for _ in range(times):
                answers.append(await unload_model(running, "comes_and_goes"))
                answers.append(await load_model(running, "comes_and_goes"))

        async with load:
            await load.answered(20)
            await change_files(2)  # the allocator's own appetite comes first
            before = own_bytes(workers)
            storms = (change_files, change_config, come_and_go)
            await asyncio.gather(*(storm(6 * REPEAT) for storm in storms))
            await load.answered(20)

            def settled() -> bool:
                grown = own_bytes(workers) - before
                return grown < leak_bytes / 2

            grown = own_bytes(workers) - before
            with capsys.disabled():
                show(
                    f"F10: {len(answers)} loads and unloads, failed "
                    f"{len(load.failures())}/{load.sent}, workers grew "
                    f"{grown / (1 << 20):.0f} MiB"
                )
            await until(settled)
        assert [answer for answer in answers if answer[0] is not OK] == []
        assert load.failures() == []
        assert running.pids("workers") == workers
        artefacts = Path(running.config["state_dir"]) / "artefacts" / "sha256"
        await until(lambda: len(list(artefacts.iterdir())) <= 3)
        await nothing_in_flight(running)


# -- F8, F9: files that must be refused -----------------------------------------------


def _good() -> bytes:
    return slow_identity(10)


def _truncated() -> bytes:
    return _good()[: len(_good()) // 2]


def _bit_flipped() -> bytes:
    """Turn one node's input into one that does not exist."""
    return _good().replace(b"steps", b"stepz", 1)


def _other_opset() -> bytes:
    model = onnx.load_from_string(_good())
    model.opset_import[0].version = 999
    return bytes(model.SerializeToString())


def _custom_domain() -> bytes:
    model = onnx.load_from_string(_good())
    model.graph.node[0].domain = "evil.ops"
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    return bytes(model.SerializeToString())


def _escaping(location: str) -> Callable[[], bytes]:
    def make() -> bytes:
        model = onnx.load_from_string(identity("INT64"))
        tensor = TensorProto(name="w", data_type=INT64, dims=[2])
        tensor.raw_data = bytes(16)
        external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        model.graph.initializer.append(tensor)
        model.graph.node[0].op_type = "Add"
        model.graph.node[0].input.append("w")
        return bytes(model.SerializeToString())

    return make


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (_truncated, "model.onnx"),
    "bit_flipped": (_bit_flipped, "step"),
    "empty": (bytes, "empty"),
    "not_onnx": (lambda: b"GIF89a" * 100, "model.onnx"),
    "opset": (_other_opset, "opset"),
    "custom_domain": (_custom_domain, "evil.ops"),
    "escapes_up": (_escaping("../../x"), "../../x"),
    "escapes_absolute": (_escaping("/etc/passwd"), "/etc/passwd"),
    # F9: a whole and valid model, only not this one.
    "other_type": (lambda: identity("FP32"), "FP32"),
    "other_shape": (lambda: identity("INT64", ("N", 3)), "3"),
}

CONFIG = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_INT64 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_INT64 dims: [ 2 ] } ]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put_model(folder, "victim", _good(), config=CONFIG)
    put_model(folder, "neighbour", slow_identity(500))
    return folder


@pytest.fixture(scope="module")
def running(repository: Path) -> Iterator[GatewayProcess]:
    with gateway(repository, grpc={"fronts": 2}, workers={"count": 2}) as found:
        yield found


@pytest.mark.parametrize("fault", REFUSED)
async def test_a_bad_file_is_refused_with_its_reason_and_the_old_version_serves(
    running: GatewayProcess, repository: Path, fault: str
) -> None:
    make, reason = REFUSED[fault]
    workers, fronts = running.pids("workers"), running.pids("front")
    load = _load(running, ["victim", "neighbour"])
    try:
        async with load:
            await load.answered(5)
            put_model(repository, "victim", make())
            code, details = await load_model(running, "victim")
            await load.answered(20)
    finally:
        put_model(repository, "victim", _good())
    assert code is grpc.StatusCode.FAILED_PRECONDITION, details
    assert reason in details
    assert "victim" in details
    assert "Traceback" not in details
    assert load.failures() == []
    assert (running.pids("workers"), running.pids("front")) == (workers, fronts)
    index = running.call(
        "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse
    )
    assert {(m.name, m.state) for m in index.models} == {
        ("victim", "READY"),
        ("neighbour", "READY"),
    }
    assert await load_model(running, "victim") == (OK, "")


async def test_a_model_that_vanished_is_refused_and_serves_on(
    running: GatewayProcess, repository: Path, tmp_path: Path
) -> None:
    """Its folder deleted under a gateway that serves it."""
    shutil.move(repository / "victim", tmp_path / "victim")
    try:
        load = _load(running, ["victim", "neighbour"])
        async with load:
            code, details = await load_model(running, "victim")
            await load.answered(20)
    finally:
        shutil.move(tmp_path / "victim", repository / "victim")
    assert code is not OK
    assert "victim" in details
    assert load.failures() == []


async def test_a_front_that_stands_still_holds_up_no_reload(
    tmp_path: Path,
) -> None:
    """A stopped front cannot confirm the new catalogue: it must not stop the others.

    It is replaced, as a worker that hangs is; the model is served by the rest.
    """
    rng = random.Random(SEED)
    put_model(tmp_path, "slow", slow_identity(100))
    port = quiet_port(rng, 2)
    with gateway(
        tmp_path, grpc={"fronts": 2, "port": port, "port_mode": "each"}
    ) as running:
        first = next(
            pid
            for pid in running.pids("front")
            if f"127.0.0.1:{port}" in psutil.Process(pid).cmdline()
        )
        other = next(pid for pid in running.pids("front") if pid != first)
        os.kill(other, signal.SIGSTOP)
        try:
            put_model(tmp_path, "slow", slow_identity(101))
            assert await load_model(running, "slow") == (OK, "")
            await until(lambda: other not in running.pids("front"))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGCONT)

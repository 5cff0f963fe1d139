"""Every request gets its own rows, whatever it was batched with."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurizer.encode import encode_array
from gateway.client_config import channel_options
from gateway.protocol import inference_pb2 as pb
from tests.adversity.harness import (
    REPEAT,
    SEED,
    infer_method,
    nothing_in_flight,
    put_model,
    slow_identity,
)
from tests.gateway_process import GatewayProcess, gateway
from tests.onnx_models import (
    identity,
    logistic_regression,
    two_by_two,
    variable_inner,
)
from workers.execute import execute
from workers.session import LoadedVersion, open_version
from workers.spec import LoadOrder
from workers.wire import Run, WireTensor

Array = NDArray[Any]

MODELS = {
    "logistic": logistic_regression(30, 3),
    "two_outputs": two_by_two(),
    "lengths": variable_inner(2),
    "same_float": identity("FP32"),
    "same_half": identity("FP16", ("N", 3)),
    "same_large": identity("INT64", ("N", 1500)),
    "slow": slow_identity(4000),
}
MAX_ROWS = 16


def _inputs(model: str, serial: int, rows: int, rng: random.Random) -> dict[str, Array]:
    """Return inputs in which every row says whose it is."""
    numpy_rng = np.random.default_rng(rng.randrange(1 << 32))
    mine = (serial * MAX_ROWS + np.arange(rows))[:, None]
    match model:
        case "logistic":
            x = numpy_rng.standard_normal((rows, 30)).astype(np.float32)
            return {"x": x}
        case "two_outputs":
            b = numpy_rng.standard_normal((rows, 3)).astype(np.float32)
            return {"a": np.tile(mine, 3).astype(np.float32), "b": b}
        case "lengths":
            shape = (rows, 1, rng.choice((3, 5, 8)))
            noise = numpy_rng.standard_normal(shape)
            return {"x": (mine[:, :, None] + noise).astype(np.float32)}
        case "same_float":
            return {"x": np.hstack([mine, mine % 97]).astype(np.float32)}
        case "same_half":
            digits = [mine // 2048**2, mine // 2048 % 2048, mine % 2048]
            return {"x": np.hstack(digits).astype(np.float16)}
        case "same_large":
            return {"x": np.tile(mine, 1500).astype(np.int64)}
        case _:
            return {"x": np.hstack([mine, -mine]).astype(np.int64)}


_DATATYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64"}


def _message(model: str, inputs: dict[str, Array]) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        datatype = _DATATYPES[array.dtype.name]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


class Direct:
    """ONNX Runtime without a gateway: one row at a time."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._sessions = {
            name: ort.InferenceSession(model, options, ["CPUExecutionProvider"])
            for name, model in MODELS.items()
        }

    def check(
        self, model: str, inputs: dict[str, Array], response: pb.ModelInferResponse
    ) -> None:
        session = self._sessions[model]
        rows = len(next(iter(inputs.values())))
        single = [
            session.run(None, {name: a[row : row + 1] for name, a in inputs.items()})
            for row in range(rows)
        ]
        for index, (output, raw) in enumerate(
            zip(response.outputs, response.raw_output_contents, strict=True)
        ):
            expected = np.concatenate([outputs[index] for outputs in single])
            assert list(output.shape) == list(expected.shape)
            answer = np.frombuffer(raw, expected.dtype).reshape(expected.shape)
            if expected.dtype == np.float32:
                np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(answer, expected)


@pytest.fixture(scope="module")
def two_by_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    repository = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        put_model(repository, name, model)
    with gateway(
        repository,
        grpc={"fronts": 2},
        workers={"count": 2},
        batching={"max_batch_rows": MAX_ROWS, "max_queue_delay_us": 2000},
    ) as running:
        yield running


async def _storm(running: GatewayProcess, seed: str, requests: int) -> tuple[int, int]:
    """Send requests in bursts, cancel a fifth; check every answer."""
    rng = random.Random(seed)
    direct = Direct()
    options = [
        *channel_options(service_config=False),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    channels = [
        grpc.aio.insecure_channel(running.address, options=options) for _ in range(6)
    ]
    methods = [infer_method(channel) for channel in channels]
    checked = cancelled = 0

    async def one(serial: int) -> None:
        nonlocal checked, cancelled
        model = rng.choice(list(MODELS))
        inputs = _inputs(model, serial, rng.randint(1, MAX_ROWS), rng)
        call = rng.choice(methods)(_message(model, inputs), timeout=30)
        if rng.random() < 0.2:
            asyncio.get_running_loop().call_later(rng.random() * 0.02, call.cancel)
        try:
            response = await call
        except asyncio.CancelledError:
            cancelled += 1
            return
        direct.check(model, inputs, response)
        checked += 1

    serial = 0
    while serial < requests:
        burst = rng.randint(1, 60)
        await asyncio.gather(*(one(serial + i) for i in range(burst)))
        serial += burst
    for channel in channels:
        await channel.close()
    await nothing_in_flight(running)
    return checked, cancelled


@pytest.mark.parametrize("round_", range(2 * REPEAT))
async def test_every_row_equals_a_run_of_its_own(
    two_by_two_processes: GatewayProcess, round_: int
) -> None:
    """Random models, shapes, sizes and order, with cancellations in between."""
    checked, cancelled = await _storm(two_by_two_processes, f"{SEED}/{round_}", 600)
    assert checked > 300
    assert cancelled > 20  # the storm must have been one
    merged = two_by_two_processes.statistics("slow")[0]
    assert merged.execution_count < merged.inference_count  # batches did form


# -- to the bit ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedVersion]:
    folder = tmp_path_factory.mktemp("versions")
    versions = {}
    for handle, (name, model) in enumerate(MODELS.items()):
        path = folder / f"{name}.onnx"
        path.write_bytes(model)
        versions[name] = open_version(LoadOrder(handle, name, 1, str(path)))
    return versions


@settings(max_examples=40 * REPEAT, deadline=None, derandomize=True)
@given(
    model=st.sampled_from(sorted(MODELS)),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    seed=st.integers(0, 1 << 30),
)
def test_rows_equal_to_the_bit_the_batch_that_was_run(
    opened: dict[str, LoadedVersion], model: str, sizes: list[int], seed: int
) -> None:
    """What `execute` cuts apart is what ONNX Runtime gave for the whole batch."""
    loaded = opened[model]
    parts = [
        _inputs(model, serial, rows, random.Random(seed))
        for serial, rows in enumerate(sizes)
    ]
    runs = [
        Run(
            id=number,
            handle=0,
            rows=rows,
            slot=0,
            tensors=[
                WireTensor(
                    index,
                    part[tensor.name].shape,
                    (encode_array(part[tensor.name], tensor.datatype),),
                )
                for index, tensor in enumerate(loaded.spec.inputs)
            ],
        )
        for number, (rows, part) in enumerate(zip(sizes, parts, strict=True))
    ]
    results = execute(loaded, runs)

    session = ort.InferenceSession(
        MODELS[model], _one_thread(), ["CPUExecutionProvider"]
    )
    whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    expected = session.run(None, whole)
    assert [result.executions for result in results] == [1] + [0] * (len(sizes) - 1)
    start = 0
    for rows, result in zip(sizes, results, strict=True):
        assert result.batch_rows == sum(sizes)
        for tensor in result.tensors:
            mine = expected[tensor.index][start : start + rows]
            assert tensor.dims == mine.shape
            assert bytes(tensor.data[0]) == mine.tobytes()
        start += rows


def _one_thread() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def test_models_exist_on_disk_only_whole(tmp_path: Path) -> None:
    """A reload must never race with the test's own half-written file."""
    path = put_model(tmp_path, "m", b"1" * 10)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]

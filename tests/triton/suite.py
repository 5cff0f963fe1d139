"""Drives a gateway with the unmodified tritonclient, in an environment of its own.

Usage: ``python suite.py host:port model-file``, where the file is an ONNX model with
``x`` FP32 [N, 2] and ``y`` = -x. Prints a line per case; exit code 1 if any failed.
It imports nothing of this repository.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as sync_client
import tritonclient.grpc.aio as aio_client
from tritonclient.utils import InferenceServerException

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "BYTES": np.object_,
}
TEXTS = [b"", b"plain", b"with\0nul\0", "\N{SNOWMAN}".encode(), b"x" * 5000]
SLOW_TURNS = 600_000
TIMEOUT_S = 30.0

ADDRESS = ""
MODEL_FILE = b""
CASES: list[tuple[str, Callable[[], None]]] = []


# -- the harness --------------------------------------------------------------


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Register a case under its function's name."""
    CASES.append((function.__name__, function))
    return function


def cases(values: Iterable[Any]) -> Callable[[Callable[[Any], None]], Any]:
    """Register a case per value."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        for value in values:
            name = f"{function.__name__}[{value}]"
            CASES.append((name, partial(function, value)))
        return function

    return register


def run() -> int:
    """Run every case and return how many failed."""
    failed = 0
    for name, function in CASES:
        try:
            function()
        except Exception:
            failed += 1
            sys.stdout.write(f"FAILED {name}\n{traceback.format_exc()}\n")
        else:
            sys.stdout.write(f"ok {name}\n")
    sys.stdout.write(f"{len(CASES) - failed} passed, {failed} failed\n")
    return failed


# -- what cases share ---------------------------------------------------------


def client() -> sync_client.InferenceServerClient:
    """Connect; close by ``with``."""
    return sync_client.InferenceServerClient(ADDRESS)


def tensor(name: str, datatype: str, array: Any) -> sync_client.InferInput:
    """Wrap an array as the client's users do."""
    given = sync_client.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def floats(array: Any) -> list[sync_client.InferInput]:
    """Wrap one FP32 input ``x``."""
    return [tensor("x", "FP32", np.asarray(array, np.float32))]


def slow(turns: int) -> list[sync_client.InferInput]:
    """Return inputs that keep a worker busy."""
    return [
        tensor("steps", "INT64", np.array(turns, np.int64)),
        tensor("x", "FP32", np.ones((1, 1), np.float32)),
    ]


def sample(datatype: str, rows: int = 3) -> Any:
    """Return an array [rows, 2] with the extremes of a type in it."""
    if datatype == "BYTES":
        array = np.empty(rows * 2, np.object_)
        array[:] = [TEXTS[number % len(TEXTS)] for number in range(rows * 2)]
        return array.reshape(rows, 2)
    dtype = np.dtype(NUMPY[datatype])
    if dtype == np.bool_:
        return np.arange(rows * 2).reshape(rows, 2) % 2 == 0
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.full((rows, 2), limits.max, dtype)
        array[0] = limits.min
        return array
    array = np.linspace(-3, 3, rows * 2).reshape(rows, 2).astype(dtype)
    array[0, 0] = np.inf
    return array


def same(found: Any, expected: Any) -> None:
    """Check that two arrays agree in type, shape, and every bit."""
    assert found is not None
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    assert found.tolist() == expected.tolist()


def refused(call: Callable[[], Any], status: str, text: str) -> None:
    """Check that a call raises the client's exception with this status."""
    failure: InferenceServerException | None = None
    try:
        call()
    except InferenceServerException as error:
        failure = error
    check_failure(failure, status, text)


def check_failure(failure: Any, status: str, text: str = "") -> None:
    """Check status and message of the client's exception, which must be there."""
    assert isinstance(failure, InferenceServerException), failure
    assert failure.status() == f"StatusCode.{status}", failure
    assert text in failure.message(), failure


class Replies:
    """Collects what a callback of the client gets."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._queue.put((result, error))

    def next(self) -> tuple[Any, Any]:
        return self._queue.get(timeout=TIMEOUT_S)

    def good(self) -> Any:
        result, error = self.next()
        assert error is None, error
        return result

    def empty(self) -> bool:
        return self._queue.empty()


# -- server and model ---------------------------------------------------------


@case
def health() -> None:
    with client() as c:
        assert c.is_server_live()
        assert c.is_server_ready()
        assert c.is_model_ready("pair")
        assert c.is_model_ready("pair", "1")
        assert not c.is_model_ready("pair", "9")
        assert not c.is_model_ready("nobody")


@case
def server_metadata() -> None:
    with client() as c:
        found = c.get_server_metadata(as_json=True)
    assert found["name"]
    assert found["version"]
    assert "statistics" in found["extensions"]


@case
def model_metadata() -> None:
    with client() as c:
        found = c.get_model_metadata("pair", as_json=True)
    assert found["platform"] == "onnxruntime_onnx"
    assert found["versions"] == ["1"]
    assert [entry["name"] for entry in found["inputs"]] == ["a", "b"]
    assert [entry["shape"] for entry in found["outputs"]] == [["-1", "3"], ["-1", "1"]]


@case
def model_config() -> None:
    with client() as c:
        found = c.get_model_config("pair").config
        assert found.max_batch_size == 64
        assert found.HasField("dynamic_batching")
        assert not found.HasField("sequence_batching")
        assert [entry.name for entry in found.output] == ["sum", "total"]
        as_json = c.get_model_config("pair", "1", as_json=True)["config"]
        assert as_json["input"][0]["data_type"] == "TYPE_FP32"


@case
def statistics_count_requests() -> None:
    with client() as c:
        before = c.get_inference_statistics("scalar").model_stats[0]
        for _ in range(3):
            c.infer("scalar", floats(1))
        after = c.get_inference_statistics("scalar", "1").model_stats[0]
        grown = (
            after.inference_stats.success.count - before.inference_stats.success.count
        )
        assert grown == 3
        assert after.inference_count - before.inference_count == 3
        assert len(c.get_inference_statistics().model_stats) > 10


@case
def repository_index() -> None:
    with client() as c:
        found = c.get_model_repository_index()
    rows = {(entry.name, entry.version): entry.state for entry in found.models}
    assert rows["pair", "1"] == "READY"
    assert rows["broken", "1"] == "UNAVAILABLE"


@case
def load_and_unload() -> None:
    with client() as c:
        c.unload_model("changing")
        assert not c.is_model_ready("changing")
        refused(
            lambda: c.infer("changing", floats([[1, 2]])), "NOT_FOUND", "'changing'"
        )
        c.load_model("changing")
        assert c.is_model_ready("changing")
        same(
            c.infer("changing", floats([[1, 2]])).as_numpy("y"),
            np.array([[1, 2]], np.float32),
        )
        c.unload_model("changing", unload_dependents=True)
        c.load_model("changing")


@case
def load_with_config_and_files() -> None:
    with client() as c:
        override = {"max_batch_size": 3, "dynamic_batching": {}}
        override["input"] = [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}]
        override["output"] = [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}]
        c.load_model("changing", config=json.dumps(override))
        assert c.get_model_config("changing").config.max_batch_size == 3
        c.load_model("changing", config="{}", files={"file:7/model.onnx": MODEL_FILE})
        result = c.infer("changing", floats([[1, 2]]), model_version="7")
        assert result.as_numpy("y").tolist() == [[-1, -2]]
        c.load_model("changing")
        assert c.infer("changing", floats([[1, 2]])).as_numpy("y").tolist() == [[1, 2]]


@case
def what_is_not_offered_is_unimplemented() -> None:
    with client() as c:
        refused(c.get_trace_settings, "UNIMPLEMENTED", "")
        refused(c.get_log_settings, "UNIMPLEMENTED", "")
        refused(c.get_system_shared_memory_status, "UNIMPLEMENTED", "")
        refused(
            lambda: c.register_system_shared_memory("r", "/r", 8), "UNIMPLEMENTED", ""
        )
        c.unregister_system_shared_memory()
        c.unregister_cuda_shared_memory()


# -- inference, one call at a time --------------------------------------------


@cases(NUMPY)
def infer_gives_back_the_type(datatype: str) -> None:
    array = sample(datatype)
    with client() as c:
        result = c.infer(f"identity_{datatype}", [tensor("x", datatype, array)])
    same(result.as_numpy("y"), array)


@case
def infer_echoes_id_and_names_the_version() -> None:
    with client() as c:
        result = c.infer(
            "both", floats([[1, 2]]), request_id="my id", model_version="1"
        )
        response = result.get_response()
        assert response.id == "my id"
        assert response.model_name == "both"
        assert response.model_version == "1"
        assert c.infer("both", floats([[1, 2]])).get_response().model_version == "2"


@case
def infer_selects_outputs() -> None:
    row = np.ones((2, 3), np.float32)
    inputs = [tensor("a", "FP32", row), tensor("b", "FP32", row)]
    with client() as c:
        result = c.infer(
            "pair", inputs, outputs=[sync_client.InferRequestedOutput("total")]
        )
        assert result.as_numpy("sum") is None
        assert result.as_numpy("total").tolist() == [[6], [6]]
        both = c.infer("pair", inputs)
        assert both.as_numpy("sum").shape == (2, 3)
        assert both.get_output("total").datatype == "FP32"


@cases([(0, 0), (0, 7), (3, 0), (1, 1), (2, 5)])
def infer_takes_variable_and_empty_shapes(shape: tuple[int, int]) -> None:
    array = np.ones(shape, np.float32)
    with client() as c:
        same(c.infer("free", floats(array)).as_numpy("y"), array)


@cases([1, 4])
def infer_takes_empty_string_tensors(rows: int) -> None:
    array = np.empty((rows, 0), np.object_)
    with client() as c:
        result = c.infer("texts", [tensor("x", "BYTES", array)])
    assert result.as_numpy("y").shape == (rows, 0)


@case
def infer_takes_a_scalar() -> None:
    with client() as c:
        result = c.infer("scalar", floats(2.5))
    same(result.as_numpy("y"), np.array(2.5, np.float32))


@case
def infer_takes_sixteen_megabytes() -> None:
    array = np.random.default_rng(1).random((4, 1 << 20), np.float32)
    with client() as c:
        found = c.infer("free", floats(array)).as_numpy("y")
    assert np.array_equal(found, array)


@cases(["gzip", "deflate"])
def infer_takes_compressed_requests(algorithm: str) -> None:
    array = np.zeros((256, 256), np.float32)
    with client() as c:
        found = c.infer("free", floats(array), compression_algorithm=algorithm)
    same(found.as_numpy("y"), array)


@case
def infer_takes_every_parameter() -> None:
    with client() as c:
        result = c.infer(
            "identity_FP32",
            floats([[1, 2]]),
            sequence_id=5,
            sequence_start=True,
            sequence_end=True,
            priority=3,
            timeout=10_000_000,
            parameters={"text": "t", "number": 1, "flag": True, "real": 0.5},
            headers={"tenant": "a"},
        )
    assert result.as_numpy("y").tolist() == [[1, 2]]


ROW = np.ones((1, 2), np.float32)
ERRORS: dict[str, tuple[str, list[Any], dict[str, Any], str, str]] = {
    "unknown model": ("nobody", floats([[1, 2]]), {}, "NOT_FOUND", "'nobody'"),
    "unknown version": (
        "both",
        floats([[1, 2]]),
        {"model_version": "8"},
        "NOT_FOUND",
        "8",
    ),
    "bad version": (
        "both",
        floats([[1, 2]]),
        {"model_version": "x"},
        "INVALID_ARGUMENT",
        "'x'",
    ),
    "broken model": ("broken", floats([[1, 2]]), {}, "UNAVAILABLE", "'broken'"),
    "shape": ("identity_FP32", floats([[1, 2, 3]]), {}, "INVALID_ARGUMENT", "'x'"),
    "batch": (
        "identity_FP32",
        floats(np.ones((65, 2))),
        {},
        "INVALID_ARGUMENT",
        "between 1 and 64",
    ),
    "datatype": (
        "identity_FP32",
        [tensor("x", "FP64", ROW.astype(np.float64))],
        {},
        "INVALID_ARGUMENT",
        "'x'",
    ),
    "input name": (
        "identity_FP32",
        [tensor("z", "FP32", ROW)],
        {},
        "INVALID_ARGUMENT",
        "'x'",
    ),
    "output name": (
        "identity_FP32",
        floats(ROW),
        {"outputs": [sync_client.InferRequestedOutput("z")]},
        "INVALID_ARGUMENT",
        "'z'",
    ),
    "classification": (
        "identity_FP32",
        floats(ROW),
        {"outputs": [sync_client.InferRequestedOutput("y", class_count=2)]},
        "INVALID_ARGUMENT",
        "classification",
    ),
}


@cases(ERRORS)
def infer_raises_with_status_and_message(name: str) -> None:
    model, inputs, more, status, text = ERRORS[name]
    with client() as c:
        refused(lambda: c.infer(model, inputs, **more), status, text)


@case
def other_calls_raise_with_status_and_message() -> None:
    with client() as c:
        refused(lambda: c.get_model_metadata("nobody"), "NOT_FOUND", "'nobody'")
        refused(lambda: c.get_model_config("nobody"), "NOT_FOUND", "'nobody'")
        refused(lambda: c.get_inference_statistics("nobody"), "NOT_FOUND", "'nobody'")
        refused(lambda: c.load_model("nobody"), "NOT_FOUND", "'nobody'")
        refused(lambda: c.unload_model("nobody"), "INVALID_ARGUMENT", "'nobody'")


@case
def client_timeout_is_deadline_exceeded() -> None:
    with client() as c:
        refused(
            lambda: c.infer("slow", slow(SLOW_TURNS), client_timeout=0.05),
            "DEADLINE_EXCEEDED",
            "",
        )
        c.infer("slow", slow(1), client_timeout=TIMEOUT_S)


# -- inference, many at a time ------------------------------------------------


@case
def async_infer_answers_every_callback() -> None:
    replies = Replies()
    with client() as c:
        for number in range(100):
            c.async_infer(
                "identity_FP32", floats([[number, 2]]), replies, request_id=str(number)
            )
        for _ in range(100):
            result = replies.good()
            number = int(result.get_response().id)
            assert result.as_numpy("y").tolist() == [[number, 2]]


@case
def async_infer_hands_errors_to_the_callback() -> None:
    replies = Replies()
    with client() as c:
        c.async_infer("nobody", floats([[1, 2]]), replies)
        result, error = replies.next()
    assert result is None
    assert error.status() == "StatusCode.NOT_FOUND"


@case
def async_infer_may_be_cancelled() -> None:
    replies = Replies()
    with client() as c:
        c.async_infer("slow", slow(SLOW_TURNS), replies)
        context = c.async_infer("slow", slow(SLOW_TURNS), replies)
        context.cancel()
        outcomes = [replies.next()[1] for _ in range(2)]
    assert sorted(str(error.status()) for error in outcomes if error) == [
        "StatusCode.CANCELLED"
    ]


# -- streams ------------------------------------------------------------------


@cases(NUMPY)
def stream_gives_back_the_type(datatype: str) -> None:
    array, replies = sample(datatype), Replies()
    with client() as c:
        c.start_stream(replies)
        c.async_stream_infer(f"identity_{datatype}", [tensor("x", datatype, array)])
        result = replies.good()
        c.stop_stream()
    same(result.as_numpy("y"), array)


@case
def stream_answers_in_order_and_says_which_is_final() -> None:
    replies = Replies()
    with client() as c:
        c.start_stream(replies)
        for number in range(200):
            c.async_stream_infer(
                ("identity_FP32", "both")[number % 2],
                floats(np.full((1 + number % 7, 2), number)),
                request_id=str(number),
                enable_empty_final_response=number % 3 == 0,
            )
        for number in range(200):
            response = replies.good().get_response()
            assert response.id == str(number)
            assert response.parameters["triton_final_response"].bool_param
        c.stop_stream()
    assert replies.empty()


@case
def stream_goes_on_after_an_error() -> None:
    replies = Replies()
    with client() as c:
        c.start_stream(replies)
        c.async_stream_infer("identity_FP32", floats([[1, 2]]))
        c.async_stream_infer("nobody", floats([[1, 2]]))
        c.async_stream_infer("identity_FP32", floats([[3, 4]]))
        assert replies.good().as_numpy("y").tolist() == [[1, 2]]
        _, error = replies.next()
        assert "'nobody'" in error.message()
        assert replies.good().as_numpy("y").tolist() == [[3, 4]]
        c.stop_stream()


@case
def stream_ends_with_the_status_where_asked() -> None:
    replies = Replies()
    with client() as c:
        c.start_stream(replies, headers={"triton_grpc_error": "true"})
        c.async_stream_infer("nobody", floats([[1, 2]]))
        _, error = replies.next()
        assert error.status() == "StatusCode.NOT_FOUND", error
        c.stop_stream()


@case
def stop_stream_waits_for_what_is_in_flight() -> None:
    replies = Replies()
    with client() as c:
        c.start_stream(replies)
        c.async_stream_infer("slow", slow(SLOW_TURNS))
        for number in range(100):
            c.async_stream_infer("identity_FP32", floats([[number, 2]]))
        c.stop_stream()
    for _ in range(101):
        replies.good()
    assert replies.empty()


@case
def stop_stream_may_cancel_what_is_in_flight() -> None:
    replies = Replies()
    with client() as c:
        c.start_stream(replies)
        for _ in range(20):
            c.async_stream_infer("slow", slow(SLOW_TURNS))
        c.stop_stream(cancel_requests=True)
        c.infer("slow", slow(1), client_timeout=TIMEOUT_S)


@case
def stream_timeout_is_deadline_exceeded() -> None:
    replies = Replies()
    with client() as c:
        c.start_stream(replies, stream_timeout=0.2)
        for _ in range(5):
            c.async_stream_infer("slow", slow(SLOW_TURNS))
        result, error = replies.next()
        while error is None:
            result, error = replies.next()
        assert result is None
        assert error.status() == "StatusCode.DEADLINE_EXCEEDED", error
        c.stop_stream()


@case
def stream_is_compressed_on_request() -> None:
    array, replies = np.zeros((256, 256), np.float32), Replies()
    with client() as c:
        c.start_stream(replies, compression_algorithm="gzip")
        c.async_stream_infer("free", floats(array))
        same(replies.good().as_numpy("y"), array)
        c.stop_stream()


@case
def queue_timeout_of_a_microsecond_fails_that_request_alone() -> None:
    replies = Replies()
    with client() as c:
        c.start_stream(replies)
        for _ in range(3):
            c.async_stream_infer("slow", slow(SLOW_TURNS))
        c.async_stream_infer("slow", slow(1), timeout=1)
        c.async_stream_infer("slow", slow(1))
        for _ in range(3):
            replies.good()
        _, error = replies.next()
        assert "Request timeout expired" in error.message()
        replies.good()
        c.stop_stream()


# -- asyncio ------------------------------------------------------------------


def aio(function: Callable[[Any], Any]) -> Callable[[], None]:
    """Register an asynchronous case, which gets a connected client."""

    async def body() -> None:
        async with aio_client.InferenceServerClient(ADDRESS) as c:
            await asyncio.wait_for(function(c), TIMEOUT_S)

    CASES.append((function.__name__, lambda: asyncio.run(body())))
    return lambda: None


@aio
async def aio_every_type(c: Any) -> None:
    async def one(datatype: str) -> None:
        array = sample(datatype)
        inputs = [tensor("x", datatype, array)]
        result = await c.infer(f"identity_{datatype}", inputs)
        same(result.as_numpy("y"), array)

    await asyncio.gather(*(one(datatype) for datatype in NUMPY))


@aio
async def aio_calls_beside_inference(c: Any) -> None:
    assert await c.is_server_live()
    assert await c.is_server_ready()
    assert await c.is_model_ready("pair")
    assert not await c.is_model_ready("nobody")
    assert (await c.get_model_metadata("pair")).platform == "onnxruntime_onnx"
    assert (await c.get_model_config("pair")).config.max_batch_size == 64
    assert (await c.get_server_metadata()).extensions
    assert (await c.get_inference_statistics("pair")).model_stats
    assert (await c.get_model_repository_index()).models
    await c.unload_model("changing")
    assert not await c.is_model_ready("changing")
    await c.load_model("changing")
    assert await c.is_model_ready("changing")


@aio
async def aio_many_at_once(c: Any) -> None:
    async def one(number: int) -> None:
        array = np.full((1 + number % 9, 2), number, np.float32)
        result = await c.infer("identity_FP32", floats(array), request_id=str(number))
        assert result.get_response().id == str(number)
        same(result.as_numpy("y"), array)

    await asyncio.gather(*(one(number) for number in range(300)))


@aio
async def aio_sixteen_megabytes_and_compression(c: Any) -> None:
    array = np.random.default_rng(2).random((4, 1 << 20), np.float32)
    found = await c.infer("free", floats(array))
    assert np.array_equal(found.as_numpy("y"), array)
    zeros = np.zeros((64, 64), np.float32)
    found = await c.infer("free", floats(zeros), compression_algorithm="gzip")
    same(found.as_numpy("y"), zeros)


@aio
async def aio_errors_raise_with_status(c: Any) -> None:
    for model, status in (("nobody", "NOT_FOUND"), ("broken", "UNAVAILABLE")):
        (failure,) = await asyncio.gather(
            c.infer(model, floats([[1, 2]])), return_exceptions=True
        )
        check_failure(failure, status, f"'{model}'")


@aio
async def aio_client_timeout_is_deadline_exceeded(c: Any) -> None:
    (failure,) = await asyncio.gather(
        c.infer("slow", slow(SLOW_TURNS), client_timeout=0.05), return_exceptions=True
    )
    check_failure(failure, "DEADLINE_EXCEEDED")


@aio
async def aio_stream_in_order_with_an_error_in_the_middle(c: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(100):
            yield {
                "model_name": "nobody" if number == 50 else "identity_FP32",
                "inputs": floats([[number, 2]]),
                "request_id": str(number),
            }

    number = 0
    async for result, error in c.stream_infer(requests()):
        if number == 50:
            assert result is None or error is not None
            assert "'nobody'" in error.message()
        else:
            assert error is None
            assert result.get_response().id == str(number)
            assert result.as_numpy("y").tolist() == [[number, 2]]
        number += 1
    assert number == 100


@aio
async def aio_stream_may_be_cancelled(c: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for _ in range(10):
            yield {"model_name": "slow", "inputs": slow(SLOW_TURNS)}

    responses = c.stream_infer(requests())
    await anext(responses)
    responses.cancel()
    await c.infer("slow", slow(1))


if __name__ == "__main__":
    ADDRESS, MODEL_FILE = sys.argv[1], Path(sys.argv[2]).read_bytes()
    sys.exit(1 if run() else 0)

"""ModelInfer over real gRPC: what is answered, and what is refused how."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import pytest

from featurizer.datatypes import DATATYPES
from featurizer.encode import encode_array, encode_bytes_elements
from gateway.protocol import inference_pb2 as pb
from tests.gateway_process import SERVICE, GatewayProcess, wait_for
from tests.protocol.served import (
    MAX_MESSAGE_BYTES,
    arrays,
    failure,
    floats,
    in_flight,
    infer_request,
    metric,
    sample,
    slow_request,
    unary,
)

Code = grpc.StatusCode
TURNS = 600_000
"""Turns of a loop that keep a worker busy for a good part of a second."""


def pair(rows: int = 2, **more: Any) -> pb.ModelInferRequest:
    a = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    return infer_request("pair", {"a": ("FP32", a), "b": ("FP32", a * 10)}, **more)


# -- answers (section 4) ------------------------------------------------------


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_every_datatype_comes_back_bit_by_bit(
    served: GatewayProcess, datatype: str, rows: int
) -> None:
    array = sample(datatype, (rows, 2))
    response = served.infer(
        infer_request(f"identity_{datatype}", {"x": (datatype, array)})
    )
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == (
        "y",
        datatype,
        [rows, 2],
    )
    assert list(response.raw_output_contents) == [encode_array(array, datatype)]


@pytest.mark.parametrize(
    "datatype", [name for name, entry in DATATYPES.items() if entry.contents_field]
)
def test_typed_contents_are_answered_raw(served: GatewayProcess, datatype: str) -> None:
    entry = DATATYPES[datatype]
    array = sample(datatype, (3, 2))
    request = pb.ModelInferRequest(model_name=f"identity_{datatype}")
    sent = request.inputs.add(name="x", datatype=datatype, shape=[3, 2])
    values = array.reshape(-1).tolist()
    getattr(sent.contents, str(entry.contents_field)).extend(values)
    response = served.infer(request)
    assert list(response.raw_output_contents) == [encode_array(array, datatype)]
    assert not response.outputs[0].HasField("contents")


def test_small_integers_wrap_to_their_low_bytes(served: GatewayProcess) -> None:
    request = pb.ModelInferRequest(model_name="identity_INT8")
    sent = request.inputs.add(name="x", datatype="INT8", shape=[2, 2])
    sent.contents.int_contents.extend([-1, 128, 257, -129])
    assert arrays(served.infer(request))["y"].tolist() == [[-1, -128], [1, 127]]
    request = pb.ModelInferRequest(model_name="identity_UINT16")
    sent = request.inputs.add(name="x", datatype="UINT16", shape=[1, 2])
    sent.contents.uint_contents.extend([65537, 2**32 - 1])
    assert arrays(served.infer(request))["y"].tolist() == [[1, 65535]]


def test_all_outputs_come_in_the_order_of_the_metadata(served: GatewayProcess) -> None:
    response = served.infer(pair())
    assert [output.name for output in response.outputs] == ["sum", "total"]
    found = arrays(response)
    assert found["sum"].tolist() == [[0, 11, 22], [33, 44, 55]]
    assert found["total"].tolist() == [[33], [132]]


@pytest.mark.parametrize(
    "names",
    [
        list(names)
        for count in (1, 2)
        for names in itertools.permutations(("sum", "total"), count)
    ],
)
def test_requested_outputs_come_in_the_order_asked(
    served: GatewayProcess, names: list[str]
) -> None:
    response = served.infer(pair(outputs=names))
    assert [output.name for output in response.outputs] == names
    assert len(response.raw_output_contents) == len(names)
    assert arrays(response)[names[0]].shape == (2, 3 if names[0] == "sum" else 1)


@pytest.mark.parametrize("id", ["", "7", "request-\N{SNOWMAN}\0\n", "x" * 10_000])
def test_the_id_comes_back_exactly(served: GatewayProcess, id: str) -> None:
    assert served.infer(floats("identity_FP32", [[1, 2]], id=id)).id == id


@pytest.mark.parametrize("shape", [(1, 0), (64, 0)])
def test_an_output_without_bytes_still_has_its_raw_entry(
    served: GatewayProcess, shape: tuple[int, int]
) -> None:
    empty = np.empty(shape, object)
    response = served.infer(infer_request("texts", {"x": ("BYTES", empty)}))
    assert list(response.outputs[0].shape) == list(shape)
    assert list(response.raw_output_contents) == [b""]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (3, 4)])
def test_variable_dimensions_may_be_zero(
    served: GatewayProcess, shape: tuple[int, int]
) -> None:
    array = np.ones(shape, np.float32)
    found = arrays(served.infer(floats("free", array)))["y"]
    assert found.shape == shape
    assert found.tolist() == array.tolist()


def test_a_scalar_goes_in_and_comes_out(served: GatewayProcess) -> None:
    response = served.infer(floats("scalar", 2.5))
    assert list(response.outputs[0].shape) == []
    assert arrays(response)["y"].tolist() == 2.5


@pytest.mark.parametrize("length", [1, 2, 1000])
def test_variable_inner_dimensions_take_any_length(
    served: GatewayProcess, length: int
) -> None:
    array = np.random.default_rng(3).random((2, 1, length), np.float32)
    np.testing.assert_array_equal(
        arrays(served.infer(floats("variable", array)))["y"], array
    )


def test_a_model_without_batch_dimension_answers(served: GatewayProcess) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(
        arrays(served.infer(floats("fixed", array)))["y"], -array
    )


def test_an_optional_input_may_be_absent(served: GatewayProcess) -> None:
    x = np.array([1, 2, 3], np.float32)
    alone = served.infer(floats("weighted", x))
    assert arrays(alone)["y"].tolist() == [2, 4, 6]
    both = infer_request(
        "weighted", {"x": ("FP32", x), "w": ("FP32", np.array([5], np.float32))}
    )
    assert arrays(served.infer(both))["y"].tolist() == [5, 10, 15]


def test_raw_entries_follow_the_order_of_the_inputs(served: GatewayProcess) -> None:
    a = np.array([[8, 9]], np.int64)
    request = infer_request(
        "divides", {"b": ("INT64", np.array([2, 3])), "a": ("INT64", a[0])}
    )
    assert arrays(served.infer(request))["q"].tolist() == [4, 3]


# -- identity of the answer ---------------------------------------------------


def test_every_prediction_has_a_uuid7_of_its_own_in_order_of_time(
    served: GatewayProcess,
) -> None:
    before = time.time_ns() // 1_000_000
    ids = []
    for _ in range(50):
        response = served.infer(floats("identity_FP32", [[1, 2]]))
        ids.append(UUID(response.parameters["prediction_id"].string_param))
        assert str(ids[-1]) == response.parameters["prediction_id"].string_param
    after = time.time_ns() // 1_000_000
    assert {minted.version for minted in ids} == {7}
    assert len(set(ids)) == 50
    stamps = [minted.int >> 80 for minted in ids]
    assert stamps == sorted(stamps)
    assert before <= stamps[0] <= stamps[-1] <= after


def test_no_response_parameter_uses_the_reserved_prefix(served: GatewayProcess) -> None:
    response = served.infer(floats("identity_FP32", [[1, 2]]))
    assert set(response.parameters) == {"prediction_id", "version"}


@pytest.mark.parametrize(
    ("model", "version", "serving", "answer"),
    [
        ("both", "", "2", [[-1.0, -2.0]]),
        ("both", "1", "1", [[1.0, 2.0]]),
        ("both", "2", "2", [[-1.0, -2.0]]),
        ("latest", "", "3", [[-1.0, -2.0]]),
        ("latest", "3", "3", [[-1.0, -2.0]]),
    ],
)
def test_the_version_asked_for_serves_and_is_named(
    served: GatewayProcess,
    model: str,
    version: str,
    serving: str,
    answer: list[list[float]],
) -> None:
    response = served.infer(floats(model, [[1, 2]], version=version))
    assert arrays(response)["y"].tolist() == answer
    assert response.model_name == model
    assert response.model_version == serving
    assert response.parameters["version"].string_param == serving


# -- refusals (section 11) ----------------------------------------------------


def _raw(entries: list[bytes], **change: Any) -> pb.ModelInferRequest:
    request = floats("identity_FP32", [[1, 2]])
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(entries)
    for field, value in change.items():
        if field == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], field, value)
    return request


def _typed(model: str, datatype: str, field: str, values: list[Any]) -> Any:
    request = pb.ModelInferRequest(model_name=model)
    sent = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(sent.contents, field).extend(values)
    return request


def _contents_and_raw() -> pb.ModelInferRequest:
    request = _typed("identity_FP32", "FP32", "fp32_contents", [1, 2])
    request.raw_input_contents.append(b"\0" * 8)
    return request


def _shared_memory() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="identity_FP32")
    sent = request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    sent.parameters["shared_memory_region"].string_param = "region"
    sent.parameters["shared_memory_byte_size"].int64_param = 8
    return request


def _strings(raw: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="identity_BYTES")
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    request.raw_input_contents.append(raw)
    return request


BAD_TENSORS: dict[str, tuple[pb.ModelInferRequest, str]] = {
    "contents and raw": (_contents_and_raw(), "contents field must not be specified"),
    "shared memory": (_shared_memory(), "shared memory"),
    "no data": (_raw([]), "unable to find data for input tensor"),
    "short": (_raw([b"\0" * 7]), "expected 8 bytes"),
    "long": (_raw([b"\0" * 9]), "expected 8 bytes"),
    "datatype": (_raw([b"\0" * 8], datatype="FP64"), "data-type 'FP64'"),
    "rank": (_raw([b"\0" * 8], shape=[2]), "unexpected shape"),
    "inner": (_raw([b"\0" * 12], shape=[1, 3]), "unexpected shape"),
    "negative": (_raw([b"\0" * 8], shape=[1, -2]), "unexpected shape"),
    "no rows": (_raw([b""], shape=[0, 2]), "batch-size must be between 1 and 64"),
    "too many rows": (_raw([b"\0" * 520], shape=[65, 2]), "batch-size"),
    "overflow": (_raw([b""], shape=[2**62, 2]), "batch-size"),
    "wrong field": (
        _typed("identity_FP32", "FP32", "int_contents", [1, 2]),
        "fp32_contents",
    ),
    "typed half": (
        _typed("identity_FP16", "FP16", "fp32_contents", [1, 2]),
        "has no typed contents",
    ),
    "typed count": (
        _typed("identity_FP32", "FP32", "fp32_contents", [1]),
        "expected 8 bytes",
    ),
    "too few strings": (_strings(encode_bytes_elements([b"a"])), "2 elements"),
    "cut string": (_strings(encode_bytes_elements([b"a", b"b"])[:-1]), "past the end"),
    "not UTF-8": (_strings(encode_bytes_elements([b"a", b"\xff"])), "UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_bad_tensor_is_invalid_and_named(served: GatewayProcess, case: str) -> None:
    request, text = BAD_TENSORS[case]
    code, details = failure(lambda: served.infer(request))
    assert code == Code.INVALID_ARGUMENT
    assert text in details
    assert "'x'" in details
    assert f"'{request.model_name}'" in details


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("a",), "expected input 'b' for model 'pair' is missing"),
        (("a", "c"), "'b' for model 'pair' is missing; it has no input 'c'"),
        (("a", "b", "c"), "unexpected inference input 'c' for model 'pair'"),
    ],
)
def test_missing_and_unknown_inputs_are_named(
    served: GatewayProcess, names: tuple[str, ...], text: str
) -> None:
    row = np.ones((1, 3), np.float32)
    request = infer_request("pair", dict.fromkeys(names, ("FP32", row)))
    assert failure(lambda: served.infer(request))[0] == Code.INVALID_ARGUMENT
    assert text in failure(lambda: served.infer(request))[1]


def test_an_unknown_output_is_named(served: GatewayProcess) -> None:
    code, details = failure(lambda: served.infer(pair(outputs=["sum", "nothing"])))
    assert code == Code.INVALID_ARGUMENT
    assert "'nothing' for model 'pair'" in details


@pytest.mark.parametrize(
    ("model", "version", "code", "text"),
    [
        ("nobody", "", Code.NOT_FOUND, "unknown model: 'nobody' is not found"),
        ("", "", Code.NOT_FOUND, "'' is not found (the request names no model)"),
        ("../both", "", Code.NOT_FOUND, "is not found"),
        ("both", "3", Code.NOT_FOUND, "'both' version 3 is not found"),
        ("latest", "1", Code.NOT_FOUND, "'latest' version 1 is not found"),
        ("both", "one", Code.INVALID_ARGUMENT, "'one'"),
        ("both", "-1", Code.INVALID_ARGUMENT, "'-1'"),
        ("both", "1.0", Code.INVALID_ARGUMENT, "'1.0'"),
        ("both", "\N{ARABIC-INDIC DIGIT ONE}", Code.INVALID_ARGUMENT, "version"),
        ("both", "9" * 400, Code.INVALID_ARGUMENT, "version"),
        ("broken", "", Code.UNAVAILABLE, "'broken' version 1 is not at ready state"),
        ("broken", "1", Code.UNAVAILABLE, "is not at ready state"),
    ],
)
def test_models_and_versions_that_do_not_serve(
    served: GatewayProcess, model: str, version: str, code: Code, text: str
) -> None:
    request = floats(model, [[1, 2]], version=version)
    found, details = failure(lambda: served.infer(request))
    assert found == code
    assert text in details


@pytest.mark.parametrize(
    "character", ["n", "é", "\N{SNOWMAN}", "\U0001f600", "\n", "%"]
)
def test_a_very_long_name_still_gets_its_own_error(
    served: GatewayProcess, character: str
) -> None:
    """Details travel percent-encoded in a trailer, which has a limit of its own."""
    code, details = failure(lambda: served.infer(floats(character * 5000, [[1, 2]])))
    assert code == Code.NOT_FOUND
    assert character in details


def test_bytes_that_are_no_message_are_invalid(served: GatewayProcess) -> None:
    code, details = failure(lambda: unary(served, "ModelInfer")(b"\xff\xff\xff"))
    assert code == Code.INVALID_ARGUMENT
    assert "ModelInferRequest" in details


def test_a_model_that_fails_is_internal_without_its_own_words(
    served: GatewayProcess,
) -> None:
    request = infer_request(
        "divides", {"a": ("INT64", np.array([1])), "b": ("INT64", np.array([0]))}
    )
    code, details = failure(lambda: served.infer(request))
    assert code == Code.INTERNAL
    assert "'divides' version 1" in details
    assert "Traceback" not in details


# -- parameters (section 7) ---------------------------------------------------


def _with(model: str, name: str, **value: Any) -> pb.ModelInferRequest:
    request = floats(model, [[1, 2]])
    request.parameters[name].MergeFrom(pb.InferParameter(**value))
    return request


@pytest.mark.parametrize("model", ["limited", "identity_FP32"])
@pytest.mark.parametrize(
    "value",
    [
        {"int64_param": 0},
        {"int64_param": 1},
        {"uint64_param": 1},
        {"uint64_param": 3},
        {"uint64_param": 2**64 - 1},
    ],
)
def test_any_priority_of_either_kind_is_served(
    served: GatewayProcess, model: str, value: dict[str, int]
) -> None:
    response = served.infer(_with(model, "priority", **value))
    assert arrays(response)["y"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("priority", {"int64_param": -1}, "'priority' must not be negative"),
        ("priority", {"string_param": "1"}, "'priority' must be"),
        ("timeout", {"int64_param": -5}, "'timeout' must not be negative"),
        ("timeout", {"double_param": 1.5}, "'timeout' must be"),
        ("sequence_id", {"bool_param": True}, "'sequence_id'"),
        ("sequence_start", {"int64_param": 1}, "'sequence_start'"),
        ("sequence_end", {"string_param": "no"}, "'sequence_end'"),
        ("triton_anything", {"bool_param": True}, "'triton_anything' is reserved"),
        ("binary_data_output", {"bool_param": True}, "is reserved"),
        ("headers", {"string_param": ""}, "is reserved"),
    ],
)
def test_parameters_of_a_wrong_kind_are_invalid(
    served: GatewayProcess, name: str, value: dict[str, Any], text: str
) -> None:
    code, details = failure(lambda: served.infer(_with("identity_FP32", name, **value)))
    assert code == Code.INVALID_ARGUMENT
    assert text in details


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tenant", {"string_param": "a"}),
        ("weight", {"double_param": float("nan")}),
        ("sequence_id", {"string_param": "s"}),
        ("sequence_id", {"int64_param": 4}),
        ("timeout", {"uint64_param": 2**64 - 1}),
        ("timeout", {"int64_param": 0}),
    ],
)
def test_custom_and_harmless_parameters_pass(
    served: GatewayProcess, name: str, value: dict[str, Any]
) -> None:
    served.infer(_with("identity_FP32", name, **value))


# -- deadlines and timeouts ---------------------------------------------------


@pytest.fixture
def busy(served: GatewayProcess) -> Iterator[None]:
    """Occupy the one worker: a request runs, and one it took ahead waits there."""
    rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
    message = slow_request(TURNS).SerializeToString()
    calls = [rpc.future(message, timeout=30) for _ in range(3)]
    wait_for(lambda: in_flight(served, "slow") == 3)
    yield
    for call in calls:
        call.result()


@pytest.mark.usefixtures("busy")
def test_a_queue_timeout_of_a_microsecond_passes_while_the_worker_is_busy(
    served: GatewayProcess,
) -> None:
    code, details = failure(lambda: served.infer(slow_request(1, timeout=1)))
    assert code == Code.UNAVAILABLE
    assert details == "Request timeout expired in the queue of 'slow'"
    assert in_flight(served, "slow") >= 1


def test_a_queue_timeout_of_a_microsecond_answers_or_says_so(
    served: GatewayProcess,
) -> None:
    for _ in range(50):
        rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
        message = floats("identity_FP32", [[1, 2]], timeout=1).SerializeToString()
        call = rpc.future(message)
        if call.code() == Code.OK:
            response = pb.ModelInferResponse.FromString(call.result())
            assert arrays(response)["y"].tolist() == [[1, 2]]
        else:
            assert call.code() == Code.UNAVAILABLE
            assert "Request timeout expired" in call.details()


@pytest.mark.usefixtures("busy")
def test_the_deadline_of_the_call_wins_over_a_longer_timeout(
    served: GatewayProcess,
) -> None:
    request = slow_request(1, timeout=60_000_000)
    code, _ = failure(lambda: served.infer(request, timeout_s=0.05))
    assert code == Code.DEADLINE_EXCEEDED
    wait_for(lambda: in_flight(served, "slow") <= 3)  # the late one is gone


@pytest.mark.usefixtures("busy")
def test_the_timeout_wins_over_a_longer_deadline_of_the_call(
    served: GatewayProcess,
) -> None:
    request = slow_request(1, timeout=50_000)
    code, details = failure(lambda: served.infer(request, timeout_s=30))
    assert code == Code.UNAVAILABLE
    assert "Request timeout expired" in details


@pytest.mark.usefixtures("busy")
def test_a_cancelled_call_gives_its_permit_back(served: GatewayProcess) -> None:
    rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
    message = slow_request(TURNS).SerializeToString()
    calls = [rpc.future(message) for _ in range(20)]
    wait_for(lambda: in_flight(served, "slow") >= 20)
    for call in calls:
        call.cancel()
    assert all(call.code() == Code.CANCELLED for call in calls)
    wait_for(lambda: in_flight(served, "slow") <= 3)


def test_nothing_stays_in_flight_when_all_is_answered(served: GatewayProcess) -> None:
    wait_for(lambda: in_flight(served, "slow") == 0)
    assert metric(served, "baton_inflight_requests") == 0
    assert metric(served, "baton_inflight_bytes") == 0


# -- sizes and encodings of messages (section 12) -----------------------------


@pytest.mark.parametrize(
    "compression", [grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_compressed_requests_are_decoded(
    served: GatewayProcess, compression: grpc.Compression
) -> None:
    array = np.zeros((512, 512), np.float32)
    rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
    raw = rpc(
        floats("free", array).SerializeToString(), timeout=20, compression=compression
    )
    found = arrays(pb.ModelInferResponse.FromString(raw))["y"]
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("shape", [(4, 1 << 20), (1 << 20, 4)])
def test_sixteen_megabytes_go_there_and_back(
    served: GatewayProcess, shape: tuple[int, int]
) -> None:
    array = np.random.default_rng(1).random(shape, np.float32)
    found = arrays(served.infer(floats("free", array)))["y"]
    np.testing.assert_array_equal(found, array)


def test_large_batches_through_shared_memory_keep_their_rows(
    served: GatewayProcess,
) -> None:
    """Batched rows of 8 MB in all, several requests at once."""
    rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
    sent = [np.full((4, 1, 1 << 18), number, np.float32) for number in range(6)]
    calls = [
        rpc.future(floats("variable", array).SerializeToString(), timeout=30)
        for array in sent
    ]
    for array, call in zip(sent, calls, strict=True):
        found = arrays(pb.ModelInferResponse.FromString(call.result()))["y"]
        np.testing.assert_array_equal(found, array)


def test_a_message_above_the_limit_is_refused_and_the_connection_lives(
    served: GatewayProcess,
) -> None:
    array = np.zeros((1, MAX_MESSAGE_BYTES // 4 + 1), np.float32)
    code, _ = failure(lambda: served.infer(floats("free", array)))
    assert code == Code.RESOURCE_EXHAUSTED
    served.infer(floats("identity_FP32", [[1, 2]]))


def test_a_message_that_unpacks_to_more_than_the_limit_is_refused(
    served: GatewayProcess,
) -> None:
    array = np.zeros((1, MAX_MESSAGE_BYTES // 4 + 1), np.float32)
    rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
    call = rpc.future(
        floats("free", array).SerializeToString(), compression=grpc.Compression.Gzip
    )
    assert call.code() == Code.RESOURCE_EXHAUSTED
    served.infer(floats("identity_FP32", [[1, 2]]))


# -- company in a batch (section 14.8) ----------------------------------------


def test_rows_of_many_callers_never_mix(served: GatewayProcess) -> None:
    random = np.random.default_rng(11)
    rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
    results: list[tuple[np.ndarray[Any, Any], Any]] = []
    lock = threading.Lock()

    def send(count: int, seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(count):
            a = own.random((int(own.integers(1, 17)), 3), np.float32)
            tensors = {"a": ("FP32", a), "b": ("FP32", np.zeros_like(a))}
            call = rpc.future(infer_request("pair", tensors).SerializeToString())
            with lock:
                results.append((a, call))

    threads = [
        threading.Thread(target=send, args=(60, int(random.integers(1 << 30))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, call in results:
        found = arrays(pb.ModelInferResponse.FromString(call.result(30)))
        np.testing.assert_array_equal(found["sum"], a)
        np.testing.assert_allclose(found["total"][:, 0], a.sum(axis=1), rtol=1e-6)
    counts = served.statistics("pair")[0]
    assert counts.execution_count < counts.inference_count

"""Every RPC beside inference: metadata, statistics, repository, health, reflection."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from featurizer.datatypes import DATATYPES
from gateway.protocol import inference_pb2 as pb
from gateway.protocol import model_config_pb2
from tests import onnx_models
from tests.gateway_process import SERVICE, GatewayProcess, gateway, wait_for
from tests.protocol.served import (
    add_model,
    arrays,
    failure,
    floats,
    in_flight,
    infer_request,
    negation,
    slow_request,
    unary,
)

Code = grpc.StatusCode
Health = health_pb2.HealthCheckResponse

SERVED = {
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryUnregister",
}
UNSUPPORTED = [
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "TraceSetting",
    "LogSettings",
    "NoSuchMethod",
]


def metadata(
    served: GatewayProcess, name: str, version: str = ""
) -> pb.ModelMetadataResponse:
    request = pb.ModelMetadataRequest(name=name, version=version)
    response: pb.ModelMetadataResponse = served.call(
        "ModelMetadata", request, pb.ModelMetadataResponse
    )
    return response


def config(
    served: GatewayProcess, name: str, version: str = ""
) -> model_config_pb2.ModelConfig:
    request = pb.ModelConfigRequest(name=name, version=version)
    response: pb.ModelConfigResponse = served.call(
        "ModelConfig", request, pb.ModelConfigResponse
    )
    return response.config


def load(served: GatewayProcess, name: str, **parameters: str | bytes) -> Any:
    request = pb.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        if isinstance(value, bytes):
            request.parameters[key].bytes_param = value
        else:
            request.parameters[key].string_param = value
    return served.call("RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)


def unload(served: GatewayProcess, name: str) -> Any:
    request = pb.RepositoryModelUnloadRequest(model_name=name)
    request.parameters["unload_dependents"].bool_param = False
    return served.call(
        "RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse
    )


def index(
    served: GatewayProcess, *, ready: bool = False
) -> dict[tuple[str, str], tuple[str, str]]:
    request = pb.RepositoryIndexRequest(ready=ready)
    response = served.call("RepositoryIndex", request, pb.RepositoryIndexResponse)
    rows = {(m.name, m.version): (m.state, m.reason) for m in response.models}
    assert len(rows) == len(response.models)
    return rows


def ready(served: GatewayProcess, name: str, version: str = "") -> bool:
    request = pb.ModelReadyRequest(name=name, version=version)
    return bool(served.call("ModelReady", request, pb.ModelReadyResponse).ready)


def answer(served: GatewayProcess, name: str, **more: Any) -> Any:
    return arrays(served.infer(floats(name, [[1, 2]], **more)))["y"].tolist()


# -- liveness and metadata (section 8) ----------------------------------------


def test_the_server_is_live_and_ready(served: GatewayProcess) -> None:
    live = served.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)
    assert live.live
    assert served.ready()


def test_the_server_advertises_what_works_and_nothing_else(
    served: GatewayProcess,
) -> None:
    request = pb.ServerMetadataRequest()
    response = served.call("ServerMetadata", request, pb.ServerMetadataResponse)
    assert response.name
    assert response.version
    assert set(response.extensions) == {
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "parameters",
        "statistics",
    }


@pytest.mark.parametrize("datatype", DATATYPES)
def test_metadata_names_the_datatype_and_config_its_own_name_of_it(
    served: GatewayProcess, datatype: str
) -> None:
    name = f"identity_{datatype}"
    (tensor,) = metadata(served, name).inputs
    assert tensor.datatype == datatype
    (declared,) = config(served, name).input
    expected = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    assert model_config_pb2.DataType.Name(declared.data_type) == expected


@pytest.mark.parametrize(
    ("model", "rows", "batching", "dims"),
    [
        ("identity_FP32", 64, True, [2]),
        ("variable", 64, True, [1, -1]),
        ("texts", 64, True, [-1]),
        ("limited", 4, True, [2]),
        ("unshared", 4, False, [2]),
        ("fixed", 0, False, [3, 4]),
        ("free", 0, False, [-1, -1]),
        ("scalar", 0, False, []),
    ],
)
def test_shapes_lead_with_minus_one_exactly_where_the_model_batches(
    served: GatewayProcess, model: str, rows: int, batching: bool, dims: list[int]
) -> None:
    declared = config(served, model)
    assert declared.max_batch_size == rows
    assert declared.HasField("dynamic_batching") == batching
    assert list(declared.input[0].dims) == dims
    full = [-1, *dims] if rows else dims
    assert list(metadata(served, model).inputs[0].shape) == full


@pytest.mark.parametrize("model", ["identity_FP32", "pair", "limited", "fixed"])
def test_config_has_what_load_generators_look_at(
    served: GatewayProcess, model: str
) -> None:
    declared, described = config(served, model), metadata(served, model)
    assert declared.name == described.name == model
    assert declared.platform == described.platform == "onnxruntime_onnx"
    assert not declared.HasField("sequence_batching")
    assert not declared.HasField("ensemble_scheduling")
    assert not declared.model_transaction_policy.decoupled
    assert not declared.response_cache.enable
    for ours, theirs in (
        (declared.input, described.inputs),
        (declared.output, described.outputs),
    ):
        assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]


def test_declared_scheduling_comes_back_in_the_config(served: GatewayProcess) -> None:
    dynamic = config(served, "limited").dynamic_batching
    assert list(dynamic.preferred_batch_size) == [4]
    assert dynamic.priority_levels == 3
    assert dynamic.default_priority_level == 2


def test_an_optional_input_is_optional_in_the_config(served: GatewayProcess) -> None:
    found = {t.name: t.optional for t in config(served, "weighted").input}
    assert found == {"x": False, "w": True}


@pytest.mark.parametrize(
    ("model", "versions"),
    [("both", ["1", "2"]), ("latest", ["3"]), ("fixed", ["1"])],
)
def test_metadata_lists_the_versions_as_decimal_integers(
    served: GatewayProcess, model: str, versions: list[str]
) -> None:
    assert list(metadata(served, model).versions) == versions
    for version in versions:
        assert list(metadata(served, model, version).versions) == versions


@pytest.mark.parametrize(
    ("model", "version", "code"),
    [
        ("nobody", "", Code.NOT_FOUND),
        ("latest", "1", Code.NOT_FOUND),
        ("broken", "", Code.UNAVAILABLE),
        ("both", "x", Code.INVALID_ARGUMENT),
    ],
)
def test_metadata_and_config_of_what_does_not_serve_are_errors(
    served: GatewayProcess, model: str, version: str, code: Code
) -> None:
    for ask in (metadata, config):
        found, details = failure(lambda ask=ask: ask(served, model, version))
        assert found == code
        assert f"'{model}'" in details


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        ("both", "", True),
        ("both", "1", True),
        ("both", "7", False),
        ("broken", "", False),
        ("nobody", "", False),
    ],
)
def test_an_unknown_model_is_not_ready_which_is_no_error(
    served: GatewayProcess, model: str, version: str, expected: bool
) -> None:
    assert ready(served, model, version) is expected


# -- what is not offered ------------------------------------------------------


@pytest.mark.parametrize("method", UNSUPPORTED)
def test_what_is_not_offered_is_unimplemented(
    served: GatewayProcess, method: str
) -> None:
    assert failure(lambda: unary(served, method)(b""))[0] == Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    "method", ["SystemSharedMemoryUnregister", "CudaSharedMemoryUnregister"]
)
def test_unregistering_all_shared_memory_succeeds(
    served: GatewayProcess, method: str
) -> None:
    assert unary(served, method)(b"") == b""
    named = pb.SystemSharedMemoryUnregisterRequest(name="r").SerializeToString()
    assert failure(lambda: unary(served, method)(named))[0] == Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    "method",
    [
        "ModelReady",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    ],
)
def test_bytes_that_are_no_message_are_invalid(
    served: GatewayProcess, method: str
) -> None:
    code, details = failure(lambda: unary(served, method)(b"\xff\xff\xff"))
    assert code == Code.INVALID_ARGUMENT
    assert method in details


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/grpc.health.v1.Health/Watch", "HealthCheckRequest"),
        (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "ServerReflectionRequest",
        ),
    ],
)
def test_bytes_that_are_no_message_end_a_stream_as_invalid(
    served: GatewayProcess, path: str, name: str
) -> None:
    call = served.channel.stream_stream(path)(iter([b"\xff\xff\xff"]), timeout=10)
    code, details = failure(lambda: list(call))
    assert code == Code.INVALID_ARGUMENT
    assert name in details


# -- statistics (section 9) ---------------------------------------------------


def test_statistics_grow_by_exactly_what_was_asked(served: GatewayProcess) -> None:
    (before,) = served.statistics("variable")
    for rows in (1, 3, 1):
        served.infer(floats("variable", np.ones((rows, 1, 5))))
    failure(lambda: served.infer(floats("variable", [[1]])))
    (after,) = served.statistics("variable")
    assert (after.name, after.version) == ("variable", "1")
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 3
    assert after.last_inference >= before.last_inference
    assert after.last_inference > 1_600_000_000_000  # milliseconds since 1970
    for name in ("success", "queue", "compute_input", "compute_infer"):
        old, new = (getattr(s.inference_stats, name) for s in (before, after))
        assert new.count - old.count == 3
        assert new.ns >= old.ns
    spent, old_spent = after.inference_stats, before.inference_stats
    assert spent.success.ns > old_spent.success.ns
    assert spent.compute_infer.ns > old_spent.compute_infer.ns
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(getattr(spent, stage).ns for stage in stages) <= spent.success.ns
    assert spent.cache_hit.count == spent.cache_miss.count == 0
    runs = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    was = {batch.batch_size: batch.compute_infer.count for batch in before.batch_stats}
    assert runs[1] - was.get(1, 0) == 2
    assert runs[3] - was.get(3, 0) == 1
    assert sum(runs.values()) == after.execution_count


def test_failures_count_as_failures(served: GatewayProcess) -> None:
    one, zero = np.array([1]), np.array([0])
    served.infer(infer_request("divides", {"a": ("INT64", one), "b": ("INT64", one)}))
    (before,) = served.statistics("divides")
    request = infer_request("divides", {"a": ("INT64", one), "b": ("INT64", zero)})
    assert failure(lambda: served.infer(request))[0] == Code.INTERNAL
    (after,) = served.statistics("divides")
    stats = after.inference_stats
    assert stats.fail.count - before.inference_stats.fail.count == 1
    assert stats.success.count == before.inference_stats.success.count
    assert after.inference_count == before.inference_count


def test_statistics_are_kept_per_version(served: GatewayProcess) -> None:
    def counts() -> dict[str, int]:
        return {s.version: s.inference_count for s in served.statistics("both")}

    answer(served, "both", version="1")
    answer(served, "both", version="2")
    before = counts()
    assert set(before) == {"1", "2"}
    answer(served, "both", version="1")
    assert counts() == {"1": before["1"] + 1, "2": before["2"]}
    request = pb.ModelStatisticsRequest(name="both", version="2")
    response = served.call("ModelStatistics", request, pb.ModelStatisticsResponse)
    assert [s.version for s in response.model_stats] == ["2"]


def test_statistics_of_no_name_are_those_of_every_model(
    served: GatewayProcess,
) -> None:
    answer(served, "latest")
    answer(served, "both")
    rows = served.statistics()
    assert {"latest", "both"} <= {row.name for row in rows}
    assert len({(row.name, row.version) for row in rows}) == len(rows)
    assert all(row.version == str(int(row.version)) for row in rows)


def test_a_ready_model_has_statistics_before_its_first_request(
    served: GatewayProcess,
) -> None:
    """Load generators read the counters before their first window."""
    load(served, "changing")
    rows = served.statistics("changing")
    assert [(row.name, row.version) for row in rows] == [("changing", "1")]
    names = {row.name for row in served.statistics()}
    assert {name for name, _ in index(served, ready=True)} <= names


def test_statistics_of_an_unknown_model_are_not_found(served: GatewayProcess) -> None:
    code, details = failure(lambda: served.statistics("nobody"))
    assert code == Code.NOT_FOUND
    assert "'nobody'" in details


def test_statistics_outlive_a_reload(served: GatewayProcess) -> None:
    answer(served, "changing")
    (before,) = served.statistics("changing")
    override = json.dumps({"maxBatchSize": 16})
    load(served, "changing", config=override)
    try:
        answer(served, "changing")
        (after,) = served.statistics("changing")
        assert after.inference_count == before.inference_count + 1
    finally:
        load(served, "changing")


def test_statistics_are_sums_over_fronts_and_workers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    repository = tmp_path_factory.mktemp("two-fronts")
    add_model(repository, "m", onnx_models.identity("FP32"))
    with gateway(repository, grpc={"fronts": 2}, workers={"count": 2}) as running:
        sent = 0
        for _ in range(12):  # each connection ends at either front
            with grpc.insecure_channel(
                running.address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                rpc = channel.unary_unary(SERVICE + "ModelInfer")
                for rows in (1, 2):
                    rpc(floats("m", np.ones((rows, 2))).SerializeToString(), timeout=10)
                    sent += rows
                ask = channel.unary_unary(SERVICE + "ModelStatistics")
                found = pb.ModelStatisticsResponse.FromString(ask(b"", timeout=10))
                assert found.model_stats[0].inference_count == sent
        stats = found.model_stats[0].inference_stats
        assert stats.success.count == stats.queue.count == 24
        assert len(running.pids("front")) == 2


# -- repository (section 13) --------------------------------------------------


def test_the_index_has_every_version_with_its_state(served: GatewayProcess) -> None:
    rows = index(served)
    assert rows["both", "1"] == rows["both", "2"] == ("READY", "")
    assert ("latest", "3") in rows
    assert ("latest", "1") not in rows
    state, reason = rows["broken", "1"]
    assert state == "UNAVAILABLE"
    assert "ONNX" in reason


def test_the_index_of_ready_models_leaves_the_others_out(
    served: GatewayProcess,
) -> None:
    rows = index(served, ready=True)
    assert {state for state, _ in rows.values()} == {"READY"}
    assert not [name for name, _ in rows if name == "broken"]


def test_unload_and_load_again(served: GatewayProcess) -> None:
    assert answer(served, "changing") == [[1, 2]]
    unload(served, "changing")
    try:
        code, details = failure(lambda: answer(served, "changing"))
        assert (code, details) == (
            Code.NOT_FOUND,
            "'changing' has no available versions",
        )
        code, details = failure(lambda: answer(served, "changing", version="1"))
        assert code == Code.UNAVAILABLE
        assert "'changing' version 1 is not at ready state" in details
        assert not ready(served, "changing")
        assert index(served)["changing", "1"] == ("UNAVAILABLE", "unloaded")
        assert served.statistics("changing")
    finally:
        load(served, "changing")
    assert ready(served, "changing")
    assert index(served)["changing", "1"] == ("READY", "")
    assert answer(served, "changing") == [[1, 2]]


def test_a_config_in_the_load_request_overrides_until_the_next_load(
    served: GatewayProcess,
) -> None:
    override = json.dumps(
        {
            "max_batch_size": 2,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["2"]}],
        }
    )
    load(served, "changing", config=override)
    try:
        assert config(served, "changing").max_batch_size == 2
        request = floats("changing", np.ones((3, 2)))
        code, details = failure(lambda: served.infer(request))
        assert code == Code.INVALID_ARGUMENT
        assert "between 1 and 2" in details
    finally:
        load(served, "changing")
    served.infer(request)


def test_files_in_the_load_request_are_what_is_served(served: GatewayProcess) -> None:
    try:
        load(
            served,
            "changing",
            config="{}",
            **{"file:5/model.onnx": negation(2)},
        )
        assert answer(served, "changing") == [[-1, -2]]
        response = served.infer(floats("changing", [[1, 2]]))
        assert response.model_version == "5"
        assert ready(served, "changing", "5")
        assert not ready(served, "changing", "1")
    finally:
        load(served, "changing")
    assert answer(served, "changing") == [[1, 2]]
    assert not ready(served, "changing", "5")


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"config": "{"}, Code.FAILED_PRECONDITION),
        ({"config": '{"max_batch_size": -1}'}, Code.FAILED_PRECONDITION),
        ({"config": '{"name": "other"}'}, Code.FAILED_PRECONDITION),
        ({"config": '{"sequence_batching": {}}'}, Code.FAILED_PRECONDITION),
        ({"file:1/model.onnx": b"x"}, Code.INVALID_ARGUMENT),
        ({"config": "{}", "file:../1/model.onnx": b"x"}, Code.INVALID_ARGUMENT),
        ({"config": "{}", "file:/etc/x": b"x"}, Code.INVALID_ARGUMENT),
        ({"config": "{}", "file:1/model.onnx": b"x"}, Code.FAILED_PRECONDITION),
        ({"unknown": "x"}, Code.INVALID_ARGUMENT),
        ({"config": b"{}"}, Code.INVALID_ARGUMENT),
    ],
)
def test_a_load_that_fails_says_why_and_the_old_version_serves_on(
    served: GatewayProcess, parameters: dict[str, Any], code: Code
) -> None:
    found, details = failure(lambda: load(served, "changing", **parameters))
    assert found == code
    assert details
    assert "Traceback" not in details
    assert answer(served, "changing") == [[1, 2]]
    assert index(served)["changing", "1"][0] == "READY"


@pytest.mark.parametrize("model", ["nobody", "", "..", "a/b", "n\0"])
def test_loading_an_unknown_model_is_not_found_and_leaves_no_trace(
    served: GatewayProcess, model: str
) -> None:
    before = index(served)
    assert failure(lambda: load(served, model))[0] == Code.NOT_FOUND
    assert failure(lambda: answer(served, model))[0] == Code.NOT_FOUND
    assert index(served) == before


def test_loading_a_broken_model_gives_the_reason(served: GatewayProcess) -> None:
    code, details = failure(lambda: load(served, "broken"))
    assert code == Code.FAILED_PRECONDITION
    assert "'broken' version 1" in details
    assert "ONNX" in details


def test_unloading_what_was_never_served_is_invalid(served: GatewayProcess) -> None:
    code, details = failure(lambda: unload(served, "nobody"))
    assert code == Code.INVALID_ARGUMENT
    assert "Model to be unloaded has not been served" in details


def test_unload_does_not_wait_for_requests_in_flight_which_are_answered(
    served: GatewayProcess,
) -> None:
    rpc = served.channel.unary_unary(SERVICE + "ModelInfer")
    message = slow_request(600_000).SerializeToString()
    calls = [rpc.future(message, timeout=30) for _ in range(3)]
    wait_for(lambda: in_flight(served, "slow") == 3)
    try:
        unload(served, "slow")
        assert not ready(served, "slow")
        assert not all(call.done() for call in calls)
        assert [call.code() for call in calls] == [Code.OK] * 3
    finally:
        load(served, "slow")
    served.infer(slow_request(1))


def test_reloads_under_load_lose_no_request(served: GatewayProcess) -> None:
    stop = threading.Event()
    failures: list[grpc.RpcError] = []
    answers: list[str] = []

    def client() -> None:
        while not stop.is_set():
            try:
                response = served.infer(floats("changing", [[1, 2]]))
            except grpc.RpcError as error:
                failures.append(error)
            else:
                answers.append(response.model_version)

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for rows in (8, 16, 0):
            override = {"config": json.dumps({"max_batch_size": rows})} if rows else {}
            load(served, "changing", **override)
            seen = len(answers)
            wait_for(lambda seen=seen: len(answers) > seen + 5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        load(served, "changing")
    assert failures == []
    assert set(answers) == {"1"}


# -- health -------------------------------------------------------------------


def check(served: GatewayProcess, service: str) -> Any:
    rpc = served.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Health.FromString,
    )
    return rpc(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def watch(served: GatewayProcess, service: str) -> Any:
    rpc = served.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Health.FromString,
    )
    return rpc(health_pb2.HealthCheckRequest(service=service), timeout=30)


@pytest.mark.parametrize(
    ("service", "status"),
    [("", Health.SERVING), ("both", Health.SERVING), ("broken", Health.NOT_SERVING)],
)
def test_health_is_known_of_the_server_and_of_every_model(
    served: GatewayProcess, service: str, status: int
) -> None:
    assert check(served, service) == status
    call = watch(served, service)
    assert next(call).status == status
    call.cancel()


def test_health_of_an_unknown_name_is_not_found_but_may_be_watched(
    served: GatewayProcess,
) -> None:
    assert failure(lambda: check(served, "nobody"))[0] == Code.NOT_FOUND
    call = watch(served, "nobody")
    assert next(call).status == Health.SERVICE_UNKNOWN
    call.cancel()


def test_a_watch_hears_of_unload_and_load(served: GatewayProcess) -> None:
    call, other = watch(served, "changing"), watch(served, "both")
    assert next(call).status == Health.SERVING
    assert next(other).status == Health.SERVING
    unload(served, "changing")
    try:
        assert next(call).status == Health.NOT_SERVING
        assert check(served, "changing") == Health.NOT_SERVING
        assert check(served, "") == Health.SERVING
    finally:
        load(served, "changing")
    assert next(call).status == Health.SERVING
    call.cancel()
    other.cancel()


# -- reflection ---------------------------------------------------------------


def test_reflection_v1alpha_describes_the_whole_service(
    served: GatewayProcess,
) -> None:
    database = ProtoReflectionDescriptorDatabase(served.channel)
    assert set(database.get_services()) == {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    pool = DescriptorPool(database)
    for name in database.get_services():
        assert pool.FindServiceByName(name).methods
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert {method.name for method in service.methods} == SERVED
    foreign = GetMessageClass(pool.FindMessageTypeByName("inference.ModelInferRequest"))
    request = floats("identity_FP32", [[1, 2]], id="reflected", priority=1)
    assert foreign.FromString(request.SerializeToString()).SerializeToString(
        deterministic=True
    ) == request.SerializeToString(deterministic=True)


def _reflect(served: GatewayProcess, package: str) -> Callable[..., Any]:
    rpc = served.channel.stream_stream(
        f"/grpc.reflection.{package}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**question: Any) -> Any:
        requests = [reflection_pb2.ServerReflectionRequest(**question)]
        (response,) = list(rpc(iter(requests), timeout=10))
        return response

    return ask


def test_reflection_answers_alike_in_both_versions(served: GatewayProcess) -> None:
    new, old = _reflect(served, "v1"), _reflect(served, "v1alpha")
    questions: list[dict[str, Any]] = [
        {"list_services": "*"},
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"},
        {"file_containing_symbol": "inference.ModelConfig"},
        {"file_containing_symbol": "no.such.Thing"},
        {"file_by_filename": "no/such/file.proto"},
    ]
    for question in questions:
        left, right = new(**question), old(**question)
        assert left == right
        unknown = "no" in str(next(iter(question.values()))).split("/")[0].split(".")
        assert left.HasField("error_response") == unknown
    missing = new(file_by_filename="no/such/file.proto").error_response
    assert missing.error_code == Code.NOT_FOUND.value[0]


# -- the sequence of perf_analyzer (section 14.1) -----------------------------


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_sequence_of_a_load_generator(
    served: GatewayProcess, shared_memory: bool, streaming: bool
) -> None:
    model = "identity_FP32"
    described, declared = metadata(served, model), config(served, model)
    if shared_memory:
        unary(served, "SystemSharedMemoryUnregister")(b"")
        unary(served, "CudaSharedMemoryUnregister")(b"")
    extensions = served.call(
        "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse
    ).extensions
    assert "statistics" in extensions
    assert not declared.model_transaction_policy.decoupled
    dims = list(described.inputs[0].shape)[1:] if declared.max_batch_size else []
    assert dims == list(declared.input[0].dims)

    def counts() -> dict[int, pb.ModelStatistics]:
        return {int(row.version): row for row in served.statistics(model)}

    for _ in range(3):  # windows
        before = counts()
        waiting = {str(number) for number in range(40)}
        requests = [
            floats(model, np.ones((4, *dims)), id=id, outputs=["y"])
            for id in sorted(waiting)
        ]
        if streaming:
            rpc = served.channel.stream_stream(SERVICE + "ModelStreamInfer")
            raw = [request.SerializeToString() for request in requests]
            for message in rpc(iter(raw), timeout=20):
                wrapped = pb.ModelStreamInferResponse.FromString(message)
                assert wrapped.error_message == ""
                assert wrapped.infer_response.parameters[
                    "triton_final_response"
                ].bool_param
                waiting.remove(wrapped.infer_response.id)
        else:
            infer = served.channel.unary_unary(SERVICE + "ModelInfer")
            calls = [infer.future(r.SerializeToString(), timeout=20) for r in requests]
            for call in calls:
                response = pb.ModelInferResponse.FromString(call.result())
                assert len(response.raw_output_contents) == len(response.outputs) == 1
                waiting.remove(response.id)
        assert waiting == set()
        after = counts()
        grown = {
            version: row.inference_stats.queue.count
            - before[version].inference_stats.queue.count
            for version, row in after.items()
        }
        assert grown == {1: 40}
        new, old = after[1], before[1]
        assert new.inference_count - old.inference_count == 160
        assert (
            new.inference_stats.success.count - old.inference_stats.success.count == 40
        )
        assert 0 < new.execution_count - old.execution_count <= 40

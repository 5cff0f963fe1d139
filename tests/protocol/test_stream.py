"""ModelStreamInfer over real gRPC (section 10)."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import pytest

from gateway.protocol import inference_pb2 as pb
from tests.gateway_process import SERVICE, GatewayProcess, wait_for
from tests.protocol.served import (
    arrays,
    floats,
    in_flight,
    infer_request,
    metric,
    slow_request,
)

Code = grpc.StatusCode
TURNS = 600_000
"""Turns of a loop that keep a worker busy for some hundreds of milliseconds."""
WINDOW = 256
"""Default of ``grpc.max_stream_inflight``."""


class Stream:
    """A stream whose requests are sent one at a time, from bytes or messages."""

    def __init__(
        self,
        served: GatewayProcess,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout_s: float = 30.0,
    ) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        rpc = served.channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        self.call = rpc(
            iter(self._requests.get, None), timeout=timeout_s, metadata=metadata
        )

    def send(self, *requests: pb.ModelInferRequest | bytes) -> None:
        for request in requests:
            raw = request if isinstance(request, bytes) else request.SerializeToString()
            self._requests.put(raw)

    def receive(self) -> pb.ModelStreamInferResponse:
        response: pb.ModelStreamInferResponse = next(self.call)
        return response

    def half_close(self) -> None:
        self._requests.put(None)

    def rest(self) -> list[pb.ModelStreamInferResponse]:
        """Half-close and return what still comes; the stream must end with OK."""
        self.half_close()
        responses = list(self.call)
        assert self.call.code() == Code.OK
        return responses

    def cancel(self) -> None:
        self.call.cancel()
        self.half_close()  # ends the thread that sends


@pytest.fixture
def stream(served: GatewayProcess) -> Iterator[Stream]:
    opened = Stream(served)
    yield opened
    opened.cancel()


def final(response: pb.ModelStreamInferResponse) -> bool:
    """Return the final flag, which must be there."""
    parameter = response.infer_response.parameters["triton_final_response"]
    assert parameter.WhichOneof("parameter_choice") == "bool_param"
    return parameter.bool_param


def one(id: str, value: float = 1.0, **more: Any) -> pb.ModelInferRequest:
    return floats("identity_FP32", [[value, 2]], id=id, **more)


def answer(response: pb.ModelStreamInferResponse) -> Any:
    """Return output ``y`` of a response without an error."""
    assert response.error_message == ""
    return arrays(response.infer_response)["y"].tolist()


BAD: dict[str, tuple[pb.ModelInferRequest, str]] = {
    "unknown model": (floats("nobody", [[1, 2]], id="bad"), "'nobody' is not found"),
    "not ready": (floats("broken", [[1, 2]], id="bad"), "not at ready state"),
    "version": (one("bad", version="one"), "'one'"),
    "shape": (floats("identity_FP32", [[1, 2, 3]], id="bad"), "unexpected shape"),
    "output": (one("bad", outputs=["z"]), "'z' for model 'identity_FP32'"),
    "parameter": (one("bad", priority=-1), "'priority'"),
    "model fails": (
        infer_request(
            "divides",
            {"a": ("INT64", np.array([1])), "b": ("INT64", np.array([0]))},
            id="bad",
        ),
        "'divides' version 1 failed",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_in_the_middle_keeps_the_stream(stream: Stream, case: str) -> None:
    request, text = BAD[case]
    stream.send(one("first", 1), request, one("last", 3))
    first, bad, last = stream.rest()
    assert answer(first) == [[1, 2]]
    assert answer(last) == [[3, 2]]
    assert text in bad.error_message
    assert bad.infer_response.id == "bad"
    assert bad.infer_response.model_name == request.model_name
    assert bad.infer_response.model_version == request.model_version
    assert not bad.infer_response.outputs
    assert not bad.infer_response.raw_output_contents
    assert [final(response) for response in (first, bad, last)] == [True] * 3


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b""])
def test_a_message_that_is_no_request_gets_an_error_and_keeps_the_stream(
    stream: Stream, message: bytes
) -> None:
    stream.send(message, one("next"))
    bad, good = stream.rest()
    assert bad.error_message
    assert bad.infer_response.id == ""
    assert final(bad)
    assert good.infer_response.id == "next"


def test_a_success_has_no_error_and_a_response_as_of_the_unary_call(
    stream: Stream,
) -> None:
    stream.send(floats("both", [[1, 2]], id="7"))
    response = stream.receive()
    assert answer(response) == [[-1, -2]]
    inner = response.infer_response
    assert (inner.id, inner.model_name, inner.model_version) == ("7", "both", "2")
    assert UUID(inner.parameters["prediction_id"].string_param).version == 7
    assert not inner.outputs[0].HasField("contents")


def test_an_empty_final_response_is_not_sent_after_an_answer(stream: Stream) -> None:
    stream.send(one("1", triton_enable_empty_final_response=True), one("2"))
    responses = stream.rest()
    assert [r.infer_response.id for r in responses] == ["1", "2"]
    assert all(final(response) and answer(response) for response in responses)


def test_answers_to_two_models_come_in_request_order_under_batching(
    stream: Stream,
) -> None:
    random = np.random.default_rng(5)
    sent = []
    for number in range(500):
        array = random.random((int(random.integers(1, 20)), 2), np.float32)
        model = ("identity_FP32", "both")[int(random.integers(2))]
        sent.append((str(number), model, array))
        stream.send(floats(model, array, id=str(number)))
    responses = stream.rest()
    assert [r.infer_response.id for r in responses] == [id for id, _, _ in sent]
    for (_, model, array), response in zip(sent, responses, strict=True):
        assert response.infer_response.model_name == model
        sign = 1 if model == "identity_FP32" else -1
        np.testing.assert_array_equal(
            arrays(response.infer_response)["y"], sign * array
        )
        assert final(response)


def test_a_quick_answer_waits_for_the_slow_one_before_it(stream: Stream) -> None:
    stream.send(slow_request(TURNS, id="slow"), one("quick"))
    assert stream.receive().infer_response.id == "slow"
    assert stream.receive().infer_response.id == "quick"


def test_the_next_request_is_read_before_the_last_is_answered(
    served: GatewayProcess, stream: Stream
) -> None:
    stream.send(*(slow_request(TURNS // 4) for _ in range(10)))
    wait_for(lambda: in_flight(served, "slow") >= 5)
    assert len(stream.rest()) == 10


def test_half_close_with_a_hundred_in_flight_answers_all_and_ends_with_ok(
    served: GatewayProcess, stream: Stream
) -> None:
    stream.send(slow_request(TURNS), *(one(str(n), n) for n in range(100)))
    stream.half_close()
    wait_for(lambda: in_flight(served, "slow") == 1)
    slow, *responses = list(stream.call)
    assert slow.error_message == ""
    assert [answer(response) for response in responses] == [
        [[float(n), 2.0]] for n in range(100)
    ]
    assert stream.call.code() == Code.OK


def test_a_stream_without_requests_ends_with_ok(stream: Stream) -> None:
    assert stream.rest() == []


def test_with_grpc_errors_asked_for_an_error_ends_the_stream(
    served: GatewayProcess,
) -> None:
    stream = Stream(served, metadata=[("triton_grpc_error", "true")])
    stream.send(one("good"))
    assert answer(stream.receive()) == [[1, 2]]
    stream.send(floats("nobody", [[1, 2]]))
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    stream.half_close()
    assert caught.value.code() == Code.NOT_FOUND
    assert "'nobody'" in caught.value.details()


def test_grpc_errors_not_asked_for_stay_in_the_stream(served: GatewayProcess) -> None:
    stream = Stream(served, metadata=[("triton_grpc_error", "false")])
    stream.send(floats("nobody", [[1, 2]]), one("good"))
    bad, good = stream.rest()
    assert bad.error_message
    assert good.infer_response.id == "good"


def test_cancel_drops_what_is_queued_and_frees_its_permits(
    served: GatewayProcess, stream: Stream
) -> None:
    before = metric(served, "baton_dropped_rows_total", reason="cancelled")
    stream.send(*(slow_request(TURNS) for _ in range(60)))
    wait_for(lambda: in_flight(served, "slow") >= 50)
    stream.cancel()
    assert stream.call.code() == Code.CANCELLED
    wait_for(lambda: in_flight(served, "slow") == 0)
    wait_for(lambda: metric(served, "baton_inflight_requests") == 0)
    assert metric(served, "baton_inflight_bytes") == 0
    after = metric(served, "baton_dropped_rows_total", reason="cancelled")
    assert after - before >= 50


def test_the_deadline_of_the_stream_ends_it_and_frees_its_permits(
    served: GatewayProcess,
) -> None:
    stream = Stream(served, timeout_s=0.3)
    stream.send(*(slow_request(TURNS) for _ in range(20)))
    with pytest.raises(grpc.RpcError) as caught:
        list(stream.call)
    stream.half_close()
    assert caught.value.code() == Code.DEADLINE_EXCEEDED
    wait_for(lambda: in_flight(served, "slow") == 0)


def test_a_queue_timeout_in_a_stream_fails_that_request_alone(stream: Stream) -> None:
    stream.send(
        *(slow_request(TURNS, id="slow") for _ in range(3)),
        slow_request(1, id="late", timeout=1),
        slow_request(1, id="patient", timeout=20_000_000),
    )
    *slow, late, patient = stream.rest()
    assert all(response.error_message == "" for response in slow)
    assert late.error_message == "Request timeout expired in the queue of 'slow'"
    assert late.infer_response.id == "late"
    assert patient.error_message == ""


def test_a_stream_is_not_read_beyond_its_window(
    served: GatewayProcess, stream: Stream
) -> None:
    count = WINDOW + 200
    stream.send(
        *(slow_request(TURNS) for _ in range(3)),
        *(slow_request(1, id=str(number)) for number in range(count)),
    )
    most = wait_for(lambda: max(0, in_flight(served, "slow") - WINDOW + 3))
    assert most <= 3
    *slow, last = stream.rest()
    assert len(slow) == count + 2
    assert last.infer_response.id == str(count - 1)


async def test_many_streams_side_by_side_each_keep_their_order(
    served: GatewayProcess,
) -> None:
    import asyncio

    async def use(channel: grpc.aio.Channel, number: int) -> list[float]:
        rpc = channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        requests = [one(str(n), number * 1000 + n) for n in range(40)]
        return [answer(r)[0][0] async for r in rpc(iter(requests), timeout=30)]

    async with grpc.aio.insecure_channel(served.address) as channel:
        found = await asyncio.gather(*(use(channel, n) for n in range(20)))
    assert found == [[n * 1000.0 + m for m in range(40)] for n in range(20)]

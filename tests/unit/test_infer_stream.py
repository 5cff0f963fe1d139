"""How a stream of inferences ends when time is up."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import DeadlineExceeded, GatewayError
from gateway.protocol.inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from gateway.serving.infer_stream import InferStream


class Call:
    """The transport's side: keeps what it is given."""

    initial_metadata = trailing_metadata = ()

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        self.sent: list[bytes] = []
        self.ended: list[GatewayError | None] = []

    def metadata(self, key: str) -> None:
        return None

    def metadata_bytes(self, key: str) -> None:
        return None

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def finish(self, error: GatewayError | None = None) -> None:
        self.ended.append(error)

    def pause(self) -> None:
        raise AssertionError("nothing is in flight")

    resume = pause


class Late:
    """A service that has no time left."""

    def begin(
        self, kind: type[Any], message: bytes, deadline_ns: int, call: Any
    ) -> Any:
        raise DeadlineExceeded("too late")


@pytest.mark.parametrize("deadline_ns", [0, 5])
def test_the_deadline_of_a_stream_ends_it(deadline_ns: int) -> None:
    """One that was the request's own (there is a default) is an answer like others."""
    call, over = Call(deadline_ns), []
    stream = InferStream(Late(), call, 8, 1 << 20, over.append)
    stream.on_message(ModelInferRequest(id="7").SerializeToString())
    if deadline_ns:
        assert [type(error) for error in call.ended] == [DeadlineExceeded]
        assert not call.sent
        assert over == [stream]
    else:
        assert not call.ended
        answer = ModelStreamInferResponse.FromString(call.sent[0])
        assert answer.error_message == "too late"
        assert answer.infer_response.id == "7"

"""One ModelStreamInfer stream: many requests in flight, answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from google.protobuf.message import DecodeError

from gateway.errors import DeadlineExceeded, Draining, GatewayError
from gateway.protocol.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from gateway.rpc import StreamCall
from gateway.serving.exchange import Exchange
from gateway.serving.plans import stream_head
from gateway.serving.routing import Headers
from gateway.serving.rows import BatchRows

_FINAL = ModelInferResponse()
_FINAL.parameters["triton_final_response"].bool_param = True
_FINAL_FIELD = _FINAL.SerializeToString()


class _Refused:
    """A request that was not admitted, in its place in the order."""

    def __init__(self, answer: bytes) -> None:
        self.answer: bytes | None = answer


class StreamExchange(Exchange):
    """One request of a stream, in its place in the order; its answer once there."""

    stream: InferStream
    answer: bytes | None = None

    def on_result(self, rows: BatchRows, start: int) -> None:
        """Answer with the request's rows."""
        try:
            names = rows.names
            name = names.pop() if names else rows.name(self.service.ids)
            parts, size = self.plan.reply(
                rows, start, self.id_field, name, _FINAL_FIELD
            )
        except GatewayError as error:
            self.on_error(error)
            return
        self.answer = b"".join((stream_head(size), *parts))
        if self.choice is not None or self.service.log is not None:
            self.service.record(self, rows, start, name)
        if self.plan.ways:
            self.service.shadows.copy(self, rows, start, name)
        self.let_go()
        self.stream.flush_soon()

    def on_error(self, error: GatewayError) -> None:
        """Answer with the error, which does not end the stream."""
        request = ModelInferRequest.FromString(self.id_field)
        request.model_name = self.plan.model
        request.model_version = self.plan.asked_version
        self.let_go()
        self.stream.failed(self, error, request)


class Service(Protocol):
    """The part of `gateway.serving.infer.InferService` in use."""

    def begin(
        self,
        kind: type[StreamExchange],
        message: bytes,
        deadline_ns: int,
        call: Headers,
    ) -> StreamExchange:
        """Admit a request, or raise why not."""


class InferStream:
    """Serves one stream.

    Args:
        service: Serves the requests.
        stream: The transport's side.
        max_inflight: Requests not yet answered, or answers not yet written out,
            above which the stream is not read.
        max_bytes: Bytes of answers not yet written out, likewise.
        ended: Called once with the handler when the stream is over.
    """

    def __init__(
        self,
        service: Service,
        stream: StreamCall,
        max_inflight: int,
        max_bytes: int,
        ended: Callable[[InferStream], None],
    ) -> None:
        self._service = service
        self._stream = stream
        self._max_inflight = max_inflight
        self._max_bytes = max_bytes
        self._ended = ended
        self._order: deque[StreamExchange | _Refused] = deque()
        self._unsent = 0
        self._unsent_bytes = 0
        self._paused = False
        self._last: GatewayError | None = None
        self._closing = False
        self._over = False
        self._grpc_errors = stream.metadata("triton_grpc_error") == "true"

    def on_message(self, message: bytes) -> None:
        """Start one request."""
        if self._over or self._closing:
            return
        deadline_ns = self._stream.deadline_ns
        try:
            exchange = self._service.begin(
                StreamExchange, message, deadline_ns, self._stream
            )
        except GatewayError as error:
            self._refuse(error, message)
            return
        exchange.stream = self
        self._order.append(exchange)
        if len(self._order) + self._unsent >= self._max_inflight:
            self._balance()

    def on_half_close(self) -> None:
        """Answer what is in flight, then end with OK."""
        self._closing = True
        self.flush_soon()

    def on_cancel(self) -> None:
        """Drop everything in flight."""
        self._end()

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        """Note how many answers the transport still holds."""
        self._unsent = queued
        self._unsent_bytes = queued_bytes
        if self._paused:
            self._balance()

    def drain(self) -> None:
        """End once what is in flight is answered; what comes later goes elsewhere."""
        if not self._closing:
            self._closing = True
            self._last = Draining("this server is going away; open a new stream")
            self.flush_soon()

    def failed(
        self,
        exchange: StreamExchange | _Refused,
        error: GatewayError,
        request: ModelInferRequest,
    ) -> None:
        """Give a request its error: in its turn, or as the end of the stream."""
        if self._over:
            return
        late = isinstance(error, DeadlineExceeded) and self._stream.deadline_ns
        if self._grpc_errors or late:  # the deadline was the stream's own
            self._end()
            self._stream.finish(error)
            return
        exchange.answer = _error_answer(error, request)
        self.flush_soon()

    def _refuse(self, error: GatewayError, message: bytes) -> None:
        try:
            request = ModelInferRequest.FromString(message)
        except DecodeError:
            request = ModelInferRequest()
        refused = _Refused(b"")
        self._order.append(refused)
        self.failed(refused, error, request)

    def flush_soon(self) -> None:
        """Send the answers that are next in order."""
        if self._over:
            return
        order = self._order
        send = self._stream.send
        while order:
            answer = order[0].answer
            if answer is None:
                break
            order.popleft()
            self._unsent += 1
            self._unsent_bytes += len(answer)
            send(answer)
        if self._closing and not order:
            self._end()
            self._stream.finish(self._last)
        else:
            self._balance()

    def _balance(self) -> None:
        """Read on or hold back, by what the client has not yet taken."""
        waiting = len(self._order) + self._unsent
        nbytes = self._unsent_bytes
        if not self._paused:
            if waiting >= self._max_inflight or nbytes >= self._max_bytes:
                self._paused = True
                self._stream.pause()
        elif 2 * waiting <= self._max_inflight and 2 * nbytes <= self._max_bytes:
            self._paused = False
            self._stream.resume()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        for exchange in self._order:
            if isinstance(exchange, StreamExchange) and exchange.answer is None:
                exchange.cancel()
        self._order.clear()
        self._ended(self)


def _error_answer(error: GatewayError, request: ModelInferRequest) -> bytes:
    wrapped = ModelStreamInferResponse(error_message=error.message)
    response = wrapped.infer_response
    response.parameters["triton_final_response"].bool_param = True
    response.id = request.id
    response.model_name = request.model_name
    response.model_version = request.model_version
    return wrapped.SerializeToString()

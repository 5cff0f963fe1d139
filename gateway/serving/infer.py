"""Inference: ModelInfer and ModelStreamInfer, from message to message."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from gateway.catalogue import VersionEntry
from gateway.clock import PredictionIds
from gateway.errors import DeadlineExceeded, Draining, GatewayError, TooLarge
from gateway.protocol.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from gateway.rpc import Call, StreamCall
from gateway.serving.admission import Admission
from gateway.serving.dispatch import Dispatcher
from gateway.serving.pending import Pending, RowTensor
from gateway.serving.queues import VersionQueue
from gateway.serving.requests import (
    Parameters,
    check_inputs,
    parse,
    read_parameters,
    requested_outputs,
)
from gateway.serving.state import FrontState

PREDICTION_ID = "prediction_id"
"""Response parameter: the id minted for this prediction (UUIDv7)."""
SERVED_VERSION = "version"
"""Response parameter: the version that served, as in ``model_version``."""
_MAX_REPLY_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message holds less than 2 GiB."""


def _nobody(_: object) -> None:
    """Take the place of whoever has had the outcome."""


class Exchange:
    """One inference request on its way: what its reply needs, and who gets it.

    Args:
        reply: Gets the response message.
        fail: Gets the error.
    """

    __slots__ = ("entry", "fail", "outputs", "pending", "reply", "request")

    def __init__(
        self,
        reply: Callable[[ModelInferResponse], None],
        fail: Callable[[GatewayError], None],
    ) -> None:
        self.reply = reply
        self.fail = fail
        self.request: ModelInferRequest | None = None
        self.entry: VersionEntry | None = None
        self.outputs: tuple[int, ...] | None = None
        self.pending: Pending | None = None

    def close(self) -> None:
        """Let go of the request's bytes once it has its outcome.

        Calls and callbacks refer to each other until the garbage collector comes by,
        which is no time to keep megabytes of tensors.
        """
        if self.pending is not None:
            self.pending.inputs = []
        self.request = self.pending = None
        self.reply = self.fail = _nobody


class InferService:
    """Admits inference requests and answers them.

    Args:
        state: Catalogue in force.
        dispatcher: Runs what is admitted.
        admission: Decides what is.
        now_ns: Monotonic clock.
        default_timeout_ns: Deadline of a request that brings none.
        max_stream_inflight: Requests of one stream not yet answered.
        max_stream_bytes: Bytes of answers of one stream not yet taken.
    """

    def __init__(
        self,
        state: FrontState,
        dispatcher: Dispatcher,
        admission: Admission,
        *,
        now_ns: Callable[[], int],
        default_timeout_ns: int,
        max_stream_inflight: int,
        max_stream_bytes: int,
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._admission = admission
        self._now = now_ns
        self._default_timeout_ns = default_timeout_ns
        self._stream_limits = max_stream_inflight, max_stream_bytes
        self._ids = PredictionIds()
        self._streams: set[InferStream] = set()
        self.rejected: Counter[str] = Counter()

    def model_infer(self, call: Call, message: bytes) -> None:
        """Serve ModelInfer."""
        exchange = Exchange(
            lambda response: call.reply(response.SerializeToString()), call.fail
        )
        call.on_cancel = lambda: self.cancel(exchange)
        self.begin(exchange, message, call.deadline_ns)

    def model_stream_infer(self, stream: StreamCall) -> InferStream:
        """Serve ModelStreamInfer."""
        handler = InferStream(self, stream, *self._stream_limits, self._streams.discard)
        self._streams.add(handler)
        return handler

    def drain_streams(self) -> None:
        """Ask every stream to end once what it has in flight is answered."""
        for stream in tuple(self._streams):
            stream.drain()

    def begin(self, exchange: Exchange, message: bytes, deadline_ns: int) -> None:
        """Check and admit a request; its outcome comes through the exchange."""
        try:
            self._admit(exchange, message, deadline_ns)
        except GatewayError as error:
            entry, request = exchange.entry, exchange.request
            if entry is not None and request is not None:
                name = request.model_name
                statistics = self._dispatcher.statistics(name, entry.version)
                statistics.outcomes[error.label] += 1
            else:
                self.rejected[error.label] += 1
            self._failed(exchange, error)

    def cancel(self, exchange: Exchange) -> None:
        """Drop a request whose client left."""
        if exchange.pending is not None:
            self._dispatcher.cancel(exchange.pending)
        exchange.close()

    def _admit(self, exchange: Exchange, message: bytes, deadline_ns: int) -> None:
        now = self._now()
        request = exchange.request = parse(message)
        entry = self._state.catalogue.serving(request.model_name, request.model_version)
        exchange.entry = entry
        queue = self._dispatcher.queue_for(request.model_name, entry)
        parameters = read_parameters(request.parameters)
        exchange.outputs = requested_outputs(request, queue.spec)
        checked = check_inputs(request, queue.spec)
        latest = deadline_ns or now + self._default_timeout_ns
        if latest <= now:
            raise DeadlineExceeded("Deadline exceeded before the request was read")
        self._admission.acquire(
            request.model_name, checked.nbytes, entry.queue.max_requests
        )
        pending = exchange.pending = Pending(
            rows=checked.rows,
            inputs=checked.tensors,
            shape_key=checked.shape_key,
            nbytes=checked.nbytes,
            level=_level(entry, parameters),
            admitted_ns=now,
            queue_deadline_ns=_queue_deadline(entry, parameters, now),
            deadline_ns=latest,
            on_result=lambda _, rows, timing: self._reply(exchange, queue, rows),
            on_error=lambda _, error: self._failed(exchange, error),
        )
        self._dispatcher.submit(pending, queue)

    def _reply(
        self, exchange: Exchange, queue: VersionQueue, rows: list[RowTensor]
    ) -> None:
        assert exchange.request is not None
        nbytes = sum(len(tensor.data) for tensor in rows)
        if nbytes > _MAX_REPLY_BYTES:
            text = f"the outputs of '{queue.model}' are {nbytes} bytes; ask for fewer"
            self._failed(exchange, TooLarge(f"{text} rows or outputs"))
            return
        exchange.reply(
            build_response(
                exchange.request, queue, rows, exchange.outputs, self._ids.mint()
            )
        )
        exchange.close()

    def _failed(self, exchange: Exchange, error: GatewayError) -> None:
        exchange.fail(error)
        exchange.close()


def _level(entry: VersionEntry, parameters: Parameters) -> int:
    """Return the priority level, 0 the most urgent; beyond the last is the last."""
    levels = entry.queue.priority_levels
    if not levels:
        return 0
    return min(parameters.priority or entry.queue.default_priority or 1, levels) - 1


def _queue_deadline(entry: VersionEntry, parameters: Parameters, now: int) -> int:
    timeout_ns = entry.queue.default_timeout_ns
    if parameters.timeout_us and entry.queue.allow_timeout_override:
        timeout_ns = parameters.timeout_us * 1000
    return now + timeout_ns if timeout_ns else 0


def build_response(
    request: ModelInferRequest,
    queue: VersionQueue,
    rows: list[RowTensor],
    outputs: tuple[int, ...] | None,
    prediction_id: str,
) -> ModelInferResponse:
    """Build the response: raw contents always, one entry per output, in order.

    Args:
        request: For the id and the name the client used.
        queue: The version that served.
        rows: The request's rows of every output, in spec order.
        outputs: Spec indices asked for, in the order asked; ``None`` for all.
        prediction_id: Id of this prediction.
    """
    version = str(queue.entry.version)
    response = ModelInferResponse(
        model_name=request.model_name, model_version=version, id=request.id
    )
    response.parameters[PREDICTION_ID].string_param = prediction_id
    response.parameters[SERVED_VERSION].string_param = version
    for index in range(len(rows)) if outputs is None else outputs:
        tensor = rows[index]
        spec = queue.spec.outputs[index]
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=tensor.dims)
        response.raw_output_contents.append(bytes(tensor.data))
    return response


class _Slot:
    """A stream's request in its place in the order; its answer once there."""

    __slots__ = ("answer", "exchange")

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.exchange: Exchange | None = None


class InferStream:
    """One ModelStreamInfer stream: many requests in flight, answers in order.

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
        service: InferService,
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
        self._order: deque[_Slot] = deque()
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
        slot = _Slot()
        self._order.append(slot)
        slot.exchange = Exchange(
            lambda response: self._answer(slot, response),
            lambda error: self._fail(slot, error),
        )
        self._service.begin(slot.exchange, message, self._stream.deadline_ns)
        self._balance()

    def on_half_close(self) -> None:
        """Answer what is in flight, then end with OK."""
        self._closing = True
        self._flush()

    def on_cancel(self) -> None:
        """Drop everything in flight."""
        self._end()

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        """Note how many answers the transport still holds."""
        self._unsent = queued
        self._unsent_bytes = queued_bytes
        self._balance()

    def drain(self) -> None:
        """End once what is in flight is answered; what comes later goes elsewhere."""
        if not self._closing:
            self._closing = True
            self._last = Draining("this server is going away; open a new stream")
            self._flush()

    def _answer(self, slot: _Slot, response: ModelInferResponse) -> None:
        response.parameters["triton_final_response"].bool_param = True
        wrapped = ModelStreamInferResponse(infer_response=response)
        slot.answer = wrapped.SerializeToString()
        self._flush()

    def _fail(self, slot: _Slot, error: GatewayError) -> None:
        if self._over:
            return
        if self._grpc_errors:
            self._end()
            self._stream.finish(error)
            return
        wrapped = ModelStreamInferResponse(error_message=error.message)
        response = wrapped.infer_response
        response.parameters["triton_final_response"].bool_param = True
        exchange = slot.exchange
        if exchange is not None and exchange.request is not None:
            response.id = exchange.request.id
            response.model_name = exchange.request.model_name
            response.model_version = exchange.request.model_version
        slot.answer = wrapped.SerializeToString()
        self._flush()

    def _flush(self) -> None:
        """Send the answers that are next in order."""
        if self._over:
            return
        order = self._order
        while order and order[0].answer is not None:
            answer = order.popleft().answer
            assert answer is not None
            self._unsent += 1
            self._unsent_bytes += len(answer)
            self._stream.send(answer)
        if self._closing and not order:
            self._end()
            self._stream.finish(self._last)
        else:
            self._balance()

    def _balance(self) -> None:
        """Read on or hold back, by what the client has not yet taken."""
        load = max(
            (len(self._order) + self._unsent) / self._max_inflight,
            self._unsent_bytes / self._max_bytes,
        )
        if not self._paused and load >= 1:
            self._paused = True
            self._stream.pause()
        elif self._paused and load <= 0.5:
            self._paused = False
            self._stream.resume()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        for slot in self._order:
            if slot.exchange is not None and slot.answer is None:
                self._service.cancel(slot.exchange)
        self._order.clear()
        self._ended(self)

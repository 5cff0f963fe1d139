"""Inference: ModelInfer and ModelStreamInfer, from message to message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from gateway.catalogue import VersionEntry
from gateway.clock import PredictionIds
from gateway.errors import DeadlineExceeded, GatewayError
from gateway.protocol.inference_pb2 import ModelInferRequest
from gateway.rpc import Call, StreamCall
from gateway.serving.admission import Admission
from gateway.serving.dispatch import Dispatcher
from gateway.serving.exchange import Exchange, Inputs
from gateway.serving.infer_stream import InferStream
from gateway.serving.plans import Layout, Plan, layout_of, scan, tail
from gateway.serving.requests import (
    Parameters,
    check_inputs,
    parse,
    read_parameters,
    requested_outputs,
)
from gateway.serving.rows import BatchRows
from gateway.serving.state import FrontState
from workers.wire import Buffer

_MAX_PLANS = 1024
_MAX_PLAN_BYTES = 4096
"""Longer requests, without their tensors, are not remembered."""


class UnaryExchange(Exchange):
    """One ModelInfer."""

    call: Call

    def on_result(self, rows: BatchRows, start: int) -> None:
        """Reply with the request's rows."""
        try:
            names = rows.names
            name = names.pop() if names else rows.name(self.service.ids)
            parts, size = self.plan.reply(rows, start, self.id_field, name)
        except GatewayError as error:
            self.on_error(error)
            return
        self.call.reply_parts(parts, size)
        self.let_go()

    def on_error(self, error: GatewayError) -> None:
        """Fail the call."""
        self.call.fail(error)
        self.let_go()


_E = TypeVar("_E", bound=Exchange)


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
        self._streams: set[InferStream] = set()
        self._plans: dict[bytes, Plan] = {}
        self._layouts: dict[int, Layout] = {}
        self._planned = state.catalogue
        self.ids = PredictionIds()
        self.rejected: Counter[str] = Counter()

    def model_infer(self, call: Call, message: bytes) -> None:
        """Serve ModelInfer."""
        try:
            exchange = self.begin(UnaryExchange, message, call.deadline_ns)
        except GatewayError as error:
            call.fail(error)
            return
        exchange.call = call
        call.on_cancel = exchange.cancel

    def model_stream_infer(self, stream: StreamCall) -> InferStream:
        """Serve ModelStreamInfer."""
        handler = InferStream(self, stream, *self._stream_limits, self._streams.discard)
        self._streams.add(handler)
        return handler

    def drain_streams(self) -> None:
        """Ask every stream to end once what it has in flight is answered."""
        for stream in tuple(self._streams):
            stream.drain()

    def cancel(self, exchange: Exchange) -> None:
        """Drop a request whose client left."""
        self._dispatcher.cancel(exchange)
        exchange.let_go()

    def begin(self, kind: type[_E], message: bytes, deadline_ns: int) -> _E:
        """Check and admit a request; its outcome comes to the object returned.

        Args:
            kind: Class of that object; the outcome comes later, never at once.
            message: Serialised ModelInferRequest.
            deadline_ns: Of the call, or 0.

        Raises:
            GatewayError: Why it was not admitted.
        """
        if self._planned is not self._state.catalogue:
            self._planned = self._state.catalogue
            self._plans.clear()
            self._layouts.clear()
        layout = self._layouts.get(len(message))
        if (
            layout is not None
            and message.startswith(layout.first)
            and message[layout.id_end : layout.raw_start] == layout.second
            and (id_field := message[layout.id_start : layout.id_end]).isascii()
        ):
            plan = layout.plan
            index, dims = plan.layout[0]
            inputs: Inputs = [(index, dims, tail(message, layout.raw_start))]
        else:
            plan, id_field, inputs = self._plan(message)
        queue = plan.queue
        now = self._now()
        latest = deadline_ns or now + self._default_timeout_ns
        try:
            if latest <= now:
                text = "Deadline exceeded before the request was read"
                raise DeadlineExceeded(text)
            if queue.pace_ns:
                queue.check_wait(now, latest)
            self._admission.acquire(plan.model, plan.nbytes, plan.max_requests)
        except GatewayError as error:
            queue.statistics.outcomes[error.label] += 1
            raise
        timeout_ns = plan.queue_timeout_ns
        exchange = kind(
            plan.rows,
            inputs,
            plan.shape_key,
            plan.nbytes,
            plan.level,
            now,
            now + timeout_ns if timeout_ns else 0,
            latest,
        )
        exchange.plan = plan
        exchange.id_field = id_field
        exchange.service = self
        self._dispatcher.submit(exchange, queue)
        return exchange

    def _plan(self, message: bytes) -> tuple[Plan, bytes, Inputs]:
        """Return how to serve a request, its id field and its tensors."""
        found = scan(message)
        if found is not None:
            key, id_field, raws = found
            plan = self._plans.get(key)
            if plan is not None:
                inputs = plan.inputs(raws)
                if inputs is not None:
                    self._remember(message, id_field, raws, plan)
                    return plan, id_field, inputs
        return self._new_plan(message, None if found is None else found[0])

    def _remember(
        self, message: bytes, id_field: bytes, raws: list[Buffer], plan: Plan
    ) -> None:
        layout = layout_of(message, id_field, raws, plan)
        if layout is not None:
            if len(self._layouts) >= _MAX_PLANS:
                self._layouts.clear()
            self._layouts[len(message)] = layout

    def _new_plan(
        self, message: bytes, key: bytes | None
    ) -> tuple[Plan, bytes, Inputs]:
        """Parse a request of a form not seen before, and remember the form."""
        try:
            request = parse(message)
            catalogue = self._state.catalogue
            entry = catalogue.serving(request.model_name, request.model_version)
        except GatewayError as error:
            self.rejected[error.label] += 1
            raise
        queue = self._dispatcher.queue_for(request.model_name, entry)
        try:
            parameters = read_parameters(request.parameters)
            outputs = requested_outputs(request, queue.spec)
            checked = check_inputs(request, queue.spec)
        except GatewayError as error:
            queue.statistics.outcomes[error.label] += 1
            raise
        plan = Plan(
            request,
            queue,
            checked,
            outputs=outputs,
            level=_level(entry, parameters),
            queue_timeout_ns=_queue_timeout_ns(entry, parameters),
        )
        if plan.sizes is not None and key is not None and len(key) <= _MAX_PLAN_BYTES:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        id_field = ModelInferRequest(id=request.id).SerializeToString()
        return plan, id_field, checked.tensors


def _level(entry: VersionEntry, parameters: Parameters) -> int:
    """Return the priority level, 0 the most urgent; beyond the last is the last."""
    levels = entry.queue.priority_levels
    if not levels:
        return 0
    return min(parameters.priority or entry.queue.default_priority or 1, levels) - 1


def _queue_timeout_ns(entry: VersionEntry, parameters: Parameters) -> int:
    if parameters.timeout_us and entry.queue.allow_timeout_override:
        return parameters.timeout_us * 1000
    return entry.queue.default_timeout_ns

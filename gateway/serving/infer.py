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
from gateway.serving.answers import AnswerLog
from gateway.serving.dispatch import Dispatcher
from gateway.serving.exchange import Exchange, Inputs
from gateway.serving.forms import Layout, Span, layout_of, scan, tail
from gateway.serving.infer_stream import InferStream
from gateway.serving.plans import Plan
from gateway.serving.requests import (
    Parameters,
    check_inputs,
    parse,
    read_parameters,
    requested_outputs,
)
from gateway.serving.routing import (
    NO_CONTEXT,
    Choice,
    Context,
    Fork,
    Headers,
    Routers,
)
from gateway.serving.rows import BatchRows
from gateway.serving.shadow import Shadows
from gateway.serving.sink import Record, Sink
from gateway.serving.state import FrontState
from gateway.serving.values import (
    entry_key,
    entry_text,
    text_of,
    text_span,
    texts_of,
)
from workers.wire import Buffer

_MAX_PLANS = 4096
_MAX_PLAN_BYTES = 4096
"""Longer requests, without their tensors, are not remembered."""
Served = tuple[Plan, bytes, Inputs, Choice | None, Context]
"""How a request is served: plan, id field, tensors; who was chosen, if there are
arms, and what of the request took part in that."""


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
        if self.choice is not None or self.service.log is not None:
            self.service.record(self, rows, start, name)
        if self.plan.ways:
            self.service.shadows.copy(self, rows, start, name)
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
        sink: Gets the records of predictions that arms answered.
        shadows: Gets copies of answered requests.
        log: Gets every answer, for the event log.
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
        sink: Sink,
        shadows: Shadows,
        log: AnswerLog | None = None,
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._admission = admission
        self._now = now_ns
        self._default_timeout_ns = default_timeout_ns
        self._stream_limits = max_stream_inflight, max_stream_bytes
        self._streams: set[InferStream] = set()
        self._plans: dict[bytes, Plan | Fork] = {}
        self._layouts: dict[int, Layout] = {}
        self._sink = sink
        self.shadows = shadows
        self.log = log
        self.routers = Routers(state)
        self.ids = PredictionIds()
        self.rejected: Counter[str] = Counter()

    def model_infer(self, call: Call, message: bytes) -> None:
        """Serve ModelInfer."""
        try:
            exchange = self.begin(UnaryExchange, message, call.deadline_ns, call)
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

    def record(
        self, exchange: Exchange, rows: BatchRows, start: int, name: bytes
    ) -> None:
        """Note who answered a prediction, and what."""
        if self.log is not None:
            self.log.answered(exchange, rows, start, name)
        choice = exchange.choice
        if choice is None:
            return
        choice.tally.answered += 1
        model, admitted_ns = exchange.plan.model, exchange.admitted_ns
        context = exchange.context
        self._sink.offer(
            Record(name, model, admitted_ns, exchange.rows, choice, context)
        )

    def cancel(self, exchange: Exchange) -> None:
        """Drop a request whose client left."""
        self._dispatcher.cancel(exchange)
        exchange.let_go()

    def begin(
        self, kind: type[_E], message: bytes, deadline_ns: int, call: Headers
    ) -> _E:
        """Check and admit a request; its outcome comes to the object returned.

        Args:
            kind: Class of that object; the outcome comes later, never at once.
            message: Serialised ModelInferRequest.
            deadline_ns: Of the call, or 0.
            call: Brings metadata.

        Raises:
            GatewayError: Why it was not admitted.
        """
        if self._state.stale:
            self._forget()
        layout = self._layouts.get(len(message))
        unit: str | None = None
        if (
            layout is not None
            and message.startswith(layout.first)
            and message[layout.id_end : layout.second_end] == layout.second
            and (id_field := message[layout.id_start : layout.id_end]).isascii()
            and (not layout.unit_end or (unit := layout.unit(message)) is not None)
        ):
            plan, choice, context = layout.plan, None, NO_CONTEXT
            fork = layout.fork
            if fork is not None:
                arm, choice, context = fork.router.choose(call, fork.parameters, unit)
                plan = fork.plans[arm]  # type: ignore[assignment]
            index, dims = plan.layout[0]
            inputs: Inputs = [(index, dims, tail(message, layout.raw_start))]
        else:
            plan, id_field, inputs, choice, context = self._plan(message, call)
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
            queue.statistics.refused(error.label)
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
        exchange.choice = choice
        exchange.context = context
        exchange.id_field = id_field
        exchange.service = self
        self._dispatcher.submit(exchange, queue)
        return exchange

    def _forget(self) -> None:
        """Drop what was worked out of models that are others now."""
        stale, self._state.stale = self._state.stale, set()
        units = self.routers.units
        self.routers.forget(stale)
        if self.routers.units != units:  # then forms are told apart in another way
            self._plans.clear()
            self._layouts.clear()
        plans, layouts = self._plans.items(), self._layouts.items()
        self._plans = {form: one for form, one in plans if one.model not in stale}
        self._layouts = {
            size: one for size, one in layouts if one.plan.model not in stale
        }

    def _plan(self, message: bytes, call: Headers) -> Served:
        """Return how to serve a request that no layout recognises."""
        found = scan(message, self.routers.units)
        if found is None:
            return self._new_plan(message, call, None, None)
        key, id_field, raws, cut = found
        known, whole, unit_key = self._plans.get(key), key, b""
        if cut is not None:
            unit_key = entry_key(message, cut)
            if not isinstance(known, Fork) or known.router.unit_name != unit_key:
                # Some other model's: here it may be a segment, or say how to serve.
                whole, cut = _with(message, key, id_field, cut), None
                known = self._plans.get(whole)
        if known is None:
            return self._new_plan(message, call, whole, None, (unit_key, key))
        if isinstance(known, Plan):
            inputs = known.inputs(raws)
            if inputs is None:
                return self._new_plan(message, call, whole, None)
            self._remember(message, id_field, raws, known)
            return known, id_field, inputs, None, NO_CONTEXT
        unit = None if cut is None else entry_text(message, *cut)
        arm, choice, context = known.router.choose(call, known.parameters, unit)
        plan = known.plans[arm]
        inputs = None if plan is None else plan.inputs(raws)
        if plan is None or inputs is None:
            chosen = known, arm, choice, context
            return self._new_plan(message, call, whole, chosen)
        span = None if cut is None else text_span(message, *cut)
        if cut is None or span is not None:
            self._remember(message, id_field, raws, plan, known, span)
        return plan, id_field, inputs, choice, context

    def _remember(  # noqa: PLR0917 - keywords cost time
        self,
        message: bytes,
        id_field: bytes,
        raws: list[Buffer],
        plan: Plan,
        fork: Fork | None = None,
        unit: Span | None = None,
    ) -> None:
        if fork is not None and not fork.straight:
            return
        before = self._layouts.get(len(message))
        if before is not None and not before.gives_way():
            return
        layout = layout_of(message, id_field, raws, plan, unit)
        if layout is not None:
            layout.fork = fork
            if len(self._layouts) >= _MAX_PLANS:
                self._layouts.clear()
            self._layouts[len(message)] = layout

    def _new_plan(
        self,
        message: bytes,
        call: Headers,
        form: bytes | None,
        chosen: tuple[Fork, int, Choice, Context] | None,
        cut: tuple[bytes, bytes] | None = None,
    ) -> Served:
        """Parse a request of a form not seen before, and remember the form.

        Args:
            message: The request.
            call: Brings metadata.
            form: To remember it by; ``None`` where it has none.
            chosen: The arm that serves it, where that was decided.
            cut: A parameter that may be left out of the form, and the form then.
        """
        choice: Choice | None = None
        context, fork, arm = NO_CONTEXT, None, 0
        try:
            request = parse(message)
            model = request.model_name
            catalogue = self._state.catalogue
            router = None if request.model_version else self.routers.of(model)
            if chosen is not None:
                fork, arm, choice, context = chosen
                entry = fork.router.entries[arm]
            elif router is not None and router.serves:
                given = request.parameters
                fork = Fork(router, texts_of(given, router.segment_keys))
                unit = None
                if router.unit_key and router.unit_key in given:
                    unit = text_of(given[router.unit_key])
                    # With the unit in it, no other request would have this form.
                    form = cut[1] if cut and cut[0] == router.unit_name else None
                arm, choice, context = router.choose(call, fork.parameters, unit)
                entry = router.entries[arm]
            else:
                entry = catalogue.serving(model, request.model_version)
        except GatewayError as error:
            self.rejected[error.label] += 1
            raise
        queue = self._dispatcher.queue_for(model, entry)
        try:
            parameters = read_parameters(request.parameters)
            outputs = requested_outputs(request, queue.spec)
            checked = check_inputs(request, queue.spec)
        except GatewayError as error:
            queue.statistics.refused(error.label)
            raise
        plan = Plan(
            request,
            queue,
            checked,
            outputs=outputs,
            level=_level(entry, parameters),
            queue_timeout_ns=_queue_timeout_ns(entry, parameters),
        )
        if not request.model_version:
            plan.ways = self.shadows.ways(catalogue, model, entry)
        if plan.sizes is not None and form and len(form) <= _MAX_PLAN_BYTES:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            if fork is not None:
                fork.add(arm, plan)
            self._plans[form] = fork or plan
        id_field = ModelInferRequest(id=request.id).SerializeToString()
        return plan, id_field, checked.tensors, choice, context


def _with(message: bytes, form: bytes, id_field: bytes, entry: Span) -> bytes:
    """Return a form with the parameter that was cut out of it in its place again."""
    start = entry[0] - 2 - len(id_field)
    return form[:start] + message[entry[0] - 2 : entry[1]] + form[start:]


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

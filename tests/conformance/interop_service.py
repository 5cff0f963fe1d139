"""gRPC's interoperability service, on the seam that every transport serves.

Source: grpc/grpc, doc/interop-test-descriptions.md, "Server". What is left out: the
checks of compression (``expect_compressed``), since handlers get messages already
decompressed, and everything that needs an account with a cloud.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from gateway.errors import Code, GatewayError, InvalidRequest, TooLarge
from gateway.rpc import Call, Methods, StreamCall
from tests.conformance import interop_pb2 as pb

ECHO_INITIAL = "x-grpc-test-echo-initial"
ECHO_TRAILING = "x-grpc-test-echo-trailing-bin"
LOAD_REPORT = "endpoint-load-metrics-bin"
"""Trailer with a call's load report (grpc/proposal, A51)."""
SERVER_ID = "baton"
MAX_BODY_BYTES = 64 << 20
MAX_HELD_REQUESTS = 1000
"""Requests of one HalfDuplexCall, which are held until the client half-closes."""
MIN_REPORT_INTERVAL_S = 0.1

_M = TypeVar("_M", bound=Message)


def parsed(kind: type[_M], message: bytes) -> _M:
    """Parse a message.

    Raises:
        InvalidRequest: It is none of that kind.
    """
    try:
        return kind.FromString(message)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise InvalidRequest(f"the message is not a valid {name}") from None


def payload(kind: int, size: int) -> pb.Payload:
    """Return `size` zero bytes.

    Raises:
        InvalidRequest: There is no such kind, or the size cannot be.
    """
    if kind != pb.COMPRESSABLE or not 0 <= size <= MAX_BODY_BYTES:
        raise InvalidRequest(f"no payload of kind {kind} has {size} bytes")
    return pb.Payload(body=bytes(size))


def wanted_status(status: pb.EchoStatus) -> GatewayError | None:
    """Return the error a request asks to be answered with, if any."""
    if not status.code:
        return None
    try:
        code = Code(status.code)
    except ValueError:
        return InvalidRequest(f"there is no status {status.code}")
    return type("EchoedStatus", (GatewayError,), {"code": code})(status.message)


def echo_metadata(call: Call | StreamCall) -> None:
    """Send back the two headers that clients want to see again."""
    initial = call.metadata(ECHO_INITIAL)
    if initial is not None:
        call.initial_metadata = ((ECHO_INITIAL, initial),)
    trailing = call.metadata_bytes(ECHO_TRAILING)
    if trailing is not None:
        call.trailing_metadata = ((ECHO_TRAILING, trailing),)


def load_report(report: pb.TestOrcaReport) -> bytes:
    """Return the load report in the form that balancers read."""
    return pb.OrcaLoadReport(
        cpu_utilization=report.cpu_utilization,
        mem_utilization=report.memory_utilization,
        request_cost=report.request_cost,
        utilization=report.utilization,
    ).SerializeToString()


def empty_call(call: Call, message: bytes) -> None:
    """Serve EmptyCall."""
    call.reply(pb.Empty().SerializeToString())


def unary_call(call: Call, message: bytes) -> None:
    """Serve UnaryCall and CacheableUnaryCall."""
    echo_metadata(call)
    try:
        request = parsed(pb.SimpleRequest, message)
        error = wanted_status(request.response_status)
        if error is not None:
            raise error
        body = payload(request.response_type, request.response_size)
    except GatewayError as failure:
        call.fail(failure)
        return
    if request.HasField("orca_per_query_report"):
        report = load_report(request.orca_per_query_report)
        call.trailing_metadata = (*call.trailing_metadata, (LOAD_REPORT, report))
    server_id = SERVER_ID if request.fill_server_id else ""
    response = pb.SimpleResponse(payload=body, server_id=server_id)
    call.reply(response.SerializeToString())


class InputStream:
    """StreamingInputCall: adds up what comes in, and answers once."""

    def __init__(self, stream: StreamCall) -> None:
        self._stream = stream
        self._sum = 0

    def on_message(self, message: bytes) -> None:
        try:
            request = parsed(pb.StreamingInputCallRequest, message)
        except GatewayError as error:
            self._stream.finish(error)
        else:
            self._sum += len(request.payload.body)

    def on_half_close(self) -> None:
        response = pb.StreamingInputCallResponse(aggregated_payload_size=self._sum)
        self._stream.send(response.SerializeToString())
        self._stream.finish()

    def on_cancel(self) -> None:
        pass

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        pass


class OutputStream:
    """Every call with a stream of answers: one request after the other.

    The next answer is made once the last has been written out, and the stream is
    not read while answers are due, so that at most one answer waits.

    Args:
        stream: The transport's side.
        service: Takes load reports.
        hold: Answer nothing before the client half-closes (HalfDuplexCall).
    """

    def __init__(
        self, stream: StreamCall, service: Service, *, hold: bool = False
    ) -> None:
        self._stream = stream
        self._service = service
        self._hold = hold
        self._requests: deque[pb.StreamingOutputCallRequest] = deque()
        self._outputs: deque[tuple[int, int, int]] = deque()
        self._busy = False
        self._half_closed = False
        self._over = False
        self._timer: asyncio.Handle | None = None
        echo_metadata(stream)

    def on_message(self, message: bytes) -> None:
        if self._over:
            return
        try:
            self._requests.append(parsed(pb.StreamingOutputCallRequest, message))
            if len(self._requests) > MAX_HELD_REQUESTS:
                raise TooLarge(f"more than {MAX_HELD_REQUESTS} requests are held")
        except GatewayError as error:
            self._end(error)
        else:
            self._advance()

    def on_half_close(self) -> None:
        self._half_closed = True
        self._hold = False
        self._advance()

    def on_cancel(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        if self._busy and not queued and not self._over:
            # Not now: a transport may call this inside `send`.
            self._timer = asyncio.get_running_loop().call_soon(self._done)

    def _done(self) -> None:
        self._busy = False
        self._advance()

    def _advance(self) -> None:
        """Send the next answer, or read on, or end."""
        if self._busy or self._hold or self._over:
            return
        while not self._outputs:
            if not self._requests:
                if self._half_closed:
                    self._end(None)
                else:
                    self._stream.resume()
                return
            request = self._requests.popleft()
            error = wanted_status(request.response_status)
            if error is not None:
                self._end(error)
                return
            if request.HasField("orca_oob_report"):
                self._service.report = request.orca_oob_report
            for output in request.response_parameters:
                kind = request.response_type
                self._outputs.append((output.interval_us, kind, output.size))
        self._busy = True
        self._stream.pause()
        interval_us, kind, size = self._outputs.popleft()
        if interval_us > 0:
            self._timer = asyncio.get_running_loop().call_later(
                interval_us / 1e6, self._send, kind, size
            )
        else:
            self._send(kind, size)

    def _send(self, kind: int, size: int) -> None:
        try:
            response = pb.StreamingOutputCallResponse(payload=payload(kind, size))
        except GatewayError as error:
            self._end(error)
        else:
            self._stream.send(response.SerializeToString())

    def _end(self, error: GatewayError | None) -> None:
        self._over = True
        self._stream.finish(error)


class LoadReports:
    """StreamCoreMetrics: the server's load report, again and again."""

    def __init__(self, stream: StreamCall, service: Service) -> None:
        self._stream = stream
        self._service = service
        self._interval_s = MIN_REPORT_INTERVAL_S
        self._unsent = 0
        self._timer: asyncio.Handle | None = None

    def on_message(self, message: bytes) -> None:
        try:
            interval = parsed(pb.OrcaLoadReportRequest, message).report_interval
        except GatewayError as error:
            self._stream.finish(error)
            return
        asked_s = interval.seconds + interval.nanos / 1e9
        self._interval_s = max(MIN_REPORT_INTERVAL_S, asked_s)
        if self._timer is None:
            self._report()

    def on_half_close(self) -> None:
        """Go on: the client asks once."""

    def on_cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        self._unsent = queued

    def _report(self) -> None:
        if not self._unsent:
            self._unsent = 1
            self._stream.send(load_report(self._service.report))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._report)


class Service:
    """The whole service, and the load it reports."""

    def __init__(self) -> None:
        self.report = pb.TestOrcaReport()

    def methods(self) -> Methods:
        """Return its table; UnimplementedCall is not in it, as it must be."""
        test = "/grpc.testing.TestService/"

        def outputs(**more: Any) -> Callable[[StreamCall], OutputStream]:
            return lambda stream: OutputStream(stream, self, **more)

        return Methods(
            unary={
                test + "EmptyCall": empty_call,
                test + "UnaryCall": unary_call,
                test + "CacheableUnaryCall": unary_call,
            },
            streams={
                test + "StreamingInputCall": InputStream,
                test + "StreamingOutputCall": outputs(),
                test + "FullDuplexCall": outputs(),
                test + "HalfDuplexCall": outputs(hold=True),
                "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics": (
                    lambda stream: LoadReports(stream, self)
                ),
            },
        )

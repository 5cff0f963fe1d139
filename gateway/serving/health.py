"""grpc.health.v1: one name for the server (empty) and one per model.

Source: grpc/grpc, doc/health-checking.md.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as pb

from gateway.errors import Draining, InvalidRequest, UnknownModel
from gateway.rpc import Call, StreamCall
from gateway.serving.server import read
from gateway.serving.state import FrontState


class HealthService:
    """Answers Check and Watch from the state."""

    def __init__(self, state: FrontState) -> None:
        self._state = state

    def check(self, call: Call, message: bytes) -> None:
        """Serve Check; an unknown name is NOT_FOUND."""
        request = read(call, pb.HealthCheckRequest, message)
        if request is None:
            return
        status = status_of(self._state, request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            call.fail(UnknownModel(f"unknown service '{request.service}'"))
        else:
            response = pb.HealthCheckResponse(status=status)
            call.reply(response.SerializeToString())

    def watch(self, stream: StreamCall) -> HealthWatch:
        """Serve Watch: the status now, and again whenever it changes."""
        return HealthWatch(self._state, stream)


def status_of(state: FrontState, service: str) -> int:
    """Return the ServingStatus of a name."""
    ready = state.model_ready(service) if service else state.server_ready()
    if ready is None:
        return int(pb.HealthCheckResponse.SERVICE_UNKNOWN)
    if ready:
        return int(pb.HealthCheckResponse.SERVING)
    return int(pb.HealthCheckResponse.NOT_SERVING)


class HealthWatch:
    """One Watch stream."""

    def __init__(self, state: FrontState, stream: StreamCall) -> None:
        self._state = state
        self._stream = stream
        self._service: str | None = None
        self._sent = -1

    def on_message(self, message: bytes) -> None:
        """Take the one request."""
        if self._service is not None:
            return
        try:
            self._service = pb.HealthCheckRequest.FromString(message).service
        except DecodeError:
            error = InvalidRequest("the message is not a valid HealthCheckRequest")
            self._stream.finish(error)
            return
        self._state.watch(self._changed)
        self._changed()

    def on_half_close(self) -> None:
        """Go on: a watch is half-closed from the start."""

    def on_cancel(self) -> None:
        """Stop watching."""
        self._state.unwatch(self._changed)

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        """Nothing to hold back: a status is sent only when it changed."""

    def _changed(self) -> None:
        assert self._service is not None
        if self._state.closing:
            self._state.unwatch(self._changed)
            self._stream.finish(Draining("this server is going away"))
            return
        status = status_of(self._state, self._service)
        if status != self._sent:
            self._sent = status
            response = pb.HealthCheckResponse(status=status)
            self._stream.send(response.SerializeToString())

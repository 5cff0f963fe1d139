"""Server reflection, so that grpcurl and grpcui need no proto files.

Source: grpc/grpc-proto, grpc/reflection/v1/reflection.proto; v1alpha has the same
messages under another package.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

from gateway.errors import Code, Draining, GatewayError, InvalidRequest
from gateway.protocol import inference_pb2
from gateway.rpc import StreamCall
from gateway.serving.state import FrontState

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    pb.DESCRIPTOR.services_by_name["ServerReflection"].full_name,
)
"""What is listed. v1 of reflection itself is served but not listed: its messages
are v1alpha's, and there is no descriptor of it to describe it with."""


class ReflectionStream:
    """One ServerReflectionInfo stream: one question at a time."""

    def __init__(self, state: FrontState, stream: StreamCall) -> None:
        self._state = state
        self._stream = stream
        state.watch(self._changed)

    def on_message(self, message: bytes) -> None:
        """Answer one question."""
        try:
            request = pb.ServerReflectionRequest.FromString(message)
        except DecodeError:
            self._end(InvalidRequest("not a valid ServerReflectionRequest"))
            return
        self._stream.pause()
        self._stream.send(_answer(request).SerializeToString())

    def on_half_close(self) -> None:
        """End: everything is answered."""
        self._end()

    def on_cancel(self) -> None:
        """Stop watching the state."""
        self._state.unwatch(self._changed)

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        """Read on once the client has taken the answers."""
        if not queued:
            self._stream.resume()

    def _changed(self) -> None:
        if self._state.closing:
            self._end(Draining("this server is going away"))

    def _end(self, error: GatewayError | None = None) -> None:
        self._state.unwatch(self._changed)
        self._stream.finish(error)


def _answer(
    request: pb.ServerReflectionRequest,
) -> pb.ServerReflectionResponse:
    response = pb.ServerReflectionResponse(
        valid_host=request.host, original_request=request
    )
    kind = request.WhichOneof("message_request")
    try:
        if kind == "list_services":
            for service in SERVICES:
                response.list_services_response.service.add(name=service)
            return response
        if kind == "file_by_filename":
            pool = descriptor_pool.Default()
            found = pool.FindFileByName(request.file_by_filename)
        elif kind == "file_containing_symbol":
            found = _file_of_symbol(request.file_containing_symbol)
        else:
            response.error_response.error_code = int(Code.UNIMPLEMENTED)
            response.error_response.error_message = "this question is not answered"
            return response
    except KeyError:
        response.error_response.error_code = int(Code.NOT_FOUND)
        response.error_response.error_message = "not found"
        return response
    response.file_descriptor_response.file_descriptor_proto.extend(_closure(found))
    return response


def _file_of_symbol(symbol: str) -> FileDescriptor:
    pool = descriptor_pool.Default()
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:  # it finds types and services by this, but no methods
        return pool.FindMethodByName(symbol).containing_service.file


def _closure(file: FileDescriptor) -> list[bytes]:
    """Return the file and everything it imports, serialised, each once."""
    seen: dict[str, bytes] = {}
    todo = [file]
    while todo:
        current = todo.pop()
        if current.name not in seen:
            seen[current.name] = current.serialized_pb
            todo.extend(current.dependencies)
    return list(seen.values())

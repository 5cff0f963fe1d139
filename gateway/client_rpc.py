"""A small blocking client of the Open Inference Protocol, for the command line.

It uses raw method paths and the generated messages. It asks once and reports
what the server said: `client_config.SERVICE_CONFIG`, made for applications,
would hide a draining server from the operator who looks for it.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from gateway.client_config import SERVICE, channel_options, target
from gateway.errors import Code
from gateway.logs import escape
from gateway.protocol import inference_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

_Reply = TypeVar("_Reply", bound="Message")

_NO_SERVER = ("failed to connect", "connection refused", "dns resolution failed")
"""What gRPC says, in any case, when it never reached a server."""


class ClientError(Exception):
    """A call failed. The message is one printable line with the way out.

    Attributes:
        code: The gRPC status.
    """

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """One channel to one server. Use as a context manager. Thread-safe.

    Every method raises `ClientError` when the call fails.
    """

    def __init__(
        self, address: str, *, timeout_s: float = 30.0, max_message_bytes: int = 1 << 30
    ) -> None:
        """Prepare the channel; it connects with the first call.

        Args:
            address: ``host:port``.
            timeout_s: Deadline of each call.
            max_message_bytes: Largest message either way.

        Raises:
            ClientError: `address` is not ``host:port``.
        """
        self._address = address
        self._timeout_s = timeout_s
        options = channel_options(max_message_bytes, service_config=False)
        try:
            uri = target([address])
        except ValueError as error:
            raise ClientError(escape(str(error)), Code.INVALID_ARGUMENT) from None
        self._channel = grpc.insecure_channel(uri, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; open calls are cancelled."""
        self._channel.close()

    def live(self) -> bool:
        """Return whether the server runs."""
        request = pb.ServerLiveRequest()
        return self._call("ServerLive", request, pb.ServerLiveResponse).live

    def ready(self) -> bool:
        """Return whether the server takes requests."""
        request = pb.ServerReadyRequest()
        return self._call("ServerReady", request, pb.ServerReadyResponse).ready

    def metadata(self, model: str, version: str = "") -> pb.ModelMetadataResponse:
        """Return inputs, outputs and versions of a model."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        return self._call("ModelMetadata", request, pb.ModelMetadataResponse)

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Run one request."""
        return self._call("ModelInfer", request, pb.ModelInferResponse)

    def index(self, *, ready: bool = False) -> pb.RepositoryIndexResponse:
        """Return every version the repository has, or only those that serve."""
        request = pb.RepositoryIndexRequest(ready=ready)
        return self._call("RepositoryIndex", request, pb.RepositoryIndexResponse)

    def load(self, model: str) -> None:
        """Load a model, or load it again; returns when it serves."""
        request = pb.RepositoryModelLoadRequest(model_name=model)
        self._call("RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)

    def unload(self, model: str) -> None:
        """Stop serving a model; requests in flight still finish."""
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        self._call("RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse)

    def statistics(
        self, model: str = "", version: str = ""
    ) -> pb.ModelStatisticsResponse:
        """Return counters since load of one model, or of all."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        return self._call("ModelStatistics", request, pb.ModelStatisticsResponse)

    def _call(self, rpc: str, request: Message, reply: type[_Reply]) -> _Reply:
        method = self._channel.unary_unary(
            f"/{SERVICE}/{rpc}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            answer: _Reply = method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code = Code(error.code().value[0])
            raise ClientError(self._explain(rpc, code, error.details()), code) from None
        return answer

    def _explain(self, rpc: str, code: Code, details: str | None) -> str:
        """Return one line: what happened, and what to do where that is known."""
        said = escape(details or "no reason given")
        if code is Code.UNAVAILABLE and any(
            sign in said.lower() for sign in _NO_SERVER
        ):
            return (
                f"no server answers at {escape(self._address)} (start one with "
                "`baton serve`, or name another with --address or BATON_ADDRESS)"
            )
        if code is Code.DEADLINE_EXCEEDED:
            return f"no answer within {self._timeout_s:g} s: {said} (raise --timeout)"
        if code is Code.UNIMPLEMENTED:
            return f"the server at {escape(self._address)} has no {rpc}: {said}"
        if code is Code.NOT_FOUND:
            return f"{said} (`baton models list` shows what there is)"
        return f"{said} ({code.name})"

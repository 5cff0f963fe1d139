"""A small blocking client of the Open Inference Protocol, for the command line.

It uses raw method paths and the generated messages. It asks once and reports
what the server said: `client_config.SERVICE_CONFIG`, made for applications,
would hide a draining server from the operator who looks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from gateway.client_config import SERVICE, UNIX, channel_options, target
from gateway.errors import Code
from gateway.logs import escape
from gateway.protocol import inference_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

_Reply = TypeVar("_Reply", bound="Message")

_NO_SERVER = ("failed to connect", "connection refused", "dns resolution failed")
"""What gRPC says, in any case, when it never reached a server."""

_NOBODY = ("refused", "imeout", "imed out", "unreachable", "No such", "No route")
"""What gRPC says, too, where nobody took the connection."""
_PLAIN_SIGNS = {"Socket closed": "if it speaks TLS, give --ca FILE, or --tls"}
_TLS_SIGNS = {
    "WRONG_VERSION_NUMBER": "it speaks no TLS: leave --tls, --ca, --cert, --key out",
    "CERTIFICATE_VERIFY_FAILED": "give the authority of its certificate as --ca FILE",
    "Failed to create security": "--ca, --cert or --key is no PEM, or of another pair",
    "ostname": "name it by a host that is in its certificate",
    "Socket closed": "it may want a certificate: --cert FILE --key FILE",
    "reset by peer": "it may want a certificate: --cert FILE --key FILE",
}
"""What gRPC says where the two ends do not agree, and the way out of it."""


class ClientError(Exception):
    """A call failed. The message is one printable line with the way out.

    Attributes:
        code: The gRPC status.
    """

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of a TLS client.

    Attributes:
        ca: Authorities of servers; ``None`` for those of gRPC's own list.
        certificate: For servers that ask for one, with `key`; ``None`` for none.
        key: Its private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            ClientError: One cannot be read, or certificate or key is missing.
        """
        if (self.certificate is None) != (self.key is None):
            text = "a client certificate needs both --cert FILE and --key FILE"
            raise ClientError(text, Code.INVALID_ARGUMENT)
        return grpc.ssl_channel_credentials(
            *(self._read(path) for path in (self.ca, self.key, self.certificate))
        )

    def _read(self, path: Path | None) -> bytes | None:
        try:
            return path.read_bytes() if path else None
        except OSError as error:
            text = escape(f"{path} cannot be read: {error.strerror} (name another)")
            raise ClientError(text, Code.INVALID_ARGUMENT) from None


class Client:
    """One channel to one server. Use as a context manager. Thread-safe.

    Every method raises `ClientError` when the call fails.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        tls: Tls | None = None,
        max_message_bytes: int = 1 << 30,
    ) -> None:
        """Prepare the channel; it connects with the first call.

        Args:
            address: ``host:port`` or ``unix:/path``.
            timeout_s: Deadline of each call.
            tls: ``None`` for a connection that is not encrypted.
            max_message_bytes: Largest message either way.

        Raises:
            ClientError: `address` is neither, or `tls` cannot be used.
        """
        self._address = address
        self._tls = tls
        self._timeout_s = timeout_s
        options = channel_options(max_message_bytes, service_config=False)
        try:
            uri = target([address])
        except ValueError as error:
            raise ClientError(escape(str(error)), Code.INVALID_ARGUMENT) from None
        if tls is None:
            self._channel = grpc.insecure_channel(uri, options=options)
            return
        if address.startswith(UNIX):
            text = "a Unix socket speaks no TLS (leave --tls, --ca, --cert, --key out)"
            raise ClientError(text, Code.INVALID_ARGUMENT)
        credentials = tls.credentials()
        self._channel = grpc.secure_channel(uri, credentials, options=options)

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
        if code is Code.UNAVAILABLE and (way_out := self._other_dialect(said)):
            why = said.rpartition("last error: ")[2]
            return f"no connection to {escape(self._address)}: {why} ({way_out})"
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

    def _other_dialect(self, said: str) -> str:
        """Return what to do where a connection failed for what one side speaks.

        Empty where nobody listens: the signs are gRPC's and BoringSSL's words.
        """
        signs = _PLAIN_SIGNS if self._tls is None else _TLS_SIGNS
        if "failed to connect" not in said:
            return ""
        for sign, way_out in signs.items():
            if sign in said:
                return way_out
        # Somebody took the connection and ended it, in whichever words of the system.
        closed = not any(word in said for word in _NOBODY)
        return _TLS_SIGNS["Socket closed"] if closed and self._tls is not None else ""


class ControllerClient:
    """A channel to a service of the controller, without TLS; closed on leaving `with`.

    Args:
        address: ``unix:PATH`` or ``host:port``; the first call connects.
        socket: Name of the Unix socket, for who gave neither.

    Raises:
        ClientError: `address` is neither.
    """

    def __init__(self, address: str, socket: str) -> None:
        self._address = address
        try:
            uri = target([address])
        except ValueError as error:
            text = f"{error}; or give {UNIX}PATH of the gateway's {socket}"
            raise ClientError(escape(text), Code.INVALID_ARGUMENT) from None
        options = channel_options(64 << 20, service_config=False)
        self._channel = grpc.insecure_channel(uri, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()

"""The protocol's other RPCs: liveness, metadata, configuration, repository."""

from __future__ import annotations

import base64
from collections.abc import Callable
from importlib.metadata import version as package_version
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from gateway.catalogue import State, VersionEntry
from gateway.errors import GatewayError, InvalidRequest, NotReady, Unsupported
from gateway.protocol import inference_pb2 as pb
from gateway.rpc import Call
from gateway.serving.state import FrontState
from gateway.serving.statistics import VersionStatistics
from gateway.serving.totals import statistics_message
from workers.spec import TensorSpec

SERVER_NAME = "baton"
EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "parameters",
    "statistics",
)
"""Extensions of Triton that work here, and no others."""

_M = TypeVar("_M", bound=Message)


class Control(Protocol):
    """The supervisor, for what only it can answer."""

    def ask(
        self,
        operation: str,
        arguments: dict[str, Any],
        answer: Callable[[dict[str, Any]], None],
        fail: Callable[[GatewayError], None],
    ) -> None:
        """Send a request; exactly one of the callbacks is called later."""


def read(call: Call, kind: type[_M], message: bytes) -> _M | None:
    """Parse a request, or fail the call and return ``None``."""
    try:
        return kind.FromString(message)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        call.fail(InvalidRequest(f"the message is not a valid {name}"))
        return None


class ServerService:
    """Answers what the catalogue knows; asks the supervisor for the rest."""

    def __init__(self, state: FrontState, control: Control) -> None:
        self._state = state
        self._control = control
        self._version = package_version("baton-gateway")

    def server_live(self, call: Call, message: bytes) -> None:
        """Serve ServerLive: true as long as anything answers."""
        call.reply(pb.ServerLiveResponse(live=True).SerializeToString())

    def server_ready(self, call: Call, message: bytes) -> None:
        """Serve ServerReady: false before the start is over and while draining."""
        ready = self._state.server_ready()
        call.reply(pb.ServerReadyResponse(ready=ready).SerializeToString())

    def server_metadata(self, call: Call, message: bytes) -> None:
        """Serve ServerMetadata."""
        response = pb.ServerMetadataResponse(
            name=SERVER_NAME, version=self._version, extensions=EXTENSIONS
        )
        call.reply(response.SerializeToString())

    def model_ready(self, call: Call, message: bytes) -> None:
        """Serve ModelReady: an unknown or unloaded model is not ready, no error."""
        request = read(call, pb.ModelReadyRequest, message)
        if request is None:
            return
        try:
            self._state.catalogue.serving(request.name, request.version)
            ready = not self._state.draining
        except InvalidRequest as error:
            call.fail(error)
            return
        except GatewayError:
            ready = False
        call.reply(pb.ModelReadyResponse(ready=ready).SerializeToString())

    def model_metadata(self, call: Call, message: bytes) -> None:
        """Serve ModelMetadata; shapes lead with -1 where the version batches."""
        request = read(call, pb.ModelMetadataRequest, message)
        if request is None:
            return
        entry = self._find(call, request.name, request.version)
        if entry is None or entry.spec is None:
            return
        batch = (-1,) if entry.spec.max_batch_rows else ()
        model = self._state.catalogue.models[request.name]
        response = pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(version) for version in sorted(model.versions)],
            platform="onnxruntime_onnx",
        )
        for tensor in entry.spec.inputs:
            response.inputs.append(_tensor_metadata(tensor, batch))
        for tensor in entry.spec.outputs:
            response.outputs.append(_tensor_metadata(tensor, batch))
        call.reply(response.SerializeToString())

    def model_config(self, call: Call, message: bytes) -> None:
        """Serve ModelConfig."""
        request = read(call, pb.ModelConfigRequest, message)
        if request is None:
            return
        entry = self._find(call, request.name, request.version)
        if entry is None:
            return
        response = pb.ModelConfigResponse()
        response.config.ParseFromString(base64.b64decode(entry.config))
        call.reply(response.SerializeToString())

    def _find(self, call: Call, model: str, version: str) -> VersionEntry | None:
        try:
            return self._state.catalogue.serving(model, version)
        except GatewayError as error:
            call.fail(error)
            return None

    def model_statistics(self, call: Call, message: bytes) -> None:
        """Serve ModelStatistics: sums over all front processes, past ones included."""
        request = read(call, pb.ModelStatisticsRequest, message)
        if request is None:
            return
        try:
            if request.name:
                self._state.catalogue.find(request.name, request.version)
        except NotReady:
            pass  # it is known, and still has its counts
        except GatewayError as error:
            call.fail(error)
            return

        def answer(totals: dict[str, Any]) -> None:
            response = pb.ModelStatisticsResponse()
            serving = {
                (model.name, number)
                for model in self._state.catalogue.models.values()
                for number, entry in model.versions.items()
                if entry.state == State.READY
            }
            counted = {(name, number): c for name, number, c in totals["versions"]}
            # What serves has a row before its first request: clients take differences.
            zero = VersionStatistics().snapshot()
            for name, number in sorted(serving | counted.keys()):
                if request.name in ("", name) and request.version in ("", str(number)):
                    counts = counted.get((name, number), zero)
                    message = statistics_message(name, number, counts)
                    response.model_stats.append(message)
            call.reply(response.SerializeToString())

        self._control.ask("statistics", {}, answer, call.fail)

    def repository_index(self, call: Call, message: bytes) -> None:
        """Serve RepositoryIndex."""
        request = read(call, pb.RepositoryIndexRequest, message)
        if request is None:
            return

        def answer(index: dict[str, Any]) -> None:
            response = pb.RepositoryIndexResponse()
            for entry in index["models"]:
                if not request.ready or entry["state"] == "READY":
                    response.models.add(**entry)
            call.reply(response.SerializeToString())

        self._control.ask("index", {}, answer, call.fail)

    def model_load(self, call: Call, message: bytes) -> None:
        """Serve RepositoryModelLoad: answers when every front serves the version."""
        request = read(call, pb.RepositoryModelLoadRequest, message)
        if request is None:
            return
        config: str | None = None
        files: dict[str, str] = {}
        for name, parameter in request.parameters.items():
            kind = parameter.WhichOneof("parameter_choice")
            if name == "config" and kind == "string_param":
                config = parameter.string_param
            elif name.startswith("file:") and kind == "bytes_param":
                files[name] = base64.b64encode(parameter.bytes_param).decode()
            else:
                text = f"unknown load parameter '{name}', or of the wrong type"
                call.fail(InvalidRequest(text))
                return
        if files and config is None:
            call.fail(InvalidRequest("'file:' parameters need a 'config' parameter"))
            return
        arguments = {"model": request.model_name, "config": config, "files": files}
        self._admin(call, "load", arguments, pb.RepositoryModelLoadResponse())

    def model_unload(self, call: Call, message: bytes) -> None:
        """Serve RepositoryModelUnload: answers when no front sends to it any more."""
        request = read(call, pb.RepositoryModelUnloadRequest, message)
        if request is None:
            return
        arguments = {"model": request.model_name}
        self._admin(call, "unload", arguments, pb.RepositoryModelUnloadResponse())

    def _admin(
        self, call: Call, operation: str, arguments: dict[str, Any], response: Message
    ) -> None:
        self._control.ask(
            operation,
            arguments,
            lambda _: call.reply(response.SerializeToString()),
            call.fail,
        )

    def shared_memory_unregister(self, call: Call, message: bytes) -> None:
        """Serve both ...SharedMemoryUnregister RPCs: nothing is ever registered."""
        request = read(call, pb.SystemSharedMemoryUnregisterRequest, message)
        if request is None:
            return
        if request.name:
            call.fail(Unsupported("shared memory regions are not supported"))
        else:
            call.reply(b"")


def _tensor_metadata(
    tensor: TensorSpec, batch: tuple[int, ...]
) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(*batch, *tensor.dims)
    )

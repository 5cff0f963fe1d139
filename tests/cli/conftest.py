"""A real gRPC server that speaks the protocol, and the command line in-process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.client_config import SERVICE
from gateway.protocol import inference_pb2 as pb


class Server:
    """Answers the RPCs of the command line; inputs come back as outputs."""

    def __init__(self) -> None:
        self.inputs = [("x", "FP32", (-1, 2))]
        self.requests: list[Any] = []
        self.refusals = 0
        self.states = {"m": "READY", "evil": "[red]\x1b[31m\n"}
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(self, name),
                request_deserializer=getattr(pb, f"{name}Request").FromString,
                response_serializer=getattr(pb, f"{name}Response").SerializeToString,
            )
            for name in dir(self)
            if name[0].isupper()
        }
        self._server = grpc.server(ThreadPoolExecutor(2))
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "queue full")
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=False)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name != "m":
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Request for unknown model: '{request.name}' is not found",
            )
        response = pb.ModelMetadataResponse(name="m", versions=["3"])
        for name, datatype, shape in self.inputs:
            response.inputs.add(name=name, datatype=datatype, shape=shape)
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        response = pb.ModelInferResponse(model_name="m", model_version="3")
        response.parameters["prediction_id"].string_param = "p-1"
        response.parameters["version"].string_param = "3"
        response.parameters["share"].double_param = 0.5
        for tensor in request.inputs:
            response.outputs.add(
                name=f"{tensor.name}_out", datatype=tensor.datatype, shape=tensor.shape
            )
        response.raw_output_contents.extend(request.raw_input_contents)
        return response

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = pb.RepositoryIndexResponse()
        for name, state in self.states.items():
            response.models.add(name=name, version="3", state=state)
        return response

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_name != "m":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "bad\nfile")
        self.requests.append(request)
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        return pb.RepositoryModelUnloadResponse()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("BATON_ADDRESS", server.address)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BATON_"):
            monkeypatch.delenv(name)


class Baton:
    """Runs the command line; standard output and error stay apart."""

    def __call__(self, *words: str, stdin: str | None = None) -> Any:
        result = CliRunner().invoke(app, words, input=stdin)
        if result.exception is not None and not isinstance(
            result.exception, SystemExit
        ):
            raise result.exception
        return result


@pytest.fixture
def baton(_no_variables: None) -> Baton:
    return Baton()

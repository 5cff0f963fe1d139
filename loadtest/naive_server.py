"""What a user writes instead: grpc.aio, generated messages, a run per request."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import uvloop

from gateway.protocol import inference_pb2 as pb
from loadtest.sessions import open_session
from loadtest.wire import DTYPES, SERVICE

DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
STOP_GRACE_S = 1.0


class NaiveServer:
    """The service over the models of one repository."""

    def __init__(self, repository: Path) -> None:
        self._sessions = {
            path.parent.parent.name: open_session(path)
            for path in sorted(repository.glob("*/1/model.onnx"))
        }
        self._outputs = {
            name: [output.name for output in session.get_outputs()]
            for name, session in self._sessions.items()
        }

    def _run(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        session = self._sessions[request.model_name]
        feeds = {
            tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(
                tensor.shape
            )
            for tensor, raw in zip(
                request.inputs, request.raw_input_contents, strict=True
            )
        }
        names = self._outputs[request.model_name]
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version="1", id=request.id
        )
        for name, array in zip(names, session.run(names, feeds), strict=True):
            datatype = DATATYPES[array.dtype]
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    async def server_ready(
        self, _request: pb.ServerReadyRequest, _context: grpc.aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Say that the models are loaded."""
        return pb.ServerReadyResponse(ready=True)

    async def model_infer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        """Answer one request."""
        if request.model_name not in self._sessions:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        return self._run(request)

    async def model_stream_infer(
        self,
        requests: AsyncIterator[pb.ModelInferRequest],
        _context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of one stream, in order."""
        async for request in requests:
            if request.model_name in self._sessions:
                response = self._run(request)
                yield pb.ModelStreamInferResponse(infer_response=response)
            else:
                yield pb.ModelStreamInferResponse(
                    error_message="unknown model",
                    infer_response=pb.ModelInferResponse(id=request.id),
                )

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the methods, ready to be added to a server."""
        return grpc.method_handlers_generic_handler(
            SERVICE[1:],
            {
                "ServerReady": grpc.unary_unary_rpc_method_handler(
                    self.server_ready,
                    pb.ServerReadyRequest.FromString,
                    pb.ServerReadyResponse.SerializeToString,
                ),
                "ModelInfer": grpc.unary_unary_rpc_method_handler(
                    self.model_infer,
                    pb.ModelInferRequest.FromString,
                    pb.ModelInferResponse.SerializeToString,
                ),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                    self.model_stream_infer,
                    pb.ModelInferRequest.FromString,
                    pb.ModelStreamInferResponse.SerializeToString,
                ),
            },
        )


async def start(repository: Path, port: int) -> tuple[grpc.aio.Server, int]:
    """Start serving in this loop; port 0 takes a free one, which is returned."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((NaiveServer(repository).handler(),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, bound


async def _serve(repository: Path, port: int) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server, _ = await start(repository, port)
    await stopping.wait()
    await server.stop(STOP_GRACE_S)


def serve(repository: Path, *, port: int, use_uvloop: bool) -> None:
    """Serve a repository until SIGTERM."""
    factory = uvloop.new_event_loop if use_uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(repository, port))

"""The table of methods: every path a transport serves, and its handler."""

from __future__ import annotations

from functools import partial

from gateway.rpc import Methods
from gateway.serving.health import HealthService
from gateway.serving.infer import InferService
from gateway.serving.reflection import ReflectionStream
from gateway.serving.server import ServerService
from gateway.serving.state import FrontState

_OIP = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"


def methods(
    infer: InferService,
    server: ServerService,
    health: HealthService,
    state: FrontState,
) -> Methods:
    """Build the table; any other path is UNIMPLEMENTED in the transport."""
    reflection = partial(ReflectionStream, state)
    return Methods(
        unary={
            _OIP + "ModelInfer": infer.model_infer,
            _OIP + "ServerLive": server.server_live,
            _OIP + "ServerReady": server.server_ready,
            _OIP + "ServerMetadata": server.server_metadata,
            _OIP + "ModelReady": server.model_ready,
            _OIP + "ModelMetadata": server.model_metadata,
            _OIP + "ModelConfig": server.model_config,
            _OIP + "ModelStatistics": server.model_statistics,
            _OIP + "RepositoryIndex": server.repository_index,
            _OIP + "RepositoryModelLoad": server.model_load,
            _OIP + "RepositoryModelUnload": server.model_unload,
            _OIP + "SystemSharedMemoryUnregister": server.shared_memory_unregister,
            _OIP + "CudaSharedMemoryUnregister": server.shared_memory_unregister,
            _HEALTH + "Check": health.check,
        },
        streams={
            _OIP + "ModelStreamInfer": infer.model_stream_infer,
            _HEALTH + "Watch": health.watch,
            _REFLECTION.format("v1"): reflection,
            _REFLECTION.format("v1alpha"): reflection,
        },
        own_deadline=frozenset({_OIP + "ModelInfer"}),
    )

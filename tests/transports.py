"""The transports under test, by name: the one place that knows which there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from gateway.clock import now_ns
from gateway.config import GrpcConfig
from gateway.rpc import Methods
from gateway.transport.grpcio_listener import GrpcioListener
from tests.gateway_process import free_port


class AnyListener(Protocol):
    """What both transports are: a table of methods on a socket."""

    async def start(self, address: str) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


def _own(methods: Methods, config: GrpcConfig, now_ns: Callable[[], int]) -> Any:
    from gateway.transport.listener import Listener

    return Listener(methods, config, now_ns)


LISTENERS: dict[str, Callable[..., AnyListener]] = {"grpcio": GrpcioListener}
if find_spec("gateway.transport.listener"):
    LISTENERS["own"] = _own
DEFAULT = "own" if "own" in LISTENERS else "grpcio"


def gateway_settings(transport: str) -> dict[str, str]:
    """Return the ``grpc`` section that makes ``baton serve`` use a transport."""
    if "transport" in GrpcConfig.model_fields:
        return {"transport": transport}
    assert transport == "grpcio", "this gateway has grpc.aio alone"
    return {}


@asynccontextmanager
async def listening(
    transport: str, methods: Methods, config: GrpcConfig | None = None
) -> AsyncIterator[str]:
    """Serve `methods` on this loop; yield ``host:port``."""
    listener = LISTENERS[transport](methods, config or GrpcConfig(), now_ns)
    address = f"127.0.0.1:{free_port()}"
    await listener.start(address)
    try:
        yield address
    finally:
        await listener.stop(0)

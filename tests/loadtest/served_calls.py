"""Servers for the load client: grpc.aio, and one that says what it is told to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import grpc

from loadtest.load import Load
from loadtest.requests import frame

METHOD = "/test.Service/Call"
Unary = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


@asynccontextmanager
async def grpc_server(
    call: Unary, *, port: int = 0, options: tuple[tuple[str, int], ...] = ()
) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
    """Serve one unary method, and a stream that answers each message with it."""

    async def stream(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await call(request, context)

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0), *options))
    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(call),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    generic = grpc.method_handlers_generic_handler("test.Service", handlers)
    server.add_generic_rpc_handlers((generic,))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield server, bound
    finally:
        await server.stop(None)


@asynccontextmanager
async def scripted_server(
    answer: Callable[[int, int], bytes],
) -> AsyncIterator[int]:
    """Answer the end of each call with bytes made from connection and stream id."""
    connections = 0
    writers: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        writers.add(writer)
        await reader.readexactly(24)
        tasks.add(cast(asyncio.Task[None], asyncio.current_task()))
        room = (1 << 30).to_bytes(4, "big")
        writer.write(frame(4, 0, 0, b"") + frame(8, 0, 0, room))
        try:
            while True:
                head = await reader.readexactly(9)
                high, low, kind, flags, stream = struct.unpack(">HBBBI", head)
                await reader.readexactly(high << 8 | low)
                if kind == 0 and flags & 1:
                    writer.write(answer(mine, stream))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks)


def a_load(
    folder: Path, port: int, message: bytes = b"hello", **fields: object
) -> Load:
    """Return a short load on the test service."""
    file = folder / "message"
    file.write_bytes(message)
    usual: dict[str, object] = {
        "port": port,
        "path": METHOD,
        "message": str(file),
        "messages": 1,
        "reply_bytes": len(message),
        "connections": 2,
        "calls": 4,
        "seconds": 0.3,
    }
    return Load(**{**usual, **fields})  # type: ignore[arg-type]

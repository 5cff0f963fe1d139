"""A server process with gRPC's interoperability service on one of the transports.

Usage: ``python -m tests.conformance.interop_server --transport own --port 10000``.
It prints a line once it listens, and ends with SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

import uvloop

from gateway.clock import now_ns
from gateway.config import GrpcConfig
from tests.conformance.interop_service import Service
from tests.transports import LISTENERS


async def serve(transport: str, address: str, config: GrpcConfig) -> None:
    """Serve until SIGTERM."""
    listener = LISTENERS[transport](Service().methods(), config, now_ns)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await listener.start(address)
    print("listening", flush=True)  # noqa: T201 - whoever started it waits for this
    await stopped.wait()
    await listener.stop(1)


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.interop_server")
    parser.add_argument("--transport", choices=sorted(LISTENERS), required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--config", default="{}", help="the grpc section, as JSON")
    arguments = parser.parse_args()
    config = GrpcConfig.model_validate_json(arguments.config)
    address = f"{arguments.host}:{arguments.port}"
    uvloop.run(serve(arguments.transport, address, config))


if __name__ == "__main__":
    main()

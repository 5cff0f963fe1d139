"""Captures the header blocks that stock clients send, as test and benchmark data.

``python -m tests.transport.capture_headers`` writes ``header_blocks.json`` beside this
file: for every client the HEADERS blocks of one connection, 120 unary calls with a
deadline each, as hex. Needs ``h2load`` (package nghttp2-client) and Go; the Go client
is ``grpc_go_client`` beside this file, built with the module proxy's current grpc-go.
The server speaks just enough HTTP/2 to answer; it decodes nothing, so what is stored
is what was sent.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

CALLS = 120  # enough for the table to be full and entries to leave it
METHOD = "/inference.GRPCInferenceService/ModelInfer"
OUTPUT = Path(__file__).with_name("header_blocks.json")
GO_CLIENT = Path(__file__).with_name("grpc_go_client")

DATA, HEADERS, SETTINGS, PING, CONTINUATION = 0x0, 0x1, 0x4, 0x6, 0x9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# ":status: 200" and "content-type: application/grpc"; then "grpc-status: 0".
ANSWER = b"\x88\x0f\x10\x10application/grpc"
TRAILERS = b"\x00\x0bgrpc-status\x010"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def strip(flags: int, payload: bytes) -> bytes:
    """The header block fragment of a HEADERS frame (RFC 9113, 6.2)."""
    padding = payload[0] if flags & PADDED else 0
    start = bool(flags & PADDED) + 5 * bool(flags & PRIORITY)
    return payload[start : len(payload) - padding]


class Capture:
    """Answers calls on one connection after another and keeps their blocks."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.blocks: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(
                target=self._serve, args=(connection,), daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as received:
            if received.read(len(PREFACE)) != PREFACE:
                return
            connection.sendall(frame(SETTINGS, 0, 0))
            block = b""
            while head := received.read(9):
                length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                stream = int.from_bytes(head[5:], "big")
                payload = received.read(length)
                if kind == HEADERS:
                    block = strip(flags, payload)
                elif kind == CONTINUATION:
                    block += payload
                if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS:
                    self.blocks.append(block)
                if kind in (DATA, HEADERS) and flags & END_STREAM:
                    connection.sendall(
                        frame(HEADERS, END_HEADERS, stream, ANSWER)
                        + frame(DATA, 0, stream, bytes(5))
                        + frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)
                    )
                elif kind in (SETTINGS, PING) and not flags & ACK:
                    connection.sendall(
                        frame(kind, ACK, 0, payload if kind == PING else b"")
                    )


def grpcio_sync(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(METHOD)
        for number in range(CALLS):
            call(b"", timeout=1 + number / 7)


def grpcio_aio(target: str) -> None:
    async def calls() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.unary_unary(METHOD)
            for number in range(CALLS):
                await call(b"", timeout=1 + number / 7)

    asyncio.run(calls())


def grpc_go(target: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(GO_CLIENT, folder, dirs_exist_ok=True)
        for command in (
            ["go", "mod", "init", "capture"],
            ["go", "mod", "tidy"],
            ["go", "run", ".", target, METHOD, str(CALLS)],
        ):
            subprocess.run(command, cwd=folder, check=True)


def h2load(target: str) -> None:
    with tempfile.NamedTemporaryFile() as body:
        body.write(bytes(5))
        body.flush()
        subprocess.run(
            [
                *("h2load", "-n", str(CALLS), "-c", "1", "-m", "1", "-d", body.name),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                *("-H", "grpc-timeout: 1S", f"http://{target}{METHOD}"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )


CLIENTS: dict[str, Callable[[str], None]] = {
    "grpcio": grpcio_sync,
    "grpcio-aio": grpcio_aio,
    "grpc-go": grpc_go,
    "h2load": h2load,
}


def main() -> None:
    captured = {}
    for name, client in CLIENTS.items():
        capture = Capture()
        client(capture.target)
        if len(capture.blocks) != CALLS:
            raise SystemExit(f"{name}: {len(capture.blocks)} blocks, not {CALLS}")
        captured[name] = [block.hex() for block in capture.blocks]
    OUTPUT.write_text(json.dumps(captured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

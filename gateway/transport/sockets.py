"""Sockets to listen on."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import struct
from contextlib import suppress
from pathlib import Path

from gateway.preflight import unix_fault, unix_in_use

_UCRED = struct.Struct("3i")
"""``struct ucred``: pid, uid, gid (unix(7), SO_PEERCRED)."""


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket that may share its port with other fronts.

    Raises:
        OSError: It cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def bind_unix(path: Path, *, private: bool) -> socket.socket:
    """Return a Unix socket; a stale one in its place is replaced, and nothing else is.

    Args:
        path: Of the socket.
        private: Only this user may connect.

    Raises:
        OSError: It cannot be bound; says why.
    """
    if fault := unix_fault(path) or unix_in_use(path):
        raise OSError(fault)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177) if private else None
    try:
        sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        if before is not None:
            os.umask(before)
    return sock


def peer_of(transport: asyncio.BaseTransport) -> str:
    """Return who is at the other end of a connection; see `gateway.rpc.Call.peer`."""
    sock = transport.get_extra_info("socket")
    if sock.family != socket.AF_UNIX:
        host, port, *_ = transport.get_extra_info("peername") or ("", 0)
        return f"{host}:{port}"
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    with suppress(KeyError):
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    return f"uid {uid}"

"""Sockets to listen on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from gateway.preflight import unix_fault, unix_in_use


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

"""What ``baton serve`` listens with: certificates, Unix sockets, ports.

Looked at before any process is started, by `config validate` and by `doctor`, so that
what is wrong is one line with field, file and the way out. `serve` itself loads its
certificates with `load_tls`: what passes here is what will be used.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from contextlib import closing
from pathlib import Path

from gateway.config import Config, GrpcConfig, TlsConfig
from gateway.feedback.hash_key import key_fault

_MAX_UNIX_PATH = 107
"""Bytes of a Unix socket's path (unix(7): ``sun_path`` is 108 with its zero)."""
_ANY = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - what overlaps, not what we bind


def faults(config: Config) -> list[str]:
    """Return what is wrong with files and ports, one line each.

    Whether somebody else listens there now is not looked at; see `unix_in_use`.
    """
    found = _port_faults(config)
    tls = config.grpc.tls
    if tls is not None:
        try:
            load_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)
        except ValueError as error:
            found.append(str(error))
    found += filter(None, map(unix_fault, unix_paths(config.grpc)))
    found += filter(None, [key_fault(config.feedback)])
    return found


def _port_faults(config: Config) -> list[str]:
    grpc, metrics = config.grpc, config.metrics
    count = grpc.fronts if grpc.port_mode == "each" else 1
    meet = grpc.host == metrics.host or _ANY & {grpc.host, metrics.host}
    if meet and metrics.port and 0 <= metrics.port - grpc.port < count and grpc.port:
        return [
            f"metrics.port: {metrics.port} is taken by grpc.port (choose another with "
            "--metrics-port)"
        ]
    return []


# -- TLS -----------------------------------------------------------------------------


def load_tls(context: ssl.SSLContext, config: TlsConfig) -> None:
    """Load certificate, key and authorities of clients into a server's context.

    Raises:
        ValueError: A file cannot be used; says which, why and what to do.
    """
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(config.certificate, config.key, lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise ValueError(_pair_fault(config, error)) from None
    if config.client_ca is not None:
        try:
            context.load_verify_locations(config.client_ca)
        except (OSError, ssl.SSLError) as error:
            fault = _no_certificate("client_ca", config.client_ca, error)
            raise ValueError(fault) from None


def _pair_fault(config: TlsConfig, error: OSError) -> str:
    """Say whether it is the certificate, the key, or that one is not the other's."""
    certificate, key = config.certificate, config.key
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except (OSError, ssl.SSLError) as fault:
        return _no_certificate("certificate", certificate, fault)
    try:
        text = key.read_bytes()
    except OSError as fault:
        return f"grpc.tls.key: {key} cannot be read: {fault.strerror} (name another)"
    if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
        return (
            f"grpc.tls.key: {key} is not the key of {certificate} (name the key it was "
            "made with, and put the server's certificate first in its file)"
        )
    if b"ENCRYPTED" in text:
        return (
            f"grpc.tls.key: {key} is protected by a password (`openssl pkey -in` it "
            "`-out` a file that only the server may read)"
        )
    return (
        f"grpc.tls.key: {key} holds no private key that OpenSSL can use with "
        f"{certificate} (it must be PEM, -----BEGIN PRIVATE KEY-----)"
    )


def _no_certificate(field: str, path: Path, error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        why = f"cannot be read: {error.strerror}"
        return f"grpc.tls.{field}: {path} {why} (name another)"
    return (
        f"grpc.tls.{field}: {path} holds no certificate that OpenSSL can read (it must "
        "be PEM, -----BEGIN CERTIFICATE-----)"
    )


# -- Unix sockets --------------------------------------------------------------------


def unix_path(config: GrpcConfig, front: int) -> Path | None:
    """Return where a front listens beside its port, if it does."""
    if config.unix_socket is None or config.transport != "own":
        return None
    return Path(f"{config.unix_socket}.{front}" if front else config.unix_socket)


def unix_paths(config: GrpcConfig) -> list[Path]:
    """Return where all fronts listen beside their ports."""
    paths = (unix_path(config, front) for front in range(config.fronts))
    return [path for path in paths if path is not None]


def unix_fault(path: Path) -> str:
    """Return why there can be no Unix socket at a path; empty if there can."""
    size = len(os.fsencode(path))
    folder = path.parent
    if size > _MAX_UNIX_PATH:
        why = f"is {size} bytes long; at most {_MAX_UNIX_PATH} are possible"
    elif not folder.is_dir():
        why = f"cannot be made: {folder} is no folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        why = f"cannot be made: {folder} cannot be written"
    elif os.path.lexists(path) and not _is_socket(path):
        why = "is there and no socket, so it is left alone"
    else:
        return ""
    return f"grpc.unix_socket: {path} {why} (choose another path)"


def unix_in_use(path: Path) -> str:
    """Return why a socket at a path must not be replaced; empty if it may.

    It may where nobody listens: what a killed process leaves refuses connections.
    """
    if not _is_socket(path):
        return ""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return ""
        except OSError:  # a full backlog, no right to connect: somebody's all the same
            pass
    return (
        f"grpc.unix_socket: somebody listens on {path} (stop who does, or choose "
        "another path)"
    )


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False

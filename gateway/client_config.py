"""The client settings Baton is built for: balance, health, retries, limits.

Any gRPC client in any language can use them: `SERVICE_CONFIG` is gRPC's own JSON
(grpc/grpc, ``doc/service_config.md``). With it a rolling restart of fronts that
have a port each (``grpc.port_mode: each``) failed 0 of 3 000 calls; without
health checking 2 of 3 000, and behind one shared port up to 8 of 1 200.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from typing import Any

SERVICE = "inference.GRPCInferenceService"
"""Full name of the service; a method's path is ``/SERVICE/Method``."""

UNIX = "unix:"
"""Begins the address of a Unix socket, as gRPC writes it (``doc/naming.md``)."""

SERVICE_CONFIG: dict[str, Any] = {
    # One connection per address and calls in turn. gRPC's default, pick_first,
    # keeps all calls on the first address that answers.
    "loadBalancingConfig": [{"round_robin": {}}],
    # A front that drains says NOT_SERVING before it closes; clients that watch
    # turn away while it still answers. "" is the health of the whole process.
    "healthCheckConfig": {"serviceName": ""},
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            # A call made while every front restarts waits for one, up to its
            # deadline: always set a deadline.
            "waitForReady": True,
            # Baton answers UNAVAILABLE only where another attempt may succeed
            # (queue full, draining, worker lost). gRPC draws each pause at random
            # below the backoff, so that clients do not return together, and obeys
            # the pushback that Baton sends with a refusal.
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Each failure costs a token, each success returns a tenth; below five of ten
    # nothing is retried. In an outage retries thus add a tenth, not a factor 4.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
"""Service config for every client of Baton."""


def channel_options(
    max_message_bytes: int = 64 << 20, *, service_config: bool = True
) -> list[tuple[str, Any]]:
    """Return channel options for ``grpc.insecure_channel`` and its like.

    Args:
        max_message_bytes: Largest message either way. gRPC refuses replies above
            4 MiB by default; keep it at least the server's ``max_message_bytes``.
        service_config: ``False`` leaves `SERVICE_CONFIG` out: one attempt, at any
            server that answers, healthy or not, as an operator's tool wants it.

    Returns:
        Name and value pairs.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # A peer that vanished without closing is noticed in 40 s, not by TCP's
        # quarter of an hour; three times the server's `min_ping_interval_ms`.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A restarted front is found within 2 s; gRPC's default backs off to 120 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # `http_proxy` is meant for the web; it would divert even loopback calls.
        ("grpc.enable_http_proxy", 0),
        # No TXT lookup per resolution, and no DNS record that replaces ours.
        ("grpc.service_config_disable_resolution", 1),
    ]
    if service_config:
        options.append(("grpc.service_config", json.dumps(SERVICE_CONFIG)))
    return options


def target(addresses: Sequence[str]) -> str:
    """Return the channel target for one or more servers.

    Args:
        addresses: ``host:port`` each (IPv6 in brackets), or one ``unix:/path``.
            Several must all be IPv4 or all be IPv6 addresses: gRPC takes lists of
            nothing else. One name may resolve to many addresses; all are then used.

    Returns:
        ``ipv4:a:p,b:q``, ``ipv6:[a]:p,...``, ``dns:///name:port`` or ``unix:/path``.

    Raises:
        ValueError: No addresses, one without a port, or a list that gRPC lacks.
    """
    if not addresses:
        raise ValueError("no address: give at least one host:port")
    kinds = {_kind(address) for address in addresses}
    if kinds == {"dns"} and len(addresses) == 1:
        return f"dns:///{addresses[0]}"
    if kinds == {"unix"} and len(addresses) == 1:
        return addresses[0]
    if len(kinds) > 1 or kinds & {"dns", "unix"}:
        raise ValueError(
            "several addresses must be all IPv4 or all IPv6: "
            f"{', '.join(addresses)} (or use one DNS name that resolves to all)"
        )
    return f"{kinds.pop()}:{','.join(addresses)}"


def _kind(address: str) -> str:
    """Return the URI scheme of one ``host:port`` or ``unix:/path``."""
    if address.startswith(UNIX) and len(address) > len(UNIX):
        return "unix"
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{address!r} is not host:port, as in 127.0.0.1:8001")
    if ":" in host and not bracketed:
        raise ValueError(f"{address!r}: put an IPv6 address in brackets, [::1]:8001")
    if any(char in host for char in " ,/"):
        raise ValueError(f"{address!r} is not host:port, as in 127.0.0.1:8001")
    try:
        return f"ipv{ipaddress.ip_address(host.strip('[]')).version}"
    except ValueError:
        return "dns"

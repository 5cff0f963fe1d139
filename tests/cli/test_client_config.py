"""The recommended client settings, with gRPC itself as the judge."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from gateway.client_config import SERVICE, SERVICE_CONFIG, channel_options, target
from gateway.client_rpc import Client, ClientError
from gateway.config import Config
from gateway.protocol import inference_pb2 as pb


@pytest.mark.parametrize(
    ("addresses", "uri"),
    [
        (["127.0.0.1:1"], "ipv4:127.0.0.1:1"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[::1]:2"], "ipv6:[::1]:1,[::1]:2"),
        (["baton.svc:8001"], "dns:///baton.svc:8001"),
        (["unix:/run/baton.sock"], "unix:/run/baton.sock"),
    ],
)
def test_targets(addresses: list[str], uri: str) -> None:
    assert target(addresses) == uri


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        ["host"],
        ["host:"],
        [":1"],
        ["host:99999"],
        ["::1:5"],
        ["a,b:1"],
        ["http://a:1"],
        ["a:1", "b:1"],
        ["unix:"],
        ["unix:/a", "unix:/b"],
        ["unix:/a", "1.1.1.1:1"],
        ["1.1.1.1:1", "[::1]:1"],
    ],
)
def test_what_grpc_could_not_reach_is_refused(addresses: list[str]) -> None:
    with pytest.raises(ValueError, match=r"address|host:port|brackets"):
        target(addresses)


def test_keepalive_keeps_to_what_servers_allow() -> None:
    options = dict(channel_options())
    assert options["grpc.keepalive_time_ms"] > Config().grpc.min_ping_interval_ms
    maximum = Config().grpc.max_message_bytes
    assert options["grpc.max_receive_message_length"] >= maximum


def test_grpc_accepts_the_service_config_and_retries_refusals(server: Any) -> None:
    """A config gRPC cannot parse fails every call of the channel."""
    options = channel_options()
    assert json.loads(dict(options)["grpc.service_config"]) == SERVICE_CONFIG
    server.refusals = 3
    uri = target([server.address, server.address])
    with grpc.insecure_channel(uri, options=options) as channel:
        live = channel.unary_unary(
            f"/{SERVICE}/ServerLive",
            request_serializer=pb.ServerLiveRequest.SerializeToString,
            response_deserializer=pb.ServerLiveResponse.FromString,
        )
        assert live(pb.ServerLiveRequest(), timeout=10).live
    assert server.refusals == 0


def test_the_command_line_asks_once(server: Any) -> None:
    assert "grpc.service_config" not in dict(channel_options(service_config=False))
    server.refusals = 1
    with Client(server.address) as client:
        with pytest.raises(ClientError, match=r"queue full \(UNAVAILABLE\)"):
            client.live()
        assert client.live()

"""The command line against a gateway with mutual TLS and a Unix socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.client_rpc import Client, ClientError
from tests.certificates import Authority
from tests.gateway_process import free_port, wait_for


@dataclass(frozen=True)
class Served:
    """A running gateway: its port, and a folder with certificates and its socket."""

    port: int
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    pair = authority.pair("server")
    authority.pair("client")
    Authority(folder, "other")
    (folder / "models").mkdir()
    port = free_port()
    tls = {"certificate": pair.certificate.name, "key": pair.key.name}
    config = {
        "model_repository": "models",
        "state_dir": "state",
        "grpc": {
            "host": "0.0.0.0",
            "port": port,
            "tls": {**tls, "client_ca": "ca.pem"},
            "unix_socket": "s",
        },
        "metrics": {"port": 0},
        "drain": {"pre_drain_ms": 0},
    }
    (folder / "baton.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "gateway", "serve", str(folder / "baton.yaml")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:

        def ready() -> bool:
            assert process.poll() is None
            with Client(f"unix:{folder / 's'}", timeout_s=5) as client:
                try:
                    return client.ready()
                except ClientError:
                    return False

        try:
            wait_for(ready)
            yield Served(port, folder)
        finally:
            process.terminate()


CLIENT = ("--cert", "client.crt", "--key", "client.key")


@pytest.fixture
def ask(baton: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``baton models list`` in the folder of the certificates."""
    monkeypatch.chdir(served.folder)
    return lambda *words: baton("models", "list", "--timeout", "10", *words)


def test_the_unix_socket_takes_who_may_write_it(ask: Any, served: Served) -> None:
    for address in ("unix:s", f"unix:{served.folder / 's'}"):
        assert ask("--address", address).stdout.startswith("no models")
    refused = ask("--address", "unix:s", "--tls")
    assert "a Unix socket speaks no TLS" in refused.stderr


def test_the_mode_of_the_unix_socket_is_what_the_umask_leaves(served: Served) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert (served.folder / "s").stat().st_mode & 0o777 == 0o777 & ~umask


def test_mutual_tls(ask: Any, served: Served) -> None:
    address = f"127.0.0.1:{served.port}"
    done = ask("--address", address, "--ca", "ca.pem", *CLIENT)
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("host", "words", "way_out"),
    [
        ("127.0.0.1", (), "(if it speaks TLS, give --ca FILE, or --tls)"),
        ("127.0.0.1", ("--ca", "ca.pem"), "(it may want a certificate: --cert"),
        ("127.0.0.1", ("--ca", "other.pem", *CLIENT), "(give the authority of its"),
        ("127.0.0.1", ("--tls", *CLIENT), "(give the authority of its"),
        ("127.0.0.2", ("--ca", "ca.pem", *CLIENT), "(name it by a host that is in"),
        ("127.0.0.1", ("--ca", "ca.pem", *CLIENT[:3], "ca.pem"), "is no PEM, or of"),
        ("127.0.0.1", ("--ca", "gone.pem"), "gone.pem cannot be read: No such file"),
        ("127.0.0.1", ("--cert", "client.crt"), "needs both --cert FILE and --key"),
    ],
)
def test_what_fails_says_what_to_do(
    ask: Any, served: Served, host: str, words: tuple[str, ...], way_out: str
) -> None:
    failed = ask("--address", f"{host}:{served.port}", *words)
    assert failed.exit_code == 1
    assert way_out in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_tls_where_none_is_spoken(ask: Any, served: Served, server: Any) -> None:
    failed = ask("--address", server.address, "--ca", "ca.pem")
    assert "(it speaks no TLS: leave --tls, --ca, --cert, --key out)" in failed.stderr

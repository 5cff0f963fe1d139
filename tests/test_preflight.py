"""What must be right before anything is started, and who says so when it is not."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.config import Config
from gateway.preflight import faults, unix_in_use
from tests.certificates import Authority

Break = Callable[[Path, dict[str, str]], None]


def _junk(field: str) -> Break:
    def write(folder: Path, files: dict[str, str]) -> None:
        Path(files[field]).write_text("junk")

    return write


def _gone(field: str) -> Break:
    return lambda folder, files: Path(files[field]).unlink()


def _key_of_another(folder: Path, files: dict[str, str]) -> None:
    files["key"] = str(Authority(folder, "other").pair("another").key)


def _password(folder: Path, files: dict[str, str]) -> None:
    key = serialization.load_pem_private_key(Path(files["key"]).read_bytes(), None)
    Path(files["key"]).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    return {
        "certificate": str(pair.certificate),
        "key": str(pair.key),
        "client_ca": str(authority.certificate),
    }


def _found(**grpc: Any) -> list[str]:
    return faults(Config.model_validate({"grpc": grpc}))


def test_good_files_pass(files: dict[str, str], tmp_path: Path) -> None:
    assert _found(tls=files, unix_socket=str(tmp_path / "socket")) == []


@pytest.mark.parametrize(
    ("harm", "field", "why"),
    [
        (_gone("certificate"), "certificate", "cannot be read: No such file"),
        (_gone("key"), "key", "cannot be read: No such file"),
        (_gone("client_ca"), "client_ca", "cannot be read: No such file"),
        (_junk("certificate"), "certificate", "holds no certificate"),
        (_junk("key"), "key", "holds no private key"),
        (_junk("client_ca"), "client_ca", "holds no certificate"),
        (_key_of_another, "key", "is not the key of"),
        (_password, "key", "is protected by a password"),
    ],
)
def test_the_file_that_is_wrong_is_named(
    files: dict[str, str], tmp_path: Path, harm: Break, field: str, why: str
) -> None:
    harm(tmp_path, files)
    (fault,) = _found(tls=files)
    assert fault.startswith(f"grpc.tls.{field}: {files[field]} {why}")


def test_a_unix_socket_needs_a_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear to somebody")
    os.symlink(tmp_path / "gone", tmp_path / "link")
    for name, why in (
        ("none/socket", "cannot be made: .*none is no folder"),
        ("file", "is there and no socket, so it is left alone"),
        ("link", "is there and no socket"),
        ("", "is there and no socket"),
        ("x" * 108, "bytes long; at most 107 are possible"),
    ):
        (fault,) = _found(unix_socket=str(tmp_path / name))
        assert fault.startswith("grpc.unix_socket: ")
        assert re.search(why, fault), fault
    assert _found(unix_socket=str(tmp_path / "file"), transport="grpcio") == []


def test_the_longest_path_can_be_bound_with_the_suffix_of_a_front() -> None:
    longest = Path("/tmp") / ("x" * (107 - len("/tmp/")))
    assert _found(unix_socket=str(longest)) == []
    (fault,) = _found(unix_socket=str(longest), fronts=2)
    assert f"{longest}.1 is 109 bytes long" in fault


def test_only_a_socket_that_nobody_listens_on_may_go(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert unix_in_use(path) == ""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        assert "somebody listens on" in unix_in_use(path)
        assert "somebody listens on" in unix_in_use(path)  # its backlog is full
    assert unix_in_use(path) == ""
    assert path.exists()


@pytest.mark.parametrize(
    ("grpc", "metrics", "meet"),
    [
        ({"port": 9}, {"port": 9}, True),
        ({"port": 9, "host": "0.0.0.0"}, {"port": 9}, True),
        ({"port": 9, "host": "127.0.0.2"}, {"port": 9}, False),
        ({"port": 0}, {"port": 0}, False),
        ({"port": 8, "fronts": 2}, {"port": 9}, False),
        ({"port": 8, "fronts": 2, "port_mode": "each"}, {"port": 9}, True),
    ],
)
def test_ports_must_differ(
    grpc: dict[str, Any], metrics: dict[str, Any], meet: bool
) -> None:
    found = faults(Config.model_validate({"grpc": grpc, "metrics": metrics}))
    assert [fault.partition(":")[0] for fault in found] == ["metrics.port"] * meet


def test_serve_validate_and_doctor_say_it_in_one_line(
    files: dict[str, str], tmp_path: Path
) -> None:
    _key_of_another(tmp_path, files)
    (tmp_path / "models").mkdir()
    config = {
        "model_repository": "models",
        "grpc": {"port": 0, "tls": files, "unix_socket": "none/socket"},
        "metrics": {"port": 0},
        "log": {"format": "json"},
    }
    path = tmp_path / "baton.yaml"
    path.write_text(json.dumps(config))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words, str(path)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        return done

    (line,) = run("serve").stderr.splitlines()
    served = json.loads(line)
    first, second = run("config", "validate").stderr.splitlines()
    assert served["event"] == "cannot_start"
    assert served["reason"] == f"{first}; {second}"
    assert first.startswith(f"grpc.tls.key: {files['key']} is not the key of")
    assert second.startswith(f"grpc.unix_socket: {tmp_path}/none/socket cannot be")
    checks = json.loads(run("doctor", "--json").stdout)["checks"]
    details = [check["detail"] for check in checks if check["name"] == "listening"]
    assert len(details) == 2
    assert first.startswith(details[0])
    assert second.startswith(details[1])

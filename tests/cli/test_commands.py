"""What the commands print, and their exit status."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from gateway.client_rpc import Client, ClientError
from gateway.errors import Code


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m gateway`` as users do."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **variables},
    )


def test_call_prints_json(baton: Any, server: Any) -> None:
    result = baton("call", "m", "--json", '{"x": [[1, 0.1]]}', "--output", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "model": "m",
        "version": "3",
        "prediction_id": "p-1",
        "outputs": {"x_out": [[1.0, 0.1]]},
        "parameters": {"share": 0.5},
    }


def test_call_prints_text(baton: Any, server: Any) -> None:
    result = baton("call", "m", "--json", "-", stdin="[[1, 2]]")
    assert result.stdout == (
        "m version 3, prediction p-1\nx_out  FP32 [1, 2]\n  [[1.0, 2.0]]\n"
    )


def test_call_text_is_no_markup_and_does_not_wrap(baton: Any, server: Any) -> None:
    server.inputs = [("x", "BYTES", (-1,))]
    values = ["[red]", "\x1b[31m", "w" * 300]
    result = baton("call", "m", "--json", json.dumps(values))
    assert result.stdout.splitlines()[2] == f"  {json.dumps(values)}"


def test_call_asks_for_the_version_given(baton: Any, server: Any) -> None:
    baton("call", "m", "--json", "[[1, 2]]", "--model-version", "3")
    assert server.requests[0].model_version == "3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("call", "m", "--json", "[[1]]"), "baton: x[0]: 1 elements where 2"),
        (("call", "m", "--json", "{"), "baton: --json is not JSON"),
        (
            ("call", "n", "--json", "1"),
            "baton: Request for unknown model: 'n' is not found (`baton models list`",
        ),
        (("models", "load", "n"), "baton: bad\\nfile (FAILED_PRECONDITION)"),
    ],
)
def test_failures_are_one_line_and_status_one(
    baton: Any, server: Any, words: tuple[str, ...], message: str
) -> None:
    result = baton(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("models", "load", "n", "--json"), "FAILED_PRECONDITION", "bad\\nfile"),
        (
            ("call", "n", "--json", "1", "--output", "json"),
            "NOT_FOUND",
            "unknown model",
        ),
        (("call", "m", "--json", "{", "--output", "json"), "INVALID_ARGUMENT", "JSON"),
        (("models", "list", "--json", "--cert", "/none"), "INVALID_ARGUMENT", "--key"),
        (("config", "show", "/none", "--json"), "INVALID_ARGUMENT", "/none"),
    ],
)
def test_failures_are_json_where_that_is_asked_for(
    baton: Any, server: Any, words: tuple[str, ...], code: str, message: str
) -> None:
    result = baton(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr)
    assert error == {"error": error["error"], "code": code}
    assert message in error["error"]


@pytest.mark.parametrize(
    "words",
    [
        ("models", "list", "--json", "--prot"),
        ("call", "m", "--output", "json"),
        ("call", "m", "--output=json"),
    ],
)
def test_wrong_usage_is_json_where_that_is_asked_for(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert json.loads(result.stderr)["code"] == "INVALID_ARGUMENT"
    assert run("call", "m").stderr.startswith("baton: Missing option '--json'")


def test_models_are_listed(baton: Any, server: Any) -> None:
    result = baton("models", "list")
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["NAME", "VERSION", "STATE", "REASON"]
    assert first.split() == ["m", "3", "READY"]
    assert second.split() == ["evil", "3", "[red]\\u001b[31m\\n"]
    rows = json.loads(baton("models", "list", "--json").stdout)
    assert rows[0] == {"name": "m", "version": "3", "state": "READY", "reason": ""}


def test_an_empty_repository_says_what_to_do(baton: Any, server: Any) -> None:
    server.states = {}
    assert "MODEL/1/model.onnx" in baton("models", "list").stdout
    assert json.loads(baton("models", "list", "--json").stdout) == []


def test_models_are_loaded_and_unloaded(baton: Any, server: Any) -> None:
    assert baton("models", "load", "m").stdout == "m: loaded\n"
    unloaded = baton("models", "unload", "m", "--json")
    assert json.loads(unloaded.stdout) == {"model": "m", "state": "unloaded"}
    assert [request.model_name for request in server.requests] == ["m", "m"]


def test_no_server_says_how_to_start_one(baton: Any, free_port: int) -> None:
    result = baton("models", "list", "--address", f"127.0.0.1:{free_port}")
    assert result.exit_code == 1
    assert result.stderr == (
        f"baton: no server answers at 127.0.0.1:{free_port} (start one with "
        "`baton serve`, or name another with --address or BATON_ADDRESS)\n"
    )


def test_a_server_that_never_answers_runs_into_the_timeout(baton: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        result = baton("models", "list", "--address", address, "--timeout", "0.2")
    assert result.exit_code == 1
    assert result.stderr.startswith("baton: no answer within 0.2 s")
    assert "(raise --timeout)" in result.stderr


def test_the_client_reports_life_and_what_a_server_lacks(server: Any) -> None:
    with Client(server.address) as client:
        assert client.live()
        assert not client.ready()
        with pytest.raises(ClientError, match="has no ModelStatistics") as caught:
            client.statistics()
    assert caught.value.code is Code.UNIMPLEMENTED
    with pytest.raises(ClientError, match="is not host:port"):
        Client("nonsense")


def test_config_can_be_checked_and_shown(baton: Any, tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("grpc: {port: 5}\n")
    assert baton("config", "validate", str(path)).stdout == f"{path}: ok\n"
    assert "  port: 5\n" in baton("config", "show", str(path)).stdout
    shown = json.loads(baton("config", "show", str(path), "--json").stdout)
    assert shown["grpc"]["port"] == 5
    schema = json.loads(baton("config", "schema").stdout)
    assert schema["additionalProperties"] is False


def test_config_problems_go_to_standard_error(baton: Any, tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("a: 1\nb: 2\n")
    for words in (("config", "validate"), ("config", "show"), ("serve",)):
        result = baton(*words, str(path))
        assert (result.exit_code, result.stdout) == (1, "")
        first, second = result.stderr.splitlines()
        assert first.startswith(f"{path}:1: a: unknown")
        assert second.startswith(f"{path}:2: b: unknown")
    answer = json.loads(baton("config", "validate", str(path), "--json").stdout)
    assert not answer["ok"]
    assert len(answer["problems"]) == 2


def test_serve_names_the_flag_that_is_wrong(baton: Any) -> None:
    result = baton("serve", "--port", "99999")
    assert result.exit_code == 1
    assert result.stderr.startswith("--port: grpc.port: 99999 should be")


def test_version_and_help() -> None:
    version = run("--version")
    assert version.stdout == f"baton {metadata.version('baton-gateway')}\n"
    bare = run()
    assert bare.returncode == 0
    assert "serve" in bare.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("serve", "--prot", "1"), "No such option: --prot"),
        (("serve", "--device", "tpu"), "Invalid value for '--device'"),
        (("call", "m"), "Missing option '--json'"),
        (("modls",), "No such command 'modls'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_two(
    words: tuple[str, ...], message: str
) -> None:
    result = run(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"baton: {message}")
    assert "--help`)" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_address_comes_from_the_environment(server: Any) -> None:
    result = run("models", "list", "--json", BATON_ADDRESS=server.address)
    assert result.returncode == 0
    assert json.loads(result.stdout)[0]["name"] == "m"


def test_starting_up_imports_neither_grpc_nor_onnxruntime() -> None:
    code = (
        "import sys, gateway.cli, gateway.doctor\n"
        "sys.exit(bool({'grpc', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_bug_is_one_line_too() -> None:
    code = (
        "import gateway.cli as cli\n"
        "def broken(): raise KeyError('a')\n"
        "cli.config_schema = broken\n"
        "cli.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "config", "schema"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "baton: KeyError: 'a'. This is a bug (BATON_TRACEBACK=1 shows where).\n"
    )

"""What `load_config` merges, refuses and says."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config import Config
from gateway.config import schema as config_schema
from gateway.config_file import FLAGS, ConfigError, load_config


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("BATON_"):
            monkeypatch.delenv(name)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "baton.yaml"
    path.write_text(text)
    return path


def problems(path: Path | None, flags: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, flags or {})
    assert str(caught.value) == "\n".join(caught.value.problems)
    prefix = f"{path.parent}/" if path else ""
    return [line.removeprefix(prefix) for line in caught.value.problems]


def test_nothing_given_means_the_defaults() -> None:
    assert load_config(None, {}) == Config()


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "grpc: {port: 1, fronts: 2, host: h}\nload: [a]\n")
    monkeypatch.setenv("BATON_GRPC__PORT", "3")
    monkeypatch.setenv("BATON_GRPC__FRONTS", "4")
    config = load_config(path, {"grpc": {"port": 5, "host": None}})
    assert (config.grpc.port, config.grpc.fronts, config.grpc.host) == (5, 4, "h")
    assert config.load == ("a",)
    assert config.grpc.port_mode == "shared"


def test_the_result_is_an_ordinary_config(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "log: {level: debug}\n"), {})
    assert type(config) is Config
    assert pickle.loads(pickle.dumps(config)) == config
    assert config == Config(log={"level": "debug"})
    with pytest.raises(ValueError, match="frozen"):
        config.load = "all"  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    ["", "---\n", "# yaml-language-server: $schema=s.json\n", "grpc:\n", "grpc: {}\n"],
)
def test_empty_files_and_sections_mean_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text), {}) == Config()


def test_folders_in_the_file_are_relative_to_it_and_flags_are_not(
    tmp_path: Path,
) -> None:
    path = written(
        tmp_path,
        "model_repository: m\nstate_dir: /s\ngrpc:\n  unix_socket: u\n"
        "  tls: {certificate: c, key: /k}\n",
    )
    config = load_config(path, {})
    assert config.grpc.unix_socket == tmp_path / "u"
    assert config.grpc.tls is not None
    assert config.grpc.tls.certificate == tmp_path / "c"
    assert config.grpc.tls.key == Path("/k")
    assert config.model_repository == tmp_path / "m"
    assert config.state_dir == Path("/s")
    flagged = load_config(path, {"model_repository": Path("n")})
    assert flagged.model_repository == Path("n")


def test_all_problems_come_together_with_line_key_and_way_out(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "grpc:\n  prot: 1\n  fronts: 0\nport: 2\nworkers: 5\nlog: {level: loud}\n"
        "load: [a, 1]\nzzz: 1\n",
    )
    assert problems(path) == [
        "baton.yaml:2: grpc.prot: unknown (did you mean grpc.port?)",
        "baton.yaml:3: grpc.fronts: 0 should be greater than or equal to 1 "
        "(remove it for the default, 1)",
        "baton.yaml:4: port: unknown (did you mean grpc.port or admin.port or "
        "feedback.port or metrics.port?)",
        "baton.yaml:5: workers: a section, not a value (indent its settings below it)",
        "baton.yaml:6: log.level: 'loud' should be 'debug', 'info', 'warning' or "
        "'error' (remove it for the default, info)",
        "baton.yaml:7: load[1]: 1 should be a valid string "
        "(remove it for the default, all)",
        "baton.yaml:8: zzz: unknown (known here: model_repository, load, state_dir, "
        "max_model_bytes, grpc, workers, batching, admission, admin, traffic, "
        "feedback, drain, metrics, log)",
    ]


def test_what_is_missing_or_unknown_in_a_section_of_a_section_is_named(
    tmp_path: Path,
) -> None:
    assert problems(written(tmp_path, "grpc:\n  tls: {certificate: c, kee: k}\n")) == [
        "baton.yaml:2: grpc.tls.key: missing (PEM file with its private key)",
        "baton.yaml:2: grpc.tls.kee: unknown (did you mean grpc.tls.key?)",
    ]
    assert problems(written(tmp_path, "grpc: {tls: yes}\n")) == [
        "baton.yaml:1: grpc.tls: a section, not a value (indent its settings below it)"
    ]


def test_a_union_is_explained_in_one_line(tmp_path: Path) -> None:
    assert problems(written(tmp_path, "load: al\n")) == [
        "baton.yaml:1: load: 'al' should be 'all' or should be a valid list "
        "(remove it for the default, all)"
    ]


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    text = "grpc:\n  port: 1\n  port: 2\nload: all\nload: all\n"
    assert problems(written(tmp_path, text)) == [
        "baton.yaml:3: grpc.port: given twice, first in line 2 (remove one)",
        "baton.yaml:5: load: given twice, first in line 4 (remove one)",
    ]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (
            "{windw_s: 3}",
            ".windw_s: unknown (did you mean feedback.models.a.window_s?)",
        ),
        (
            "{conflict: sum}",
            ": conflict: sum is for labels of type number; label is of another",
        ),
        (
            "{default: zz, labels: {label: {classes: [up, down]}}}",
            ": default: 'zz' is no value of label, a class (up, down)",
        ),
        ("{default: 3}", ": default: 3.0 is no value of label, a class"),
        ("3", ": a section, not a value (indent its settings below it)"),
    ],
)
def test_what_is_wrong_with_a_model_of_the_feedback_section_is_named(
    tmp_path: Path, model: str, problem: str
) -> None:
    found = problems(written(tmp_path, f"feedback:\n  models:\n    a: {model}\n"))
    assert found == [f"baton.yaml:2: feedback.models.a{problem}"]


def test_environment_problems_name_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATON_GRPC__PORT", "x")
    monkeypatch.setenv("BATON_GRPC__PORTS", "1")
    monkeypatch.setenv("BATON_GPRC__PORT", "1")
    monkeypatch.setenv("BATON_WORKERS__DEVICE_IDS", "0,1")
    found = problems(None)
    assert found == [
        "BATON_WORKERS__DEVICE_IDS: '0,1' is not JSON (write a list as [0, 1], "
        'a section as {"key": 1})',
        "BATON_GPRC__PORT: gprc: unknown (did you mean BATON_GRPC__...?)",
        "BATON_GRPC__PORT: grpc.port: 'x' should be a valid integer, unable to parse "
        "string as an integer (remove it for the default, 8001)",
        "BATON_GRPC__PORTS: grpc.ports: unknown (did you mean BATON_GRPC__PORT?)",
    ]


def test_environment_takes_json_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_WORKERS__DEVICE_IDS", "[0, 1]")
    monkeypatch.setenv("baton_grpc", '{"port": 7, "fronts": 3}')
    monkeypatch.setenv("BATON_GRPC__PORT", "8")
    config = load_config(None, {})
    assert config.workers.device_ids == (0, 1)
    assert (config.grpc.port, config.grpc.fronts) == (8, 3)


def test_variables_that_kubernetes_sets_for_a_service_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATON_PORT", "tcp://10.0.0.1:8001")
    monkeypatch.setenv("BATON_SERVICE_HOST", "10.0.0.1")
    assert load_config(None, {}) == Config()


def test_flag_problems_name_the_flag() -> None:
    flags = {"grpc": {"port": 99999}, "log": {"level": "loud"}}
    first, second = problems(None, flags)
    assert first.startswith("--port: grpc.port: 99999 should be")
    assert second.startswith("--log-level: log.level: 'loud' should be")


def test_every_flag_is_a_setting() -> None:
    dumped = Config().model_dump()
    for path in FLAGS:
        value = dumped
        for key in path:
            value = value[key]


def test_a_plain_value_for_a_section_is_reported_though_a_flag_goes_deeper(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "grpc: 5\n")
    (line,) = problems(path, {"grpc": {"port": 1}})
    assert line.startswith("baton.yaml:1: grpc: a section, not a value")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("grpc: [1\n", "baton.yaml:2: not valid YAML: "),
        ("a: 1\n---\nb: 1\n", "baton.yaml:2: not valid YAML: "),
        ("load: !!python/name:os.system x\n", "baton.yaml:1: not valid YAML: "),
        ("\x00", "baton.yaml: not valid YAML: "),
        ("- 1\n", "baton.yaml:1: the file must hold `key: value` lines"),
        ("? [a]\n: 1\n", "baton.yaml:1: a key must be a plain word"),
        ("grpc: &a\n  port: *a\n", "baton.yaml:1: not valid YAML: "),
        ('"a\\nb": 1\n', "baton.yaml:1: a\\nb: unknown"),
    ],
)
def test_broken_files_get_one_line(tmp_path: Path, text: str, start: str) -> None:
    (line,) = problems(written(tmp_path, text))
    assert line.startswith(start)
    assert line.isprintable()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (line,) = problems(tmp_path / "none.yaml")
    assert (
        line
        == "none.yaml: cannot be read: No such file or directory (name another file)"
    )


def test_what_show_prints_can_be_loaded_again(tmp_path: Path) -> None:
    text = yaml.safe_dump(Config().model_dump(mode="json"))
    flags = {"model_repository": Path("models"), "state_dir": Path(".baton")}
    assert load_config(written(tmp_path, text), flags) == Config()


def test_the_schema_explains_every_setting() -> None:
    schema = config_schema()
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        for name, field in section["properties"].items():
            assert "description" in field or "$ref" in field, name

"""The comparison: its arithmetic, its table of cases, its servers and a real run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from loadtest import bare, dialects, echo, load, models
from loadtest.compare.cases import CASES, NAIVE, ORT, chosen
from loadtest.compare.contestants import listening
from loadtest.compare.report import Results
from loadtest.compare.targets import METRICS, OURS, Target, judge
from loadtest.dialects import GRPC, JSON_ROW, JSON_ROWS, RAW
from loadtest.machine import choose_cores
from loadtest.measure import Spread
from loadtest.peers import install
from loadtest.peers.catalogue import PEERS, Peer
from loadtest.processes import ROOT, free_ports, running
from loadtest.wire import BadAnswer

LOAD = load.Load(
    port=1,
    path="/service/Method",
    message="file",
    messages=1,
    reply_bytes=95,
    connections=1,
    calls=1,
    seconds=2.0,
)
OUTPUT = """\
requests: 4 total, 4 started, 4 done, 4 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 3.05KB (3123) total, 1.9KB (1945) headers (space savings 90%), {} data
"""
LOG = "".join(f"17000000{n} 200 {n * 1000}\n" for n in range(1, 5))


def exactly(value: float) -> Spread:
    return Spread(value, value, value)


FOUND = {
    OURS: {"rate": exactly(3000), "cpu_us": exactly(10), "p99_ms": exactly(1.5)},
    NAIVE: {"rate": exactly(100), "cpu_us": exactly(200), "p99_ms": exactly(30)},
}


@pytest.mark.parametrize(
    ("target", "value", "reached", "broken"),
    [
        (Target("rate", 30, 15, against=NAIVE), 30, True, False),
        (Target("rate", 31, 15, against=NAIVE), 30, False, False),
        (Target("rate", 40, 31, against=NAIVE), 30, False, True),
        (Target("cpu_us", 15, 6, against=NAIVE), 20, True, False),
        (Target("cpu_us", 30, 21, against=NAIVE), 20, False, True),
        (Target("p99_ms", 1.0, 2.0), 1.5, False, False),
        (Target("p99_ms", 1.0, 1.4), 1.5, False, True),
        (Target("p99_ms", 1.5), 1.5, True, False),
        (Target("rate", 3000), 3000, True, False),
        (Target("rate", 4000, 3001), 3000, False, True),
    ],
)
def test_a_target_is_judged_by_the_direction_of_its_metric(
    target: Target, value: float, reached: bool, broken: bool
) -> None:
    (verdict,) = judge("case", (target,), FOUND)
    assert verdict.value == pytest.approx(value)
    assert verdict.reached is reached
    assert verdict.broken is broken
    state = "WORSE THAN THE FLOOR" if broken else "reached" if reached else "gap"
    assert verdict.words.startswith("case: ")
    assert state in verdict.words


def test_what_was_not_measured_is_not_judged() -> None:
    targets = (Target("rate", 3, against="mosec"), Target("memory_mb", 100))
    assert judge("case", targets, FOUND) == []
    assert judge("case", targets, {}) == []


def results() -> Results:
    found = Results()
    for rate in (5000.0, 3000.0, 4000.0):
        values = {"rate": rate, "cpu_us": 10.0, "client_share": 0.9, "bad": 0.0}
        found.add("m1-unary-c64", OURS, values)
        values = {"rate": rate / 20, "cpu_us": 40.0, "client_share": 0.1, "bad": 1.0}
        found.add("m1-unary-c64", NAIVE, values)
    return found


def test_rounds_become_medians_ratios_and_warnings() -> None:
    found = results()
    assert found.found("m1-unary-c64")[OURS]["rate"] == Spread(4000, 3000, 5000)
    assert found.ratios("m1-unary-c64") == {NAIVE: {"rate": 20, "cpu_us": 4}}
    assert len(found.lower_bounds()) == 1
    assert OURS in found.lower_bounds()[0]
    assert found.bad() == [f"m1-unary-c64 {NAIVE}: 3 bad calls"]
    assert found.table("m1-unary-c64").row_count == 2


def test_json_holds_ratios_targets_and_raw_rounds() -> None:
    whole = json.loads(json.dumps(results().as_json(CASES)))
    assert whole["cases"]["m1-unary-c64"]["ratios"][NAIVE]["rate"] == 20
    assert len(whole["rounds"]["m1-unary-c64"][OURS]) == 3
    (target,) = (each for each in whole["targets"] if each["against"] == NAIVE)
    assert target["value"] == 20
    assert not target["reached"]
    assert not target["floor_broken"]


def test_the_table_of_cases_is_sound() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        for target in case.targets:
            assert target.metric in METRICS
            assert target.against is None or target.against in case.servers, case.name
            if target.floor is not None:
                assert target.holds(target.goal, target.floor), case.name


def test_cases_of_one_setup_stand_together() -> None:
    setups = [case.setup for case in CASES]
    assert len(list(itertools.groupby(setups))) == len(set(setups))


def test_cases_and_servers_are_chosen_by_name() -> None:
    (case,) = chosen(("m5-unary-c64",), (OURS, ORT), short=False)
    assert case.servers == (OURS, ORT)
    assert {each.short for each in chosen((), (), short=True)} == {True}
    assert all(not set(e.servers) & set(PEERS) for e in chosen((), (), short=True))
    with pytest.raises(ValueError, match="m1-unary-c64"):
        chosen(("m9",), (), short=False)
    with pytest.raises(ValueError, match="mosec"):
        chosen((), ("apache",), short=False)


def test_h2load_output_becomes_a_sample() -> None:
    sample = load._parse(OUTPUT.format("400B (400)"), LOG, LOAD, 0.5)
    assert (sample.requests, sample.requests_per_s, sample.p50_ms) == (4, 2, 2.5)
    assert sample.bad == 0


def test_an_answer_without_data_is_bad_though_h2load_calls_it_a_success() -> None:
    sample = load._parse(OUTPUT.format("300B (300)"), LOG, LOAD, 0.5)
    assert (sample.requests, sample.bad) == (3, 1)


def test_answers_of_varying_length_count_by_their_status() -> None:
    varying = load.Load(1, "/p", "f", 1, 0, 1, 1, 2.0, content_type="application/json")
    sample = load._parse(OUTPUT.format("77B (77)"), LOG, varying, 0.5)
    assert (sample.requests, sample.bad) == (4, 0)


@pytest.mark.parametrize(("output", "log"), [("", ""), (OUTPUT.format("0B (0)"), LOG)])
def test_no_answers_are_an_error(output: str, log: str) -> None:
    with pytest.raises(load.LoadFailed):
        load._parse(output, log, LOAD, 0.5)


def test_one_core_is_not_split() -> None:
    assert choose_cores([0]) == (None, None)


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        (RAW, np.array([0.25, 0.75], np.float32).tobytes()),
        (JSON_ROW, b'{"probabilities": [0.25, 0.75]}'),
        (JSON_ROWS, b"[[0.25, 0.75]]"),
    ],
)
def test_http_answers_are_read(dialect: dialects.Dialect, answer: bytes) -> None:
    assert dialect.decode(answer).tolist() == [[0.25, 0.75]]
    row = np.zeros((1, models.FEATURES), np.float32)
    assert len(dialect.encode("M1", row)) >= models.FEATURES * 4
    assert dialect.content_type


def test_nobody_there_is_a_bad_answer() -> None:
    row = np.zeros((1, models.FEATURES), np.float32)
    for dialect in (GRPC, RAW):
        with pytest.raises(BadAnswer):
            dialect.ask(9, [dialect.encode("M1", row)], timeout_s=2)


def test_an_interpreter_that_does_not_work_is_refused_with_its_reason() -> None:
    peer = Peer(
        "p", "1", (), GRPC, refuses=lambda version: f"no luck with {version[0]}"
    )
    with pytest.raises(install.NotInstalled, match="no luck with 3"):
        install.interpreter(peer)
    absent = Peer("p", "1", (), GRPC, interpreters=("python0.1",))
    with pytest.raises(install.NotInstalled, match="not there"):
        install.interpreter(absent)


def test_a_link_to_nothing_is_no_folder_for_peers(tmp_path: Path) -> None:
    link = tmp_path / "peers"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(install.NotInstalled, match="peers is no folder"):
        install._make_folder(link)


def test_triton_refuses_the_libraries_its_stub_fails_with() -> None:
    refuses = PEERS["pytriton"].refuses
    assert refuses((3, 11, 2)) is None
    assert "3.11.7" in str(refuses((3, 11, 7)))
    assert refuses((3, 12, 0))


def test_bare_onnx_runtime_gains_by_batches(tmp_path: Path) -> None:
    models.write_models(tmp_path, ("M1",))
    rates = bare.rates(models.model_file(tmp_path, "M1"), seconds=0.2)
    assert tuple(rates) == bare.BATCHES
    assert rates[64] > 3 * rates[1] > 0


@pytest.fixture
def echo_port(tmp_path: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtest", "echo", "--port", str(port)]
    with running(command, port=port, log=tmp_path / "log") as server:
        server.wait_ready(20, listening)
        yield port


def test_the_echo_answers_whole_requests_of_any_size(
    echo_port: int, tmp_path: Path
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{echo_port}") as connection:
        call = connection.unary_unary("/any/Method")
        for size in (1, 600_000, 3_000_000):
            futures = [call.future(bytes(size), timeout=20) for _ in range(20)]
            answers = [each.result() for each in futures]
            assert answers == [bytes(echo.REPLY_BYTES)] * 20
    message = tmp_path / "message"
    message.write_bytes(bytes(600_000))
    sent = load.Load(
        echo_port, "/any", str(message), 1, echo.REPLY_BYTES, 4, 4, seconds=0.5
    )
    sample = load.builtin(sent, None)
    assert sample.requests > 50
    assert sample.bad == 0


@pytest.mark.slow
def test_the_hand_written_server_is_measured_end_to_end() -> None:
    command = [sys.executable, "-m", "loadtest", "compare", "--json", "--rounds", "1"]
    command += ["--seconds", "0.5", "--servers", "naive,ort"]
    command += ["m1-unary-c64", "m1-stream-1row", "stock-grpcio-sync", "m5-unary-c64"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    assert found["skipped"] == []
    assert len(found["cases"]) == 4
    for case in found["cases"].values():
        for server, values in case["servers"].items():
            assert values["rate"]["median"] > 0
            assert server == ORT or values["cpu_us"]["median"] > 0


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_skipped_by_name(tmp_path: Path) -> None:
    program = (
        "import loadtest.peers.catalogue as c, pathlib, sys;"
        f"c.FOLDER = pathlib.Path({str(tmp_path)!r});"
        "from loadtest.__main__ import main; sys.argv = ['loadtest', 'compare',"
        " 'm1-unary-c1', '--json', '--rounds', '1', '--seconds', '0.5',"
        " '--servers', 'naive,mosec']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (skip,) = json.loads(done.stdout.splitlines()[-1])["skipped"]
    assert skip["server"] == "mosec"
    assert "peers install mosec" in skip["reason"]
    assert any(line.startswith("SKIPPED") for line in done.stdout.splitlines())

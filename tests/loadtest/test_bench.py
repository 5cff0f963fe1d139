"""The benchmark's arithmetic, its generators and its end-to-end run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from loadtest import bench, load, report
from loadtest.processes import ROOT

SAMPLE = load.Sample(
    requests=100,
    requests_per_s=100.0,
    p50_ms=1.0,
    p99_ms=2.0,
    bad=0,
    client_share=0.2,
)
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


def a_round(server: str, rate: float, cpu_us: float, bad: int = 0) -> report.Round:
    sample = load.Sample(100, rate, 1.0, 2.0, bad, 0.9 if rate > 1000 else 0.1)
    return report.Round("M1 unary", server, 64, 0, sample, cpu_us)


def test_rounds_become_medians_and_ratios() -> None:
    rounds = [a_round("baton", rate, 10) for rate in (5000, 3000, 4000)]
    rounds += [a_round("naive", rate, 40) for rate in (300, 200, 100)]
    found = report.lines(rounds)
    assert [line.requests_per_s.median for line in found] == [4000, 200]
    assert [line.requests_per_s.low for line in found] == [3000, 100]
    assert report.ratios(found, "baton") == [
        {
            "case": "M1 unary",
            "concurrency": 64,
            "against": "naive",
            "rate": 20.0,
            "cpu": 4.0,
        }
    ]
    assert len(report.client_bound(found)) == 1
    assert json.loads(json.dumps(report.as_json(rounds, found, "baton")))["rounds"]


def test_bad_calls_are_named() -> None:
    assert report.bad_calls([a_round("baton", 1, 1)]) == []
    assert "3 bad calls" in report.bad_calls([a_round("baton", 1, 1, bad=3)])[0]


def test_h2load_output_becomes_a_sample() -> None:
    sample = load._parse(OUTPUT.format("400B (400)"), LOG, LOAD, 0.5)
    assert sample.requests == 4
    assert sample.requests_per_s == 2
    assert sample.p50_ms == 2.5
    assert sample.bad == 0


def test_an_answer_without_data_is_bad_though_h2load_calls_it_a_success() -> None:
    sample = load._parse(OUTPUT.format("300B (300)"), LOG, LOAD, 0.5)
    assert (sample.requests, sample.bad) == (3, 1)


def test_a_stream_counts_its_messages() -> None:
    stream = load.Load(1, "/service/Method", "file", 2, 45, 1, 1, 2.0)
    sample = load._parse(OUTPUT.format("400B (400)"), LOG, stream, 0.5)
    assert sample.requests == 8


@pytest.mark.parametrize(("output", "log"), [("", ""), (OUTPUT.format("0B (0)"), LOG)])
def test_no_answers_are_an_error(output: str, log: str) -> None:
    with pytest.raises(load.LoadFailed):
        load._parse(output, log, LOAD, 0.5)


def test_one_core_is_not_split() -> None:
    assert bench.choose_cores([0]) == (None, None)


@pytest.mark.slow
def test_the_hand_written_server_is_measured_end_to_end() -> None:
    command = [sys.executable, "-m", "loadtest", "bench", "--json", "--runs", "1"]
    command += ["--seconds", "0.5", "--servers", "naive-asyncio", "--builtin"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    assert found["pinned"] == (
        bench.choose_cores(sorted(os.sched_getaffinity(0)))[0] is not None
    )
    assert [line["concurrency"] for line in found["lines"]] == [1, 64, 256]
    for line in found["lines"]:
        assert line["requests_per_s"]["median"] > 0
        assert line["cpu_us"]["median"] > 0

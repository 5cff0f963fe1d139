"""Scenarios: what may stand in them, and one run end to end with its page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import flames, scenario
from loadtest.measure import Histogram
from loadtest.monitor import Usage, growth_mb_per_hour
from loadtest.page import NoResults, render
from loadtest.processes import ROOT
from loadtest.scenario import BadScenario, find, read

GOOD = 'title = "t"\n[[phases]]\nname = "one"\n'

SCENARIO = """
title = "A short run"

[[phases]]
name = "warm"
seconds = 0.5
warm = true

[[phases]]
name = "capacity"
seconds = 1
connections = 2
calls = 8
check_every = 7

[[phases]]
name = "half"
loop = "open"
seconds = 1
share_of = "capacity"
steps = [{ seconds = 1, rate = 0.1, to = 0.4 }]
deadline_ms = 2000
idle = 50
seed = 1

[phases.background]
loop = "streams"
rows = 8
connections = 1
calls = 2
outstanding = 2
check_every = 5
"""


def refused(tmp_path: Path, text: str) -> str:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(BadScenario) as caught:
        read(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", sorted(scenario.SHIPPED.glob("*.toml")))
def test_shipped_scenarios_are_valid(file: Path) -> None:
    assert read(find(Path(file.stem))).phases


def test_eight_scenarios_are_shipped() -> None:
    assert len(list(scenario.SHIPPED.glob("*.toml"))) == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "conections = 3\n", "phases.0.conections: unknown key"),
        (GOOD + "[target]\nport = 3\n", "target.port: unknown key"),
        (GOOD + "connections = 0\n", "phases.0.connections: Input should be greater"),
        (GOOD + 'model = "M9"\n', "phases.0.model: Input should be 'M1'"),
        (GOOD + 'loop = "open"\n', "phases.0: an open loop, and no other, needs"),
        (GOOD + "rate = 5\n", "phases.0: an open loop, and no other, needs"),
        (
            GOOD + 'loop="open"\nrate=1\nshare_of="x"\n',
            "no earlier phase is called 'x'",
        ),
        (GOOD + '[[phases]]\nname = "one"\n', "two phases are called 'one'"),
        (GOOD + 'loop = "streams"\ndeadline_ms = 1\n', "they have no deadline_ms"),
        (GOOD + "cancel_share = 0.9\ndrop_share = 0.2\n", "make more than 1"),
        (GOOD + '[target]\naddress = "there"\n', "target.address: String should match"),
        (GOOD + "[phases.background]\nnmae = 1\n", "background.nmae: unknown key"),
        ("title = 't'\n", "phases: Field required"),
        ("title = \n", "Invalid value (at line 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, GOOD + "calls = 0\nrows = -1\nx = 2\n").splitlines()
    assert len(said) == 3


def test_a_missing_scenario_names_those_there_are() -> None:
    with pytest.raises(BadScenario, match=r"none of cancellations, .*streams"):
        find(Path("nothing"))


def test_every_field_says_what_it_does() -> None:
    for line in scenario.fields().splitlines():
        assert line.endswith((".", "(and all of Traffic)")), line


def test_the_growth_of_memory_is_that_of_the_second_half() -> None:
    first = [Usage(s, 1_000_000 * s * s, 0.0, 1) for s in range(10)]
    second = [Usage(s, 100_000_000 + 2_000 * s, 0.0, 1) for s in range(10, 20)]
    assert growth_mb_per_hour(first + second) == pytest.approx(7.2)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the scenario on a real Baton."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "short.toml"
    file.write_text(SCENARIO)
    command = [sys.executable, "-m", "loadtest", "run", str(file), "--json"]
    done = subprocess.run(
        [*command, "--out", str(folder / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((folder / "out" / "summary.json").read_text())
    return folder / "out"


def test_a_run_measures_every_phase(results: Path) -> None:
    found = json.loads((results / "summary.json").read_text())
    assert found["ok"]
    assert found["problems"] == []
    capacity, half = found["phases"]
    assert (capacity["phase"], half["phase"]) == ("capacity", "half")
    for phase in (capacity, half):
        assert phase["sample"]["requests"] > 50
        assert phase["sample"]["bad"] == 0
    expected = capacity["sample"]["requests_per_s"] * 0.25
    offered = half["sample"]["offered"]
    assert offered == pytest.approx(expected, abs=5 * expected**0.5)
    assert half["sample"]["requests"] == offered
    assert half["sample"]["idle_lost"] == 0
    assert half["background"]["requests"] > 0
    assert half["background"]["bad"] == 0


def test_raw_data_add_up_to_the_summary(results: Path) -> None:
    found = json.loads((results / "summary.json").read_text())
    lines = [json.loads(x) for x in (results / "raw.jsonl").read_text().splitlines()]
    for phase in found["phases"]:
        mine = [each for each in lines if each["phase"] == phase["phase"]]
        client = [each for each in mine if each["of"] == "client"]
        server = [each for each in mine if each["of"] == "server"]
        assert sum(x["answers"] for x in client) == phase["sample"]["requests"]
        merged = Histogram()
        for each in client:
            merged.merge(Histogram(each["histogram"]))
        whole = Histogram(phase["sample"]["histogram"])
        assert merged.percentile_ms(99) == whole.percentile_ms(99)
        assert all(each["processes"] >= 3 for each in server)
        assert all(each["rss_bytes"] > 50_000_000 for each in server)


def test_the_page_has_table_plots_and_origin(results: Path, tmp_path: Path) -> None:
    page = render(results, tmp_path).read_text()
    found = json.loads((results / "summary.json").read_text())
    assert page.startswith("# A short run\n")
    assert found["machine"]["commit"] in page
    assert "loadtest run" in page
    assert "| capacity |" in page
    assert "| half |" in page
    plots = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(plots) == 4
    for name in plots:
        assert f"({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / name).with_suffix(".svg").read_text()


def test_a_page_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoResults, match="loadtest run SCENARIO"):
        render(tmp_path)


def test_the_top_functions_are_those_with_the_most_samples() -> None:
    stacks = (
        "main (a.py:1);work (a.py:5) 6\nmain (a.py:2);work (a.py:9) 2\nmain (a.py:3) 2"
    )
    assert flames.top(stacks) == [("work (a.py)", 0.8, 0.8), ("main (a.py)", 0.2, 1.0)]


def test_py_spy_sees_what_a_process_does(tmp_path: Path) -> None:
    code = (
        "def burn():\n    while True: sum(range(1000))\nprint('on', flush=True)\nburn()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        flames.record(process.pid, tmp_path / "x", "raw", 1, native=False)
    except flames.NotAllowed as error:
        pytest.skip(str(error))
    finally:
        process.kill()
        process.communicate()
    assert flames.top((tmp_path / "x").read_text())[0][0].startswith("burn ")


def test_a_process_that_py_spy_cannot_read_is_said(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(flames.NotAllowed):
        flames.record(process.pid, tmp_path / "x", "raw", 1, native=False)

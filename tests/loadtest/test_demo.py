"""The demo, end to end: a real server process and real calls."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from loadtest.demo import MIN_REQUESTS
from loadtest.experiment import CHALLENGER, CHAMPION, FLOOR, PARTS, SHADOW, SHARES
from loadtest.processes import ROOT

Json = dict[str, Any]


@pytest.fixture(scope="module")
def run() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest", "demo", "--seconds", "6", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="module")
def found(run: subprocess.CompletedProcess[str]) -> Json:
    assert run.returncode == 0, run.stdout + run.stderr
    figures: Json = json.loads(run.stdout.splitlines()[-1])
    return figures


@pytest.mark.slow
def test_every_answer_of_the_demo_agrees_with_onnx_runtime(found: Json) -> None:
    assert found["ok"]
    assert found["problems"] == []
    assert found["agreed"] == found["requests"]
    assert set(found["models"]) == {"digits", "breast_cancer"}
    for model in found["models"].values():
        assert model["requests"] >= MIN_REQUESTS
        assert model["disagreements"] == model["failures"] == 0
        assert model["mean_batch_rows"] >= 1
        assert sum(model["answers"].values()) == model["requests"]
        offline = model["offline_accuracy"].values()
        assert min(offline) - 0.05 < model["accuracy"] < max(offline) + 0.05


@pytest.mark.slow
def test_only_versions_in_force_answer(found: Json) -> None:
    answers = found["traffic"]["answers"]
    assert list(answers) == list(PARTS)
    assert all(sum(counts.values()) > 0 for counts in answers.values())
    assert not any(str(SHADOW) in counts for counts in answers.values())
    assert set(answers["alone"]) == set(answers["shadow"]) == {str(CHAMPION)}
    both = {str(CHAMPION), str(CHALLENGER)}
    assert set(answers["bandit"]) == set(answers["back"]) == both
    promoted = answers["promoted"]
    assert promoted[str(CHALLENGER)] > 0.5 * sum(promoted.values())


@pytest.mark.slow
def test_the_shadow_is_compared_and_the_better_arm_wins(found: Json) -> None:
    traffic = found["traffic"]
    assert traffic["shadow"]["rows"] > 0
    assert 0.7 < traffic["shadow"]["agreed"] < 1
    assert traffic["shadow"]["latency_ms"] > 0
    assert traffic["shadow"]["failed"] == 0
    arms = {arm["version"]: arm for arm in traffic["arms"]}
    assert sum(arm["weight"] for arm in arms.values()) == pytest.approx(1)
    assert FLOOR - 1e-9 <= arms[CHAMPION]["weight"] < arms[CHALLENGER]["weight"]
    assert arms[CHALLENGER]["weight"] > SHARES[CHALLENGER]
    assert traffic["winner"] == CHALLENGER
    assert sum(arm["rewards"] for arm in arms.values()) == traffic["rewards"] > 0
    error = (0.25 / traffic["rewards"]) ** 0.5
    assert traffic["earned"] > traffic["fixed"] - error


@pytest.mark.slow
def test_the_log_alone_tells_what_the_fixed_split_would_have_earned(
    found: Json,
) -> None:
    traffic = found["traffic"]
    if traffic["refused"]:  # few labels, on a machine that is very busy
        assert "100 are needed" in traffic["refused"]
        assert traffic["rewards"] < 2000
        return
    for one in traffic["estimates"].values():
        reach = 5 * one["standard_error"]
        assert one["value"] == pytest.approx(traffic["fixed"], abs=reach)
    assert set(traffic["estimates"]) == {"ips", "snips", "dr"}


@pytest.mark.slow
def test_every_change_is_in_the_audit_log(
    found: Json, run: subprocess.CompletedProcess[str]
) -> None:
    traffic = found["traffic"]
    trail = traffic["trail"]
    actions = [entry["action"] for entry in trail]
    assert actions == ["import"] * 3 + ["set_traffic"] * 3 + ["rollback"]
    assert [entry["to_revision"] for entry in trail] == list(range(1, 8))
    assert traffic["audit"] == {
        "ok": True,
        "entry": None,
        "fault": traffic["audit"]["fault"],
        "entries": len(trail),
        "head": traffic["audit"]["head"],
    }
    assert not traffic["audit"]["fault"]
    for entry in trail:
        assert entry["reason"] in run.stdout
    assert "baton audit verify: 7 entries" in run.stdout
    assert 0 < traffic["promoted_ms"] < 2000
    assert 0 < traffic["back_ms"] < 2000

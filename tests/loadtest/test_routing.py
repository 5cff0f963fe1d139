"""What choosing between arms costs, measured as ``python -m loadtest routing`` does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from loadtest import changes
from loadtest.processes import ROOT
from loadtest.routing import BY_NUMBER, NO_TABLE, VARIANTS

LIMITS_US = {
    "fixed split": 1.0,
    "bandit": 1.0,
    "sticky by metadata": 2.0,
    "sticky by parameter": 2.0,
}
"""What a table may add to a request, on a machine that does nothing else."""
SLACK = 4.0
"""Tests share their cores; what adds a scan or a parse costs more than that."""


def test_changes_are_measured_on_a_whole_gateway() -> None:
    found = dict(changes.measure((changes.CHANGES + 2, 2 * changes.CHANGES + 3)))
    for row in found.values():
        assert row["wall"] > 0
        roles = ("supervisor", "controller", "front", "worker")
        assert row.keys() == {"wall", "idle_percent", *roles}
        assert sum(row[role] for role in roles) > 0


@pytest.mark.slow
def test_choosing_an_arm_costs_about_a_microsecond() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "routing", "--rounds", "15", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == [variant.name for variant in VARIANTS]
    for variant in VARIANTS:
        row = found[variant.name]
        assert row["admit_us"] > 0
        assert ("adds_us" in row) == bool(variant.against)
        assert bool(row["note_us"]) == (variant.traffic is not None)
    for name, limit in LIMITS_US.items():
        assert found[name]["adds_us"] <= SLACK * limit
    many = found[f"{1000} models, fixed split"]
    assert many["adds_us"] <= SLACK * LIMITS_US["fixed split"]
    assert "adds_us" not in found[BY_NUMBER]
    assert "adds_us" not in found[NO_TABLE]

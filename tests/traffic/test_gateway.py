"""Traffic from end to end: a real gateway, its admin socket, and its clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import grpc
import pytest
from scipy.stats import chisquare

from gateway.client_rpc import ClientError
from gateway.errors import Code
from gateway.protocol import admin_pb2 as admin
from tests.adversity.harness import REPEAT, metrics
from tests.gateway_process import wait_for
from tests.traffic.served import MODEL, Served, serving, table
from tests.versions import ask, says


# The twin runs the same handlers (tests/differential): here in the long form only.
@pytest.fixture(scope="module", params=["own", "grpcio"] if REPEAT > 1 else ["own"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    with serving(folder, grpc={"transport": request.param, "fronts": 2}) as found:
        yield found


def _sums(served: Served, name: str) -> Counter[tuple[str, str]]:
    """Return a metric by model and version."""
    sums: Counter[tuple[str, str]] = Counter()
    for labels, value in metrics(served.running).get(name, ()):
        sums[labels["model"], labels.get("version", "")] += int(value)
    return sums


def _as_drawn(found: Counter[float], shares: dict[int, float]) -> None:
    assert set(found) <= set(shares)
    number = found.total()
    seen = [found[version] for version in shares]
    assert chisquare(seen, [share * number for share in shares.values()])[1] > 1e-6


def test_the_first_version_answers_until_another_is_promoted(served: Served) -> None:
    served.set({1: 1.0})
    assert served.drawn(50) == {1: 50}
    response = served.admin.set_alias(served.change("better"), "champion", 2)
    assert (response.applied, response.fronts) == (True, 2)
    assert served.drawn(50) == {2: 50}
    assert served.streamed([ask(MODEL)] * 50) == [2] * 50


def test_draws_and_propensities_are_the_shares(served: Served) -> None:
    shares = {1: 0.6, 2: 0.3, 3: 0.1}
    served.set(shares)
    before = served.shown()["requests"]
    found = served.drawn(1000)
    found.update(served.streamed([ask(MODEL)] * 500))
    _as_drawn(found, shares)
    after = served.shown()["requests"]
    grown = {v: after.get(str(v), 0) - before.get(str(v), 0) for v in shares}
    assert grown == {version: found[version] for version in shares}
    decisions = served.admin.decisions(MODEL, 1000)
    assert len(decisions) == 1000
    for one in decisions:
        assert one["propensity"] == pytest.approx(shares[one["version"]])
        assert one["policy"] == "fixed"
    assert len({one["prediction_id"] for one in decisions}) == 1000


def test_what_is_refused_is_no_request_of_an_arm(served: Served) -> None:
    """No reward will come of it, and none is waited for."""
    served.set({1: 1.0})
    before = served.shown()["requests"]
    wrong = ask(MODEL)
    wrong.inputs[0].shape[:] = [1, 7]
    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            served.running.infer(wrong)
    served.drawn(3)
    after = served.shown()["requests"]
    assert after["1"] - before.get("1", 0) == 3


@pytest.mark.parametrize("kind", ["parameter", "metadata"])
def test_a_unit_keeps_its_arm_while_shares_grow(served: Served, kind: str) -> None:
    """Nobody leaves the arm that grows, and nobody comes back."""
    unit = {"kind": kind, "key": "user"}
    users = [f"user-{number}" for number in range(120)]

    def arms_of() -> list[float]:
        if kind == "parameter":
            return list(served.all_said(ask(MODEL, user=user) for user in users))
        return [served.said(metadata=[("user", user)]) for user in users]

    served.set({1: 1.0})
    arms = []
    for share in (0.2, 0.5, 0.8):
        served.set({1: 1 - share, 2: share}, "sticky", unit=unit, salt=kind)
        arms.append(arms_of())
        assert arms_of() == arms[-1]
    for before, after in pairwise(arms):
        assert all(new == 2 for old, new in zip(before, after, strict=True) if old == 2)
    assert [0 < arm.count(2) < 120 for arm in arms] == [True] * 3
    requests = [ask(MODEL, user=user) for user in users]
    if kind == "parameter":
        assert served.streamed(requests) == arms[-1]
    else:
        metadata = [("user", users[0])]
        assert served.streamed(requests, metadata) == [arms[-1][0]] * 120


def test_rules_come_before_the_split(served: Served) -> None:
    served.set(
        {1: 1.0, 2: 0.0, 3: 0.0},
        unit={"kind": "parameter", "key": "user"},
        rules=[
            {"version": 2, "units": ["ann", "bob"]},
            {"version": 3, "key": "x-region", "value": "eu"},
        ],
    )
    assert served.said(user="ann") == 2
    assert served.said(user="carl") == 1
    eu = [("x-region", "eu")]
    assert served.said(metadata=eu) == 3
    assert served.said(metadata=eu, user="bob") == 2
    assert served.said(metadata=[("x-region", "us")]) == 1
    asked = [ask(MODEL, user="ann"), ask(MODEL, user="carl")]
    assert served.streamed(asked, eu) == [2, 3]


def test_a_client_may_ask_for_a_version_or_an_alias(served: Served) -> None:
    served.set({1: 1.0})
    served.admin.set_alias(served.change(), "candidate", 3)
    assert served.said("candidate") == 3
    assert served.said("champion") == 1
    assert served.said("1") == 1
    assert served.said() == 1
    served.admin.set_alias(served.change(), "candidate", 0)
    with pytest.raises(grpc.RpcError) as caught:
        served.said("candidate")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "champion" in str(caught.value.details())


def test_what_only_shadows_answers_nobody(served: Served) -> None:
    newest = 3
    served.set({1: 1.0}, shadows=[{"version": newest}])
    with pytest.raises(grpc.RpcError) as caught:
        served.said(str(newest))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "only shadows" in str(caught.value.details())
    assert served.said("latest") < newest


def test_who_is_asked_and_shadows_is_counted_apart(served: Served) -> None:
    """The champion before shadows the new one, and clients still ask for it."""
    served.set({1: 1.0})
    served.admin.set_alias(served.change(), "before", 1)
    served.set({2: 1.0}, shadows=[{"version": 1, "max_queue": 1000}])

    def counts() -> Counter[str]:
        sums = served.shown()["shadows"].get("1", {})
        return Counter(sums.get("counts", {}))

    before, asked = counts(), _sums(served, "baton_requests_total")
    assert served.drawn(30) == {2: 30}
    assert {served.said("before") for _ in range(20)} == {1}
    wait_for(lambda: counts()["answered"] - before["answered"] == 30)

    def rose() -> tuple[float, ...]:
        now = _sums(served, "baton_requests_total")
        keys = ((MODEL, "1"), (f"{MODEL}:shadow", "1"))
        return tuple(now[key] - asked[key] for key in keys)

    wait_for(lambda: rose() == (20, 30))
    wait_for(lambda: not any(_sums(served, "baton_inflight_requests").values()))
    served.admin.set_alias(served.change(), "before", 0)


def test_a_bandit_moves_to_what_pays_and_stands_still_when_frozen(
    served: Served,
) -> None:
    policy = {"refresh_s": 0.05, "floor": 0.05, "cap": 0.9}
    served.set({1: 0.5, 2: 0.5}, "thompson", policy=policy)

    def weights() -> dict[int, float]:
        return {arm["version"]: arm["weight"] for arm in served.shown()["arms"]}

    def pay(good: int) -> None:
        items = [
            admin.RewardRequest.Item(
                version=one["version"],
                reward=float(one["version"] == good),
                propensity=one["propensity"],
                time=one["time"],
            )
            for one in served.admin.decisions(MODEL, 200)
        ]
        assert served.admin.reward(MODEL, items).taken == len(items)

    served.drawn(200)
    pay(2)
    # What was rewarded so far was drawn by these very shares: every weight is 1.
    estimate = served.admin.estimate(MODEL, {"1": 0.5, "2": 0.5})
    assert 0 < estimate["ips"]["value"] < 1
    wait_for(lambda: weights()[2] > 0.85)
    assert weights()[2] <= 0.9 + 1e-9
    assert weights()[1] >= 0.05 - 1e-9
    found = wait_for(lambda: (drawn := served.drawn(300))[2] > 220 and drawn)
    assert found[1] > 0, "the floor"
    assert served.admin.decisions(MODEL, 1)[0]["snapshot"] > 0
    served.admin.freeze(served.change(), frozen=True)
    before = weights()
    served.drawn(300)
    pay(1)
    pay(1)
    snapshot = served.shown()["snapshot"]
    assert weights() == before
    assert served.shown()["snapshot"] == snapshot
    served.admin.freeze(served.change(), frozen=False)
    wait_for(lambda: weights()[2] < before[2])


def test_rollback_brings_back_who_answered(served: Served) -> None:
    served.set({1: 1.0})
    served.set({2: 1.0})
    served.set({3: 1.0})
    served.admin.rollback(served.change())
    assert served.drawn(20) == {2: 20}
    served.admin.rollback(served.change())
    assert served.drawn(20) == {1: 20}


def test_what_is_refused_changes_nothing(served: Served) -> None:
    revision = served.set({1: 1.0}).revision
    entries = served.admin.audit(MODEL)
    dry = served.admin.set_traffic(served.change(dry_run=True), table({2: 1.0}))
    assert not dry.applied
    assert any("2" in line for line in dry.diff)
    refused: list[tuple[Code, str, Any, dict[str, Any]]] = [
        (Code.ABORTED, "revision", {"expected_revision": revision - 1}, table({2: 1})),
        (Code.NOT_FOUND, "99", {}, table({99: 1.0})),
        (Code.INVALID_ARGUMENT, "sum", {}, table({1: 0.5, 2: 0.4})),
        (Code.INVALID_ARGUMENT, "arms", {}, {"arms": 3}),
    ]
    for code, word, more, wanted in refused:
        with pytest.raises(ClientError) as caught:
            served.admin.set_traffic(served.change(**more), wanted)
        assert word in str(caught.value)
        assert caught.value.code is code, str(caught.value)
    with pytest.raises(ClientError, match="reason"):
        served.admin.set_traffic(served.change(" "), table({2: 1.0}))
    assert served.admin.audit(MODEL) == entries
    assert served.shown()["table"]["revision"] == revision
    assert served.drawn(20) == {1: 20}


def test_the_audit_log_knows_who_was_at_the_other_end(served: Served) -> None:
    """Whoever they said they were."""
    served.set({1: 1.0})
    change = served.change(actor="the queen")
    served.admin.set_traffic(change, table({2: 1.0}))
    (entry,) = served.admin.audit(MODEL, limit=1)
    assert entry["actor"] == "the queen"
    assert entry["evidence"]["peer"].split(" (")[0] == f"uid {os.getuid()}"
    change = served.change()
    change.actor = ""
    served.admin.set_traffic(change, table({1: 1.0}))
    (entry,) = served.admin.audit(MODEL, limit=1)
    assert entry["actor"] == entry["evidence"]["peer"]


def test_an_operation_that_is_repeated_is_done_once(served: Served) -> None:
    served.set({1: 1.0})
    change = served.change(operation_id="promote-2")
    if served.running.config["grpc"]["transport"] == "grpcio":
        change.operation_id = "promote-2-again"
    first = served.admin.set_traffic(change, table({2: 1.0}))
    again = served.admin.set_traffic(change, table({2: 1.0}))
    assert (first.revision, first.audit_seq) == (again.revision, again.audit_seq)
    later = served.set({3: 1.0})
    stale = served.admin.set_traffic(change, table({2: 1.0}))
    assert stale.revision == first.revision
    assert served.shown()["table"]["revision"] == later.revision
    assert served.drawn(20) == {3: 20}
    with pytest.raises(ClientError, match="promote-2"):
        served.admin.set_traffic(change, table({1: 1.0}))


def test_who_imported_a_version_cannot_approve_it(served: Served) -> None:
    served.set({1: 1.0})
    try:
        served.admin.require_approval(served.change(actor="ann"), required=False)
        imported = served.take_in("9", says(9), actor="ann")
        version = imported.versions[0]
        for approved in (1, 2, 3):
            served.admin.approve(served.change(actor="carl"), approved)
        served.admin.require_approval(served.change(actor="ann"), required=True)
        with pytest.raises(ClientError, match="approv"):
            served.set({1: 0.9, version: 0.1})
        with pytest.raises(ClientError, match="somebody else"):
            served.admin.approve(served.change(actor="ann"), version)
        assert served.drawn(20) == {1: 20}
        served.admin.approve(served.change(actor="bob"), version)
        served.set({version: 1.0})
        assert served.drawn(20) == {9: 20}
    finally:
        served.admin.require_approval(served.change(actor="ann"), required=False)


def test_the_command_line_shows_and_verifies_the_audit_log(served: Served) -> None:
    served.set({1: 1.0})

    def run(*arguments: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments, "--json"],
            capture_output=True,
            env={**os.environ, "BATON_ADMIN_ADDRESS": served.address},
            timeout=60,
            check=False,
        )

    def baton(*arguments: str) -> Any:
        done = run(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    shown = baton("audit", "show", MODEL)
    assert shown[0]["action"] == "set_traffic"
    assert shown[0]["reason"] == "test"
    verify = ("audit", "verify", "--state-dir", str(served.state))
    verdict = baton(*verify)
    assert verdict["ok"]
    assert verdict["entries"] >= len(shown)
    changed = baton("traffic", "split", MODEL, "1=25%", "2=75%", "--reason", "ramp")
    assert changed["model"] == MODEL
    noted = changed["audit"]["hash"]
    assert baton(*verify, "--expect", noted[:12])["ok"]
    assert run(*verify, "--expect", noted[:11]).returncode == 2
    assert run(*verify, "--expect", "0" * 12).returncode == 1
    assert run("audit", "verify", "--state-dir", "/nowhere").returncode == 3
    _as_drawn(served.drawn(400), {1: 0.25, 2: 0.75})
    baton("traffic", "rollback", MODEL, "--reason", "no")
    assert served.drawn(20) == {1: 20}


def test_the_data_port_has_no_admin_service(served: Served) -> None:
    rpc = served.running.channel.unary_unary("/baton.v1.Admin/Show")
    with pytest.raises(grpc.RpcError) as caught:
        rpc(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

"""The registry: what each change does, and what no change can do."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gateway.errors import (
    ChangeRefused,
    GatewayError,
    InvalidRequest,
    RegistryUnavailable,
    RevisionConflict,
    UnknownModel,
)
from gateway.registry.decisions import misfit, wanted
from gateway.registry.differences import differences
from gateway.registry.records import Change, Signature, Tensor
from gateway.registry.registry import Registry
from gateway.registry.view import wanted_with
from gateway.traffic.table import (
    Arm,
    Guardrail,
    ModelTraffic,
    Policy,
    PolicyKind,
    Role,
    Rule,
    Shadow,
    Source,
    Span,
)

from .registries import by, candidate, only, opened, split


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with opened(tmp_path / "registry.sqlite") as made:
        yield made
        assert made.verify().sound


@pytest.fixture
def three(registry: Registry) -> Registry:
    """Model ``m`` with versions 1 to 3, of which 3 is the champion."""
    registry.import_versions("m", [candidate(x) for x in "abc"], by())
    return registry


def test_the_first_import_makes_its_highest_version_champion(three: Registry) -> None:
    model = three.model("m")
    assert (model.revision, [*model.versions]) == (1, [1, 2, 3])
    assert model.traffic.arms == only(3)
    assert model.traffic.aliases == {"latest": 3, "champion": 3}
    assert model.traffic.revision == 1
    version = model.versions[2]
    assert (version.created_by, version.approved_by) == ("ada", "")
    assert version.created == "2026-09-21T14:13:20.123Z"
    assert three.names() == ("m",)


def test_a_later_import_moves_no_traffic(three: Registry) -> None:
    changed = three.import_versions("m", [candidate("d")], by())
    assert (changed.versions, changed.revision, changed.seq) == ((4,), 2, 2)
    traffic = three.traffic("m")
    assert traffic.arms == only(3)
    assert traffic.aliases == {"latest": 4, "champion": 3}


def test_numbered_imports_keep_their_numbers(registry: Registry) -> None:
    both = [candidate("a", version=3), candidate("b", version=7)]
    assert registry.import_versions("m", both, by()).versions == (3, 7)
    more = [*both, candidate("c", version=8)]
    assert registry.import_versions("m", more, by()).versions == (3, 7, 8)
    with pytest.raises(ChangeRefused, match="version 7 has other bytes"):
        registry.import_versions("m", [candidate("x", version=7)], by())
    with pytest.raises(ChangeRefused, match="numbers ascend"):
        registry.import_versions("m", [candidate("x", version=5)], by())
    with pytest.raises(InvalidRequest, match="must lie in"):
        registry.import_versions("m", [candidate("x", version=10**18)], by())
    assert registry.import_versions("m", [candidate("x")], by()).versions == (9,)


def test_what_is_not_there_is_named(three: Registry) -> None:
    for call in (
        lambda: three.model("n"),
        lambda: three.traffic("n"),
        lambda: three.traffic("m", 9),
        lambda: three.set_alias("n", "a", 1, by()),
        lambda: three.set_alias("m", "a", 9, by()),
        lambda: three.remove_alias("m", "a", by()),
        lambda: three.approve("m", 9, by()),
        lambda: three.set_metadata("m", 9, {}, by()),
        lambda: three.set_traffic("m", ModelTraffic(arms=only(9)), by()),
        lambda: three.rollback("m", by(), to_revision=9),
    ):
        with pytest.raises(UnknownModel):
            call()
    assert three.model("m").revision == 1


def test_metadata_changes_field_by_field(three: Registry) -> None:
    three.set_metadata("m", 2, {"owner": "eve", "metrics": {"auc": 0.9}}, by())
    changed = three.set_metadata(
        "m", 2, {"stage": "staging", "lineage": {"code_commit": "abc"}}, by()
    )
    metadata = three.model("m").versions[2].metadata
    assert (metadata.owner, metadata.stage, metadata.metrics) == (
        "eve",
        "staging",
        {"auc": 0.9},
    )
    assert metadata.lineage.code_commit == "abc"
    assert changed.change[0] == "version 2 stage: '' -> 'staging'"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"color": 1}, "color is no field; there are description"),
        ({"metrics": {"auc": float("nan")}}, "JSON"),
        ({"metrics": {"auc": "high"}}, "metrics.auc"),
        ({"lineage": {"branch": "x"}}, "lineage.branch"),
        ({"owner": "x" * 5000}, "owner"),
        ({"feature_schema": {"x": "y" * 2_000_000}}, "at most 1048576"),
        ({"feature_schema": {"x": "\ud800"}}, "JSON"),
    ],
)
def test_metadata_that_is_wrong_is_refused_by_field(
    three: Registry, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        three.set_metadata("m", 2, fields, by())
    assert three.model("m").revision == 1


def test_aliases_are_set_moved_and_removed(three: Registry) -> None:
    three.set_alias("m", "blue", 1, by())
    three.set_alias("m", "blue", 2, by())
    three.set_alias("m", "challenger", 2, by())
    assert three.traffic("m").aliases["blue"] == 2
    three.remove_alias("m", "blue", by())
    aliases = {"latest": 3, "champion": 3, "challenger": 2}
    assert three.traffic("m").aliases == aliases
    for alias in ("", "1", "a b", "a/b", "x" * 65, "ä"):
        with pytest.raises(InvalidRequest, match="alias"):
            three.set_alias("m", alias, 1, by())
    with pytest.raises(ChangeRefused, match="latest"):
        three.set_alias("m", "latest", 1, by())
    with pytest.raises(ChangeRefused, match="champion"):
        three.remove_alias("m", "champion", by())


def test_aliases_are_bounded(three: Registry) -> None:
    for number in range(62):
        three.set_alias("m", f"a{number}", 1, by())
    with pytest.raises(InvalidRequest, match="at most 64"):
        three.set_alias("m", "one_more", 1, by())


def test_the_champion_alias_rolls_traffic_forward_and_back(three: Registry) -> None:
    three.set_alias("m", "champion", 1, by())
    assert three.traffic("m").arms == only(1)
    three.set_alias("m", "champion", 2, by())
    assert three.traffic("m").aliases["champion"] == 2
    three.set_traffic("m", split(0.5, 0.5), by())
    with pytest.raises(ChangeRefused, match="as a whole"):
        three.set_alias("m", "champion", 2, by())


def test_a_champion_of_a_sticky_table_owns_every_bucket(three: Registry) -> None:
    sticky = Policy(PolicyKind.STICKY)
    unit = Source("metadata", "user")
    table = split(0.7, 0.3, policy=sticky, unit=unit)
    three.set_traffic("m", table, by())
    three.set_traffic("m", replace(table, arms=only(1)), by())
    three.set_alias("m", "champion", 2, by())
    assert three.traffic("m").buckets == (Span(2, 10_000),)
    assert three.rollback("m", by()).seq
    assert three.traffic("m").buckets == (Span(1, 10_000),)


def test_owners_of_buckets_are_made_from_those_in_force(three: Registry) -> None:
    """And are no part of what was asked: a repetition is one, whatever came after."""
    sticky = {"policy": Policy(PolicyKind.STICKY), "unit": Source("metadata", "user")}
    wrong = (Span(1, 10_000),)
    change = by(operation_id="op", expected_revision=1)
    asked = split(0.7, 0.3, buckets=wrong, **sticky)
    first = three.set_traffic("m", asked, change)
    assert three.traffic("m").buckets == (Span(1, 7000), Span(2, 3000))
    three.set_traffic("m", split(0.5, 0.5, **sticky), by())
    assert three.set_traffic("m", asked, change) == first
    assert three.set_traffic("m", replace(asked, buckets=()), change) == first


def test_the_first_champion_is_one_that_the_source_serves(registry: Registry) -> None:
    both = [candidate("a", version=1), candidate("b", version=4, waits=True)]
    registry.import_versions("m", both, by())
    traffic = registry.traffic("m")
    assert (traffic.arms, traffic.aliases["latest"]) == (only(1), 4)
    registry.import_versions("n", [candidate("c", waits=True)], by())
    assert registry.traffic("n").arms == only(1)


def test_what_is_so_already_is_no_change(three: Registry) -> None:
    three.approve("m", 1, by("bob"))
    three.set_alias("m", "blue", 1, by())
    three.set_traffic("m", split(0.5, 0.5), by())
    before = three.model("m")
    for done in (
        three.approve("m", 1, by("bob")),
        three.set_alias("m", "blue", 1, by()),
        three.set_traffic("m", split(0.5, 0.5), by()),
        three.freeze("m", False, by()),
        three.require_approval("m", False, by()),
        three.import_versions("m", [candidate("a", version=1)], by()),
        three.freeze("m", False, by(dry_run=True)),
    ):
        assert (done.revision, done.applied) == (before.revision, False)
        assert (done.change, done.refusal) == ((), "")
    assert three.model("m") == before
    assert three.verify().sound


def test_what_was_so_when_it_was_asked_for_is_not_done_later(three: Registry) -> None:
    change = by(operation_id="op")
    first = three.set_alias("m", "champion", 3, change)
    assert not first.applied
    three.set_alias("m", "champion", 2, by())
    assert three.set_alias("m", "champion", 3, change) == first
    assert three.traffic("m").arms == only(2)


def test_a_change_that_was_prepared_is_refused_after_a_rollback(
    three: Registry,
) -> None:
    """Not after other changes: then the last one wins, as without preparation."""
    three.set_traffic("m", split(0.5, 0.5), by())
    model = three.model("m")
    seen = model.revision, model.effective
    three.set_alias("m", "blue", 1, by())
    three.set_traffic("m", split(0.6, 0.4), by())
    three.set_traffic("m", split(0.7, 0.3), by(seen=seen))
    with pytest.raises(RevisionConflict, match="decided on"):
        three.rollback("m", by(seen=seen))
    model = three.model("m")
    seen = model.revision, model.effective
    first = three.rollback("m", by(seen=seen, operation_id="op"))
    assert first.applied
    with pytest.raises(RevisionConflict, match="rolled back"):
        three.set_traffic("m", split(0.8, 0.2), by(seen=seen))
    with pytest.raises(RevisionConflict, match="rolled back"):
        three.rollback("m", by(seen=seen))
    assert three.rollback("m", by(operation_id="op")) == first
    assert three.set_traffic("m", split(0.8, 0.2), by()).applied


def test_a_promoted_shadow_shadows_no_more(three: Registry) -> None:
    three.set_traffic(
        "m", ModelTraffic(arms=only(1), shadows=(Shadow(2), Shadow(3))), by()
    )
    three.set_alias("m", "champion", 2, by())
    assert three.traffic("m").shadows == (Shadow(3),)


def test_setting_traffic_keeps_aliases_and_counts_the_revision(three: Registry) -> None:
    three.set_alias("m", "blue", 1, by())
    given = split(0.9, 0.1, frozen=True, aliases={"x": 1}, revision=77)
    changed = three.set_traffic("m", given, by())
    traffic = three.traffic("m")
    assert traffic == replace(
        given, revision=3, aliases={"blue": 1, "champion": 1, "latest": 3}
    )
    assert changed.change == (
        "- arm 3: champion, share 1.0",
        "frozen: no -> yes",
        "alias champion: 3 -> 1",
        "+ arm 1: champion, share 0.9",
        "+ arm 2: challenger, share 0.1",
    )
    assert three.traffic("m", 1).arms == only(3)


def test_traffic_that_cannot_be_served_is_refused(three: Registry) -> None:
    for traffic, kind in (
        (split(0.5, 0.4), InvalidRequest),
        (ModelTraffic(), InvalidRequest),
        (ModelTraffic(shadows=(Shadow(1),)), InvalidRequest),
        (ModelTraffic(arms=only(1), shadows=(Shadow(9),)), UnknownModel),
    ):
        with pytest.raises(kind):
            three.set_traffic("m", traffic, by())
    assert three.model("m").revision == 1


TENSOR = Tensor("x", "FP32", (-1, 4))
OUTPUT = Tensor("y", "FP32", (-1, 2))


@pytest.mark.parametrize(
    ("inputs", "outputs", "as_arm", "as_shadow"),
    [
        ([TENSOR], [OUTPUT], True, True),
        ([replace(TENSOR, shape=(-1, -1))], [OUTPUT], True, True),
        ([replace(TENSOR, shape=None)], [OUTPUT], True, True),
        ([TENSOR], [OUTPUT, Tensor("z", "INT64", ())], True, True),
        ([TENSOR], [replace(OUTPUT, shape=(-1, -1))], True, True),
        ([TENSOR], [replace(OUTPUT, shape=(-1, 3))], False, True),
        ([TENSOR], [replace(OUTPUT, datatype="FP64")], False, True),
        ([TENSOR], [replace(OUTPUT, name="z")], False, True),
        ([replace(TENSOR, shape=(1, 4))], [OUTPUT], False, False),
        ([replace(TENSOR, shape=(-1, 4, 1))], [OUTPUT], False, False),
        ([replace(TENSOR, datatype="FP64")], [OUTPUT], False, False),
        ([replace(TENSOR, name="X")], [OUTPUT], False, False),
        ([TENSOR, replace(TENSOR, name="w")], [OUTPUT], False, False),
        ([], [OUTPUT], False, False),
    ],
)
def test_arms_and_shadows_must_fit_the_champions_clients(
    three: Registry,
    inputs: list[Tensor],
    outputs: list[Tensor],
    as_arm: bool,
    as_shadow: bool,
) -> None:
    signature = Signature(tuple(inputs), tuple(outputs))
    three.import_versions("m", [replace(candidate("d"), signature=signature)], by())
    arms = (Arm(3, Role.CHAMPION, 0.5), Arm(4, Role.CHALLENGER, 0.5))
    arm = ModelTraffic(arms=arms)
    shadow = ModelTraffic(arms=only(3), shadows=(Shadow(4),))
    for traffic, fits in ((arm, as_arm), (shadow, as_shadow)):
        told = three.set_traffic("m", traffic, by(dry_run=True)).refusal
        assert ("cannot stand in for champion 3" in told) is not fits
        assert bool(told) is not fits


def test_approval_is_needed_before_any_share(registry: Registry) -> None:
    both = [candidate("a"), candidate("b")]
    registry.import_versions("m", both, by(), require_approval=True)
    model = registry.model("m")
    assert model.traffic.arms == ()
    assert wanted(model) == (set(), set())
    with pytest.raises(ChangeRefused, match="version 1 is not approved"):
        registry.set_alias("m", "champion", 1, by())
    with pytest.raises(ChangeRefused, match="somebody else"):
        registry.approve("m", 1, by("ada"))
    registry.approve("m", 1, by("bob"))
    assert registry.model("m").traffic.arms == only(1)
    rules = (Rule(2, key="group", value="beta"),)
    thompson = Policy(PolicyKind.THOMPSON)
    for traffic in (split(0.9, 0.1), split(1.0, 0.0)):
        with pytest.raises(ChangeRefused, match="version 2 is not approved"):
            registry.set_traffic("m", traffic, by())
    with pytest.raises(ChangeRefused, match="version 2 is not approved"):
        registry.set_alias("m", "best", 2, by())
    assert wanted_with(registry.model("m"), [2], []) == ({1}, set())
    shadowed = ModelTraffic(arms=only(1), shadows=(Shadow(2),))
    registry.set_traffic("m", shadowed, by())
    assert wanted(registry.model("m")) == ({1}, {2})
    # Whatever else asks for it, it shadows, and answers nobody.
    assert wanted_with(registry.model("m"), [1, 2], [2]) == ({1}, {2})
    registry.approve("m", 2, by("bob"))
    assert registry.model("m").traffic.arms == only(1)
    registry.set_traffic("m", split(0.9, 0.1, policy=thompson, rules=rules), by())
    registry.require_approval("m", False, by())
    registry.import_versions("m", [candidate("c")], by())
    assert wanted(registry.model("m")) == ({1, 2, 3}, set())


def test_a_model_that_is_opened_begins_as_others_do(registry: Registry) -> None:
    both = [candidate("a"), candidate("b")]
    registry.import_versions("m", both, by(), require_approval=True)
    registry.import_versions("m", [candidate("c")], by())
    assert registry.model("m").traffic.arms == ()
    registry.require_approval("m", False, by())
    registry.import_versions("m", [candidate("d")], by())
    assert registry.model("m").traffic.arms == only(3)


def test_approval_cannot_be_required_over_unapproved_arms(three: Registry) -> None:
    with pytest.raises(ChangeRefused, match="version 3 is not approved"):
        three.require_approval("m", True, by())
    three.approve("m", 3, by("bob"))
    three.set_alias("m", "blue", 1, by())
    with pytest.raises(ChangeRefused, match="version 1 is not approved"):
        three.require_approval("m", True, by())
    three.remove_alias("m", "blue", by())
    assert three.require_approval("m", True, by()).change == ("require approval: yes",)
    assert three.model("m").require_approval
    assert wanted(three.model("m")) == ({3}, set())


def test_who_answered_is_what_a_rollback_is_about(three: Registry) -> None:
    """A shadow that was added since is no decision of that kind."""
    three.set_traffic("m", ModelTraffic(arms=only(1)), by())
    canary = split(0.5, 0.5)
    three.set_traffic("m", canary, by())
    three.set_traffic("m", replace(canary, shadows=(Shadow(3),)), by())
    limits = (Guardrail("error_rate", 0.1),)
    three.set_traffic(
        "m", replace(canary, shadows=(Shadow(3, 0.5),), guardrails=limits), by()
    )
    three.rollback("m", by())
    assert three.traffic("m").arms == only(1)
    three.rollback("m", by())
    assert three.traffic("m").arms == only(3)


def test_a_champion_that_clients_cannot_ask_alike_is_said_so(three: Registry) -> None:
    """And is not refused: somebody may want just that."""
    other = replace(candidate("d"), signature=Signature((OUTPUT,), (OUTPUT,)))
    three.import_versions("m", [other], by())
    model = three.model("m")
    told = misfit(model, ModelTraffic(arms=only(4)))
    assert "version 4 cannot stand in for champion 3" in told
    assert "requests as they are now will be refused" in told
    assert misfit(model, ModelTraffic(arms=only(1))) == ""
    assert misfit(model, ModelTraffic()) == ""
    assert three.set_alias("m", "champion", 4, by()).applied


def test_a_freeze_stays_over_a_rollback(three: Registry) -> None:
    three.set_alias("m", "champion", 1, by())
    assert three.freeze("m", True, by()).change == ("frozen: no -> yes",)
    three.rollback("m", by())
    traffic = three.traffic("m")
    assert (traffic.frozen, traffic.arms) == (True, only(3))
    three.freeze("m", False, by())
    assert not three.traffic("m").frozen


def test_rolling_back_again_goes_back_further(three: Registry) -> None:
    three.set_alias("m", "champion", 1, by())  # revision 2
    three.set_alias("m", "blue", 2, by())
    three.set_alias("m", "champion", 2, by())  # revision 4
    three.set_metadata("m", 2, {"owner": "eve"}, by())
    three.rollback("m", by())
    assert three.traffic("m").arms == only(1)
    assert three.model("m").effective == 2
    three.set_metadata("m", 2, {"owner": "bob"}, by())
    three.rollback("m", by())
    traffic = three.traffic("m")
    assert (traffic.arms, traffic.aliases["champion"]) == (only(3), 3)
    assert traffic.aliases["blue"] == 2
    with pytest.raises(ChangeRefused, match="no earlier decision"):
        three.rollback("m", by())
    three.set_alias("m", "champion", 2, by())
    three.rollback("m", by())
    assert three.traffic("m").arms == only(3)
    three.rollback("m", by(), to_revision=4)
    assert three.traffic("m").arms == only(2)
    assert three.traffic("m").revision == three.model("m").revision == 11


def test_promotions_and_rollbacks_alternate(three: Registry) -> None:
    for _ in range(50):
        three.set_alias("m", "champion", 1, by())
        three.rollback("m", by())
        assert three.traffic("m").arms == only(3)


def test_rolling_back_to_what_is_not_approved_is_refused(three: Registry) -> None:
    three.set_alias("m", "champion", 1, by())
    three.approve("m", 1, by("bob"))
    three.require_approval("m", True, by())
    with pytest.raises(ChangeRefused, match="version 3 is not approved"):
        three.rollback("m", by())


def test_a_change_is_bound_to_the_revision_it_was_meant_for(three: Registry) -> None:
    three.set_alias("m", "a", 1, by(expected_revision=1))
    with pytest.raises(RevisionConflict, match="at revision 2, not 1"):
        three.set_alias("m", "a", 2, by(expected_revision=1))
    assert three.traffic("m").aliases["a"] == 1
    new = by(expected_revision=0)
    assert three.import_versions("n", [candidate()], new).revision == 1
    with pytest.raises(RevisionConflict):
        three.import_versions("n", [candidate()], new)


def test_repeating_an_operation_changes_nothing_more(three: Registry) -> None:
    change = by(operation_id="op", expected_revision=1)
    first = three.set_alias("m", "a", 1, change)
    three.set_alias("m", "a", 2, by())
    assert three.set_alias("m", "a", 1, change) == first
    assert three.traffic("m").aliases["a"] == 2
    for other in (
        lambda: three.set_alias("m", "a", 3, change),
        lambda: three.set_alias("m", "b", 1, change),
        lambda: three.approve("m", 1, change),
        lambda: three.set_alias("m", "a", 1, replace(change, actor="eve")),
        lambda: three.set_alias("m", "a", 1, replace(change, reason="other")),
        lambda: three.set_alias("m", "a", 1, replace(change, expected_revision=None)),
        lambda: three.set_alias("m", "a", 1, replace(change, evidence={"a": 1})),
    ):
        with pytest.raises(InvalidRequest, match="other arguments"):
            other()
    assert three.model("m").revision == 3


def test_an_operation_that_failed_may_be_tried_again(three: Registry) -> None:
    with pytest.raises(UnknownModel):
        three.set_alias("m", "a", 4, by(operation_id="op"))
    three.import_versions("m", [candidate("d")], by())
    assert three.set_alias("m", "a", 4, by(operation_id="op")).revision == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (by(actor=" "), "actor"),
        (by(reason=""), "reason"),
        (by(reason="x" * 4097), "reason"),
        (by(operation_id="x" * 4097), "operation_id"),
        (by(evidence={"x": float("nan")}), "JSON"),
        (by(evidence={"x": "\ud800"}), "JSON"),
        (by(reason="\ud800"), "JSON"),
        (by(evidence={1: 1, "1": 2}), "JSON"),
        (by(evidence={"x": b"1"}), "JSON"),
        (by(evidence={"x": "y" * (1 << 20)}), "JSON"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    three: Registry, change: Change, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        three.set_alias("m", "a", 1, change)
    assert three.model("m").revision == 1


def test_a_dry_run_says_what_would_happen_and_changes_nothing(three: Registry) -> None:
    told = three.set_alias("m", "champion", 1, by(dry_run=True))
    assert (told.revision, told.seq, told.hash, told.refusal) == (2, 0, "", "")
    assert told.change == (
        "- arm 3: champion, share 1.0",
        "alias champion: 3 -> 1",
        "+ arm 1: champion, share 1.0",
    )
    told = three.set_alias("m", "a", 9, by(dry_run=True))
    assert "no version 9" in told.refusal
    assert (told.revision, told.change) == (1, ())
    told = three.set_alias("m", "a", 1, by(dry_run=True, expected_revision=7))
    assert "not 7" in told.refusal
    assert three.model("m").revision == 1
    assert len(three.history()) == 1


def test_the_history_says_who_did_what_and_why(three: Registry) -> None:
    three.import_versions("n", [candidate()], by())
    change = by("bob", "it is better", evidence={"auc": [0.91, 0.9]})
    changed = three.set_alias("m", "champion", 1, change)
    newest, *_ = history = three.history()
    assert [entry.seq for entry in history] == [3, 2, 1]
    assert (newest.actor, newest.action, newest.reason) == (
        "bob",
        "set_alias",
        "it is better",
    )
    assert (newest.from_revision, newest.to_revision) == (1, 2)
    assert newest.evidence["given"] == {"auc": [0.91, 0.9]}
    assert (newest.hash, newest.seq) == (changed.hash, changed.seq)
    assert tuple(newest.evidence["change"]) == changed.change  # type: ignore[arg-type]
    assert [entry.seq for entry in three.history("m")] == [3, 1]
    assert [entry.seq for entry in three.history("m", before=3)] == [1]
    assert [entry.seq for entry in three.history(limit=1)] == [3]


def test_everything_in_a_table_is_in_the_difference(three: Registry) -> None:
    """No field may change unseen in a dry run."""
    base = split(
        0.5,
        0.5,
        unit=Source("metadata", "user"),
        segments=(Source("parameter", "region"),),
        rules=(Rule(1, frozenset({"a"}), "k", "v"),),
        shadows=(Shadow(3),),
        guardrails=(Guardrail("error_rate", 0.1),),
        aliases={"a": 1},
    )
    changes: list[Callable[[ModelTraffic], ModelTraffic]] = [
        lambda t: replace(t, arms=t.arms[::-1][:1]),
        lambda t: replace(t, arms=split(0.500000001, 0.499999999).arms),
        lambda t: replace(t, salt="s"),
        lambda t: replace(t, unit=None),
        lambda t: replace(t, segments=()),
        lambda t: replace(t, rules=()),
        lambda t: replace(t, rules=(Rule(2, frozenset({"a"}), "k", "v"),)),
        lambda t: replace(t, rules=(Rule(1, frozenset({"b"}), "k", "v"),)),
        lambda t: replace(t, rules=(Rule(1, frozenset({"a"}), "l", "v"),)),
        lambda t: replace(t, rules=(Rule(1, frozenset({"a"}), "k", "w"),)),
        lambda t: replace(t, shadows=(Shadow(3, 0.5),)),
        lambda t: replace(t, shadows=(Shadow(3, max_queue=1),)),
        lambda t: replace(t, guardrails=(Guardrail("error_rate", 0.2),)),
        lambda t: replace(t, frozen=True),
        lambda t: replace(t, aliases={"a": 2}),
        lambda t: replace(t, aliases={}),
    ]
    others = {"kind": PolicyKind.STICKY, "posterior": "gaussian", "contextual": True}
    for name in (field.name for field in fields(Policy)):
        other = others.get(name, 0.55)
        changes.append(
            lambda t, n=name, o=other: replace(t, policy=replace(t.policy, **{n: o}))
        )
    assert differences(base, replace(base, revision=9)) == ()
    for change in changes:
        assert len(differences(base, change(base))) >= 1
    many = frozenset(f"user {n}" for n in range(100))
    one, two = (
        replace(base, rules=(Rule(1, units),)) for units in (many, many - {"user 99"})
    )
    (line,) = differences(one, two)
    assert len(line) < 300


def test_models_do_not_disturb_each_other(three: Registry) -> None:
    three.import_versions("n", [candidate("z")], by())
    before = three.model("m")
    three.set_alias("n", "blue", 1, by())
    assert three.model("m") == before
    assert three.names() == ("m", "n")


@pytest.mark.parametrize(
    "name", ["", ".hidden", "a/b", "a\\b", "a\n", "x" * 256, "a:shadow"]
)
def test_impossible_model_names_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidRequest, match="model name"):
        registry.import_versions(name, [candidate()], by())


def test_nothing_is_not_imported(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        registry.import_versions("m", [], by())
    assert registry.names() == ()


def test_it_is_all_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    with opened(path) as registry:
        registry.import_versions("m", [candidate("a"), candidate("b")], by())
        rule = Rule(2, frozenset({"u1", "u2"}), "k", "v")
        traffic = split(0.5, 0.5, unit=Source("metadata", "user"), rules=(rule,))
        registry.set_traffic("m", traffic, by())
        model = registry.model("m")
    with opened(path) as registry:
        assert registry.model("m") == model
        assert registry.model("m").traffic.rules == (rule,)


def test_a_newer_registry_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    with opened(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(RegistryUnavailable, match="newer Baton"):
        Registry(path)


def test_what_is_no_registry_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(RegistryUnavailable, match="not a registry"):
        Registry(path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(RegistryUnavailable):
        Registry(path)
    with pytest.raises(RegistryUnavailable):
        Registry(tmp_path / "absent" / "registry.sqlite")


def test_a_closed_or_read_only_registry_refuses_changes(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    with pytest.raises(RegistryUnavailable):
        Registry(path, read_only=True)
    with opened(path) as registry:
        registry.import_versions("m", [candidate()], by())
        reader = Registry(path, read_only=True)
        registry.set_alias("m", "a", 1, by())
        assert reader.traffic("m").aliases["a"] == 1
        with pytest.raises(RegistryUnavailable, match="readonly"):
            reader.set_alias("m", "b", 1, by())
        reader.close()
    with pytest.raises(RegistryUnavailable, match="closed"):
        registry.set_alias("m", "b", 1, by())


def test_threads_take_turns(three: Registry) -> None:
    failures: list[GatewayError] = []

    def work(name: str) -> None:
        for number in range(20):
            try:
                three.set_alias("m", f"{name}{number}", 1, by())
            except GatewayError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert three.model("m").revision == 61

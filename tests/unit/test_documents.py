"""What is wrong with a document: the place, and what is to be there."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from gateway.documents import first_fault
from gateway.errors import InvalidRequest
from gateway.registry.records import metadata_from
from gateway.traffic.table import ModelTraffic

ARM = {"version": 1, "role": "champion", "share": 1}


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"arms": 3}, "arms must be a list"),
        ({"arms": [3]}, "arms.0 must be an object"),
        ({"arms": [{**ARM, "share": "much"}]}, "arms.0.share must be a number"),
        ({"arms": [{**ARM, "version": 1.5}]}, "arms.0.version must be a whole number"),
        ({"arms": [{**ARM, "version": "a"}]}, "arms.0.version must be a whole number"),
        ({"arms": [{"version": 1, "role": "champion"}]}, "arms.0.share is missing"),
        (
            {"arms": [{**ARM, "role": "boss"}]},
            "arms.0.role must be 'champion', 'challenger' or 'shadow'",
        ),
        (
            {"arms": [{**ARM, "weight": 1}]},
            "arms.0.weight is no field; there are version, role, share",
        ),
        ({"policy": 3}, "policy must be an object"),
        (
            {"policy": {"kind": "best"}},
            "policy.kind must be 'fixed', 'sticky', 'epsilon_greedy' or 'thompson'",
        ),
        (
            {"policy": {"min_rewards": math.nan}},
            "policy.min_rewards must be a finite number",
        ),
        (
            {"unit": {"kind": "metadata", "name": "x"}},
            "unit.name is no field; there are kind, key",
        ),
        ({"rules": [{"version": 1, "units": 3}]}, "rules.0.units must be a list"),
        ({"rules": [{"version": 1, "units": [3]}]}, "rules.0.units.0 must be text"),
        ({"aliases": {"a": "b"}}, "aliases.a must be a whole number"),
        ({"aliases": 3}, "aliases must be an object"),
        ({"frozen": "maybe"}, "frozen must be true or false"),
        ({1: 2}, "1: a name must be text"),
        (3, "it must be an object"),
    ],
)
def test_the_first_fault_of_a_table_is_in_its_own_words(
    document: Any, fault: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(ModelTraffic).validate_python(document)
    assert first_fault(caught.value, ModelTraffic) == fault


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (
            {"ownr": "ann"},
            "metadata: ownr is no field; there are description, owner, stage, metrics, "
            "feature_schema, training_profile, lineage",
        ),
        (
            {"lineage": {"commit": "1"}},
            "metadata: lineage.commit is no field; there are source, code_commit, "
            "data_digest, run_id, parameters",
        ),
        ({"lineage": {"parameters": {"a": 1}}}, "lineage.parameters.a must be text"),
        ({"metrics": {"auc": math.inf}}, "metrics.auc must be a finite number"),
        ({"metrics": {1: 1}}, "metrics.1.[key]: a name must be text"),
        ({"owner": "x" * 5000}, "metadata: owner has more than 4096 characters"),
        ({"x" * 5000: 1}, f"metadata: {'x' * 200} is no field"),
        ([], "metadata: it must be an object"),
    ],
)
def test_metadata_that_cannot_be_names_what_there_is(document: Any, fault: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        metadata_from(document)
    assert fault in caught.value.message

"""Units stay with their arm, for ever and whatever is ramped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from gateway.errors import InvalidRequest
from gateway.traffic.buckets import assign, bucket_of, bucket_table, settle
from gateway.traffic.table import (
    BUCKETS,
    MODEL_TRAFFIC,
    Arm,
    ModelTraffic,
    Policy,
    PolicyKind,
    Role,
    Source,
    Span,
)

GOLDEN = json.loads(
    (Path(__file__).parent / "buckets.json").read_text(encoding="utf-8")
)
STICKY = ModelTraffic(
    policy=Policy(kind=PolicyKind.STICKY), salt="s", unit=Source("metadata", "user")
)


def sticky(*shares: float) -> ModelTraffic:
    """A split between versions 1, 2, ..., of which the first is the champion."""
    roles = [Role.CHAMPION] + [Role.CHALLENGER] * (len(shares) - 1)
    arms = map(Arm, range(1, len(shares) + 1), roles, shares)
    return replace(STICKY, arms=tuple(arms))


def owners(spans: tuple[Span, ...]) -> list[int]:
    return [span.version for span in spans for _ in range(span.buckets)]


@st.composite
def whole_shares(draw: st.DrawFn) -> dict[int, float]:
    """Shares of some of six versions, in whole buckets."""
    versions = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6, unique=True))
    cuts = draw(
        st.lists(
            st.integers(0, BUCKETS),
            min_size=len(versions) - 1,
            max_size=len(versions) - 1,
        )
    )
    ends = [0, *sorted(cuts), BUCKETS]
    return {
        version: (high - low) / BUCKETS
        for version, (low, high) in zip(versions, pairwise(ends), strict=True)
    }


@st.composite
def any_shares(draw: st.DrawFn) -> dict[int, float]:
    """Shares of some of six versions that are no whole buckets."""
    versions = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6, unique=True))
    weights = [draw(st.floats(0, 1)) for _ in versions]
    weights[0] += 1e-3
    total = sum(weights)
    return {v: weight / total for v, weight in zip(versions, weights, strict=True)}


@pytest.mark.parametrize(("salt", "unit", "bucket"), GOLDEN)
def test_a_bucket_is_what_it_was_in_every_release(
    salt: str, unit: str, bucket: int
) -> None:
    assert bucket_of(salt, unit) == bucket


def test_salt_and_unit_cannot_be_mistaken_for_others() -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ("1:a", "bc"), ("1", ":abc")]
    text = [("salt", f"{n}") for n in range(20)] + [(f"salt{n}", "") for n in range(20)]
    assert len({bucket_of(*pair) for pair in pairs + text}) > 40


def test_units_spread_evenly_over_the_buckets() -> None:
    counts = Counter(bucket_of("spread", f"user-{n}") for n in range(500_000))
    observed = [counts[bucket] for bucket in range(BUCKETS)]
    assert chisquare(observed).pvalue > 1e-4


def test_layers_are_independent_of_each_other() -> None:
    seen = np.zeros((10, 10))
    for n in range(200_000):
        one, other = bucket_of("layer-1", f"u{n}"), bucket_of("layer-2", f"u{n}")
        seen[one // 1000, other // 1000] += 1
    assert chi2_contingency(seen).pvalue > 1e-4


def test_arms_get_their_shares_of_the_units() -> None:
    table = settle(settle(None, sticky(0.8, 0.15, 0.05)), sticky(0.55, 0.25, 0.2))
    places = bucket_table(table)
    seen = Counter(places[bucket_of(table.salt, f"u{n}")] for n in range(300_000))
    shares = [places.count(place) / BUCKETS for place in range(3)]
    assert shares == [0.55, 0.25, 0.2]
    observed = [seen[place] for place in range(3)]
    assert chisquare(observed, [s * 300_000 for s in shares]).pvalue > 1e-4


@given(st.lists(whole_shares(), min_size=1, max_size=6))
def test_whole_shares_are_met_exactly_and_move_as_few_as_possible(
    steps: list[dict[int, float]],
) -> None:
    spans: tuple[Span, ...] = ()
    for shares in steps:
        before, spans = owners(spans), assign(spans, shares)
        after = owners(spans)
        counts = Counter(after)
        assert counts == {v: round(s * BUCKETS) for v, s in shares.items() if s}
        if before:
            stayed = Counter(a for a, b in zip(before, after, strict=True) if a == b)
            had = Counter(before)
            assert all(stayed[v] == min(had[v], counts[v]) for v in {*had, *counts})


@given(st.lists(any_shares(), min_size=1, max_size=6))
def test_any_share_is_met_to_the_bucket_and_a_growing_arm_loses_nobody(
    steps: list[dict[int, float]],
) -> None:
    spans: tuple[Span, ...] = ()
    for shares in steps:
        before, spans = owners(spans), assign(spans, shares)
        after = owners(spans)
        counts, had = Counter(after), Counter(before)
        assert len(after) == BUCKETS
        assert all(abs(counts[v] - s * BUCKETS) < 1 + 1e-5 for v, s in shares.items())
        for one, other in zip(before, after, strict=False):
            assert one == other or (
                counts[one] < had[one] and counts[other] > had[other]
            )


@given(whole_shares(), st.randoms(use_true_random=False))
def test_order_and_arms_without_a_share_move_nobody(
    shares: dict[int, float], random: Random
) -> None:
    for previous in ((), assign((), shares)):
        expected = assign(previous, shares)
        shuffled = list(shares.items())
        random.shuffle(shuffled)
        assert assign(previous, dict(shuffled)) == expected
        assert assign(previous, {**dict(shuffled), 7: 0.0}) == expected


@given(
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1), st.permutations([1, 2, 3])), max_size=8),
)
def test_a_third_arm_keeps_its_units_while_a_share_goes_from_one_to_another(
    first: float, moves: list[tuple[float, list[int]]]
) -> None:
    """Also where shares are no whole buckets, and rounding could go either way."""
    shares = {1: first / 2, 2: first - first / 2, 3: 1 - first}
    table = settle(None, sticky(*shares.values()))
    for part, (giver, taker, third) in moves:
        moved = part * shares[giver]
        shares[giver] -= moved
        shares[taker] += moved
        before = owners(table.buckets)
        table = settle(table, sticky(*shares.values()))
        table.check()
        changes = set(zip(before, owners(table.buckets), strict=True))
        assert changes <= {(giver, taker), *((v, v) for v in (giver, taker, third))}


def test_two_arms_stay_two_spans_and_the_last_to_come_leave_first() -> None:
    table = settle(None, sticky(0.99, 0.01))
    seen = {0.01: bucket_table(table)}
    for share in (0.05, 0.2, 0.5, 0.2, 0.05, 0.01, 0.05, 0.5):
        table = settle(table, sticky(1 - share, share))
        places = bucket_table(table)
        assert len(table.buckets) == 2
        assert seen.setdefault(share, places) == places


def test_a_table_survives_json_with_its_owners() -> None:
    table = sticky(0.6, 0.3, 0.1)
    for shares in ((0.5, 0.2, 0.3), (0.2, 0.5, 0.3), (0.4, 0.5, 0.1)):
        table = settle(table, sticky(*shares))
    table.check()
    read = MODEL_TRAFFIC.validate_json(MODEL_TRAFFIC.dump_json(table))
    assert read == table
    assert bucket_table(read) == bucket_table(table)


def test_another_salt_or_another_policy_starts_anew() -> None:
    table = settle(settle(None, sticky(0.5, 0.4, 0.1)), sticky(0.1, 0.5, 0.4))
    fresh = settle(None, sticky(0.1, 0.5, 0.4))
    assert table.buckets != fresh.buckets
    assert settle(table, replace(fresh, salt="t")).buckets == fresh.buckets
    fixed = replace(fresh, policy=Policy())
    assert settle(table, fixed).buckets == ()


@pytest.mark.parametrize(
    "spans",
    [
        (Span(1, 5000),),
        (Span(1, 5000), Span(3, 5000)),
        (Span(1, 4000), Span(2, 6000)),
        (Span(1, 5000), Span(2, 5001)),
        (Span(1, 5000), Span(2, 0), Span(2, 5000)),
    ],
)
def test_owners_that_contradict_the_arms_are_refused(spans: tuple[Span, ...]) -> None:
    with pytest.raises(InvalidRequest, match="buckets"):
        replace(sticky(0.5, 0.5), buckets=spans).check()

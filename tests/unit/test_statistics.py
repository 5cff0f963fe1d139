"""Counters: they add up, they only grow, and every reader says the same."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics.exposition import (
    generate_latest as generate_openmetrics,
)
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from gateway.serving.pending import Timing
from gateway.serving.statistics import (
    DELAY_BUCKETS_S,
    ROW_BUCKETS,
    Histogram,
    VersionStatistics,
    add_up,
)
from gateway.serving.totals import statistics_message
from gateway.supervision.counters import Counters
from gateway.supervision.exposition import GatewayCollector
from tests.unit.fakes import make_pending

counts = st.integers(0, 10**12)
events = st.lists(
    st.one_of(
        st.tuples(
            st.just("sent"), st.sampled_from(["full", "retry"]), st.integers(1, 2000)
        ),
        st.tuples(st.just("ran"), st.integers(0, 1), st.integers(1, 64)),
        st.tuples(st.just("ok"), st.integers(1, 64), st.integers(0, 10**11)),
        st.tuples(
            st.just("fail"), st.sampled_from(["deadline", "a"]), st.integers(0, 99)
        ),
    ),
    max_size=12,
)


def happen(statistics: VersionStatistics, event: tuple[str, Any, Any]) -> None:
    kind, first, second = event
    timing = Timing(3, 5, 7)
    if kind == "sent":
        statistics.sent(first, second)
    elif kind == "ran":
        statistics.ran(first, second, timing)
    elif kind == "ok":
        pending = make_pending(rows=first, admitted_ns=1000)
        pending.sent_ns = 1000 + second
        statistics.answered([pending], timing, 1000 + second + 15)
    else:
        pending = make_pending(admitted_ns=1000)
        statistics.failed(pending, first, 1000 + second)
        statistics.dropped_rows[first] += 1


def travelled(statistics: VersionStatistics) -> dict[str, Any]:
    """Return a snapshot as the supervisor reads it."""
    snapshot: dict[str, Any] = json.loads(json.dumps(statistics.snapshot()))
    return snapshot


def snapshot_of(some: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    statistics = VersionStatistics()
    for event in some:
        happen(statistics, event)
    return travelled(statistics)


snapshots = events.map(snapshot_of)


def never_shrinks(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return all(never_shrinks(before[name], after[name]) for name in before)
    if isinstance(before, list):
        return all(map(never_shrinks, before, after))
    return bool(before <= after)


class TestAddUp:
    @given(snapshots, snapshots, snapshots)
    def test_the_order_of_adding_does_not_matter(
        self, a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
    ) -> None:
        assert add_up(add_up(a, b), c) == add_up(a, add_up(b, c))
        assert add_up(a, b) == add_up(b, a)

    @given(snapshots, snapshots)
    def test_adding_changes_neither_side(
        self, a: dict[str, Any], b: dict[str, Any]
    ) -> None:
        before = copy.deepcopy((a, b))
        total = add_up(a, b)
        add_up(total, b)
        assert (a, b) == before
        assert never_shrinks(a, total)
        assert never_shrinks(b, total)

    @given(snapshots)
    def test_nothing_adds_nothing(self, a: dict[str, Any]) -> None:
        fresh = travelled(VersionStatistics())
        assert add_up(a, fresh) == a == add_up(fresh, a)

    @given(events, events)
    def test_two_processes_count_as_one_would(
        self, here: list[tuple[str, Any, Any]], there: list[tuple[str, Any, Any]]
    ) -> None:
        both = add_up(snapshot_of(here), snapshot_of(there))
        one = snapshot_of(here + there)
        for wall_clock in (both, one):
            del wall_clock["last_inference_ms"]
        assert both == one

    def test_the_last_is_the_latest(self) -> None:
        assert add_up({"last_x": 3, "x": 3}, {"last_x": 2, "x": 2}) == {
            "last_x": 3,
            "x": 5,
        }


class TestVersionStatistics:
    @given(events)
    def test_counters_only_grow_and_say_that_they_did(
        self, some: list[tuple[str, Any, Any]]
    ) -> None:
        statistics = VersionStatistics()
        before = travelled(statistics)
        for event in some:
            statistics.changed = False
            happen(statistics, event)
            after = travelled(statistics)
            assert never_shrinks(before, after)
            assert statistics.changed or after == before
            before = after

    @given(events)
    def test_the_books_balance(self, some: list[tuple[str, Any, Any]]) -> None:
        got = snapshot_of(some)
        assert got["success"][0] == got["outcomes"].get("ok", 0)
        assert sum(got["outcomes"].values()) == got["success"][0] + got["fail"][0]
        assert sum(got["queue_delay"]) == got["success"][0]
        assert got["queue_delay_ns"] == got["queue"][1]
        assert sum(got["batch_rows"]) == sum(got["batches"].values())
        assert got["executions"] == sum(run[0] for run in got["runs"].values())

    @given(
        st.lists(st.tuples(st.integers(1, 64), st.integers(0, 10**11)), max_size=8),
        st.integers(0, 10**9),
    )
    def test_a_batch_counts_as_its_requests_one_by_one(
        self, drawn: list[tuple[int, int]], spent: int
    ) -> None:
        timing = Timing(3, 5, 7)
        sent_ns = 10**12
        requests = []
        for rows, waited in drawn:
            pending = make_pending(rows=rows, admitted_ns=sent_ns - waited)
            pending.sent_ns = sent_ns
            requests.append(pending)
        together, one_by_one = VersionStatistics(), VersionStatistics()
        together.answered(requests, timing, sent_ns + spent)
        for pending in requests:
            one_by_one.answered([pending], timing, sent_ns + spent)
        assert travelled(together) == travelled(one_by_one)
        count, waited = len(drawn), sum(waited for _, waited in drawn)
        assert together.rows == sum(rows for rows, _ in drawn)
        assert together.success == [count, waited + count * spent]
        assert together.queue == [count, waited]
        assert together.compute_infer == [count, 5 * count]

    @given(st.lists(st.integers(0, 5000), max_size=20))
    def test_a_value_counts_in_the_first_bucket_it_fits(
        self, values: list[int]
    ) -> None:
        histogram = Histogram(ROW_BUCKETS)
        for value in values:
            histogram.observe(value)
        for index, bound in enumerate((*ROW_BUCKETS, math.inf)):
            below = sum(histogram.counts[: index + 1])
            assert below == sum(value <= bound for value in values)
        assert histogram.total == sum(values)


reports = st.fixed_dictionaries(
    {
        "versions": st.lists(
            st.tuples(
                st.sampled_from(["m", 'od"d\n', "a\0b"]), st.integers(1, 11), snapshots
            ),
            unique_by=lambda entry: entry[:2],
            max_size=3,
        ).map(lambda entries: [list(entry) for entry in entries]),
        "rejected": st.dictionaries(st.sampled_from(["invalid", "x"]), counts),
        "transport": st.fixed_dictionaries(
            {
                "accepted": counts,
                "calls": counts,
                "limits": st.dictionaries(st.sampled_from(["pings", "x"]), counts),
            }
        ),
        "arms": st.dictionaries(
            st.sampled_from(["m", "x"]),
            st.dictionaries(st.sampled_from(["1", "2"]), counts),
        ),
        "ruled": st.dictionaries(
            st.sampled_from(["m", "x"]),
            st.dictionaries(st.sampled_from(["1", "2"]), counts),
        ),
        "shadows": st.dictionaries(
            st.sampled_from(["2/m", "3/x/y"]),
            st.fixed_dictionaries(
                {
                    "counts": st.dictionaries(st.sampled_from(["copied"]), counts),
                    "agreement": st.fixed_dictionaries(
                        {"rows": counts, "agreed": counts}
                    ),
                }
            ),
        ),
        "log": st.fixed_dictionaries({"offered": counts, "dropped": counts}),
        "records": st.fixed_dictionaries({"offered": counts, "forgotten": counts}),
        "gauges": st.fixed_dictionaries(
            {
                "inflight_requests": st.dictionaries(st.sampled_from("mn"), counts),
                "inflight_bytes": counts,
                "connections": counts,
                "buffered_bytes": counts,
                "unlogged": counts,
            }
        ),
    }
)


class TestCounters:
    @given(st.lists(reports, min_size=1, max_size=4), st.data())
    def test_a_front_that_is_gone_still_counts(
        self, some: list[dict[str, Any]], data: st.DataObject
    ) -> None:
        counters = Counters()
        for pid, report in enumerate(some):
            counters.report(pid, report)
        versions, rejected = counters.versions(), counters.rejected()
        transport = counters.transport()
        for pid in data.draw(st.permutations(range(len(some)))):
            counters.retire(pid)
            assert counters.versions() == versions
            assert counters.rejected() == rejected
            assert counters.transport() == transport
        assert transport["calls"] == sum(r["transport"]["calls"] for r in some)
        assert counters.gauges() == {
            "inflight_requests": {},
            "inflight_bytes": 0,
            "connections": 0,
            "buffered_bytes": 0,
            "unlogged": 0,
        }

    @given(reports, reports)
    def test_a_newer_report_takes_the_place_of_the_older(
        self, older: dict[str, Any], newer: dict[str, Any]
    ) -> None:
        twice, once = Counters(), Counters()
        twice.report(1, older)
        twice.report(1, newer)
        reported = [entry[:2] for entry in newer["versions"]]
        same = [entry for entry in older["versions"] if entry[:2] not in reported]
        once.report(1, {**newer, "versions": newer["versions"] + same})
        assert twice.versions() == once.versions()
        assert twice.gauges() == once.gauges()

    @given(reports, reports)
    def test_a_process_with_a_used_pid_counts_anew(
        self, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        one, two = Counters(), Counters()
        one.report(1, first)
        one.retire(1)
        one.report(1, second)
        two.report(1, first)
        two.report(2, second)
        assert one.versions() == two.versions()
        assert one.rejected() == two.rejected()
        assert one.transport() == two.transport()
        assert one.gauges() == second["gauges"]

    def test_retiring_an_unknown_front_is_no_error(self) -> None:
        counters = Counters()
        counters.retire(5)
        assert counters.versions() == []

    @given(reports, reports)
    def test_what_a_scrape_took_does_not_change_under_it(
        self, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        counters = Counters()
        counters.report(1, first)
        taken = counters.versions()
        before = copy.deepcopy(taken)
        counters.report(2, second)
        counters.retire(1)
        counters.retire(2)
        assert taken == before


class TestStatisticsMessage:
    @given(snapshots, st.integers(1, 9))
    def test_it_says_what_was_counted(
        self, counted: dict[str, Any], version: int
    ) -> None:
        message = statistics_message("m", version, counted)
        assert (message.name, message.version) == ("m", str(version))
        assert message.inference_count == counted["rows"]
        assert message.execution_count == counted["executions"]
        assert message.last_inference == counted["last_inference_ms"]
        for name in ("success", "fail", "queue", "compute_input", "compute_infer"):
            duration = getattr(message.inference_stats, name)
            assert [duration.count, duration.ns] == counted[name]
        sizes = [batch.batch_size for batch in message.batch_stats]
        assert sizes == sorted(int(rows) for rows in counted["runs"])
        for batch in message.batch_stats:
            run = counted["runs"][str(batch.batch_size)]
            assert batch.compute_infer.count == run[0]
            assert batch.compute_input.ns == run[1]
            assert batch.compute_infer.ns == run[2]
            assert batch.compute_output.ns == run[3]


class FakeProcesses:
    """Two children, one of which has just gone."""

    def __init__(self, running: dict[str, int]) -> None:
        self._running = running

    def deaths(self) -> dict[str, int]:
        return {"worker-0": 2, "front-0": 0}

    def running(self) -> dict[str, int]:
        return self._running


def registry_of(some: list[dict[str, Any]]) -> CollectorRegistry:
    counters = Counters()
    for pid, report in enumerate(some):
        counters.report(pid, report)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GatewayCollector(counters, FakeProcesses({"gone": 2**30})))
    return registry


def by_name(families: list[Metric]) -> dict[str, Metric]:
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


class TestExposition:
    @given(st.lists(reports, max_size=3))
    def test_both_text_formats_parse_and_agree(
        self, some: list[dict[str, Any]]
    ) -> None:
        registry = registry_of(some)
        plain = by_name(list(parse(generate_latest(registry).decode())))
        openmetrics = by_name(
            list(parse_openmetrics(generate_openmetrics(registry).decode()))
        )
        assert plain.keys() == openmetrics.keys()
        assert all(name.startswith("baton_") for name in plain)
        assert all(family.documentation for family in plain.values())

    @given(st.lists(reports, max_size=3))
    def test_no_sample_appears_twice(self, some: list[dict[str, Any]]) -> None:
        for family in registry_of(some).collect():
            keys = [(s.name, tuple(sorted(s.labels.items()))) for s in family.samples]
            assert len(set(keys)) == len(keys)

    @given(st.lists(reports, max_size=3))
    def test_buckets_are_cumulative_and_end_with_all(
        self, some: list[dict[str, Any]]
    ) -> None:
        families = by_name(list(parse(generate_latest(registry_of(some)).decode())))
        for name, bounds in (
            ("baton_queue_delay_seconds", DELAY_BUCKETS_S),
            ("baton_batch_rows", ROW_BUCKETS),
        ):
            series: dict[tuple[str, str], list[tuple[float, float]]] = {}
            totals: dict[tuple[str, str], float] = {}
            for sample in families[name].samples:
                key = (sample.labels["model"], sample.labels["version"])
                if sample.name == f"{name}_bucket":
                    bound = float(sample.labels["le"])
                    series.setdefault(key, []).append((bound, sample.value))
                elif sample.name == f"{name}_count":
                    totals[key] = sample.value
            assert series.keys() == totals.keys()
            for key, buckets in series.items():
                assert [bound for bound, _ in buckets] == [*bounds, math.inf]
                values = [value for _, value in buckets]
                assert values == sorted(values)
                assert values[-1] == totals[key]

    @given(reports)
    def test_samples_are_the_counts(self, report: dict[str, Any]) -> None:
        families = by_name(list(parse(generate_latest(registry_of([report])).decode())))
        total = sum(sample.value for sample in families["baton_requests"].samples)
        expected = sum(report["rejected"].values()) + sum(
            sum(counted["outcomes"].values()) for _, _, counted in report["versions"]
        )
        assert total == expected
        rows = {
            (sample.labels["model"], sample.labels["version"]): sample.value
            for sample in families["baton_rows"].samples
        }
        assert rows == {
            (model, str(version)): counted["rows"]
            for model, version, counted in report["versions"]
        }

    def test_processes_that_went_away_have_no_usage(self) -> None:
        families = by_name(list(parse(generate_latest(registry_of([])).decode())))
        memory = families["baton_process_resident_memory_bytes"].samples
        assert [sample.labels["process"] for sample in memory] == ["supervisor"]
        assert memory[0].value > 1 << 20
        (cpu,) = families["baton_process_cpu_seconds"].samples
        assert cpu.value > 0
        deaths = {
            sample.labels["process"]: sample.value
            for sample in families["baton_process_deaths"].samples
        }
        assert deaths == {"worker-0": 2, "front-0": 0}

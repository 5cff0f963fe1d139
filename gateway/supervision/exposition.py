"""Prometheus metrics: one endpoint for the whole gateway, sums over its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.feedback.health import AGE_BUCKETS_S
from gateway.serving.statistics import DELAY_BUCKETS_S, ROW_BUCKETS
from gateway.supervision.counters import Counters

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MODEL = ("model", "version")


class Processes(Protocol):
    """The children, as metrics see them."""

    def deaths(self) -> dict[str, int]:
        """Return deaths per child."""

    def running(self) -> dict[str, int]:
        """Return the pid of each running child."""


class GatewayCollector(Collector):
    """Makes every metric from the counters of the moment; keeps nothing.

    Runs on the scraper's thread and reads what the loop replaces as a whole.
    """

    def __init__(self, counters: Counters, processes: Processes) -> None:
        self._counters = counters
        self._processes = processes

    def describe(self) -> list[Metric]:
        """Name nothing in advance: versions come and go."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        versions = self._counters.versions()
        yield from _requests(versions, self._counters.rejected())
        yield from _batches(versions)
        yield from _traffic(self._counters.arms(), self._counters.records())
        yield from _logged(self._counters.log())
        yield from _joined(self._counters.joined)
        yield from _shadows(self._counters.shadows())
        yield from _transport(self._counters.transport())
        yield from _gauges(self._counters.gauges())
        yield from _processes(self._processes)


_Versions = list[tuple[str, int, dict[str, Any]]]


def _requests(versions: _Versions, rejected: dict[str, int]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "baton_requests", "Requests by outcome", labels=(*_MODEL, "outcome")
    )
    rows = CounterMetricFamily("baton_rows", "Rows answered", labels=_MODEL)
    stages = CounterMetricFamily(
        "baton_stage_seconds",
        "Time of answered requests by stage",
        labels=(*_MODEL, "stage"),
    )
    delay = HistogramMetricFamily(
        "baton_queue_delay_seconds", "Admission to departure", labels=_MODEL
    )
    dropped = CounterMetricFamily(
        "baton_dropped_rows",
        "Rows left out of batches, or whose result nobody waited for",
        labels=(*_MODEL, "reason"),
    )
    for model, version, counts in versions:
        name = [model, str(version)]
        for outcome, count in counts["outcomes"].items():
            requests.add_metric([*name, outcome], count)
        rows.add_metric(name, counts["rows"])
        for stage in _STAGES:
            stages.add_metric([*name, stage], counts[stage][1] / 1e9)
        for reason, count in counts["dropped_rows"].items():
            dropped.add_metric([*name, reason], count)
        buckets = _cumulative(DELAY_BUCKETS_S, counts["queue_delay"])
        delay.add_metric(name, buckets, counts["queue_delay_ns"] / 1e9)
    for outcome, count in rejected.items():
        requests.add_metric(["", "", outcome], count)
    yield from (requests, rows, stages, delay, dropped)


def _batches(versions: _Versions) -> Iterator[Metric]:
    batches = CounterMetricFamily(
        "baton_batches",
        "Batches sent to workers, by why they left",
        labels=(*_MODEL, "reason"),
    )
    runs = CounterMetricFamily("baton_runs", "Runs of the model", labels=_MODEL)
    rows = HistogramMetricFamily(
        "baton_batch_rows", "Rows of batches sent to workers", labels=_MODEL
    )
    for model, version, counts in versions:
        name = [model, str(version)]
        for reason, count in counts["batches"].items():
            batches.add_metric([*name, reason], count)
        runs.add_metric(name, counts["executions"])
        buckets = _cumulative(ROW_BUCKETS, counts["batch_rows"])
        rows.add_metric(name, buckets, counts["batch_rows_sum"])
    yield from (batches, runs, rows)


def _transport(counts: dict[str, Any]) -> Iterator[Metric]:
    accepted = CounterMetricFamily(
        "baton_connections_accepted", "Connections of clients accepted"
    )
    accepted.add_metric([], counts["accepted"])
    calls = CounterMetricFamily("baton_calls", "Calls begun, of every method")
    calls.add_metric([], counts["calls"])
    limits = CounterMetricFamily(
        "baton_transport_limits",
        "Times a limit of the transport was enforced",
        labels=["limit"],
    )
    for limit, count in counts["limits"].items():
        limits.add_metric([limit], count)
    yield from (accepted, calls, limits)


def _shadows(shadows: dict[str, Any]) -> Iterator[Metric]:
    copies = CounterMetricFamily(
        "baton_shadow_copies",
        "Copies of requests for shadows, and what became of them",
        labels=(*_MODEL, "outcome"),
    )
    rows = CounterMetricFamily(
        "baton_shadow_compared_rows", "Rows compared with the primary's", labels=_MODEL
    )
    agreed = CounterMetricFamily(
        "baton_shadow_agreed_rows", "Rows with the same decision", labels=_MODEL
    )
    for key, sums in shadows.items():
        version, model = key.split("/", 1)
        for outcome, count in sums["counts"].items():
            copies.add_metric([model, version, outcome], count)
        rows.add_metric([model, version], sums["agreement"]["rows"])
        agreed.add_metric([model, version], sums["agreement"]["agreed"])
    yield from (copies, rows, agreed)


def _traffic(
    arms: dict[str, dict[str, int]], records: dict[str, int]
) -> Iterator[Metric]:
    chosen = CounterMetricFamily(
        "baton_arm_requests", "Requests an arm was chosen for", labels=_MODEL
    )
    for model, versions in arms.items():
        for version, count in versions.items():
            chosen.add_metric([model, version], count)
    offered = CounterMetricFamily(
        "baton_prediction_records", "Records of predictions that arms answered"
    )
    offered.add_metric([], records["offered"])
    forgotten = CounterMetricFamily(
        "baton_prediction_records_forgotten", "Records that made room for later ones"
    )
    forgotten.add_metric([], records["forgotten"])
    yield from (chosen, offered, forgotten)


_LOGGED = ("offered", "dropped", "stripped", "refused", "inputs", "inputs_withheld")


def _logged(counts: dict[str, int]) -> Iterator[Metric]:
    predictions = CounterMetricFamily(
        "baton_log_predictions",
        "Predictions on the way to the event log: offered, dropped by a full ring, "
        "stripped of outputs too large, refused by the log for good, unnamed because "
        "a full ring did not take their request ids; with inputs, or without although "
        "they are wanted",
        labels=["outcome"],
    )
    for outcome in _LOGGED:
        predictions.add_metric([outcome], counts.get(outcome, 0))
    blocks = CounterMetricFamily(
        "baton_log_blocks", "Blocks of predictions: made, sent again", labels=["kind"]
    )
    blocks.add_metric(["made"], counts.get("blocks", 0))
    blocks.add_metric(["resent"], counts.get("resent", 0))
    nbytes = CounterMetricFamily("baton_log_bytes", "Bytes of these blocks")
    nbytes.add_metric([], counts.get("bytes", 0))
    yield from (predictions, blocks, nbytes)


def _joined(health: dict[str, Any]) -> Iterator[Metric]:
    """Yield the metrics of `gateway.feedback.health.Health.snapshot`."""
    events = CounterMetricFamily(
        "baton_join_events",
        "Labels, and predictions that were of no use, by what became of them",
        labels=["outcome"],
    )
    for outcome, count in health.get("counts", {}).items():
        events.add_metric([outcome], count)
    rows = GaugeMetricFamily(
        "baton_join_rows",
        "Rows joined since the controller started, less those taken back",
        labels=("model", "version", "role", "segments", "status"),
    )
    for *group, count in health.get("rows", ()):
        rows.add_metric([str(each) for each in group], count)
    ages = HistogramMetricFamily(
        "baton_label_age_seconds", "From a prediction to its label", labels=["model"]
    )
    for model, counts, sum_s in health.get("ages", ()):
        ages.add_metric([model], _cumulative(AGE_BUCKETS_S, counts), sum_s)
    lag = GaugeMetricFamily(
        "baton_join_lag_events", "Events not joined yet", labels=["partition"]
    )
    for partition, count in health.get("lag", {}).items():
        lag.add_metric([partition], count)
    yield from (events, rows, ages, lag)
    for name, help_, key in (
        ("baton_join_pending", "Requests whose labels may still come", "pending"),
        ("baton_join_held_labels", "Labels that wait for their predictions", "held"),
    ):
        gauge = GaugeMetricFamily(name, help_)
        gauge.add_metric([], health.get(key, 0))
        yield gauge
    due = GaugeMetricFamily(
        "baton_join_due_timestamp_seconds", "When the first of both is due; 0 for none"
    )
    due.add_metric([], health.get("oldest_ms", 0) / 1000)
    yield due


def _gauges(gauges: dict[str, Any]) -> Iterator[Metric]:
    requests = GaugeMetricFamily(
        "baton_inflight_requests",
        "Requests admitted and not answered",
        labels=["model"],
    )
    for model, count in gauges["inflight_requests"].items():
        requests.add_metric([model], count)
    yield requests
    nbytes = GaugeMetricFamily("baton_inflight_bytes", "Input bytes in flight")
    nbytes.add_metric([], gauges["inflight_bytes"])
    yield nbytes
    open_now = GaugeMetricFamily("baton_connections", "Connections open")
    open_now.add_metric([], gauges["connections"])
    yield open_now
    buffered = GaugeMetricFamily(
        "baton_transport_buffered_bytes", "Bytes of messages that are not whole yet"
    )
    buffered.add_metric([], gauges["buffered_bytes"])
    yield buffered
    unlogged = GaugeMetricFamily(
        "baton_log_unacknowledged", "Predictions that the event log does not have yet"
    )
    unlogged.add_metric([], gauges["unlogged"])
    yield unlogged


def _processes(processes: Processes) -> Iterator[Metric]:
    deaths = CounterMetricFamily(
        "baton_process_deaths", "Child processes that died unasked", labels=["process"]
    )
    for name, count in processes.deaths().items():
        deaths.add_metric([name], count)
    yield deaths
    memory = GaugeMetricFamily(
        "baton_process_resident_memory_bytes", "Resident memory", labels=["process"]
    )
    cpu = CounterMetricFamily(
        "baton_process_cpu_seconds", "User and system CPU time", labels=["process"]
    )
    for name, pid in {**processes.running(), "supervisor": os.getpid()}.items():
        usage = _usage(pid)
        if usage is not None:
            memory.add_metric([name], usage[0])
            cpu.add_metric([name], usage[1])
    yield from (memory, cpu)


def _usage(pid: int) -> tuple[int, float] | None:
    """Return resident bytes and CPU seconds of a process (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (
        int(fields[21]) * _PAGE_BYTES,
        (int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
    )


def _cumulative(
    bounds: tuple[float, ...] | tuple[int, ...], counts: list[int]
) -> list[tuple[str, float]]:
    total = 0
    buckets = []
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        total += count
        buckets.append((str(bound), float(total)))
    return buckets

"""Added-up counters as the statistics RPC words them. Pure."""

from __future__ import annotations

from typing import Any

from gateway.protocol import inference_pb2 as pb

_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
)


def statistics_message(
    model: str, version: int, counts: dict[str, Any]
) -> pb.ModelStatistics:
    """Word the counters of one version, summed over processes.

    Args:
        model: Model name.
        version: Version number.
        counts: Sum of `VersionStatistics.snapshot` over processes.
    """
    message = pb.ModelStatistics(
        name=model,
        version=str(version),
        last_inference=counts["last_inference_ms"],
        inference_count=counts["rows"],
        execution_count=counts["executions"],
    )
    for name in _DURATIONS:
        duration = getattr(message.inference_stats, name)
        duration.count, duration.ns = counts[name]
    for rows, run in sorted(counts["runs"].items(), key=lambda item: int(item[0])):
        batch = message.batch_stats.add(batch_size=int(rows))
        for name, ns in zip(_DURATIONS[3:], run[1:], strict=True):
            duration = getattr(batch, name)
            duration.count, duration.ns = run[0], ns
    return message

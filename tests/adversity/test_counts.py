"""Counters: sums over processes that never go back and lose nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from gateway.client_config import channel_options
from gateway.protocol import inference_pb2 as pb
from tests.adversity.harness import (
    REPEAT,
    SEED,
    Load,
    metrics,
    nothing_in_flight,
    put_model,
    quiet_port,
    show,
    slow_identity,
    total,
    until,
)
from tests.gateway_process import SERVICE, GatewayProcess, gateway

Counts = dict[tuple[str, ...], float]


async def _statistics(channel: grpc.aio.Channel) -> Counts | None:
    """Return every number of ModelStatistics; ``None`` where nobody answers."""
    method = channel.unary_unary(
        SERVICE + "ModelStatistics",
        request_serializer=pb.ModelStatisticsRequest.SerializeToString,
        response_deserializer=pb.ModelStatisticsResponse.FromString,
    )
    try:
        response = await method(pb.ModelStatisticsRequest(), timeout=5)
    except grpc.aio.AioRpcError:
        return None
    counts: Counts = {}
    for model in response.model_stats:
        key = (model.name, model.version)
        counts[*key, "inferences"] = model.inference_count
        counts[*key, "executions"] = model.execution_count
        counts[*key, "last"] = model.last_inference
        for field, duration in model.inference_stats.ListFields():
            counts[*key, field.name, "count"] = duration.count
            counts[*key, field.name, "ns"] = duration.ns
        for batch in model.batch_stats:
            size = f"size {batch.batch_size}"
            counts[*key, size] = batch.compute_infer.count
    return counts


def _counters(running: GatewayProcess) -> Counts:
    """Return every sample of /metrics that must only grow."""
    return {
        (name, *sorted(f"{k}={v}" for k, v in labels.items())): value
        for name, samples in metrics(running).items()
        for labels, value in samples
        if name.endswith(("_total", "_bucket", "_count", "_sum"))
        and not name.startswith("baton_process_cpu")  # of the living process
    }


def _went_back(history: list[Counts]) -> list[tuple[object, ...]]:
    return [
        (key, earlier[key], later.get(key))
        for earlier, later in pairwise(history)
        for key in earlier
        if later.get(key, -1) < earlier[key]
    ]


async def test_counters_only_grow_while_fronts_and_workers_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked through both fronts in turn, while one or the other, or a worker, dies."""
    rng = random.Random(SEED)
    put_model(tmp_path, "slow", slow_identity(3000))
    put_model(tmp_path, "other", slow_identity(500))
    port = quiet_port(rng, 2)
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
    with gateway(
        tmp_path,
        grpc={"port": port, "port_mode": "each", "fronts": 2},
        workers={"count": 2},
    ) as running:
        load = Load(
            addresses,
            ["slow", "other"],
            concurrency=10,
            timeout_s=10.0,
            rng=rng,
            pause_s=0.01,
            channels=4,
        )
        statistics: list[Counts] = []
        scrapes: list[Counts] = []
        watching = True

        async def watch() -> None:
            options = channel_options(service_config=False)
            channels = [
                grpc.aio.insecure_channel(a, options=options) for a in addresses
            ]
            while watching:
                for channel in channels:
                    counts = await _statistics(channel)
                    if counts is not None:
                        statistics.append(counts)
                scrapes.append(await asyncio.to_thread(_counters, running))
            for channel in channels:
                await channel.close()

        async with load:
            await load.answered(20)
            watcher = asyncio.create_task(watch())
            for _ in range(2 * REPEAT):
                for role in ("front", "workers"):
                    pids = running.pids(role)
                    pid = rng.choice(pids)
                    os.kill(pid, signal.SIGKILL)
                    await until(
                        lambda pid=pid, role=role: (
                            pid not in (now := running.pids(role)) and len(now) == 2
                        )
                    )
                    await load.answered(60)
            watching = False
            await watcher
        with capsys.disabled():
            show(
                f"counters: {len(statistics)} statistics and {len(scrapes)} scrapes, "
                f"failed {len(load.failures())}/{load.sent}"
            )
        assert len(statistics) > 10
        assert _went_back(statistics) == []
        assert _went_back(scrapes) == []
        assert load.wrong == []


async def test_counts_equal_what_was_answered(tmp_path: Path) -> None:
    """Two fronts, two workers, nothing killed: each row and request once."""
    put_model(tmp_path, "slow", slow_identity(1000))
    with gateway(tmp_path, grpc={"fronts": 2}, workers={"count": 2}) as running:
        load = Load(
            [running.address],
            ["slow"],
            concurrency=16,
            timeout_s=10.0,
            rng=random.Random(SEED),
            service_config=False,
            channels=8,
        )
        async with load:
            await load.answered(800)
        assert load.failures() == []
        statistics = running.statistics("slow")[0]
        assert statistics.inference_count == load.rows_ok
        assert statistics.inference_stats.success.count == load.sent
        assert statistics.inference_stats.fail.count == 0
        sizes = {b.batch_size: b.compute_infer.count for b in statistics.batch_stats}
        assert sum(sizes.values()) == statistics.execution_count
        assert sum(size * runs for size, runs in sizes.items()) == load.rows_ok
        await nothing_in_flight(running)
        await until(lambda: total(running, "baton_rows_total") == load.rows_ok)
        assert total(running, "baton_requests_total", outcome="ok") == load.sent
        assert total(running, "baton_batch_rows_sum") == load.rows_ok

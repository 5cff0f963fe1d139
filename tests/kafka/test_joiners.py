"""Several joiners on real Kafka, killed, stopped, paused and started all the time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.kafka.broker import Cluster
from gateway.feedback.kafka import KafkaLog
from tests.kafka.joiners import (
    MEMBERS,
    PARTITIONS,
    Load,
    Members,
    all_read,
    config_of,
)

REPEAT = int(os.environ.get("ADVERSITY_REPEAT", "1"))
CHAOS_S = 14.0 * REPEAT
GROUP = "baton-baton"
"""Of the joiners, with the configuration as it is by default."""


@pytest.fixture
def own_kafka(real_kafka: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A broker that may be killed, where there is a real one (CI demands it)."""
    with Cluster(tmp_path / "kafka") as cluster:
        yield cluster


@pytest.fixture
async def log(own_kafka: Cluster) -> AsyncIterator[KafkaLog]:
    config = config_of(own_kafka)
    assert config.kafka is not None
    made = await KafkaLog.open(config.kafka, PARTITIONS)
    yield made
    await made.close()


@pytest.mark.slow
@pytest.mark.timeout(180 + 3 * CHAOS_S)
async def test_every_label_counts_once_whoever_is_killed(
    own_kafka: Cluster, log: KafkaLog, tmp_path: Path
) -> None:
    """F12, F14, F15: joiners come and go every other second, and the broker too."""
    (tmp_path / "members").mkdir()
    members = Members(config_of(own_kafka), tmp_path / "members")
    load, order = Load(log), random.Random(5)
    until, change = time.monotonic() + CHAOS_S, time.monotonic() + 3
    ended = broken = 0
    try:
        while time.monotonic() < until:
            await load.step()
            if time.monotonic() > change:
                change += 2
                member = order.randrange(MEMBERS)
                how = order.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
                await asyncio.to_thread(members.end, member, how)
                ended += 1
                if ended % 4 == 0:
                    await asyncio.to_thread(own_kafka.kill, 1)
                    await asyncio.to_thread(own_kafka.start, 1)
                    broken += 1
                for each in range(MEMBERS):
                    members.start(each)
        done = await all_read(members, load, log)
    finally:
        await asyncio.to_thread(members.stop)
    joined = members.joined(done)
    said = f"F12, F14: {len(load.truth)} predictions, {ended} joiners and {broken}"
    print(said, "brokers ended")  # noqa: T201
    assert ended >= 4
    assert broken > 0
    assert joined == load.truth


@pytest.mark.slow
@pytest.mark.timeout(180 + 30 * REPEAT)
async def test_who_was_paused_beyond_its_session_counts_nothing_twice(
    own_kafka: Cluster, log: KafkaLog, tmp_path: Path
) -> None:
    """F15, F16: it wakes up in the middle of what others have taken over."""
    (tmp_path / "members").mkdir()
    members = Members(config_of(own_kafka), tmp_path / "members")
    load, order, pauses = Load(log), random.Random(6), 3 * REPEAT
    try:
        await loaded(load, 3)
        for _ in range(pauses):
            member = order.randrange(MEMBERS)
            members.signal(member, signal.SIGSTOP)
            await loaded(load, 3.5)  # the session ends after 2
            members.signal(member, signal.SIGCONT)
            await loaded(load, 1.5)
        done = await all_read(members, load, log)
    finally:
        await asyncio.to_thread(members.stop)
    met = members.said("IllegalGeneration", "UnknownMemberId", "RebalanceInProgress")
    said = f"F15, F16: {len(load.truth)} predictions, {pauses} pauses; {met}"
    print(said)  # noqa: T201
    assert met.keys() & {"IllegalGeneration", "UnknownMemberId"}
    assert members.joined(done) == load.truth


@pytest.mark.slow
@pytest.mark.timeout(240 + 60 * REPEAT)
async def test_the_coordinator_is_killed_and_the_group_goes_on(
    real_kafka: Cluster, tmp_path: Path
) -> None:
    """F15: of three brokers always the one that the group belongs to."""
    (tmp_path / "members").mkdir()
    with Cluster(tmp_path / "kafka", nodes=3) as cluster:
        config = config_of(cluster, copies=3)
        assert config.kafka is not None
        log = await KafkaLog.open(config.kafka, PARTITIONS)
        members = Members(config, tmp_path / "members")
        load, killed = Load(log), []
        try:
            await loaded(load, 4)
            for _ in range(2 * REPEAT):
                node = await coordinator_of(cluster, GROUP)
                cluster.kill(node)
                killed.append(node)
                await loaded(load, 6)
                await asyncio.to_thread(cluster.start, node)
                await loaded(load, 2)
            done = await all_read(members, load, log)
        finally:
            await asyncio.to_thread(members.stop)
            await log.close()
    met = members.said(
        "NotCoordinator", "CoordinatorNotAvailable", "commit_refused", "Marking"
    )
    said = f"F15: {len(load.truth)} predictions, coordinators {killed} killed; {met}"
    print(said)  # noqa: T201
    assert met
    assert members.joined(done) == load.truth


async def loaded(load: Load, seconds: float) -> None:
    """Go on appending for so long (a duration is the input)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await load.step()


async def coordinator_of(cluster: Cluster, group: str) -> int:
    """Return the node that coordinates a group."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        node: int = await admin.find_coordinator(group)
    finally:
        await admin.close()
    return node

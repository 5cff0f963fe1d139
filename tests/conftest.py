"""The Kafka of a test run: a real broker, started once, wherever there is Java."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from uuid import uuid4

import psutil
import pytest

from deploy.kafka.broker import Cluster, KafkaUnavailable, version
from tests.kafka.mini import MiniCluster

USED = pytest.StashKey[str]()
REQUIRE = "BATON_REQUIRE_KAFKA"


@pytest.fixture(scope="session")
def kafka(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Cluster | MiniCluster]:
    """One broker for all tests: they use topics and groups with names of their own.

    Without Java or Maven it is librdkafka's mock, which fails the run if
    BATON_REQUIRE_KAFKA is 1.
    """
    data = tmp_path_factory.mktemp("kafka")
    try:
        cluster = Cluster(data, secure=True)
    except KafkaUnavailable as error:
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but {error}", pytrace=False)
        reason = str(error).partition("\n")[0]
        pytestconfig.stash[USED] = f"librdkafka's mock broker, since {reason}"
        with MiniCluster() as mini:
            yield mini
        return
    began = time.monotonic()
    with cluster:
        took = time.monotonic() - began
        memory = psutil.Process(cluster.pids[1]).memory_info().rss >> 20
        used = f"a real broker ({version()}), there in {took:.1f} s with {memory} MiB"
        pytestconfig.stash[USED] = used
        yield cluster


@pytest.fixture
def real_kafka(kafka: Cluster | MiniCluster) -> Cluster:
    """Return the broker if it is a real one, else skip the test."""
    if not isinstance(kafka, Cluster):
        pytest.skip("needs a real Kafka broker (Java 17 and Maven)")
    return kafka


@pytest.fixture
def topic() -> str:
    """Return the name of a topic that nobody has used; it is made when first used."""
    return f"topic-{uuid4().hex[:12]}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which Kafka the tests had."""
    if used := config.stash.get(USED, None):
        terminalreporter.write_line(f"kafka: {used}")

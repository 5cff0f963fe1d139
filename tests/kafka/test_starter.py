"""The starter: what it says when something is missing, and what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from deploy.kafka import broker
from deploy.kafka.broker import BrokerFailed, Cluster, KafkaUnavailable
from tests.gateway_process import free_port, wait_for
from tests.kafka.clients import consuming, numbered, producing, receive, send

SCRIPT = Path(broker.__file__)


def program(folder: Path, name: str, lines: str) -> None:
    """Write a program for PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o700)


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in PATH, with a Java that is new enough and nothing else."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program(programs, "java", "echo 'openjdk version \"17.0.1\"' >&2")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("BATON_KAFKA_CACHE", str(tmp_path / "cache"))
    return programs


def test_a_missing_java_says_what_to_install(bare_path: Path, tmp_path: Path) -> None:
    (bare_path / "java").unlink()
    with pytest.raises(KafkaUnavailable, match=r"no java in PATH: install Java 17"):
        Cluster(tmp_path)


def test_an_old_java_says_what_to_install(bare_path: Path, tmp_path: Path) -> None:
    program(bare_path, "java", "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2")
    with pytest.raises(KafkaUnavailable, match=r"too old: install Java 17"):
        Cluster(tmp_path)


def test_a_missing_maven_says_what_to_install(bare_path: Path, tmp_path: Path) -> None:
    with pytest.raises(KafkaUnavailable, match=r"no mvn in PATH: install Maven"):
        Cluster(tmp_path)


def test_a_failing_maven_is_quoted(bare_path: Path, tmp_path: Path) -> None:
    program(bare_path, "mvn", "echo Could not transfer artifact; exit 1")
    with pytest.raises(KafkaUnavailable, match=r"Could not transfer artifact"):
        Cluster(tmp_path)


def test_jars_that_are_not_the_pinned_ones_are_refused(
    bare_path: Path, tmp_path: Path
) -> None:
    fetched = "for last; do :; done; folder=${last#*=}; /bin/mkdir -p $folder"
    program(bare_path, "mvn", f"{fetched}; echo changed > $folder/snappy-java-1.jar")
    with pytest.raises(KafkaUnavailable, match=r"jars\.sha256.*snappy-java-1\.jar"):
        Cluster(tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_cache_is_fetched_again(
    real_kafka: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = broker.find_jars()
    damaged = tmp_path / good.name
    shutil.copytree(good, damaged)
    jar = next(damaged.glob("kafka-raft-*.jar"))
    jar.write_bytes(jar.read_bytes()[:-1])
    monkeypatch.setenv("BATON_KAFKA_CACHE", str(tmp_path))
    assert broker.find_jars() == damaged
    assert jar.read_bytes() == (good / jar.name).read_bytes()


def test_a_taken_port_is_named(real_kafka: Cluster, tmp_path: Path) -> None:
    port = int(real_kafka.bootstrap.rpartition(":")[2])
    cluster = Cluster(tmp_path, port=port)
    with pytest.raises(BrokerFailed, match=f"port {port} is taken"), cluster:
        pass


def test_a_node_that_does_not_come_up_says_why(
    real_kafka: Cluster, tmp_path: Path
) -> None:
    """Here its configuration is not Kafka's."""
    cluster = Cluster(tmp_path, properties={"num.io.threads": "0"})
    with pytest.raises((BrokerFailed, KafkaUnavailable), match=r"num\.io\.threads"):
        cluster.__enter__()


def test_docker_gets_the_same_version_and_settings() -> None:
    service = yaml.safe_load((broker.HERE / "compose.yaml").read_text())["services"]
    assert service["kafka"]["image"] == f"apache/kafka:{broker.version()}"
    template = string.Template((broker.HERE / "server.properties").read_text())
    one_node = template.safe_substitute(node=1, copies=1, in_sync=1).splitlines()
    ours = dict(line.split("=", 1) for line in one_node if "=" in line)
    own = {"LISTENER", "LISTENERS", "VOTERS", "DIRS", "NAME", "MAP", "OPTS"}
    for name, value in service["kafka"]["environment"].items():
        if name.rpartition("_")[2] not in own:
            key = name.removeprefix("KAFKA_").lower().replace("_", ".")
            assert ours[key] == str(value), key


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the starter; give its process and the bootstrap servers that it prints."""
    command = [sys.executable, "-u", str(SCRIPT), "--port", str(free_port())]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if servers := re.match(r"bootstrap servers: (\S+)", line):
                    yield process, servers[1]
                    return
            raise AssertionError("it ended without bootstrap servers")
        finally:
            process.kill()


async def test_it_stops_cleanly_and_goes_on_with_its_data(
    real_kafka: Cluster, tmp_path: Path, topic: str
) -> None:
    data = str(tmp_path / "with a space")
    with running("--data", data) as (process, servers):
        async with producing(servers) as producer:
            await send(producer, topic, numbered(10))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert list(Path(data).rglob(".kafka_cleanshutdown"))  # noqa: ASYNC240 - quick
    with running("--data", data) as (process, servers):
        async with consuming(servers, topic) as consumer:
            assert await receive(consumer, 10) == numbered(10)
    with pytest.raises(BrokerFailed, match="nodes: 1, secure: False"):
        Cluster(Path(data), nodes=3).__enter__()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_kill_9_of_the_starter_leaves_no_broker(
    real_kafka: Cluster, tmp_path: Path
) -> None:
    with running("--data", str(tmp_path)) as (process, _):
        (java,) = psutil.Process(process.pid).children()
        assert "java" in java.name()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        wait_for(lambda: not java.is_running())

"""aiokafka against the broker of the test run: what the gateway relies on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator

import aiokafka
import pytest
import uvloop
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.helpers import create_ssl_context

from deploy.kafka.broker import Cluster
from tests.kafka.clients import consuming, numbered, producing, receive, send
from tests.kafka.mini import NOT_COORDINATOR, OFFSET_COMMIT, MiniCluster

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("loop", LOOPS)
def test_messages_come_back_with_key_headers_and_partition(
    kafka: Cluster | MiniCluster, topic: str, loop: str
) -> None:
    async def round_trip() -> None:
        async with producing(kafka.bootstrap) as producer:
            sent = await producer.send_and_wait(
                topic, b"value", key=b"key", headers=[("ce_id", b"1")]
            )
        async with consuming(kafka.bootstrap, topic) as consumer:
            got = await asyncio.wait_for(consumer.getone(), 20)
        assert (got.key, got.value, got.headers) == (
            b"key",
            b"value",
            (("ce_id", b"1"),),
        )
        assert (got.partition, got.offset) == (sent.partition, sent.offset)

    factory: Callable[[], asyncio.AbstractEventLoop] = LOOPS[loop]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(round_trip())


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_every_compression_that_producers_use_is_read(
    kafka: Cluster | MiniCluster, topic: str, codec: str | None
) -> None:
    values = [value * 50 for value in numbered(100)]
    async with producing(kafka.bootstrap, compression_type=codec) as producer:
        await send(producer, topic, values)
    async with consuming(kafka.bootstrap, topic) as consumer:
        assert await receive(consumer, len(values)) == values


async def test_what_was_acknowledged_outlives_kill_9(
    kafka: Cluster | MiniCluster, topic: str
) -> None:
    """Producer and consumer go on as well, without being made anew."""
    first, second = numbered(200), numbered(200, start=200)
    async with (
        producing(kafka.bootstrap) as producer,
        consuming(kafka.bootstrap, topic) as consumer,
    ):
        await send(producer, topic, first)
        assert await receive(consumer, 200) == first
        kafka.kill(1)
        waiting = asyncio.create_task(send(producer, topic, second))
        await asyncio.to_thread(kafka.start, 1)
        await waiting
        assert await receive(consumer, 200) == second
    async with consuming(kafka.bootstrap, topic) as consumer:
        assert await receive(consumer, 400) == first + second


async def test_committed_offsets_outlive_kill_9(
    real_kafka: Cluster, topic: str
) -> None:
    async with producing(real_kafka.bootstrap) as producer:
        await send(producer, topic, numbered(40))
    group = {"group_id": f"group-of-{topic}"}
    async with consuming(real_kafka.bootstrap, topic, **group) as consumer:
        await receive(consumer, 40)
        await consumer.commit()
    real_kafka.kill(1)
    await asyncio.to_thread(real_kafka.start, 1)
    async with producing(real_kafka.bootstrap) as producer:
        await send(producer, topic, numbered(1, start=40))
    async with consuming(real_kafka.bootstrap, topic, **group) as consumer:
        assert await receive(consumer, 1) == numbered(1, start=40)


async def test_members_of_a_group_share_the_partitions(
    real_kafka: Cluster, topic: str
) -> None:
    async with producing(real_kafka.bootstrap) as producer:
        await send(producer, topic, numbered(1))
    member = {"group_id": f"group-of-{topic}", "heartbeat_interval_ms": 200}
    async with (
        consuming(real_kafka.bootstrap, topic, **member) as one,
        consuming(real_kafka.bootstrap, topic, **member) as two,
        asyncio.timeout(20),
    ):
        both = (one, two)
        while any(len(m.assignment()) != 2 for m in both):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
        assert one.assignment().isdisjoint(two.assignment())


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_tls_and_sasl(real_kafka: Cluster, topic: str, mechanism: str) -> None:
    way = real_kafka.secured
    options = {
        "security_protocol": "SASL_SSL",
        "ssl_context": create_ssl_context(cafile=str(way.ca)),
        "sasl_mechanism": mechanism,
        "sasl_plain_username": way.username,
        "sasl_plain_password": way.password,
    }
    async with producing(way.bootstrap, **options) as producer:
        await send(producer, topic, numbered(10))
    async with consuming(way.bootstrap, topic, **options) as consumer:
        assert await receive(consumer, 10) == numbered(10)


@pytest.mark.parametrize("wrong", ["password", "certificate", "protocol"])
async def test_who_is_not_trusted_is_refused(real_kafka: Cluster, wrong: str) -> None:
    way = real_kafka.secured
    context = ssl.create_default_context(
        cafile=None if wrong == "certificate" else str(way.ca)
    )
    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=way.bootstrap,
        security_protocol="SSL" if wrong == "protocol" else "SASL_SSL",
        ssl_context=context,
        sasl_mechanism="SCRAM-SHA-256",
        sasl_plain_username=way.username,
        sasl_plain_password="guess" if wrong == "password" else way.password,
        request_timeout_ms=2000,
    )
    with pytest.raises(KafkaConnectionError):
        await consumer.start()
    await consumer.stop()


async def test_errors_of_the_coordinator_are_absorbed(topic: str) -> None:
    with MiniCluster() as mini:
        async with producing(mini.bootstrap) as producer:
            await send(producer, topic, numbered(4))
        async with consuming(mini.bootstrap, topic, group_id="group") as consumer:
            assert await receive(consumer, 4) == numbered(4)
            mini.fail_next(OFFSET_COMMIT, NOT_COORDINATOR, NOT_COORDINATOR)
            await asyncio.wait_for(consumer.commit(), 20)
            committed = [await consumer.committed(p) for p in consumer.assignment()]
            assert sum(offset or 0 for offset in committed) == 4


@pytest.fixture(scope="module")
def three_nodes(
    kafka: Cluster | MiniCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    if not isinstance(kafka, Cluster):
        pytest.skip("needs a real Kafka broker (Java 17 and Maven)")
    with Cluster(tmp_path_factory.mktemp("three"), nodes=3) as cluster:
        yield cluster


async def leader_of(bootstrap: str, topic: str) -> int:
    """Return the node that leads partition 0."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        described = (await admin.describe_topics([topic]))[0]["partitions"]
        return next(p["leader"] for p in described if p["partition"] == 0)
    finally:
        await admin.close()


async def test_three_nodes_outlive_the_death_of_one(
    three_nodes: Cluster, topic: str
) -> None:
    """Nothing acknowledged is lost, and the dead one comes back into sync."""
    async with producing(three_nodes.bootstrap) as producer:
        await send(producer, topic, numbered(200))
        dead = await leader_of(three_nodes.bootstrap, topic)
        three_nodes.kill(dead)
        assert len(three_nodes.pids) == 2
        await send(producer, topic, numbered(200, start=200))
        assert await leader_of(three_nodes.bootstrap, topic) not in (dead, -1)
        await asyncio.to_thread(three_nodes.start, dead)
    async with consuming(three_nodes.bootstrap, topic) as consumer:
        assert await receive(consumer, 400) == numbered(400)

"""What the tests do with aiokafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

ANSWER_S = 20.0
"""After which a test gives up on a broker; what works takes far less."""


@asynccontextmanager
async def producing(bootstrap: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    """An idempotent producer that asks for word from all copies."""
    options = {"enable_idempotence": True, "request_timeout_ms": 10_000} | options
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, **options) as producer:
        yield producer


@asynccontextmanager
async def consuming(
    bootstrap: str, topic: str, **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer from the beginning, which commits nothing by itself."""
    options = {"auto_offset_reset": "earliest", "enable_auto_commit": False} | options
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, metadata_max_age_ms=1000, **options
    ) as consumer:
        yield consumer


async def send(producer: AIOKafkaProducer, topic: str, values: list[bytes]) -> None:
    """Send values, each with itself as key, and wait until all are acknowledged."""
    sent = [await producer.send(topic, value, key=value) for value in values]
    await asyncio.wait_for(asyncio.gather(*sent), ANSWER_S)


async def receive(consumer: AIOKafkaConsumer, count: int) -> list[bytes]:
    """Return the values of so many messages, sorted, or fewer if no more came."""
    values: list[bytes] = []
    try:
        async with asyncio.timeout(ANSWER_S):
            while len(values) < count:
                polled = await consumer.getmany(timeout_ms=200)
                values += [m.value for messages in polled.values() for m in messages]
    except TimeoutError:
        pass
    return sorted(values)


def numbered(count: int, start: int = 0) -> list[bytes]:
    """Return values that sort as they were made."""
    return [b"%06d" % number for number in range(start, start + count)]

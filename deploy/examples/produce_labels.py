"""Send labels to Baton through Kafka, with nothing but aiokafka.

    python produce_labels.py BROKERS TOPIC < labels.jsonl

A line is a JSON object: {"prediction_id": "...", "value": "up"}, or, where the gateway
has feedback.by_request_id, {"model": "m", "request_id": "order-17", "value": "up"}. The
record's key has to be the prediction id, or "/<model>/<request id>", hashed by Kafka's
default partitioner, or label and prediction never meet. (Producers on librdkafka must
be told: ``partitioner=murmur2_random``.) A record with the key and no value takes back
every label of that prediction that came before it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer


def key_of(label: dict[str, Any]) -> str:
    """Return the key under which a label belongs into the topic."""
    if "request_id" in label:
        # The first part is for tenants, of which there are none yet.
        return f"/{label['model']}/{label['request_id']}"
    return str(label["prediction_id"])


async def produce(brokers: str, topic: str, lines: Iterable[str]) -> int:
    """Send a label per line; return how many, once the brokers have them all."""
    producer = AIOKafkaProducer(
        bootstrap_servers=brokers, enable_idempotence=True, acks="all", linger_ms=5
    )
    await producer.start()
    count = 0
    try:
        for line in lines:
            label = json.loads(line)
            # The same label again has the same id, and counts once.
            event_id = hashlib.sha256(line.strip().encode()).hexdigest()[:32]
            headers = {
                "ce_specversion": "1.0",
                "ce_id": event_id,
                "ce_source": "produce_labels",
                "ce_type": "baton.label.v1",
                "ce_time": datetime.now(UTC).isoformat(),
                "content-type": "application/json",
            }
            await producer.send(
                topic,
                json.dumps(label).encode(),
                key=key_of(label).encode(),
                headers=[(name, value.encode()) for name, value in headers.items()],
            )
            count += 1
        await producer.flush()
    finally:
        await producer.stop()
    return count


if __name__ == "__main__":
    print(asyncio.run(produce(sys.argv[1], sys.argv[2], sys.stdin)), "labels sent")

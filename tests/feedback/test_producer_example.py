"""The example for label producers, on a real broker, read as the gateway reads it."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from uuid import uuid4

from deploy.kafka.broker import Cluster
from gateway.feedback.cloudevents import decode
from gateway.feedback.kafka import KafkaLog
from gateway.feedback.log import LABELS
from gateway.feedback.partition import partition_of
from tests.feedback.test_contract import PARTITIONS, config_of

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "produce_labels.py"


async def test_its_labels_arrive_where_they_belong(real_kafka: Cluster) -> None:
    config = config_of(real_kafka)
    log = await KafkaLog.open(config, PARTITIONS)
    ids = [str(uuid4()) for _ in range(20)]
    lines = [json.dumps({"prediction_id": one, "value": "up"}) for one in ids[1:]]
    lines += [json.dumps({"model": "m", "request_id": ids[0], "value": "up"})]
    brokers, topic = ",".join(config.bootstrap_servers), config.topic_prefix + LABELS
    command = [sys.executable, str(EXAMPLE), brokers, topic]
    try:
        example = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        async with asyncio.timeout(60):
            out, errors = await example.communicate("\n".join(lines).encode())
        assert (example.returncode, out) == (0, b"20 labels sent\n"), errors
        found = []
        for partition in range(PARTITIONS):
            found += await log.read(LABELS, partition, 0, 100)
    finally:
        await log.close()
    assert {one.event.key.decode() for one in found} == {f"/m/{ids[0]}", *ids[1:]}
    for one in found:
        assert one.partition == partition_of(one.event.key, PARTITIONS)
        assert decode(one.event, 65_536).value == "up"

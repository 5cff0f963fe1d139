"""The event log on Kafka: topics that are checked, appends that are acknowledged.

Delivery is at least once: whoever reads knows by ids what it has already. See
`kafka_consumer` for reading in a group.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
    for_code,
)

from gateway.errors import Code, GatewayError
from gateway.feedback.kafka_consumer import KafkaConsumer
from gateway.feedback.log import (
    LABELS,
    PREDICTIONS,
    TOPICS,
    EventsRefused,
    Extent,
    LogUnavailable,
)
from gateway.feedback.types import Event, Stored
from gateway.feedback_config import KafkaConfig
from gateway.logs import get_logger

_log = get_logger("event_log")

_LOOKS, _LOOK_S = 100, 0.1
"""How often, and after what pause, topics that were just made are looked at."""
_REQUEST_MS = 20_000
"""How long the brokers may take for a request."""
_MAX_EVENT = 8 << 20
"""Bytes of an event: blocks of predictions are far below."""
_TOPIC_SETTINGS = {"message.timestamp.type": "LogAppendTime"}
"""The broker's time decides what came in time: a producer's clock may be wrong."""


class LogUnfit(GatewayError):
    """The topics are not as the join needs them; the message says what to do."""

    code = Code.FAILED_PRECONDITION
    label = "log_unfit"


class KafkaLog:
    """The event log on Kafka; use `open`.

    Args:
        config: Where the brokers are.
        partitions: Of every topic.
    """

    def __init__(self, config: KafkaConfig, partitions: int) -> None:
        self.config = config
        self.partitions = partitions
        self._access = access(config)
        self._producer = AIOKafkaProducer(
            **self._access,
            enable_idempotence=True,
            max_request_size=_MAX_EVENT,
            request_timeout_ms=_REQUEST_MS,
            compression_type="gzip",
            linger_ms=5,
        )
        self._reader = AIOKafkaConsumer(
            **self._access,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=_MAX_EVENT,
            request_timeout_ms=_REQUEST_MS,
        )
        self._reading = asyncio.Lock()

    @classmethod
    async def open(cls, config: KafkaConfig, partitions: int) -> KafkaLog:
        """Connect, make topics that are missing, and check those that are there.

        Raises:
            LogUnavailable: The brokers cannot be reached.
            LogUnfit: A topic has another number of partitions.
        """
        log = cls(config, partitions)
        try:
            await _ensure_topics(config, log._access, partitions)
            await log._producer.start()
            await log._reader.start()
        except KafkaError as error:
            await log.close()
            brokers = ",".join(config.bootstrap_servers)
            raise LogUnavailable(f"Kafka at {brokers}: {_said(error)}") from error
        except BaseException:
            await log.close()
            raise
        return log

    async def append(self, topic: str, partition: int, events: Sequence[Event]) -> None:
        """Add events; see `gateway.feedback.log.EventLog`."""
        name = self.config.topic_prefix + topic
        try:
            sent = [
                await self._producer.send(
                    name,
                    event.value,
                    # A tombstone needs a key that is there.
                    event.key if event.key or event.value is None else None,
                    partition,
                    event.time_ms or None,
                    list(event.headers),
                )
                for event in events
            ]
            await asyncio.gather(*sent)
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            nbytes = max(len(event.value or b"") for event in events)
            raise EventsRefused(
                f"Kafka takes no event of {nbytes} bytes: raise max.message.bytes of "
                f"topic {name}"
            ) from error
        except KafkaError as error:
            raise LogUnavailable(f"Kafka took not all of it: {_said(error)}") from error

    async def read(
        self, topic: str, partition: int, offset: int, most: int
    ) -> Sequence[Stored]:
        """Return events from `offset` on, outside of any group."""
        place = TopicPartition(self.config.topic_prefix + topic, partition)
        found: list[Stored] = []
        async with self._reading:
            try:
                start, end = await self._extent(place)
                offset = max(offset, start)
                self._reader.assign([place])
                self._reader.seek(place, offset)
                while offset < end and len(found) < most:
                    records = await self._reader.getmany(
                        place, timeout_ms=1000, max_records=most - len(found)
                    )
                    found += [
                        stored_from(topic, record) for record in records.get(place, ())
                    ]
                    # What is not an event (a transaction's marker) counts as read.
                    offset = await self._reader.position(place)
            except KafkaError as error:
                raise LogUnavailable(f"Kafka: {_said(error)}") from error
        return found

    async def extent(self, topic: str, partition: int) -> Extent:
        """Return what a partition holds now."""
        place = TopicPartition(self.config.topic_prefix + topic, partition)
        try:
            return await self._extent(place)
        except KafkaError as error:
            raise LogUnavailable(f"Kafka: {_said(error)}") from error

    async def _extent(self, place: TopicPartition) -> Extent:
        start = (await self._reader.beginning_offsets([place]))[place]
        end = (await self._reader.end_offsets([place]))[place]
        return Extent(start, end)

    def consumer(self, group: str) -> KafkaConsumer:
        """Return a consumer in a group of its own name within the configured one."""
        return KafkaConsumer(self.config, self._access, f"{self.config.group}-{group}")

    async def close(self) -> None:
        """Send what waits, and disconnect."""
        await self._producer.stop()
        await self._reader.stop()


def access(config: KafkaConfig) -> dict[str, Any]:
    """Return the arguments of every client: where the brokers are, and who asks."""
    found: dict[str, Any] = {
        "bootstrap_servers": list(config.bootstrap_servers),
        "security_protocol": config.security,
    }
    if config.security.endswith("SSL"):
        context = ssl.create_default_context(cafile=config.ca)
        if config.certificate is not None:
            context.load_cert_chain(config.certificate, config.key)
        found["ssl_context"] = context
    if config.security.startswith("SASL") and config.password_file is not None:
        found["sasl_mechanism"] = config.sasl_mechanism
        found["sasl_plain_username"] = config.username
        found["sasl_plain_password"] = config.password_file.read_text("utf-8").strip()
    return found


def stored_from(topic: str, record: ConsumerRecord[bytes, bytes]) -> Stored:
    """Return what Kafka gave as an event of the log."""
    event = Event(
        record.key or b"", record.value, tuple(record.headers), record.timestamp
    )
    return Stored(topic, record.partition, record.offset, record.timestamp, event)


async def _ensure_topics(
    config: KafkaConfig, access: dict[str, Any], partitions: int
) -> None:
    admin = AIOKafkaAdminClient(**access, request_timeout_ms=_REQUEST_MS)
    try:
        await admin.start()
        names = [config.topic_prefix + topic for topic in TOPICS]
        there = set(await admin.list_topics())
        missing = [
            NewTopic(
                name, partitions, config.replication, topic_configs=_TOPIC_SETTINGS
            )
            for name in names
            if name not in there
        ]
        if missing:
            response = await admin.create_topics(missing)
            for name, code, *_ in response.topic_errors:
                if code not in {0, TopicAlreadyExistsError.errno}:
                    raise LogUnfit(
                        f"topic {name} is missing and could not be made: "
                        f"{for_code(code).__name__}; make it with {partitions} "
                        "partitions and message.timestamp.type=LogAppendTime"
                    )
                _log.info("topic_made", topic=name, partitions=partitions)
        await _check_sizes(config, admin, partitions)
    finally:
        await admin.close()


async def _check_sizes(
    config: KafkaConfig, admin: AIOKafkaAdminClient, partitions: int
) -> None:
    together = [config.topic_prefix + topic for topic in (PREDICTIONS, LABELS)]
    for _ in range(_LOOKS):
        described = await admin.describe_topics(together)
        sizes = {each["topic"]: len(each["partitions"]) for each in described}
        for name, found in sizes.items():
            if found not in {0, partitions}:
                raise LogUnfit(
                    f"topic {name} has {found} partitions and feedback.partitions says "
                    f"{partitions}: labels would not meet their predictions. Give both "
                    "topics the same number, and say it"
                )
        if all(sizes.values()):
            return
        await asyncio.sleep(_LOOK_S)  # not every broker knows a topic at once
    names = ", ".join(name for name, found in sizes.items() if not found)
    raise LogUnavailable(f"Kafka does not say how large its topics are: {names}")


def _said(error: KafkaError) -> str:
    return str(error) or type(error).__name__

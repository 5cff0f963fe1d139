"""The mock cluster of librdkafka, for machines without Java.

It speaks the protocol over real sockets and keeps messages in memory. No CreateTopics
(topics come into being when first used, with four partitions), no SASL, no retention,
timestamps of its own, and no two aiokafka members in one group; what needs those asks
for `real_kafka`. The interface, `rdkafka_mock.h`, is experimental for librdkafka.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Self

import confluent_kafka

_PRODUCER = 0  # rd_kafka_type_t: only a host for the mock
OFFSET_COMMIT, NOT_COORDINATOR = 8, 16  # of the Kafka protocol


class MiniCluster:
    """Brokers 1 to `nodes` in this process, as threads of librdkafka."""

    def __init__(self, nodes: int = 1) -> None:
        self._nodes = nodes
        self._library = _load()

    def __enter__(self) -> Self:
        reason = ctypes.create_string_buffer(512)
        conf = self._library.rd_kafka_conf_new()
        self._host = self._library.rd_kafka_new(_PRODUCER, conf, reason, 512)
        assert self._host, reason.value.decode()
        self._mock = self._library.rd_kafka_mock_cluster_new(self._host, self._nodes)
        return self

    def __exit__(self, *_: object) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._mock)
        self._library.rd_kafka_destroy(self._host)

    @property
    def bootstrap(self) -> str:
        return self._library.rd_kafka_mock_cluster_bootstraps(self._mock).decode()

    def kill(self, *nodes: int) -> None:
        """Close the connections of these brokers, and refuse new ones."""
        for node in nodes:
            assert not self._library.rd_kafka_mock_broker_set_down(self._mock, node)

    def start(self, *nodes: int) -> None:
        """Let these brokers answer again, with the messages they had."""
        for node in nodes:
            assert not self._library.rd_kafka_mock_broker_set_up(self._mock, node)

    def fail_next(self, request: int, *errors: int) -> None:
        """Answer the next requests of this kind (an API key) with these errors."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._mock, request, len(errors), codes
        )


def _load() -> ctypes.CDLL:
    """Load the librdkafka of the wheel of confluent-kafka."""
    assert confluent_kafka.__file__ is not None
    wheel = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(wheel.glob("librdkafka*"))))
    pointer, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    for name, result, *arguments in (
        ("conf_new", pointer),
        ("new", pointer, ctypes.c_int, pointer, text, ctypes.c_size_t),
        ("destroy", None, pointer),
        ("mock_cluster_new", pointer, pointer, ctypes.c_int),
        ("mock_cluster_destroy", None, pointer),
        ("mock_cluster_bootstraps", text, pointer),
        ("mock_broker_set_down", ctypes.c_int, pointer, number),
        ("mock_broker_set_up", ctypes.c_int, pointer, number),
        (
            "mock_push_request_errors_array",
            None,
            pointer,
            ctypes.c_int16,
            ctypes.c_size_t,
            pointer,
        ),
    ):
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library

"""Keys go where Kafka's own clients would send them."""

from __future__ import annotations

import numpy as np
from aiokafka.partitioner import murmur2 as theirs
from hypothesis import given
from hypothesis import strategies as st

from gateway.feedback.partition import murmur2, partition_of, partitions_of

# Utils.murmur2 as Kafka's own UtilsTest.testMurmur2 states it (signed there).
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def test_hashes_are_those_of_kafkas_own_tests() -> None:
    for key, hashed in JAVA.items():
        found = murmur2(np.frombuffer(key, np.uint8).reshape(1, -1))
        assert int(found.view(np.int32)[0]) == hashed


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 64))
def test_keys_go_where_aiokafka_sends_them(keys: list[bytes], partitions: int) -> None:
    expected = [(theirs(key) & 0x7FFFFFFF) % partitions for key in keys]
    assert partitions_of(keys, partitions) == expected
    assert [partition_of(key, partitions) for key in keys] == expected

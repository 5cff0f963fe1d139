"""Which partition a key belongs to: as Kafka's own clients decide it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

_SEED = 0x9747B28C
_M = np.uint32(0x5BD1E995)
_R = np.uint32(24)


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of one key; for many, `partitions_of` is cheaper each."""
    return partitions_of([key], partitions)[0]


def partitions_of(keys: Sequence[bytes], partitions: int) -> list[int]:
    """Return the partition of each key.

    Args:
        keys: Of any lengths, also empty; many of one length are hashed together.
        partitions: Of the topic, at least 1.

    Returns:
        ``(murmur2(key) & 0x7fffffff) % partitions``, as Kafka's default partitioner
        (org.apache.kafka.common.utils.Utils.murmur2, BuiltInPartitioner) and aiokafka's
        do. Producers on librdkafka have to be told: ``partitioner=murmur2_random``.
    """
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        by_length[len(key)].append(place)
    found = [0] * len(keys)
    for length, places in by_length.items():
        joined = b"".join([keys[place] for place in places])
        table = np.frombuffer(joined, np.uint8).reshape(len(places), length)
        hashes = murmur2(table) & np.uint32(0x7FFFFFFF)
        for place, partition in zip(
            places, (hashes % np.uint32(partitions)).tolist(), strict=True
        ):
            found[place] = partition
    return found


def murmur2(keys: np.ndarray) -> np.ndarray:
    """Return the hashes of keys of one length.

    Args:
        keys: uint8 of shape (keys, length).

    Returns:
        uint32 of shape (keys,). Arithmetic wraps at 32 bits, as Java's does.
    """
    count, length = keys.shape
    hashes = np.full(count, _SEED ^ length, np.uint32)
    whole = length // 4
    words = np.ascontiguousarray(keys[:, : whole * 4]).view("<u4").T.copy()
    words *= _M
    words ^= words >> _R
    words *= _M
    for word in words:
        hashes *= _M
        hashes ^= word
    tail = keys[:, whole * 4 :].astype(np.uint32)
    if tail.shape[1]:
        for place in range(tail.shape[1]):
            hashes ^= tail[:, place] << np.uint32(8 * place)
        hashes *= _M
    hashes ^= hashes >> np.uint32(13)
    hashes *= _M
    hashes ^= hashes >> np.uint32(15)
    return hashes

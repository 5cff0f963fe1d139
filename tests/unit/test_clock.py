"""Prediction ids: UUIDs of version 7, in the order they were minted."""

from __future__ import annotations

import time
import uuid

from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import PredictionIds, now_ns, uuid7

milliseconds = st.integers(0, 2**48 - 1)
randoms = st.binary(min_size=10, max_size=10)


@given(milliseconds, randoms)
def test_the_layout_is_that_of_rfc_9562(unix_ms: int, random: bytes) -> None:
    text = uuid7(unix_ms, random)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == unix_ms


@given(milliseconds, randoms, randoms)
def test_all_74_random_bits_are_used(unix_ms: int, one: bytes, two: bytes) -> None:
    mask = bytes([0x0F, 0xFF, 0x3F]) + bytes([0xFF]) * 7
    used = [bytes(a & b for a, b in zip(r, mask, strict=True)) for r in (one, two)]
    assert (uuid7(unix_ms, one) == uuid7(unix_ms, two)) == (used[0] == used[1])


@given(milliseconds, milliseconds, randoms, randoms)
def test_later_milliseconds_sort_later(
    first: int, second: int, one: bytes, two: bytes
) -> None:
    if first < second:
        assert uuid7(first, one) < uuid7(second, two)


def test_the_example_of_the_rfc() -> None:
    random = bytes([0x0C, 0xC3, 0x18, 0xC4, 0xDC, 0x0C, 0x0C, 0x07, 0x39, 0x8F])
    minted = uuid7(0x017F22E279B0, random)
    assert minted == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_minted_ids_are_distinct_and_of_now() -> None:
    ids = PredictionIds()
    before = time.time_ns() // 1_000_000
    minted = [ids.mint() for _ in range(2000)]  # several blocks of random bytes
    after = time.time_ns() // 1_000_000
    assert len(set(minted)) == len(minted)
    stamps = [uuid.UUID(text).int >> 80 for text in minted]
    assert before <= stamps[0]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= after


def test_the_clock_never_goes_back() -> None:
    readings = [now_ns() for _ in range(1000)]
    assert readings == sorted(readings)

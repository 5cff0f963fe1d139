"""Prediction ids: UUIDs of version 7, in the order they were minted."""

from __future__ import annotations

import time
import uuid

from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import PredictionIds, now_ns, suffixes, time_part

milliseconds = st.integers(0, 2**48 - 1)
randoms = st.binary(min_size=10, max_size=10)


def uuid7(unix_ms: int, random: bytes) -> str:
    """Return the id of a millisecond and ten random bytes."""
    return (time_part(unix_ms) + suffixes(random)).decode("ascii")


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
    mask = bytes([0xFF]) * 9 + bytes([0x30])
    used = [bytes(a & b for a, b in zip(r, mask, strict=True)) for r in (one, two)]
    assert (uuid7(unix_ms, one) == uuid7(unix_ms, two)) == (used[0] == used[1])


@given(milliseconds, milliseconds, randoms, randoms)
def test_later_milliseconds_sort_later(
    first: int, second: int, one: bytes, two: bytes
) -> None:
    if first < second:
        assert uuid7(first, one) < uuid7(second, two)


@given(st.lists(randoms, max_size=5))
def test_many_at_a_time_are_those_one_at_a_time(blocks: list[bytes]) -> None:
    assert suffixes(b"".join(blocks)) == b"".join(map(suffixes, blocks))


def test_the_example_of_the_rfc() -> None:
    random = bytes.fromhex("CC3 8C4 DC0C0C07398F 1 0".replace(" ", ""))
    minted = uuid7(0x017F22E279B0, random)
    assert minted == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_minted_ids_are_distinct_and_of_now() -> None:
    ids = PredictionIds()
    before = time.time_ns() // 1_000_000
    # Several blocks of random bytes.
    minted = [ids.mint().decode("ascii") for _ in range(2000)]
    after = time.time_ns() // 1_000_000
    assert len(set(minted)) == len(minted)
    assert [str(uuid.UUID(text)) for text in minted] == minted
    stamps = [uuid.UUID(text).int >> 80 for text in minted]
    assert before <= stamps[0]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= after


def test_the_clock_never_goes_back() -> None:
    readings = [now_ns() for _ in range(1000)]
    assert readings == sorted(readings)

"""Requests as bytes, sending under flow control, arrivals: the pure parts."""

from __future__ import annotations

import itertools

import hpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadtest import arrivals
from loadtest.answers import Answers, Undecodable
from loadtest.arrivals import Stretch
from loadtest.outgoing import DEFAULT_WINDOW, Outgoing
from loadtest.requests import VARIED, Request, frame_head, timeout

PATH = "/test.Service/Call"


def decoded(request: Request, calls: int) -> list[dict[str, str]]:
    """Decode the header blocks of one connection."""
    decoder = hpack.Decoder()
    blocks = itertools.islice(request.sequence(), calls)
    return [dict(decoder.decode(block)) for _, block in blocks]


def test_later_calls_name_the_headers_of_the_first() -> None:
    request = Request("host:1", PATH, b"", deadline_us=250_000)
    found = decoded(request, 5)
    assert all(each == found[0] for each in found)
    assert found[0][":path"] == PATH
    assert found[0]["grpc-timeout"] == "250000u"
    sizes = [len(block) for _, block in itertools.islice(request.sequence(), 3)]
    assert sizes[0] > 50
    assert sizes[1] == sizes[2] == len(found[0])  # a byte for each


def test_varied_time_limits_are_new_each_time_and_decode_for_ever() -> None:
    request = Request("host:1", PATH, b"", deadline_us=1_000_000, varied=True)
    found = decoded(request, 3 * VARIED)
    limits = [each["grpc-timeout"] for each in found]
    assert len(set(limits[:VARIED])) == VARIED
    assert limits[VARIED:] == limits[: 2 * VARIED]
    assert {each[":path"] for each in found} == {PATH}
    assert min(int(each[:-1]) for each in limits) > 990_000


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(1, "1u"), (99_999_999, "99999999u"), (100_000_000, "100000m")],
)
def test_time_limits_have_eight_digits_at_most(microseconds: int, text: str) -> None:
    assert timeout(microseconds) == text


def test_a_time_limit_of_centuries_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        timeout(10**15)


@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=6),
    room=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 70_000)), max_size=40),
)
def test_what_is_sent_fits_the_windows_and_is_whole(
    sizes: list[int], room: list[tuple[int, int]]
) -> None:
    out = Outgoing()
    bodies = {2 * n + 1: bytes([n]) * size for n, size in enumerate(sizes)}
    window = {0: DEFAULT_WINDOW} | dict.fromkeys(bodies, DEFAULT_WINDOW)
    for stream, body in bodies.items():
        out.open(stream)
        out.send(stream, body, ends=True)
    for number, size in room:
        stream = 0 if number == 0 else 2 * number - 1
        if stream in window:
            window[stream] += size
        out.more(stream, size)
    partly = sent(out)
    assert sum(len(body) for body, _ in partly.values()) <= window[0]
    for stream, (body, ended) in partly.items():
        assert len(body) <= window[stream]
        assert bodies[stream].startswith(body)
        assert ended == (body == bodies[stream])
    out.more(0, 2**30)
    for stream in bodies:
        out.more(stream, 2**30)
    assert {s: body for s, (body, _) in sent(out).items()} == bodies
    assert not out.streams


def sent(out: Outgoing) -> dict[int, tuple[bytes, bool]]:
    """Return what went out by stream, and whether it ended."""
    found: dict[int, tuple[bytes, bool]] = {}
    pieces = iter(out.out)
    for head, stream, payload in zip(pieces, pieces, pieces, strict=True):
        assert len(payload) <= 16_384
        assert bytes(head)[:3] == len(payload).to_bytes(3, "big")
        number = int.from_bytes(stream, "big")
        body, ended = found.get(number, (b"", False))
        assert not ended
        found[number] = (body + bytes(payload), bool(bytes(head)[4] & 1))
    return found


def test_a_smaller_window_of_streams_holds_for_those_that_are_open() -> None:
    out = Outgoing()
    out.open(1)
    out.send(1, bytes(60_000), ends=False)
    out.resize(10_000)
    out.out.clear()
    out.send(1, bytes(10), ends=False)
    assert out.out == []
    out.more(1, 50_010)
    assert out.out[0] == frame_head(0, 0, 10)


def test_known_blocks_are_forgotten_when_the_table_changes() -> None:
    answers, encoder = Answers(), hpack.Encoder()
    good = [("grpc-status", "0")]
    assert answers.status(encoder.encode(good)) == "OK"
    assert answers.known == {}  # that block changed the table
    again = encoder.encode(good)
    assert answers.status(again) == "OK"
    assert answers.known == {again: "OK"}
    assert answers.status(encoder.encode([("grpc-status", "14")])) == "UNAVAILABLE"
    assert answers.known == {}
    shifted = encoder.encode(good)
    assert shifted != again  # the same bytes mean something else now
    assert answers.status(shifted) == "OK"


def test_blocks_without_a_status() -> None:
    answers = Answers()
    assert answers.status(b"\x88") is None  # 200
    assert answers.status(b"\x8e") == "HTTP_500"
    assert answers.status(hpack.Encoder().encode([("grpc-status", "x")])) == "UNKNOWN"
    with pytest.raises(Undecodable):
        answers.status(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")


def all_times(
    schedule: list[Stretch], *, poisson: bool, seed: int = 0
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.concatenate(list(arrivals.times(schedule, poisson=poisson, seed=seed)))


def test_constant_arrivals_are_even() -> None:
    found = all_times([Stretch(3.0, 1000, 1000)], poisson=False)
    assert len(found) == 3000
    assert np.array_equal(found, np.arange(1, 3001) * 1_000_000)


def test_a_ramp_makes_the_calls_of_its_mean_rate() -> None:
    schedule = [Stretch(2.0, 0, 1000), Stretch(1.0, 1000, 1000), Stretch(2.0, 500, 0)]
    found = all_times(schedule, poisson=False)
    assert len(found) == arrivals.offered(schedule) == 2500
    assert np.all(np.diff(found) > 0)
    by_second = np.histogram(found / 1e9, bins=[0, 1, 2, 3, 4, 5])[0]
    assert by_second == pytest.approx([250, 750, 1000, 375, 125], abs=1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_poisson_arrivals_have_exponential_distances(seed: int) -> None:
    """Kolmogorov-Smirnov at 0.1 %: seeds are fixed, so that it holds or not."""
    found = all_times([Stretch(10.0, 2000, 2000)], poisson=True, seed=seed)
    assert len(found) == pytest.approx(20_000, abs=4 * 20_000**0.5)
    distances = np.diff(found) / 1e9
    assert stats.kstest(distances, stats.expon(scale=1 / 2000).cdf).pvalue > 0.001


def test_poisson_arrivals_of_a_ramp_follow_its_rate() -> None:
    """In rescaled time L(t) = 100 t^2 the arrivals are uniform."""
    found = all_times([Stretch(10.0, 0, 2000)], poisson=True, seed=4) / 1e9
    assert stats.kstest((found / 10) ** 2, "uniform").pvalue > 0.001


def test_a_seed_says_all() -> None:
    schedule = [Stretch(1.0, 100, 200)]
    first, second = (all_times(schedule, poisson=True, seed=7) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_schedule_of_nothing_has_no_calls() -> None:
    assert list(arrivals.times([Stretch(1.0, 0, 0)], poisson=False, seed=0)) == []

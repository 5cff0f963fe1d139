"""Requests written frame by frame get the same answer from both transports."""

from __future__ import annotations

import json
from base64 import b64encode
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.differential.differences import DIFFERENCES, SILENT, known
from tests.differential.raw import WAIT_S, Answer, data, exchange, headers, message
from tests.differential.requests import ECHO, REQUESTS, STREAM
from tests.differential.seam import Side
from tests.differential.test_clients import CANCELLED, LOST

SILENCE_S = 0.3
"""How long to wait where no answer is expected."""
Sides = tuple[Side, Side]
drawn = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("case", REQUESTS)
def test_both_transports_answer_alike(sides: Sides, case: str) -> None:
    pieces, entry = REQUESTS[case], known(case)
    quiet = entry is not None and SILENT in entry.grpcio
    own = exchange(sides[0].port, pieces)
    other = exchange(sides[1].port, pieces, SILENCE_S if quiet else WAIT_S)
    shown = f"own: {own.line()}\ngrpcio: {other.line()}\nknown: {entry}"
    assert (own == other) == (entry is None), shown
    assert entry is None or entry.explains(own.line(), other.line()), shown


def test_every_difference_shows() -> None:
    seen = [known(case) for case in (*REQUESTS, CANCELLED, LOST)]
    assert [entry for entry in DIFFERENCES if entry not in seen] == []


def both(sides: Sides, pieces: list[bytes]) -> Answer:
    own, other = (exchange(side.port, pieces) for side in sides)
    assert own == other
    return own


@drawn
@given(
    body=st.lists(st.binary(max_size=200), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    ended=st.booleans(),
)
def test_messages_come_whole_however_they_are_cut(
    sides: Sides, body: list[bytes], cuts: list[int], ended: bool
) -> None:
    whole = b"".join(message(b"." + part) for part in body)
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    chunks = [whole[a:b] for a, b in pairwise(edges)]
    last = [] if ended else data(b"")
    answer = both(sides, [headers(STREAM), *data(*chunks, end=ended), *last])
    assert answer.messages == tuple(b"\0." + part for part in body)


@drawn
@given(text=st.text(max_size=400), code=st.integers(1, 16))
def test_error_messages_of_any_text(sides: Sides, text: str, code: int) -> None:
    spec = json.dumps({"code": code, "text": text}).encode()
    answer = both(sides, [headers("/test.S/Fail"), *data(message(spec))])
    assert answer.code == code
    assert text.startswith(answer.text[:300])


visible = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)


@drawn
@given(texts=st.lists(visible, max_size=4), binaries=st.lists(st.binary(max_size=40)))
def test_metadata_of_any_value(
    sides: Sides, texts: list[str], binaries: list[bytes]
) -> None:
    fields: list[tuple[str, str | bytes]] = [("x-a", text) for text in texts]
    fields += [("x-a-bin", b64encode(part).rstrip(b"=")) for part in binaries]
    head = headers("/test.S/Headers", *fields)
    answer = both(sides, [head, *data(message(b"x-a x-a-bin x-none"))])
    first = [texts[0] if texts else None, binaries[0] if binaries else None, None]
    assert answer.messages == (b"\0" + repr(first).encode(),)


@drawn
@given(sent=st.binary(max_size=2000))
def test_any_message_comes_back(sides: Sides, sent: bytes) -> None:
    assert both(sides, [headers(ECHO), *data(message(sent))]).messages == (
        b"\0" + sent,
    )

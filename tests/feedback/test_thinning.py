"""More requests than may be pending: a sample of them, which weighs more."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.shard import Shard
from gateway.feedback.thinning import MOST_HALVINGS, Thinning
from tests.feedback import histories
from tests.feedback.histories import T0, config_of
from tests.feedback.test_shard import END

RATE = 1000  # requests a step, which each stay for ten


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(0, 1 << 30))
def test_it_never_fills_and_opens_again(rates: list[int], seed: int) -> None:
    """Whatever comes in a step, there is room for half of what there is room for."""
    rng = random.Random(seed)
    thinning, let_in, most = Thinning(), [0] * 10, 6000
    for step, rate in enumerate([*rates, *[0] * 200]):
        now_ms = T0 + step * 1000
        made = [histories.id_of(now_ms, rng.getrandbits(63)) for _ in range(rate)]
        some = sum(map(thinning.lets_in, made))
        let_in = [*let_in[1:], some]
        thinning = thinning.after(sum(let_in), most, now_ms + 1, now_ms - 10_000)
        assert all(times <= MOST_HALVINGS for _, times in thinning.regimes)
    assert not thinning.regimes


def test_a_steady_stream_settles_below_the_bound_and_weighs_what_it_was() -> None:
    rng, most = random.Random(1), 6000
    thinning, kept, weights = Thinning(), [], 0.0
    for step in range(400):
        now_ms = T0 + step * 1000
        made = [histories.id_of(now_ms, rng.getrandbits(63)) for _ in range(RATE)]
        some = [key for key in made if thinning.lets_in(key)]
        weights += sum(1 / thinning.share_of(key) for key in some)
        kept = [*kept, len(some)][-10:]
        assert sum(kept) < most
        thinning = thinning.after(sum(kept), most, now_ms + 1, now_ms - 10_000)
    assert abs(weights / (400 * RATE) - 1) < 0.02
    assert sum(kept) > most / 3
    assert len(thinning.regimes) < 30


def test_a_request_stays_in_or_out_when_the_sample_changes() -> None:
    rng = random.Random(2)
    early = Thinning([(T0, 1)])
    later = Thinning([(T0, 1), (T0 + 500, 3), (T0 + 900, 0)])
    for _ in range(1000):
        key = histories.id_of(T0 + rng.randrange(500), rng.getrandbits(63))
        assert early.lets_in(key) == later.lets_in(key)
        assert later.share_of(key) == 0.5
    assert later.share_of(histories.id_of(T0 - 1, 1)) == 1
    assert later.share_of(histories.id_of(T0 + 600, 1)) == 0.125
    assert later.share_of(histories.id_of(T0 + 900, 1)) == 1


def test_a_partition_that_fills_takes_a_sample_and_knows_the_others(
    tmp_path: Path,
) -> None:
    config = config_of(window_s=1000).model_copy(update={"max_pending": 2000})
    shard, rng = Shard(tmp_path / "0.db", 0, config), random.Random(3)
    ids = []
    for step in range(40):
        at = T0 + 10_000 * step
        made = [
            histories.prediction(rng.getrandbits(62), at, rows=1 + n % 50 // 49)
            for n in range(150)
        ]
        ids += [one.id for one in made]
        shard.apply([(histories.stored(PREDICTIONS, step, at), histories.block(made))])
        shard.thin(shard.gauges().pending)
        if step == 25:
            shard.close()
            shard = Shard(tmp_path / "0.db", 0, config)
    pending = shard.gauges().pending
    shed = shard.counts["predictions_shed"]
    assert pending < 2010
    assert pending + shed == 6000
    at = T0 + 410_000
    for offset, key in enumerate(ids):
        said, _ = histories.label(1.0)
        said = said._replace(prediction_id=key)
        shard.apply([(histories.stored(LABELS, offset, at), said)])
    assert shard.counts["labels_shed"] == shed
    assert shard.counts["applied"] == pending
    end = dict.fromkeys(END, T0 + 2_000_000)
    rows = []
    while some := list(shard.apply([], caught_up_ms=end)):
        rows += some
    assert all(row.status == "labelled" for row in rows if not row.row)
    weight = sum(row.weight for row in rows if not row.row)
    assert abs(weight / 6000 - 1) < 0.15
    assert not shard.outbox()
    shard.close()


def test_a_clock_that_is_ahead_is_thinned_as_any_other(tmp_path: Path) -> None:
    config = config_of(window_s=1000).model_copy(update={"max_pending": 100})
    shard = Shard(tmp_path / "0.db", 0, config)
    made = [histories.prediction(n, T0 + 60_000) for n in range(200)]
    shard.apply([(histories.stored(PREDICTIONS, 0, T0), histories.block(made))])
    shard.thin(shard.gauges().pending)
    for n in range(200):
        said, _ = histories.label(1.0, n, born_ms=T0 + 60_000)
        shard.apply([(histories.stored(LABELS, n, T0 + 100), said)])
    rows = list(shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 1_100_000)))
    assert [(row.status, row.weight) for row in rows] == [("labelled", 1.0)] * 200
    shard.close()


def test_rows_that_wait_to_be_emitted_weigh_what_they_did(tmp_path: Path) -> None:
    """Also where so many are due that a call emits but some of them."""
    shard = Shard(tmp_path / "0.db", 0, config_of())
    shard._requests.thinning = Thinning([(T0 - 1, 1), (T0 + 10**6, 0)])
    made = [histories.prediction(n, T0) for n in range(60_000)]
    kept = sum(shard._requests.thinning.lets_in(one.id) for one in made)
    for at in range(0, 60_000, 1000):
        block = histories.block(made[at : at + 1000])
        shard.apply([(histories.stored(PREDICTIONS, at, T0), block)])
    end, weights = dict.fromkeys(END, T0 + 10**7), []
    while rows := list(shard.apply([], caught_up_ms=end)):
        weights += [row.weight for row in rows]
        shard.thin(0)
    assert weights == [2.0] * kept
    shard.close()

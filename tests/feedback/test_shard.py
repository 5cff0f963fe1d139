"""A partition's join on disk: batches, crashes, replays and damage."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.pending import Effects
from gateway.feedback.shard import Input, Shard
from gateway.feedback.types import Label, Outcome, Prediction, Reason, Stored
from gateway.feedback_config import FeedbackConfig
from tests.feedback import histories
from tests.feedback.histories import T0, config_of, history, interleaved
from tests.feedback.oracle import expected
from tests.feedback.test_join import net_of

HISTORIES = int(os.environ.get("SHARD_HISTORIES", "20"))
"""How many; `make histories` sets more."""
FIRST = int(os.environ.get("SHARD_FIRST", "0"))
SEEDS = range(FIRST, FIRST + HISTORIES)
END = {PREDICTIONS: T0 + 1_000_000, LABELS: T0 + 1_000_000}


def inputs_of(events: Sequence[histories.Input]) -> list[Input]:
    return [
        (e, what if isinstance(what, Label) else histories.block([what]))
        for e, what in events
    ]


Event = tuple[Stored, list[Prediction] | Label]


def grouped(rng: random.Random, made: Sequence[histories.Input]) -> list[Event]:
    """Return the same events, some predictions together in a block, of two models."""
    events: list[Event] = []
    for stored, what in made:
        if isinstance(what, Label):
            events.append((stored, what))
            continue
        one = what._replace(model="mn"[what.id[-1] % 2])
        if events and isinstance(events[-1][1], list) and rng.random() < 0.6:
            events[-1][1].append(one)
        else:
            events.append((stored, [one]))
    return events


def flat(events: Sequence[Event]) -> list[histories.Input]:
    return [
        (stored, each)
        for stored, what in events
        for each in (what if isinstance(what, list) else [what])
    ]


def read(events: Sequence[Event]) -> list[Input]:
    return [
        (stored, what if isinstance(what, Label) else histories.block(what))
        for stored, what in events
    ]


def whole(outcomes: Iterable[Outcome]) -> Effects:
    return Effects(outcomes=list(outcomes))


def taken(
    path: Path, config: FeedbackConfig, inputs: Sequence[Input], rng: random.Random
) -> Shard:
    """Give a shard a history in batches, cut anywhere, again from any offset, and
    with the file closed and opened now and then."""
    most = rng.choice([1, 4, 9, len(inputs) + 1])
    shard, at = Shard(path, 0, config), 0
    while at < len(inputs):
        size = rng.randint(1, most)
        start = rng.randint(0, at) if rng.random() < 0.2 else at
        shard.apply(inputs[start : at + size])
        at += size
        if rng.random() < 0.2:
            shard.close()
            shard = Shard(path, 0, config)
    return shard


def test_whatever_batches_come_to_what_the_definition_says(tmp_path: Path) -> None:
    """And to the same state, bit by bit, however they were cut."""
    for seed in SEEDS:
        rng = random.Random(seed)
        config, made = history(rng)
        events = grouped(rng, made)
        prints = set()
        for turn in range(2):
            path = tmp_path / f"{turn}.db"
            inputs = read(interleaved(rng, events))
            shard = taken(path, config, inputs, rng)
            prints.add(shard.fingerprint())
            shard.apply([], caught_up_ms=END)
            rows = whole([row for _, row in shard.outcomes()])
            letters = [dead.letter for dead in shard.outbox()]
            dead = {f"{letter.stored.offset}:{letter.reason}" for letter in letters}
            assert (net_of(rows), dead) == expected(config, flat(events)), seed
            assert shard.gauges().pending == 0
            shard.close()
            path.unlink()
        assert len(prints) == 1, seed


CHILD = """
import sys
from pathlib import Path
from gateway.feedback.shard import Shard
from tests.feedback.test_shard import many
config, inputs = many()
shard = Shard(Path(sys.argv[1]), 0, config)
print("open", flush=True)
start = sum(shard.offsets.values())
for at in range(start, len(inputs), 50):
    shard.apply(inputs[at : at + 50])
    print(at, flush=True)
print("done", flush=True)
"""


def many() -> tuple[FeedbackConfig, list[Input]]:
    """Return predictions with a label each, for the child too."""
    config = config_of()
    made: list[histories.Input] = []
    for number in range(2000):
        at = T0 + number * 20
        one = histories.prediction(number, at)
        said, _ = histories.label(float(number), number, born_ms=at)
        made.append((histories.stored(PREDICTIONS, number, at), one))
        made.append((histories.stored(LABELS, number, at + 10), said))
    return config, inputs_of(made)


def test_killed_at_any_time_it_goes_on_from_the_last_transaction(
    tmp_path: Path,
) -> None:
    config, inputs = many()
    path, rng, kills = tmp_path / "0.db", random.Random(1), 0
    done = False
    while not done:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout is not None
        lines = rng.randint(1, 25)
        for _ in range(lines):
            line = child.stdout.readline()
            if done := line == "done\n":
                break
        # By now it is somewhere in its next transaction.
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        kills += not done
    assert kills > 2
    killed, plain = Shard(path, 0, config), Shard(tmp_path / "1.db", 0, config)
    plain.apply(inputs)
    assert killed.fingerprint() == plain.fingerprint()
    for shard in (killed, plain):
        shard.apply([], caught_up_ms=END)
    rows = [row for _, row in killed.outcomes(most=10_000)]
    assert len(rows) == 2000
    assert sorted(rows) == sorted(row for _, row in plain.outcomes(most=10_000))
    killed.close()
    plain.close()


def test_dead_letters_stay_until_they_are_sent(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "0.db", 0, config_of())
    said, at = histories.label(at=0)
    shard.apply([(histories.stored(LABELS, 0, at), said)])
    shard.apply([], caught_up_ms=END)
    shard.close()
    shard = Shard(tmp_path / "0.db", 0, config_of())
    (dead,) = shard.outbox()
    assert dead.letter.reason is Reason.ORPHAN
    assert shard.counts == {"dead_orphan": 1}
    shard.sent(dead.number)
    assert not shard.outbox()
    shard.close()


def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "0.db"
    path.write_bytes(b"not a database at all" * 400)
    shard = Shard(path, 0, config_of())
    assert shard.offsets == {}
    assert [p.name.startswith("0.damaged-") for p in tmp_path.glob("0.damaged*")] == [
        True
    ]
    shard.close()


def test_a_longer_window_holds_for_what_is_pending(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "0.db", 0, config_of())
    one = histories.prediction()
    shard.apply([(histories.stored(PREDICTIONS, 0, T0), histories.block([one]))])
    shard.close()
    shard = Shard(tmp_path / "0.db", 0, config_of(window_s=100))
    assert not shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 50_000))
    assert shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 100_001))
    shard.close()


def test_what_is_in_the_state_already_changes_nothing(tmp_path: Path) -> None:
    config, inputs = many()
    shard = Shard(tmp_path / "0.db", 0, config)
    shard.apply(inputs[:100])
    before = shard.fingerprint()
    shard.apply(inputs[20:100])
    assert shard.fingerprint() == before
    assert shard.counts == {"applied": 50}
    shard.close()


def test_a_batch_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "0.db", 0, config_of())
    good, bad = histories.prediction(1), histories.prediction(2)
    first = histories.stored(PREDICTIONS, 0, T0)
    both = histories.block([good, bad])
    said, at = histories.label()
    broken = said._replace(weight=object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unmarshallable"):
        shard.apply([(first, both), (histories.stored(LABELS, 0, at), broken)])
    assert (shard.gauges().pending, shard.offsets) == (0, {})
    shard.apply([(first, both)])
    shard.close()
    shard = Shard(tmp_path / "0.db", 0, config_of())
    assert len(shard.apply([], caught_up_ms=END)) == 2
    shard.close()


def heads_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        (count,) = db.execute("SELECT count(*) FROM heads").fetchone()
    return int(count)


def test_heads_that_no_request_has_are_dropped(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "0.db", 0, config_of(window_s=10, lateness_s=0))
    for batch in range(30):
        at, made = T0 + batch * 60_000, []
        for number in range(500):
            one = histories.prediction(number, at, rows=2)
            made.append(one._replace(segments=(f"{batch}-{number}",), snapshot=number))
        shard.apply([(histories.stored(PREDICTIONS, batch, at), histories.block(made))])
        assert heads_in(tmp_path / "0.db") <= 4096 + 500
        rows = shard.apply([], caught_up_ms=dict.fromkeys(END, at + 10_001))
        assert {row.segments[0] for row in rows} == {
            f"{batch}-{number}" for number in range(500)
        }
        if batch % 7 == 0:
            shard.close()
            shard = Shard(tmp_path / "0.db", 0, config_of(window_s=10, lateness_s=0))
    shard.close()


def test_what_policies_change_all_the_time_makes_no_heads(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "0.db", 0, config_of())
    made = [
        histories.prediction(n, rows=2)._replace(
            snapshot=n, revision=n, propensity=1 / (n + 1)
        )
        for n in range(100)
    ]
    shard.apply([(histories.stored(PREDICTIONS, 0, T0), histories.block(made))])
    assert heads_in(tmp_path / "0.db") == 2
    rows = shard.apply([], caught_up_ms=END)
    assert sorted((r.snapshot, r.revision, r.propensity) for r in rows) == [
        (n, n, 1 / (n + 1)) for n in range(100) for _ in range(2)
    ]
    shard.close()


def test_outcomes_keep_their_numbers(tmp_path: Path) -> None:
    config, inputs = many()
    shard = Shard(tmp_path / "0.db", 0, config)
    assert shard.span() == (1, 1)
    emitted = [*shard.apply(inputs), *shard.apply([], caught_up_ms=END)]
    numbered = shard.outcomes(most=10_000)
    assert [row for _, row in numbered] == emitted
    assert [number for number, _ in numbered] == list(range(1, 2001))
    assert shard.outcomes(after=730, most=600) == numbered[730:1330]
    assert shard.span() == (1, 2001)
    shard.trim(900)
    left = shard.outcomes(most=10_000)
    assert left == numbered[-len(left) :]
    assert 900 <= len(left) < 900 + 500
    assert shard.span() == (left[0][0], 2001)
    shard.close()


def test_each_label_finds_its_prediction_among_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.feedback.shard.MOST_CACHED", 300)
    rng, config = random.Random(4), config_of(window_s=60)
    made = [histories.prediction(n, T0 + 8 * n) for n in range(3000)]
    blocks: list[Event] = [
        (histories.stored(PREDICTIONS, at // 150, T0 + 8 * at), made[at : at + 150])
        for at in range(0, 3000, 150)
    ]
    again = [
        (histories.stored(PREDICTIONS, 100 + at, T0 + 30_000), blocks[at][1])
        for at in (3, 7)
    ]
    said = [*range(0, 3000, 2), 4, 400, 2998]  # some of them twice
    rng.shuffle(said)
    labels = [
        histories.label(float(n), n, born_ms=T0 + 8 * n, at=25_000)[0] for n in said
    ]
    arrived: list[Event] = [
        (histories.stored(LABELS, at, T0 + 25_000), label)
        for at, label in enumerate(labels)
    ]
    path = tmp_path / "0.db"
    for some in (blocks, arrived[:700], again, arrived[700:]):
        shard = Shard(path, 0, config)
        for at in range(0, len(some), 100):
            shard.apply(read(some[at : at + 100]))
        shard.close()
    shard = Shard(path, 0, config)
    assert shard.gauges().pending == 3000
    assert shard.counts == {
        "applied": 1500, "duplicate": 3, "predictions_again": 300
    }  # fmt: skip
    shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 100_000))
    rows = [row for _, row in shard.outcomes(most=10_000)]
    shard.close()
    found = {row.id: dict(row.labels).get("label") for row in rows}
    assert len(rows) == len(found) == 3000
    assert found == {one.id: None if n % 2 else n for n, one in enumerate(made)}


def test_a_shadow_that_answers_later_shares_the_label(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "0.db", 0, config_of())
    said, at = histories.label(5.0)
    shadow = histories.prediction(version=2, role="shadow")
    for event, what in (
        (histories.stored(PREDICTIONS, 0, T0), [histories.prediction()]),
        (histories.stored(LABELS, 0, at), said),
        (histories.stored(PREDICTIONS, 1, at), [shadow]),
    ):
        shard.apply(read([(event, what)]))
    rows = list(shard.apply([], caught_up_ms=END))
    assert [(row.version, row.labels) for row in rows] == [
        (1, (("label", 5.0),)),
        (2, (("label", 5.0),)),
    ]
    shard.close()


def test_a_label_that_is_configured_no_longer_is_none(tmp_path: Path) -> None:
    said, at = histories.label(5.0)
    shard = Shard(tmp_path / "0.db", 0, config_of())
    shard.apply(
        read(
            [
                (histories.stored(PREDICTIONS, 0, T0), [histories.prediction()]),
                (histories.stored(LABELS, 0, at), said),
            ]
        )
    )
    shard.close()
    renamed = config_of(labels={"other": {"type": "number"}})
    shard = Shard(tmp_path / "0.db", 0, renamed)
    (row,) = shard.apply([], caught_up_ms=END)
    assert (row.labels, row.status) == ((), "missing")
    shard.close()

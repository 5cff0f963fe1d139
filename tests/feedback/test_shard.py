"""A partition's join on disk: batches, crashes, replays and damage."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.feedback.join import Effects
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.shard import Input, Shard
from gateway.feedback.types import Label, Outcome, Reason
from gateway.feedback_config import FeedbackConfig
from tests.feedback import histories
from tests.feedback.histories import T0, config_of, history, interleaved
from tests.feedback.oracle import expected
from tests.feedback.test_join import net_of

HISTORIES = int(os.environ.get("JOIN_HISTORIES", "500")) // 25
END = {PREDICTIONS: T0 + 1_000_000, LABELS: T0 + 1_000_000}


def inputs_of(events: Sequence[histories.Input]) -> list[Input]:
    return [(e, what if isinstance(what, Label) else [what]) for e, what in events]


def whole(outcomes: Sequence[Outcome]) -> Effects:
    return Effects(outcomes=list(outcomes))


def test_batches_reopened_in_between_come_to_what_the_definition_says(
    tmp_path: Path,
) -> None:
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        config, made = history(rng)
        inputs = inputs_of(interleaved(rng, made))
        shard = Shard(tmp_path / f"{seed}.db", 0, config)
        at = 0
        while at < len(inputs):
            size = rng.randint(1, 6)
            # Now and then some of what is in the state already comes once more.
            start = max(0, at - rng.choice([0, 0, 3]))
            shard.apply(inputs[start : at + size])
            at += size
            if rng.random() < 0.4:
                shard.close()
                shard = Shard(tmp_path / f"{seed}.db", 0, config)
        shard.apply([], caught_up_ms=END)
        rows = whole([row for _, row in shard.outcomes()])
        letters = [dead.letter for dead in shard.outbox()]
        dead = {f"{letter.stored.offset}:{letter.reason}" for letter in letters}
        assert (net_of(rows), dead) == expected(config, made), seed
        assert shard.gauges().pending == 0
        shard.close()


def test_a_replay_from_zero_gives_the_same_state(tmp_path: Path) -> None:
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        config, made = history(rng)
        prints = set()
        for turn in range(3):
            shard = Shard(tmp_path / f"{seed}-{turn}.db", 0, config)
            inputs = inputs_of(interleaved(rng, made))
            size = rng.randint(1, 9)
            for at in range(0, len(inputs), size):
                shard.apply(inputs[at : at + size])
            prints.add(shard.fingerprint())
            shard.close()
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
    shard.apply([(histories.stored(PREDICTIONS, 0, T0), [one])])
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
    broken = bad._replace(unit=object())  # type: ignore[arg-type]
    first = histories.stored(PREDICTIONS, 0, T0)
    with pytest.raises(ValueError, match="unmarshallable"):
        shard.apply([(first, [good, broken])])
    assert (shard.gauges().pending, shard.offsets) == (0, {})
    shard.apply([(first, [good, bad])])
    shard.close()
    shard = Shard(tmp_path / "0.db", 0, config_of())
    assert len(shard.apply([], caught_up_ms=END)) == 2
    shard.close()


def test_heads_that_no_request_has_are_dropped(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "0.db", 0, config_of(window_s=10, lateness_s=0))
    for batch in range(30):
        at, made = T0 + batch * 60_000, []
        for number in range(500):
            one = histories.prediction(number, at)
            made.append(one._replace(segments=(f"{batch}-{number}",), snapshot=number))
        shard.apply([(histories.stored(PREDICTIONS, batch, at), made)])
        assert len(shard.heads) <= 4096 + 500
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
        histories.prediction(n)._replace(snapshot=n, revision=n, propensity=1 / (n + 1))
        for n in range(100)
    ]
    shard.apply([(histories.stored(PREDICTIONS, 0, T0), made)])
    assert len(shard.heads) == 2
    rows = shard.apply([], caught_up_ms=END)
    assert sorted((r.snapshot, r.revision, r.propensity) for r in rows) == [
        (n, n, 1 / (n + 1)) for n in range(100)
    ]
    shard.close()


def test_outcomes_keep_their_numbers(tmp_path: Path) -> None:
    config, inputs = many()
    shard = Shard(tmp_path / "0.db", 0, config)
    emitted = [*shard.apply(inputs), *shard.apply([], caught_up_ms=END)]
    numbered = shard.outcomes(most=10_000)
    assert [row for _, row in numbered] == emitted
    assert [number for number, _ in numbered] == list(range(1, 2001))
    assert shard.outcomes(after=730, most=600) == numbered[730:1330]
    shard.trim(900)
    left = shard.outcomes(most=10_000)
    assert left == numbered[-len(left) :]
    assert 900 <= len(left) < 900 + 500
    shard.close()

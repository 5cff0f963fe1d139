"""Labels by the client's own request id: each rule, and random histories."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.clock import PredictionIds
from gateway.feedback import block_writer, blocks, columns, names
from gateway.feedback.blocks import NO_CONTEXT, Answer
from gateway.feedback.cloudevents import decode
from gateway.feedback.columns import BadBlock
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.names import Name, Names
from gateway.feedback.outbox import Dead, Forward
from gateway.feedback.partition import partition_of
from gateway.feedback.shard import Input, Shard
from gateway.feedback.types import Alias, Label, LabelKind, Prediction, Reason, Stored
from gateway.protocol import records_pb2 as pb
from tests.feedback.aliased import Live, alias_of, aliased
from tests.feedback.histories import T0, config_of, id_of, interleaved, label, stored
from tests.feedback.logged import Chosen
from tests.feedback.oracle import expected, owners
from tests.feedback.test_join import net_of
from tests.feedback.test_shard import END, whole

HISTORIES = int(os.environ.get("JOIN_HISTORIES", "500")) // 10


def test_random_histories_come_to_what_their_definition_says(tmp_path: Path) -> None:
    forwarded = orphans = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        config, happened = aliased(rng)
        live = Live(tmp_path / f"{seed}.db", config, rng)
        while happened:
            if rng.random() < 0.4:
                live.happen(happened.pop(0))
            else:
                live.step()
        shard = live.finish()
        before = shard.fingerprint()
        shard.apply([], caught_up_ms=END)
        live.dead += [d.letter for d in shard.outbox(9999) if isinstance(d, Dead)]
        net = net_of(whole([row for _, row in shard.outcomes(most=9999)]))
        dead = {f"{letter.stored.offset}:{letter.reason}" for letter in live.dead}
        assert shard.gauges()[:2] == (0, 0), seed
        shard.close()

        # The copies are labels like any other; what they are copies of, is theirs.
        noted, theirs, plain = parts(live)
        whose = owners(config, noted, theirs)
        copies = {
            one.forwarded[1]: one.prediction_id
            for _, one in live.log[LABELS]
            if isinstance(one, Label) and one.forwarded
        }
        known = {offset: key for offset, key in whose.items() if key is not None}
        assert copies == known, seed
        said, refused = expected(config, plain)
        lost = {f"{offset}:orphan" for offset in whose.keys() - known.keys()}
        assert (net, dead) == (said, refused | lost), seed
        forwarded, orphans = forwarded + len(known), orphans + len(lost)

        # Read from its beginning in another order, the log gives the same state.
        again = Shard(tmp_path / f"{seed}-again.db", 0, config)
        everything = [each for topic in live.log.values() for each in topic]
        inputs = interleaved(rng, everything)  # type: ignore[arg-type]
        size = rng.randint(1, 9)
        for at in range(0, len(inputs), size):
            again.apply(inputs[at : at + size])  # type: ignore[arg-type]
        assert again.fingerprint() == before, seed
        again.close()
    assert forwarded > HISTORIES
    assert orphans > HISTORIES // 5


def parts(
    live: Live,
) -> tuple[
    list[tuple[int, Name]],
    list[tuple[Stored, Label]],
    list[tuple[Stored, Prediction | Label]],
]:
    """Return names, labels by alias, and the rest of a log."""
    noted, theirs = [], []
    plain: list[tuple[Stored, Prediction | Label]] = []
    for event, what in [*live.log[PREDICTIONS], *live.log[LABELS]]:
        if isinstance(what, Names):
            noted += [(event.arrived_ms, name) for name in what.names]
        elif not isinstance(what, Label):
            assert what is not None
            plain += [(event, one) for one in what.predictions()]
        elif what.alias is not None:
            theirs.append((event, what))
        else:
            plain.append((event, what))
    return noted, theirs, plain


class One:
    """A shard, and what it has to append."""

    def __init__(self, folder: Path, **fields: object) -> None:
        config = config_of().model_copy(update={"by_request_id": True, **fields})
        self.shard = Shard(folder / "0.db", 0, config)
        self._next = {PREDICTIONS: 0, LABELS: 0}

    def take(self, topic: str, what: Names | Label, at: int) -> None:
        event = stored(topic, self._next[topic], T0 + at)
        self._next[topic] += 1
        inputs: list[Input] = [(event, what)]
        self.shard.apply(inputs)

    def name(self, at: int, born: int = 0, number: int = 1) -> bytes:
        key = id_of(T0 + born, number)
        self.take(PREDICTIONS, Names([Name(key, alias_of(1))]), at)
        return key

    def label(self, at: int, value: float = 1.0, **fields: object) -> Label:
        made, _ = label(value, event=f"e{at}")
        made = made._replace(prediction_id=b"", alias=alias_of(1), **fields)
        self.take(LABELS, made, at)
        return made

    def waiting(self) -> list[Label]:
        return [
            decode(one.event, 1 << 16)
            for one in self.shard.outbox()
            if isinstance(one, Forward)
        ]

    def dead(self) -> list[tuple[Reason, str]]:
        letters = [o.letter for o in self.shard.outbox() if isinstance(o, Dead)]
        return [(letter.reason, letter.detail) for letter in letters]

    def __enter__(self) -> One:
        return self

    def __exit__(self, *_: object) -> None:
        self.shard.close()


@pytest.mark.parametrize("label_first", [True, False])
def test_a_label_is_appended_under_the_predictions_id(
    tmp_path: Path, *, label_first: bool
) -> None:
    with One(tmp_path) as one:
        if label_first:
            made, key = one.label(500), one.name(600)
        else:
            key, made = one.name(400), one.label(500)
        (copy,) = one.waiting()
        assert copy == made._replace(
            prediction_id=key, alias=None, forwarded=(T0 + 500, 0)
        )
        one.shard.sent(one.shard.outbox()[-1].number)
        assert not one.shard.outbox()
        assert one.shard.counts == {"forwarded": 1}
        assert one.shard.gauges().held == 0


def test_a_tombstone_is_forwarded_too(tmp_path: Path) -> None:
    with One(tmp_path) as one:
        key = one.name(0)
        one.label(500, kind=LabelKind.WITHDRAWN, value=None)
        (copy,) = one.waiting()
        assert (copy.kind, copy.prediction_id) == (LabelKind.WITHDRAWN, key)


def test_of_two_predictions_with_one_id_the_first_has_its_labels(
    tmp_path: Path,
) -> None:
    with One(tmp_path) as one:
        first = one.name(0)
        assert one.name(10) == first  # the block came twice
        second = one.name(9000, 9000, 2)
        one.label(9500)
        assert [copy.prediction_id for copy in one.waiting()] == [first]
        assert one.shard.counts["aliases_again"] == 1
        # Once labels of the first are of no use any more, the name is free.
        third = one.name(30_002, 30_002, 3)
        one.label(30_003)
        assert [copy.prediction_id for copy in one.waiting()] == [first, third]
        assert second not in {copy.prediction_id for copy in one.waiting()}


def test_a_name_that_comes_after_its_time_is_none(tmp_path: Path) -> None:
    with One(tmp_path) as one:
        one.name(30_001)
        assert one.shard.counts == {"aliases_late": 1}


def test_a_clock_that_is_far_ahead_keeps_no_name_for_ever(tmp_path: Path) -> None:
    with One(tmp_path) as one:
        one.name(0, 10**9)
        assert one.name(30_001, 30_001, 2)
        one.label(30_002)
        assert one.waiting()[0].prediction_id == id_of(T0 + 30_001, 2)


@pytest.mark.parametrize("on", [True, False])
def test_a_label_whose_id_never_comes_is_an_orphan(tmp_path: Path, *, on: bool) -> None:
    with One(tmp_path, by_request_id=on) as one:
        one.label(0)
        assert one.shard.gauges().held == 1
        one.shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 120_000))
        assert not one.dead()
        one.shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 120_001))
        ((reason, detail),) = one.dead()
        assert reason is Reason.ORPHAN
        assert ("by_request_id" in detail) is not on
        assert one.shard.gauges().held == 0


def test_what_waits_is_bounded_together_with_the_others(tmp_path: Path) -> None:
    with One(tmp_path, max_dangling=2) as one:
        made, _ = label(number=7)
        one.take(LABELS, made, 0)
        one.label(1)
        one.label(2)
        assert [reason for reason, _ in one.dead()] == [Reason.OVERFLOW]
        one.take(LABELS, made._replace(event_id="f"), 3)
        assert [reason for reason, _ in one.dead()] == [Reason.OVERFLOW] * 2


def test_names_of_more_than_a_transaction_are_forgotten(tmp_path: Path) -> None:
    with One(tmp_path) as one:
        many = [
            Name(id_of(T0, number), Alias("", "m", f"{number}"))
            for number in range(12_000)
        ]
        one.take(PREDICTIONS, Names(many), 0)
        filled = one.shard.fingerprint()
        one.shard.apply([], caught_up_ms=dict.fromkeys(END, T0 + 30_001))
        one.take(PREDICTIONS, Names([]), 30_002)
        emptied = one.shard.fingerprint()
        assert emptied != filled
        fresh = Shard(tmp_path / "1.db", 0, config_of())
        fresh.apply([(stored(PREDICTIONS, n, T0 + 30_002), None) for n in range(2)])
        assert fresh.fingerprint() == emptied
        fresh.close()


# -- as fronts note them -------------------------------------------------------------


def answers(count: int) -> list[Answer]:
    """Return predictions of two models; of three, one has no request id."""
    made = []
    for number, name in enumerate(PredictionIds().mint_all(count)):
        said = b"" if number % 3 == 0 else f"ä{number}".encode()
        model = "m" if number % 2 else "other"
        made.append(Answer(name, model, 0, 1, 1, Chosen(), NO_CONTEXT, (), (), said))
    return made


def members(made: Sequence[Answer]) -> list[object]:
    return [member for one in made for member in one.offered()]


def test_names_lie_where_the_labels_that_use_them_come() -> None:
    made = answers(50)
    found = {}
    for share in names.shared(members(made), 5):
        assert columns.decode(share.block) == []
        noted = names.decode(share.block).names
        assert share.named == len(noted)
        for name in noted:
            key = "/".join(name.alias).encode()
            assert partition_of(key, 5) == share.partition
            found[name.id] = name.alias
    assert found == {
        blocks.id_of(one.name): Alias("", one.model, one.request_id.decode())
        for one in made
        if one.request_id
    }
    assert names.shared(members(made[::3]), 5) == []
    assert names.decode(block_writer.encode(made)) == Names([])


def test_blocks_that_contradict_themselves() -> None:
    ((_, _, good),) = names.shared(members(answers(4)), 1)
    with pytest.raises(BadBlock, match="no block"):
        names.decode(b"\xff")
    for column in ("ids", "request_ids", "model", "models"):
        block = pb.Block.FromString(good)
        block.names.ClearField(column)  # type: ignore[arg-type]
        with pytest.raises(BadBlock, match=r"request ids|column model"):
            names.decode(block.SerializeToString())

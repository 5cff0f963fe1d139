"""Histories whose labels name clients' request ids, joined as they happen."""

from __future__ import annotations

import random
from pathlib import Path

from gateway.feedback.cloudevents import decode
from gateway.feedback.columns import Block
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.names import Name, Names
from gateway.feedback.outbox import Dead
from gateway.feedback.shard import Input, Shard
from gateway.feedback.types import Alias, DeadLetter, Label, Prediction, Stored
from gateway.feedback_config import FeedbackConfig
from tests.feedback.histories import T0, block, history, id_of, prediction, stored

Happened = tuple[str, int, Prediction | Name | Label]
"""Topic, time of arrival, and what."""


def alias_of(number: int) -> Alias:
    return Alias("", "m", f"r{number}")


def aliased(rng: random.Random) -> tuple[FeedbackConfig, list[Happened]]:
    """Return what happens, in its order: some ids are noted late, twice, or never."""
    config, inputs = history(rng)
    happened: list[Happened] = []
    numbers = {int.from_bytes(_key(one)[8:]) for _, one in inputs}
    for event, one in inputs:
        made = one
        if isinstance(one, Label) and rng.random() < 0.7:
            alias = alias_of(int.from_bytes(one.prediction_id[8:]))
            made = one._replace(prediction_id=b"", alias=alias)
        happened.append((event.topic, event.arrived_ms, made))
    for number in sorted(numbers):
        for again in range(rng.choice([0, 1, 1, 2, 3])):
            # Another prediction with the same request id, now or later.
            born = T0 + (rng.choice([0, 10_000, 60_000]) if again else 0)
            new = number + 100 * again
            name = Name(id_of(born, new), alias_of(number))
            spread = rng.choice([100, 20_000, 160_000])
            noted = born + rng.randrange(spread)
            happened += [(PREDICTIONS, noted, name)] * rng.choice([1, 1, 2])
            if again and rng.random() < 0.7:
                happened.append((PREDICTIONS, noted, prediction(new, born)))
    happened.sort(key=lambda each: each[1])
    return config, happened


def _key(one: Prediction | Label) -> bytes:
    return one.prediction_id if isinstance(one, Label) else one.id


class Live:
    """A shard that reads a log that grows, and appends to it.

    Attributes:
        log: Each topic, with what it says.
        dead: Letters that the log has.
    """

    def __init__(self, path: Path, config: FeedbackConfig, rng: random.Random) -> None:
        self._path, self._config, self._rng = path, config, rng
        self._shard = Shard(path, 0, config)
        self._now_ms = T0 - 1_000_000
        self.log: dict[str, list[Input]] = {PREDICTIONS: [], LABELS: []}
        self.dead: list[DeadLetter] = []

    def append(self, topic: str, what: Prediction | Name | Label) -> None:
        event: Stored = stored(topic, len(self.log[topic]), self._now_ms)
        said: Block | Names | Label
        if isinstance(what, Name):
            said = Names([what])
        else:
            said = what if isinstance(what, Label) else block([what])
        self.log[topic].append((event, said))

    def happen(self, happened: Happened) -> None:
        """Have the log take something in."""
        topic, self._now_ms, what = happened
        self.append(topic, what)

    def step(self) -> None:
        """Read something, append something, or die and begin anew."""
        luck = self._rng.random()
        if luck < 0.6:
            topic = self._rng.choice([PREDICTIONS, LABELS])
            start = self._shard.offsets.get(topic, 0)
            end = start + self._rng.randint(1, 6)
            self._shard.apply(self.log[topic][start:end])
        elif luck < 0.9:
            self._send()
        else:
            self._shard.close()
            self._shard = Shard(self._path, 0, self._config)

    def _send(self) -> None:
        waiting = self._shard.outbox(self._rng.randint(1, 4))
        for one in waiting:
            if isinstance(one, Dead):
                self.dead.append(one.letter)
            else:
                self.append(LABELS, decode(one.event, 1 << 16))
        # Else it died before it knew, and all of them come twice.
        if waiting and self._rng.random() < 0.8:
            self._shard.sent(waiting[-1].number)

    def finish(self) -> Shard:
        """Go on until there is nothing left to read or to append."""
        while self._shard.outbox(1) or any(
            self._shard.offsets.get(topic, 0) < len(events)
            for topic, events in self.log.items()
        ):
            self.step()
        return self._shard

"""The state of the join for one partition: a SQLite file, one transaction per batch.

A transaction holds the state, the next offset of each topic, the outcomes and the
outbox (what is to be appended: dead letters, and labels under another key). The offsets
in here are the true ones: after a crash reading goes on from them, and what was
appended from the outbox but not struck off is appended once more.

Most requests are in `gateway.feedback.plain`, others in `gateway.feedback.requests`;
outcomes lie in blocks. Blobs are Python's marshal of plain values: exact and fast; a
file is only read by the release that wrote it (`packing.FORMAT`), anything else is set
aside and made anew from the log.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway.feedback import packing, shard_file
from gateway.feedback.aliases import Aliases
from gateway.feedback.blocks import ID_BYTES
from gateway.feedback.columns import Block
from gateway.feedback.emitted import Emitted, joined, unpacked
from gateway.feedback.health import Gauges
from gateway.feedback.join import SKEW_MS, Join
from gateway.feedback.label_state import Verdict
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.look import Look, looked
from gateway.feedback.names import Names
from gateway.feedback.outbox import Dead, Forward, Outbox
from gateway.feedback.pending import Effects, horizon_ms
from gateway.feedback.plain import Plain
from gateway.feedback.requests import Requests
from gateway.feedback.slots import MOST_CACHED
from gateway.feedback.thinning import Thinning
from gateway.feedback.types import DeadLetter, Label, Outcome, Stored
from gateway.feedback_config import FeedbackConfig

_AT_ONCE = 5000
"""Requests that are closed or forgotten in one transaction."""
_STEPS = 4
"""Such transactions in one call: what was emitted is in memory until it returns."""
_MAD_MS = 3_600_000
"""By how much a clock may be ahead for its ids to be of interest."""
_BLOCK = 512
"""Outcomes that lie together, at most."""
Input = tuple[Stored, Block | Names | Label | None]
"""An event and what it says; ``None`` where it could not be decoded."""


class Shard:
    """One partition's join. Calls block on the disk; one thread at a time.

    Args:
        path: Of the file; its folder must be there.
        partition: Of both topics.
        config: Of all models.

    Attributes:
        offsets: Next offset to read, by topic; none for a topic never read.
        counts: Labels by what became of them, since offset 0.
    """

    def __init__(self, path: Path, partition: int, config: FeedbackConfig) -> None:
        self._config = config
        self.offsets: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._db = shard_file.opened(path, partition)
        self._plain = Plain(self._db, config, MOST_CACHED // config.partitions)
        self._aliases, self._outbox = Aliases(self._db, config), Outbox(self._db)
        try:
            self._load()
        except BaseException:
            self._db.close()
            raise

    def apply(
        self,
        inputs: Sequence[Input],
        *,
        dead: Sequence[DeadLetter] = (),
        caught_up_ms: Mapping[str, int] | None = None,
    ) -> Emitted:
        """Take in events and move time on, durably, and return the rows that came.

        Events that are in the state already (their offset says so) change nothing.
        Where very much is due, some of it is left to the next call.

        Args:
            inputs: In the order of the log within each topic.
            dead: Of events of this batch that could not be decoded.
            caught_up_ms: For a topic read to its end, up to when it is known to hold
                nothing more (the wall clock, held back); leave it out while history
                is replayed.
        """
        offsets, times = dict(self.offsets), dict(self._times)
        fresh = []
        for stored, what in inputs:
            if stored.offset < offsets.get(stored.topic, 0):
                continue
            offsets[stored.topic] = stored.offset + 1
            if stored.arrived_ms > times.get(stored.topic, 0):
                times[stored.topic] = stored.arrived_ms
            fresh.append((stored, what))
        for topic, known_ms in (caught_up_ms or {}).items():
            times[topic] = max(times.get(topic, 0), known_ms)
        outcomes: list[Emitted] = []
        if offsets == self.offsets:
            self._times = times  # written with whatever comes next
        else:
            with self._transaction():
                effects = self._events(fresh)
                for letter in dead:
                    if letter.stored.offset >= self.offsets.get(letter.stored.topic, 0):
                        effects.dead.append(letter)
                        effects.counts[f"dead_{letter.reason}"] += 1
                self._requests.write(self._working, self._join)
                emitted = Emitted.of(effects.outcomes)
                self._write_effects(effects, emitted)
                self._write_meta(offsets, times)
            self.offsets, self._times = offsets, times
            self.counts = self._counts_after(effects)
            outcomes.append(emitted)
        for _ in range(_STEPS):
            more = self._expire()
            if more is None:
                break
            outcomes.append(more)
        if self._requests.has_many_heads:
            with self._transaction():
                self._requests.drop_heads()
        self._plain.trim()
        return joined(outcomes)

    def outbox(self, most: int = 1000) -> list[Dead | Forward]:
        """Return the first of what is to be appended and not `sent`."""
        return self._outbox.first(most)

    def sent(self, upto: int) -> None:
        """Strike off what is to be appended up to a number: the log has it."""
        with self._transaction():
            self._outbox.strike(upto)

    def outcomes(self, after: int = 0, most: int = 1000) -> list[tuple[int, Outcome]]:
        """Return rows that were emitted, with their numbers, from beyond `after`."""
        found: list[tuple[int, Outcome]] = []
        for last, rows, packed in self._db.execute(
            "SELECT * FROM outcomes WHERE last > ? ORDER BY last", (after,)
        ):
            numbered = enumerate(unpacked(packed), last - rows + 1)
            found += [each for each in numbered if each[0] > after]
            if len(found) >= most:
                break
        return found[:most]

    def span(self) -> tuple[int, int]:
        """Return the numbers of the first row that is kept, and of the next one."""
        query = "SELECT last - rows + 1 FROM outcomes ORDER BY last LIMIT 1"
        first, following = self._db.execute(query).fetchone(), self._last() + 1
        return (first[0] if first else following), following

    def look(self, key: bytes) -> Look:
        """Return what is known of a prediction by its id (16 bytes)."""
        return looked(key, self._requests.load([key]), self._config)

    def thin(self, pending: int) -> None:
        """Let in fewer requests, or more again, by how many are pending now."""
        models = (self._config.default, *self._config.models.values())
        longest_ms = max(horizon_ms(model) for model in models)
        # Not for ids that were let in already, nor for good by one mad clock.
        arrived_ms = self._times.get(PREDICTIONS, 0)
        newest_ms = min(self._plain.newest_ms(), arrived_ms + _MAD_MS)
        due_ms = filter(None, (self._requests.due_ms(), self._plain.due_ms()))
        oldest_ms = min([self._watermark_ms(), *due_ms]) - longest_ms
        now = self._requests.thinning
        then = now.after(
            pending,
            self._config.max_pending,
            max(arrived_ms + SKEW_MS, newest_ms) + 1,
            oldest_ms,
        )
        if then.regimes != now.regimes:
            with self._transaction():
                self._put({"regimes": then.regimes})
            self._requests.thinning = then

    def trim(self, most: int) -> None:
        """Drop rows that were emitted, the oldest first, to hardly more than `most`."""
        oldest = self._last() - most
        (first,) = self._db.execute("SELECT min(last) FROM outcomes").fetchone()
        if first is not None and first <= oldest:
            with self._transaction():
                self._db.execute("DELETE FROM outcomes WHERE last <= ?", (oldest,))

    def _last(self) -> int:
        (last,) = self._db.execute("SELECT max(last) FROM outcomes").fetchone()
        return last or 0

    def gauges(self) -> Gauges:
        """Return what is kept; with millions of requests this takes a moment."""
        requests, plain = self._requests, self._plain
        oldest_ms = min(filter(None, (requests.due_ms(), plain.due_ms())), default=0)
        return Gauges(requests.count() + plain.count(), requests.held, oldest_ms)

    def fingerprint(self) -> str:
        """Return a hash of the state: equal after the same events, however cut."""
        digest = hashlib.sha256()
        state = self._requests.load()
        self._join = Join(self._config, state)
        watermark_ms = self._watermark_ms()
        for key, pending in self._plain.all():
            # Parts wait for their last request; by itself, each would be here or there.
            pending.closed |= watermark_ms > self._join.due_ms(pending)
            if not pending.closed or watermark_ms <= self._join.due_ms(pending):
                state.pending[key] = pending
        for key in sorted(state.pending):
            digest.update(repr((key, packing.net(state.pending[key]))).encode())
        for key in sorted(state.dangling):
            digest.update(repr((key, state.dangling[key])).encode())
        for row in self._aliases.rows():
            digest.update(repr(row).encode())
        # How often a row was corrected depends on when it was first emitted.
        counts = {name: n for name, n in self.counts.items() if name != "corrected"}
        digest.update(json.dumps([self.offsets, counts], sort_keys=True).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- a batch ----------------------------------------------------------------

    def _let_in(self, fresh: Sequence[Input]) -> tuple[list[Input], Counter[str]]:
        """Return events without those of requests that are not let in."""
        lets_in, shed = self._requests.thinning.lets_in, Counter[str]()
        kept: list[Input] = []
        for stored, what in fresh:
            if isinstance(what, Block):
                places = [n for n in range(what.count) if lets_in(what.id(n))]
                shed["predictions_shed"] += what.count - len(places)
                if len(places) < what.count:
                    some = Block(what.some(places)) if places else None
                    kept.append((stored, some))
                    continue
            elif isinstance(what, Label) and not lets_in(what.prediction_id):
                shed["labels_shed"] += 1
                continue
            kept.append((stored, what))
        return kept, +shed

    def _events(self, fresh: Sequence[Input]) -> Effects:
        shed: Counter[str] = Counter()
        if self._requests.thinning:
            fresh, shed = self._let_in(fresh)
        blocks = [
            (stored.arrived_ms, what)
            for stored, what in fresh
            if isinstance(what, Block) and what.count
        ]
        labels: list[tuple[Stored, Label]] = []
        aliased: list[tuple[Stored, Label]] = []
        for stored, what in fresh:
            if isinstance(what, Label):
                (labels if what.alias is None else aliased).append((stored, what))
        ids = b"".join([block.ids for _, block in blocks])
        starts = range(0, len(ids), ID_BYTES)
        waiting = self._requests.waiting([ids[at : at + ID_BYTES] for at in starts])
        others = self._plain.admit(blocks, waiting)
        unusual = self._plain.note(labels)
        keys = {one.id for _, one in others}
        keys.update(label.prediction_id for _, label in unusual)
        self._working = self._requests.load(sorted(keys))
        self._join = Join(self._config, self._working)
        for arrived_ms, one in others:
            self._join.predict(arrived_ms, one)
        for stored, label in unusual:
            self._join.label(stored, label)
        effects = self._join.effects
        effects.counts.update(shed)
        for stored, what in fresh:
            if isinstance(what, Names):
                for name in what.names:
                    self._aliases.name(stored.arrived_ms, name, self._working, effects)
        for stored, label in aliased:
            self._aliases.label(stored, label, self._working, effects)
        if noted := len(labels) - len(unusual):
            effects.counts[Verdict.APPLIED] += noted
        return effects

    def _watermark_ms(self) -> int:
        return min(self._times.get(topic, 0) for topic in (PREDICTIONS, LABELS))

    def _expire(self) -> Emitted | None:
        watermark = self._watermark_ms()
        keys = self._requests.due(watermark, _AT_ONCE)
        oldest_ms = self._plain.due_ms()
        plain_due = oldest_ms is not None and oldest_ms < watermark
        if not (keys or plain_due or self._aliases.is_due(watermark)):
            return None
        with self._transaction():
            self._working = self._requests.load(keys)
            # Written back whatever becomes of them: with another configuration than
            # they were written with, they are due later.
            self._working.changed.update(keys)
            self._join = Join(self._config, self._working)
            self._join.advance(watermark, keys)
            effects = self._join.effects
            self._aliases.advance(watermark, self._working, effects)
            # Before parts go: requests that leave them are found there.
            self._requests.write(self._working, self._join)
            most, thinning = _AT_ONCE - len(keys), self._requests.thinning
            emitted = joined(
                [
                    Emitted.of(effects.outcomes),
                    self._plain.expire(watermark, most, thinning),
                ]
            )
            self._write_effects(effects, emitted)
            self._write_meta(self.offsets, self._times)
        self.counts = self._counts_after(effects)
        return emitted

    def _counts_after(self, effects: Effects) -> dict[str, int]:
        counts = dict(self.counts)
        for name, count in effects.counts.items():
            counts[name] = counts.get(name, 0) + count
        return counts

    def _write_effects(self, effects: Effects, emitted: Emitted) -> None:
        last = self._last()
        for block in emitted.blocks(_BLOCK):
            last += len(block)
            self._db.execute(
                "INSERT INTO outcomes VALUES (?, ?, ?)",
                (last, len(block), block.pack()),
            )
        self._outbox.add(effects)
        self._counted = self._counts_after(effects)

    def _write_meta(self, offsets: Mapping[str, int], times: Mapping[str, int]) -> None:
        rows = {
            "offsets": offsets,
            "times": times,
            "held": self._requests.held,
            "counts": self._counted,
        }
        self._put(rows)

    def _put(self, rows: Mapping[str, object]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in rows.items()],
        )

    # -- the file ---------------------------------------------------------------

    def _load(self) -> None:
        rows = self._db.execute("SELECT name, value FROM meta")
        meta = {name: json.loads(value) for name, value in rows}
        self.offsets = meta.get("offsets", {})
        self._times = meta.get("times", {})
        self.counts = meta.get("counts", {})
        self._requests = Requests(
            self._db,
            self._plain,
            meta.get("held", 0),
            Thinning([(start, times) for start, times in meta.get("regimes", [])]),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        held = self._requests.held
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # Some of it may have been written in what is undone.
            self._plain.forget()
            self._requests.forget()
            self._requests.held = held
            raise

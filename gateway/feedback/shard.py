"""The state of the join for one partition: a SQLite file, one transaction per batch.

A transaction holds the state, the next offset of each topic, the outcomes and the
outbox (dead letters to append). The offsets in here are the true ones: after a crash
reading goes on from them, and what was appended from the outbox but not struck off is
appended once more.

Layout: a pending request is one row. What requests have in common (model, version,
policy, segments, shapes, ...) is written once, in `heads`, so a row holds the numbers
of heads and the bytes of the outputs. Its labels are a column of their own: a label
neither reads nor writes the answers. Outcomes lie in blocks. Blobs are Python's marshal
of plain values: exact and fast; a file is only read by the release that wrote it
(`packing.FORMAT`), anything else is set aside and made anew from the log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gateway.feedback import packing, shard_file
from gateway.feedback.health import Gauges
from gateway.feedback.join import Effects, Join, WorkingSet
from gateway.feedback.log import LABELS, PREDICTIONS
from gateway.feedback.types import DeadLetter, Label, Outcome, Prediction, Stored
from gateway.feedback_config import FeedbackConfig

_AT_ONCE = 5000
"""Requests that are closed or forgotten in one transaction."""
_STEPS = 4
"""Such transactions in one call: what was emitted is in memory until it returns."""
_BLOCK = 500
"""Outcomes that lie together."""
_HEADS = 4096
"""Heads from which on those that no pending request has are dropped."""
Input = tuple[Stored, Sequence[Prediction] | Label | None]
"""An event and what it says; ``None`` where it could not be decoded."""


class Dead(NamedTuple):
    """A dead letter that waits to be appended.

    Attributes:
        number: For `Shard.sent`.
    """

    number: int
    letter: DeadLetter


class Shard:
    """One partition's join. Calls block on the disk; one thread at a time.

    Args:
        path: Of the file; its folder must be there.
        partition: Of both topics.
        config: Of all models.

    Attributes:
        offsets: Next offset to read, by topic; none for a topic never read.
        counts: Labels by what became of them, since offset 0.
        heads: What predictions have in common, by number.
    """

    def __init__(self, path: Path, partition: int, config: FeedbackConfig) -> None:
        self._config = config
        self.offsets: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._held = 0
        self._most_heads = _HEADS
        self._db = shard_file.opened(path, partition)
        self._load()

    def apply(
        self,
        inputs: Sequence[Input],
        *,
        dead: Sequence[DeadLetter] = (),
        caught_up_ms: Mapping[str, int] | None = None,
    ) -> Sequence[Outcome]:
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
            times[stored.topic] = max(times.get(stored.topic, 0), stored.arrived_ms)
            fresh.append((stored, what))
        for topic, known_ms in (caught_up_ms or {}).items():
            times[topic] = max(times.get(topic, 0), known_ms)
        outcomes: list[Outcome] = []
        if offsets == self.offsets:
            self._times = times  # written with whatever comes next
        else:
            with self._transaction():
                effects = self._events(fresh)
                for letter in dead:
                    if letter.stored.offset >= self.offsets.get(letter.stored.topic, 0):
                        effects.dead.append(letter)
                        effects.counts[f"dead_{letter.reason}"] += 1
                held = self._write_effects(effects)
                self._write_meta(offsets, times, held)
            self.offsets, self._times, self._held = offsets, times, held
            self.counts = self._counts_after(effects)
            outcomes = effects.outcomes
        for _ in range(_STEPS):
            more = self._expire()
            if more is None:
                break
            outcomes += more.outcomes
        self._drop_heads()
        return outcomes

    def outbox(self, most: int = 1000) -> list[Dead]:
        """Return the first dead letters that are not `sent`."""
        rows = self._db.execute("SELECT * FROM outbox ORDER BY number LIMIT ?", (most,))
        return [Dead(number, packing.dead_from(packed)) for number, packed in rows]

    def sent(self, upto: int) -> None:
        """Strike off dead letters up to a number: the log has them."""
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE number <= ?", (upto,))

    def outcomes(self, after: int = 0, most: int = 1000) -> list[tuple[int, Outcome]]:
        """Return rows that were emitted, with their numbers, from beyond `after`."""
        found: list[tuple[int, Outcome]] = []
        for last, rows, packed in self._db.execute(
            "SELECT * FROM outcomes WHERE last > ? ORDER BY last", (after,)
        ):
            numbered = enumerate(packing.outcomes_from(packed), last - rows + 1)
            found += [each for each in numbered if each[0] > after]
            if len(found) >= most:
                break
        return found[:most]

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
        (pending,) = self._db.execute("SELECT count(*) FROM pending").fetchone()
        (oldest_ms,) = self._db.execute(
            "SELECT min(due_ms) FROM (SELECT min(due_ms) AS due_ms FROM pending "
            "UNION ALL SELECT min(due_ms) FROM dangling)"
        ).fetchone()
        return Gauges(pending, self._held, oldest_ms or 0)

    def fingerprint(self) -> str:
        """Return a hash of the state: equal after the same events, however cut."""
        digest = hashlib.sha256()
        state = self._state()
        for key in sorted(state.pending):
            digest.update(repr((key, packing.net(state.pending[key]))).encode())
        for key in sorted(state.dangling):
            digest.update(repr((key, state.dangling[key])).encode())
        # How often a row was corrected depends on when it was first emitted.
        counts = {name: n for name, n in self.counts.items() if name != "corrected"}
        digest.update(json.dumps([self.offsets, counts], sort_keys=True).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- a batch ----------------------------------------------------------------

    def _events(self, fresh: Sequence[Input]) -> Effects:
        keys: set[bytes] = set()
        for _, what in fresh:
            if isinstance(what, Label):
                keys.add(what.prediction_id)
            elif what is not None:
                keys.update(prediction.id for prediction in what)
        self._working = self._state(sorted(keys))
        self._join = Join(self._config, self._working)
        for stored, what in fresh:
            if isinstance(what, Label):
                self._join.label(stored, what)
            elif what is not None:
                for prediction in what:
                    self._join.predict(stored.arrived_ms, prediction)
        return self._join.effects

    def _expire(self) -> Effects | None:
        watermark = min(self._times.get(topic, 0) for topic in (PREDICTIONS, LABELS))
        found = self._due("pending", watermark)
        if self._held:
            found = sorted(found + self._due("dangling", watermark))[:_AT_ONCE]
        if not found:
            return None
        keys = [key for _, key in found]
        with self._transaction():
            self._working = self._state(keys)
            # Written back whatever becomes of them: with another configuration than
            # they were written with, they are due later.
            self._working.changed.update(keys)
            self._join = Join(self._config, self._working)
            self._join.advance(watermark, keys)
            effects = self._join.effects
            held = self._write_effects(effects)
            self._write_meta(self.offsets, self._times, held)
        self._held = held
        self.counts = self._counts_after(effects)
        return effects

    def _counts_after(self, effects: Effects) -> dict[str, int]:
        counts = dict(self.counts)
        for name, count in effects.counts.items():
            counts[name] = counts.get(name, 0) + count
        return counts

    def _due(self, table: str, watermark: int) -> list[tuple[int, bytes]]:
        return self._db.execute(
            f"SELECT due_ms, id FROM {table} WHERE due_ms < ? "  # noqa: S608
            "ORDER BY due_ms, id LIMIT ?",
            (watermark, _AT_ONCE),
        ).fetchall()

    def _state(self, keys: Sequence[bytes] | None = None) -> WorkingSet:
        state, self._dues = WorkingSet(held=self._held), {}
        for row in self._rows("pending", keys):
            state.pending[row[0]] = packing.pending_from(row, self.heads)
            self._dues[row[0]] = row[1]
        if self._held:
            for key, _, packed in self._rows("dangling", keys):
                state.dangling[key] = packing.held_from(packed)
        return state

    def _rows(self, table: str, keys: Sequence[bytes] | None) -> Iterable[Any]:
        if keys is None:
            return self._db.execute(f"SELECT * FROM {table}")  # noqa: S608
        rows: list[Any] = []
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows += self._db.execute(
                f"SELECT * FROM {table} WHERE id IN ({marks})",  # noqa: S608
                some,
            ).fetchall()
        return rows

    def _write_pending(self, state: WorkingSet) -> None:
        whole, moved, labelled, gone = [], [], [], []
        for key in sorted(state.changed):
            kept = state.pending.get(key)
            if kept is None:
                gone.append((key,))
                continue
            due_ms = self._join.due_ms(kept)
            if key in state.answered:
                whole.append(packing.pack_pending(key, due_ms, kept, self._head))
                continue
            known = (packing.flags_of(kept), packing.pack_labels(kept), key)
            if due_ms == self._dues[key]:
                labelled.append(known)  # and the index stays as it is
            else:
                moved.append((due_ms, *known))
        for statement, rows in (
            ("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?, ?, ?, ?)", whole),
            ("UPDATE pending SET flags = ?, labels = ? WHERE id = ?", labelled),
            ("UPDATE pending SET due_ms = ?, flags = ?, labels = ? WHERE id = ?",
             moved),
            ("DELETE FROM pending WHERE id = ?", gone),
        ):  # fmt: skip
            self._db.executemany(statement, rows)

    def _write_dangling(self, state: WorkingSet) -> None:
        if not self._held and not state.held:
            return
        waiting, done = [], []
        for key in sorted(state.changed):
            if held := state.dangling.get(key):
                due_ms = self._join.waits_until_ms(held[0])
                waiting.append((key, due_ms, packing.pack_held(held)))
            else:
                done.append((key,))
        self._db.executemany(
            "INSERT OR REPLACE INTO dangling VALUES (?, ?, ?)", waiting
        )
        self._db.executemany("DELETE FROM dangling WHERE id = ?", done)

    def _write_effects(self, effects: Effects) -> int:
        state, db = self._working, self._db
        self._write_pending(state)
        self._write_dangling(state)
        last = self._last()
        for at in range(0, len(effects.outcomes), _BLOCK):
            block = effects.outcomes[at : at + _BLOCK]
            last += len(block)
            db.execute(
                "INSERT INTO outcomes VALUES (?, ?, ?)",
                (last, len(block), packing.pack_outcomes(block)),
            )
        db.executemany(
            "INSERT INTO outbox (packed) VALUES (?)",
            [(packing.pack(letter),) for letter in effects.dead],
        )
        self._counted = self._counts_after(effects)
        return state.held

    def _write_meta(
        self, offsets: Mapping[str, int], times: Mapping[str, int], held: int
    ) -> None:
        rows = {
            "offsets": offsets,
            "times": times,
            "held": held,
            "counts": self._counted,
        }
        self._db.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in rows.items()],
        )

    def _head(self, head: packing.Head) -> int:
        number = self._numbers.get(head)
        if number is None:
            number = max(self.heads, default=0) + 1
            self._db.execute(
                "INSERT INTO heads VALUES (?, ?)", (number, packing.pack(head))
            )
            self._numbers[head] = number
            self.heads[number] = head
        return number

    def _drop_heads(self) -> None:
        """Drop those that no request has, once there are twice as many as were left."""
        if len(self.heads) <= self._most_heads:
            return
        used = set()
        for head, answers in self._db.execute("SELECT head, answers FROM pending"):
            used.add(head)
            used.update(packing.heads_in(answers))
        with self._transaction():
            self._db.executemany(
                "DELETE FROM heads WHERE number = ?",
                [(number,) for number in self.heads if number not in used],
            )
        self._know_heads()
        self._most_heads = max(_HEADS, 2 * len(self.heads))

    # -- the file ---------------------------------------------------------------

    def _load(self) -> None:
        rows = self._db.execute("SELECT name, value FROM meta")
        meta = {name: json.loads(value) for name, value in rows}
        self.offsets = meta.get("offsets", {})
        self._times = meta.get("times", {})
        self.counts = meta.get("counts", {})
        self._held = meta.get("held", 0)
        self._know_heads()

    def _know_heads(self) -> None:
        self.heads: dict[int, packing.Head] = {
            number: packing.head_from(packed)
            for number, packed in self._db.execute("SELECT * FROM heads")
        }
        self._numbers = {head: number for number, head in self.heads.items()}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._know_heads()  # some may have been written in what is undone
            raise

"""Labels that name the client's own request id find the prediction.

The shard of the partition that such a name belongs to knows which prediction it is
(`gateway.feedback.names`). A label that meets its name is appended once more, under the
prediction's id, and joined where that lies; whoever appends a copy twice changes
nothing, since each says of what it is a copy. As in the join, what comes out depends on
when the log took events in, not on how its topics were interleaved:

- The first prediction of a name has it until its labels are of no use any more (window
  and lateness); a second one in that time goes without. Then it is free again.
- A label means the first prediction that has its name at that time or later, if that
  was noted at most the dangling time after the label came. Else it is an orphan.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from gateway.feedback import packing
from gateway.feedback.cloudevents import encode
from gateway.feedback.join import SKEW_MS
from gateway.feedback.names import Name, digest_of
from gateway.feedback.pending import Effects, Held, WorkingSet, horizon_ms
from gateway.feedback.types import DeadLetter, Label, Reason, Stored
from gateway.feedback_config import FeedbackConfig, JoinConfig

TABLES = (
    """CREATE TABLE aliases (
        alias BLOB NOT NULL, due_ms INTEGER NOT NULL, arrived_ms INTEGER NOT NULL,
        id BLOB NOT NULL, PRIMARY KEY (alias, due_ms)
    ) WITHOUT ROWID""",
    "CREATE INDEX aliases_due ON aliases (due_ms)",
    # Labels without a prediction, by their offset.
    """CREATE TABLE nameless (
        offset INTEGER PRIMARY KEY, alias BLOB NOT NULL, due_ms INTEGER NOT NULL,
        packed BLOB NOT NULL
    )""",
    "CREATE INDEX nameless_alias ON nameless (alias)",
    "CREATE INDEX nameless_due ON nameless (due_ms)",
)
_AT_ONCE = 5000
"""Names that are forgotten, and labels that are given up, in one transaction."""


class Aliases:
    """Names of predictions and labels that wait for one. Transactions are the shard's.

    Args:
        db: With `TABLES`.
        config: Of all models.
    """

    def __init__(self, db: sqlite3.Connection, config: FeedbackConfig) -> None:
        self._db = db
        self._config = config

    def name(
        self, arrived_ms: int, name: Name, state: WorkingSet, effects: Effects
    ) -> None:
        """Take in which prediction a name is of; a second time it changes nothing."""
        settings = self._settings(name.alias.model)
        born_ms = int.from_bytes(name.id[:6])  # RFC 9562, section 5.7
        if born_ms > arrived_ms + SKEW_MS:
            born_ms = arrived_ms
        due_ms = born_ms + horizon_ms(settings)
        if arrived_ms > due_ms:
            effects.counts["aliases_late"] += 1
            return
        alias = digest_of(name.alias)
        has = self._db.execute(
            "SELECT due_ms, id FROM aliases WHERE alias = ? "
            "ORDER BY due_ms DESC LIMIT 1",
            (alias,),
        ).fetchone()
        if has is not None and has[0] >= arrived_ms:
            if has[1] != name.id:
                effects.counts["aliases_again"] += 1
            return
        self._db.execute(
            "INSERT INTO aliases VALUES (?, ?, ?, ?)",
            (alias, due_ms, arrived_ms, name.id),
        )
        if state.held:
            self._meet(alias, arrived_ms, due_ms, name.id, state, effects)

    def _meet(  # noqa: PLR0917 - a row, and what is to change
        self,
        alias: bytes,
        arrived_ms: int,
        due_ms: int,
        prediction_id: bytes,
        state: WorkingSet,
        effects: Effects,
    ) -> None:
        """Forward the labels that waited for a name."""
        rows = self._db.execute(
            "SELECT offset, packed FROM nameless WHERE alias = ? "
            "AND due_ms >= ? ORDER BY offset",
            (alias, arrived_ms),
        ).fetchall()
        met = []
        for offset, packed in rows:
            (held,) = packing.held_from(packed)
            if held.stored.arrived_ms <= due_ms:
                met.append((offset,))
                _forward(held, prediction_id, effects)
        self._db.executemany("DELETE FROM nameless WHERE offset = ?", met)
        state.held -= len(met)

    def label(
        self, stored: Stored, label: Label, state: WorkingSet, effects: Effects
    ) -> None:
        """Take in a label by an alias: forward it, hold it, or say why not."""
        assert label.alias is not None  # or it names the prediction
        held, alias = Held(stored, label), digest_of(label.alias)
        ttl_ms = self._settings(label.alias.model).dangling_ttl_s * 1000
        waits_until_ms = stored.arrived_ms + ttl_ms
        found = self._db.execute(
            "SELECT id, arrived_ms FROM aliases WHERE alias = ? AND due_ms >= ? "
            "ORDER BY due_ms LIMIT 1",
            (alias, stored.arrived_ms),
        ).fetchone()
        if found is not None and found[1] <= waits_until_ms:
            _forward(held, found[0], effects)
        elif state.held >= self._config.max_dangling:
            text = "too many labels wait: max_dangling"
            _refuse(held, Reason.OVERFLOW, text, effects)
        else:
            self._db.execute(
                "INSERT INTO nameless VALUES (?, ?, ?, ?)",
                (stored.offset, alias, waits_until_ms, packing.pack_held([held])),
            )
            state.held += 1

    def is_due(self, watermark_ms: int) -> bool:
        """Return whether there is a name to forget or a label to give up."""
        (due,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM aliases WHERE due_ms < ?) "
            "OR EXISTS (SELECT 1 FROM nameless WHERE due_ms < ?)",
            (watermark_ms, watermark_ms),
        ).fetchone()
        return bool(due)

    def advance(self, watermark_ms: int, state: WorkingSet, effects: Effects) -> None:
        """Forget names, and give up labels, that are due; some are left if very many.

        Args:
            watermark_ms: Nothing comes any more that the log took in before.
            state: Counts what is held.
            effects: Takes the dead letters.
        """
        rows = self._db.execute(
            "SELECT offset, packed FROM nameless WHERE due_ms < ? "
            "ORDER BY due_ms, offset LIMIT ?",
            (watermark_ms, _AT_ONCE),
        ).fetchall()
        for offset, packed in rows:
            (held,) = packing.held_from(packed)
            _refuse(held, Reason.ORPHAN, self._why(), effects)
            self._db.execute("DELETE FROM nameless WHERE offset = ?", (offset,))
        state.held -= len(rows)
        self._db.execute(
            "DELETE FROM aliases WHERE (alias, due_ms) IN (SELECT alias, due_ms "
            "FROM aliases WHERE due_ms < ? ORDER BY due_ms LIMIT ?)",
            (watermark_ms, _AT_ONCE),
        )

    def _why(self) -> str:
        text = "no request of this model had this id within window_s and lateness_s"
        if self._config.by_request_id:
            return text
        return f"{text}: set feedback.by_request_id, or fronts note no ids"

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Yield all there is, in an order that it alone decides."""
        yield from self._db.execute("SELECT * FROM aliases ORDER BY alias, due_ms")
        yield from self._db.execute("SELECT * FROM nameless ORDER BY offset")

    def _settings(self, model: str) -> JoinConfig:
        return self._config.models.get(model, self._config.default)


def _forward(held: Held, prediction_id: bytes, effects: Effects) -> None:
    stored, label = held
    copy = label._replace(
        prediction_id=prediction_id,
        alias=None,
        forwarded=(stored.arrived_ms, stored.offset),
    )
    effects.forwarded.append(encode(copy))
    effects.counts["forwarded"] += 1


def _refuse(held: Held, reason: Reason, detail: str, effects: Effects) -> None:
    stored = held.stored
    effects.counts[f"dead_{reason}"] += 1
    effects.dead.append(DeadLetter(stored, reason, detail, stored.arrived_ms, 1))

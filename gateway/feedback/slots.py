"""Where plain requests lie: parts by slots of time, in a file and in memory.

Ids are UUIDv7: their first 48 bits are Unix milliseconds (RFC 9562, section 5.7), which
say in which slot of time one lies. Within a slot it is found by a hash of 64 bits:
among a million ids, two have the same once in 10^7 slots.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gateway.feedback.checked import dumped, loaded, sealed, unsealed
from gateway.feedback.columns import Block, ids_of
from gateway.feedback.pending import horizon_ms
from gateway.feedback.types import Value
from gateway.feedback_config import FeedbackConfig, JoinConfig

TABLES = (
    """CREATE TABLE parts (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        slot INTEGER NOT NULL, due_ms INTEGER NOT NULL,
        model TEXT NOT NULL, arrived_ms INTEGER NOT NULL, first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL, closed INTEGER NOT NULL, plain INTEGER NOT NULL
    )""",
    "CREATE INDEX parts_slot ON parts (slot)",
    "CREATE INDEX parts_due ON parts (due_ms)",
    "CREATE TABLE part_blocks (number INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    "CREATE TABLE notes (number INTEGER PRIMARY KEY, slot INTEGER, packed BLOB)",
    "CREATE INDEX notes_slot ON notes (slot)",
)
_SLOT_BITS = 12
"""A slot is 2^12 ms."""
ROW_BITS = 20
"""A place is a part's number and, in these low bits, the row in it; a block (16 MiB)
holds fewer ids than these count."""
ROW = (1 << ROW_BITS) - 1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # Knuth, 6.4: 2^64 over the golden ratio
PLAIN, LABELLED, GONE = range(3)
_AT_ONCE = 1000
"""Parts that are looked at together when time moves on."""
_SLOT_COSTS = 64
"""A slot in memory takes as much as so many ids."""
MOST_CACHED = 1 << 24
"""Ids that are kept in memory, 16 bytes each, over all partitions."""


@dataclass(slots=True)
class Part:
    """A stored block: plain requests of one model and slot.

    Attributes:
        settings: Of the model.
        arrived_ms: When the log took it in.
        first_ms: When the first of its requests was admitted.
        last_ms: And the last.
        closed: Its rows are emitted.
        states: Of each request.
        from_ms: Labels that the log took in from then on have not waited too long.
        until_ms: Those until then are in time for it to stay plain.
    """

    number: int
    model: str
    settings: JoinConfig
    arrived_ms: int
    first_ms: int
    last_ms: int
    closed: bool
    states: bytearray
    from_ms: int = field(init=False)
    until_ms: int = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.from_ms = self.arrived_ms - settings.dangling_ttl_s * 1000
        # Of a sum, each part has to be known.
        plain = not self.closed and settings.conflict != "sum"
        self.until_ms = self.first_ms + settings.window_s * 1000 if plain else -1

    def close(self) -> None:
        """Say that its rows are emitted."""
        self.closed, self.until_ms = True, -1

    @property
    def due_ms(self) -> int:
        """When it is closed, or forgotten."""
        if self.closed:
            return self.last_ms + horizon_ms(self.settings)
        return self.last_ms + self.settings.window_s * 1000


class Slot:
    """The parts of one slot, and where ids lie in them."""

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}
        self._keys = np.empty(0, np.uint64)
        self._places = np.empty(0, np.int64)
        self._more: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self._keys) + sum(len(keys) for keys, _ in self._more)

    def add(self, part: Part, keys: np.ndarray) -> None:
        """Take in a part whose rows have these keys."""
        self.parts[part.number] = part
        first = part.number << ROW_BITS
        self._more.append((keys, np.arange(first, first + len(keys))))

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the place of each key, the first it has; -1 for none."""
        if self._more:
            self._keys = np.concatenate([self._keys, *[k for k, _ in self._more]])
            self._places = np.concatenate([self._places, *[p for _, p in self._more]])
            self._more = []
            order = np.lexsort((self._places, self._keys))
            self._keys, self._places = self._keys[order], self._places[order]
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        if not len(self._keys):
            return np.full(len(keys), -1)
        return np.where(self._keys[at] == keys, self._places[at], -1)


Said = tuple[int, str, int, Value | None, int, float]
"""A label: place, name, and the first fields of a `Known`."""


class Note(NamedTuple):
    """What is written down of a slot: places that are gone, and labels."""

    gone: list[int]
    labels: list[Said]


@dataclass(slots=True)
class Notes:
    """All that the notes of a slot say, by place."""

    gone: set[int] = field(default_factory=set)
    labels: dict[int, Said] = field(default_factory=dict)


class Slots:
    """Parts and notes in a database, and the ids of some slots in memory.

    Calls are part of the transaction that the caller began.

    Args:
        db: Has `TABLES`.
        config: Of all models.
        cached: Ids to keep in memory, about.
    """

    def __init__(
        self, db: sqlite3.Connection, config: FeedbackConfig, cached: int
    ) -> None:
        self._db = db
        self._config = config
        self._cached = cached
        self.forget()

    def forget(self) -> None:
        """Drop what is in memory: the file may say something else."""
        self._slots: OrderedDict[int, Slot] = OrderedDict()
        self._held = 0
        self._noted: tuple[int, Notes] | None = None
        # A number is never used again: notes of its slot may outlive a part.
        last = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'parts'")
        found: tuple[int] | None = last.fetchone()
        self._last = 0 if found is None else found[0]

    def trim(self) -> None:
        """Keep no more in memory than there may be."""
        while self._held > self._cached and len(self._slots) > 1:
            self._let_go(next(iter(self._slots)))

    def _let_go(self, number: int) -> None:
        slot = self._slots.pop(number, None)
        if slot is not None:
            self._held -= len(slot) + _SLOT_COSTS

    def settings(self, model: str) -> JoinConfig:
        """Return the settings of a model."""
        return self._config.models.get(model, self._config.default)

    # -- parts ------------------------------------------------------------------------

    def add(
        self,
        place: tuple[str, int],
        times_ms: tuple[int, int, int],
        packed: bytes,
        keys: np.ndarray,
        states: np.ndarray,
    ) -> None:
        """Store a part.

        Args:
            place: Model and slot.
            times_ms: See `Part`: of arrival, of the first request and of the last.
            packed: A block, of which `ids_of` knows the ids.
            keys: Of the ids.
            states: Likewise, uint8.
        """
        model, slot = place
        self._last += 1
        plain = int(np.count_nonzero(states == PLAIN))
        part = Part(
            self._last,
            model,
            self.settings(model),
            *times_ms,
            closed=not plain,
            states=bytearray(states),
        )
        row = (part.number, slot, part.due_ms, model, *times_ms, part.closed, plain)
        self._db.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._db.execute(
            "INSERT INTO part_blocks VALUES (?, ?)", (part.number, sealed(packed))
        )
        if plain < len(states):
            gone = np.flatnonzero(states) + (part.number << ROW_BITS)
            self.write(slot, Note(gone.tolist(), []))
        into = self._slots.get(slot)
        if into is None:
            into = self._slots[slot] = self._read(slot)  # with the part
            self._held += len(into) + _SLOT_COSTS
        else:
            into.add(part, keys)
            self._held += len(keys)

    def find(self, keys: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Return the place of each key in its slot; -1 for none."""
        found = np.empty(len(keys), np.int64)
        order = np.argsort(slots, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(slots[order])) + 1):
            found[mine] = self._slot(int(slots[mine[0]])).find(keys[mine])
        return found

    def part_of(self, slot: int, place: int) -> Part:
        """Return the part of a place that was found just now."""
        return self._slots[slot].parts[place >> ROW_BITS]

    def block(self, number: int) -> Block:
        """Return the block of a part, if any of it is plain."""
        (packed,) = self._db.execute(
            "SELECT packed FROM part_blocks WHERE number = ?", (number,)
        ).fetchone()
        return Block(unsealed(packed))

    def of(self, slot: int) -> Sequence[Part]:
        """Return the parts of a slot."""
        return tuple(self._slot(slot).parts.values())

    def all(self) -> Sequence[int]:
        """Return the slots that have parts."""
        rows = self._db.execute("SELECT DISTINCT slot FROM parts ORDER BY slot")
        return [slot for (slot,) in rows.fetchall()]

    def due(self, watermark_ms: int) -> Sequence[tuple[int, Part]]:
        """Return the slot and the part of those first due, without their states."""
        rows = self._db.execute(
            "SELECT * FROM parts WHERE due_ms < ? ORDER BY due_ms, number LIMIT ?",
            (watermark_ms, _AT_ONCE),
        )
        return [(row[1], self._part(row, 0)) for row in rows.fetchall()]

    def due_ms(self) -> int | None:
        """Return when the first part is due; ``None`` without any."""
        (due_ms,) = self._db.execute("SELECT min(due_ms) FROM parts").fetchone()
        return None if due_ms is None else int(due_ms)

    def newest_ms(self) -> int:
        """Return by when the newest id was made; 0 without any."""
        (slot,) = self._db.execute("SELECT max(slot) FROM parts").fetchone()
        return 0 if slot is None else (slot + 1) << _SLOT_BITS

    def count(self) -> int:
        """Return how many requests are plain."""
        (count,) = self._db.execute("SELECT sum(plain) FROM parts").fetchone()
        return count or 0

    def keep(self, slot: int, part: Part) -> None:
        """Write down whether a part is closed, and when it is due."""
        self._db.execute(
            "UPDATE parts SET due_ms = ?, closed = ? WHERE number = ?",
            (part.due_ms, part.closed, part.number),
        )
        if part.closed and slot in self._slots:
            self._slots[slot].parts[part.number].close()

    def drop(self, parts: Sequence[tuple[int, int]]) -> None:
        """Forget parts: slot and number of each."""
        numbers = [(number,) for _, number in parts]
        self._db.executemany("DELETE FROM parts WHERE number = ?", numbers)
        self._db.executemany("DELETE FROM part_blocks WHERE number = ?", numbers)
        for slot in {slot for slot, _ in parts}:
            self._let_go(slot)
            left = "SELECT 1 FROM parts WHERE slot = ? LIMIT 1"
            if not self._db.execute(left, (slot,)).fetchone():
                self._db.execute("DELETE FROM notes WHERE slot = ?", (slot,))

    # -- notes ------------------------------------------------------------------------

    def write(self, slot: int, note: Note) -> None:
        """Write a note down; the states of its places are the caller's to set."""
        self._db.execute(
            "INSERT INTO notes (slot, packed) VALUES (?, ?)",
            (slot, dumped((*note,))),
        )
        self._noted = None

    def notes(self, slot: int) -> Notes:
        """Return all that was written down of a slot."""
        if self._noted is not None and self._noted[0] == slot:
            return self._noted[1]
        notes = Notes()
        for (packed,) in self._db.execute(
            "SELECT packed FROM notes WHERE slot = ?", (slot,)
        ):
            gone, labels = loaded(packed)
            notes.gone.update(gone)
            notes.labels.update({said[0]: said for said in labels})
        self._noted = slot, notes
        return notes

    def leave(self, places: Mapping[int, Sequence[int]]) -> None:
        """Let the requests at some places, by slot, be plain no longer."""
        for slot, gone in places.items():
            self.write(slot, Note([*gone], []))
            for place in gone:
                part = self.part_of(slot, place)
                part.states[place & ROW] = GONE
        left = Counter(
            [place >> ROW_BITS for gone in places.values() for place in gone]
        )
        self._db.executemany(
            "UPDATE parts SET plain = plain - ? WHERE number = ?",
            [(count, number) for number, count in left.items()],
        )

    # -- memory -----------------------------------------------------------------------

    def _slot(self, number: int) -> Slot:
        slot = self._slots.get(number)
        if slot is not None:
            self._slots.move_to_end(number)
            return slot
        slot = self._read(number)
        if slot.parts:  # else what is not there would take memory
            self._slots[number] = slot
            self._held += len(slot) + _SLOT_COSTS
        return slot

    def _read(self, number: int) -> Slot:
        slot = Slot()
        for *row, packed in self._db.execute(
            "SELECT parts.*, packed FROM parts JOIN part_blocks USING (number) "
            "WHERE slot = ? ORDER BY number",
            (number,),
        ):
            keys, _ = keys_of(ids_of(unsealed(packed)))
            slot.add(self._part(row, len(keys)), keys)
        if slot.parts:
            notes = self.notes(number)
            for state, places in ((LABELLED, notes.labels), (GONE, notes.gone)):
                for place in places:
                    if part := slot.parts.get(place >> ROW_BITS):
                        part.states[place & ROW] = state
        return slot

    def _part(self, row: Sequence[Any], requests: int) -> Part:
        number, _, _, model, arrived_ms, first_ms, last_ms, closed, _ = row
        return Part(
            number,
            model,
            self.settings(model),
            arrived_ms,
            first_ms,
            last_ms,
            bool(closed),
            bytearray(requests),
        )


def keys_of(ids: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the key and the slot of ids, 16 bytes each."""
    halves = np.frombuffer(ids, ">u8").reshape(-1, 2).astype(np.uint64)
    high, low = halves[:, 0], halves[:, 1]
    return low ^ high * _FACTOR, (high >> np.uint64(16 + _SLOT_BITS)).astype(np.int64)

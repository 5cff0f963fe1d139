"""Plain requests of a partition, kept as the blocks that they came in.

Plain is a request of one row that one version answered, with at most one label: most
are. Such a request is no row of a table and no object. Its block is stored as it came
(split by model, and by when ids were made); a label is an entry of a note beside it;
and once the window is over all of a block's rows are emitted column by column.
Whatever else happens to a request takes it out of here, to the table where
`gateway.feedback.join` sees it: then it is gone.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from gateway.feedback.blocks import ID_BYTES
from gateway.feedback.columns import Block
from gateway.feedback.emitted import Emitted, joined
from gateway.feedback.join import SKEW_MS
from gateway.feedback.label_state import Known, misfit
from gateway.feedback.pending import Answers, Pending, horizon_ms
from gateway.feedback.plain_rows import emit
from gateway.feedback.sample import in_share, share_of
from gateway.feedback.slots import (
    GONE,
    LABELLED,
    PLAIN,
    ROW,
    ROW_BITS,
    Note,
    Notes,
    Part,
    Slots,
    keys_of,
)
from gateway.feedback.thinning import Thinning
from gateway.feedback.types import Label, LabelKind, Prediction, Stored
from gateway.feedback_config import FeedbackConfig

Received = tuple[Stored, Label]
"""A label, with the event that it came in."""


class _Some(NamedTuple):
    """Rows of a block, with their keys and states."""

    block: Block
    rows: np.ndarray
    keys: np.ndarray
    states: np.ndarray


class Plain:
    """Calls are part of the transaction that the caller began.

    Args:
        db: Has the tables of `gateway.feedback.slots`.
        config: Of all models.
        cached: Ids to keep in memory, about.
    """

    def __init__(
        self, db: sqlite3.Connection, config: FeedbackConfig, cached: int
    ) -> None:
        self._slots = slots = Slots(db, config, cached)
        self.forget, self.trim = slots.forget, slots.trim
        self.due_ms, self.count = slots.due_ms, slots.count
        self.newest_ms = slots.newest_ms

    # -- predictions ------------------------------------------------------------------

    def admit(
        self, blocks: Sequence[tuple[int, Block]], waiting: Collection[bytes]
    ) -> list[tuple[int, Prediction]]:
        """Take in what is plain; return the rest, each with its time of arrival.

        Args:
            blocks: Each with its time of arrival.
            waiting: Ids that have labels already.
        """
        if not blocks:
            return []
        ids = b"".join([block.ids for _, block in blocks])
        keys, slots = keys_of(ids)
        known = self._slots.find(keys, slots) >= 0
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        plain = ~known & (counts[inverse] == 1)
        if waiting:
            starts = range(0, len(ids), ID_BYTES)
            plain &= [ids[at : at + ID_BYTES] not in waiting for at in starts]
        others: list[tuple[int, Prediction]] = []
        end = 0
        for arrived_ms, block in blocks:
            mine = slice(end, end := end + block.count)
            states = np.where(
                plain[mine] & self._is_plain(arrived_ms, block), PLAIN, GONE
            ).astype(np.uint8)
            for place, rows in _split(block, slots[mine]):
                if not known[mine][rows].all():
                    some = _Some(block, rows, keys[mine][rows], states[rows])
                    self._store(arrived_ms, place, some)
            if rest := np.flatnonzero(states).tolist():
                others += [(arrived_ms, one) for one in block.predictions(rest)]
        return others

    def _is_plain(self, arrived_ms: int, block: Block) -> np.ndarray:
        settings = [self._slots.settings(origin[0]) for origin in block.origins]
        horizons = np.array([horizon_ms(each) for each in settings], np.int64)
        found: np.ndarray = (block.times <= arrived_ms + SKEW_MS) & (
            arrived_ms <= block.times + horizons[block.origin]
        )
        if block.rows.count(1) < block.count:
            found &= np.array(block.rows) == 1
        return found

    def _store(self, arrived_ms: int, place: tuple[str, int], some: _Some) -> None:
        block, rows, keys, states = some
        times = block.times[rows]
        if states.all():  # only the ids are of use
            packed = block.ids_alone(rows.tolist())
        else:
            whole = len(rows) == block.count and not block.has_inputs
            packed = block.value if whole else block.some(rows.tolist())
        # It lasts as long as the last of its requests, gone or not: by it, their ids
        # are known. A clock that is far ahead counts as little as in the join.
        times = np.where(times > arrived_ms + SKEW_MS, arrived_ms, times)
        times_ms = (arrived_ms, int(times.min()), int(times.max()))
        self._slots.add(place, times_ms, packed, keys, states)

    # -- labels -----------------------------------------------------------------------

    def note(self, labels: Sequence[Received]) -> Sequence[Received]:
        """Take in labels that leave their requests plain; return the others."""
        others = [each for each in labels if not each[1].prediction_id]
        if others:
            labels = [each for each in labels if each[1].prediction_id]
        if not labels:
            return others
        ids = [label.prediction_id for _, label in labels]
        keys, slots = keys_of(b"".join(ids))
        found = self._slots.find(keys, slots).tolist()
        times = Counter(ids) if len(set(ids)) < len(ids) else None
        notes: defaultdict[int, Note] = defaultdict(lambda: Note([], []))
        part_of = self._slots.part_of
        for each, place, slot in zip(labels, found, slots.tolist(), strict=True):
            stored, label = each
            if place >= 0 and (times is None or times[label.prediction_id] == 1):
                part = part_of(slot, place)
                row = place & ROW
                if (
                    part.states[row] == PLAIN
                    and label.kind is LabelKind.VALUE
                    and part.from_ms <= stored.arrived_ms <= part.until_ms
                    and misfit(label, part.settings, 1) is None
                ):
                    part.states[row] = LABELLED
                    notes[slot].labels.append(
                        (place, label.name, label.seq, label.value, label.time_ms,
                         label.weight)
                    )  # fmt: skip
                    continue
            others.append(each)
        for slot, note in notes.items():
            self._slots.write(slot, note)
        return others

    # -- requests that are plain no longer ---------------------------------------------

    def look(self, keys: Sequence[bytes]) -> dict[bytes, Pending]:
        """Return those of some requests that are in here."""
        found: dict[bytes, Pending] = {}
        blocks: dict[int, Block] = {}
        notes: dict[int, Notes] = {}
        for key, slot, place in self._places(keys):
            part = self._slots.part_of(slot, place) if place >= 0 else None
            if part is None or part.states[place & ROW] == GONE:
                continue
            if slot not in notes:
                notes[slot] = self._slots.notes(slot)
            if part.number not in blocks:
                blocks[part.number] = self._slots.block(part.number)
            block = blocks[part.number]
            found[key] = self._pending(part, place & ROW, block, notes[slot])
        return found

    def leave(self, keys: Sequence[bytes]) -> None:
        """Let requests that `look` found go: their state is elsewhere from now on."""
        places: defaultdict[int, list[int]] = defaultdict(list)
        for _, slot, place in self._places(keys):
            places[slot].append(place)
        self._slots.leave(places)

    def all(self) -> Iterator[tuple[bytes, Pending]]:
        """Return every request that is in here."""
        for slot in self._slots.all():
            notes = self._slots.notes(slot)
            for part in self._slots.of(slot):
                if part.states.count(GONE) == len(part.states):
                    continue
                block = self._slots.block(part.number)
                for row, state in enumerate(part.states):
                    if state != GONE:
                        yield block.id(row), self._pending(part, row, block, notes)

    def _places(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, int, int]]:
        if not keys:
            return iter(())
        hashes, slots = keys_of(b"".join(keys))
        places = self._slots.find(hashes, slots).tolist()
        return zip(keys, slots.tolist(), places, strict=True)

    def _pending(self, part: Part, row: int, block: Block, notes: Notes) -> Pending:
        load = partial(self._answers, part, row, block)
        time_ms = int(block.times[row])
        found = Pending(part.model, time_ms, 1, part.arrived_ms, load)
        found.closed = part.closed
        said = notes.labels.get(part.number << ROW_BITS | row)
        if said is not None:
            found.labels[0, said[1]] = Known(*said[2:])
        return found

    def _answers(self, part: Part, row: int, block: Block) -> Answers:
        (one,) = block.predictions([row])
        share = share_of(one.role, one.propensity, part.settings)
        return {(one.version, one.role): one} if in_share(one.id, share) else {}

    # -- time moves on ----------------------------------------------------------------

    def expire(self, watermark_ms: int, most: int, thinning: Thinning) -> Emitted:
        """Close and forget parts that are due, of about `most` requests.

        Returns:
            The rows of those that were closed.
        """
        rows, dropped, seen = [], [], 0
        for slot, part in self._slots.due(watermark_ms):
            if seen >= most:
                break
            seen += 1
            if not part.closed and part.due_ms < watermark_ms:
                block = self._slots.block(part.number)
                seen += block.count
                notes = self._slots.notes(slot)
                rows.append(self._emit(part, block, notes, thinning))
                part.close()
            if part.due_ms < watermark_ms:
                dropped.append((slot, part.number))
            else:
                self._slots.keep(slot, part)
        self._slots.drop(dropped)
        return joined(rows)

    def _emit(
        self, part: Part, block: Block, notes: Notes, thinning: Thinning
    ) -> Emitted:
        first = part.number << ROW_BITS
        rows: Sequence[int] = range(block.count)
        if not notes.gone.isdisjoint(range(first, first + block.count)):
            rows = [row for row in rows if first + row not in notes.gone]
        return emit(
            block,
            rows,
            [notes.labels.get(first + row) for row in rows],
            part.settings,
            thinning,
        )


def _split(
    block: Block, slots: np.ndarray
) -> Sequence[tuple[tuple[str, int], np.ndarray]]:
    """Return the rows of a block by model and slot."""
    models = [origin[0] for origin in block.origins]
    if len(set(models)) == 1 and (slots == slots[0]).all():
        return [((models[0], int(slots[0])), np.arange(block.count))]
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    of_each = zip(block.origin, slots.tolist(), strict=True)
    for row, (origin, slot) in enumerate(of_each):
        groups[models[origin], slot].append(row)
    return [(place, np.array(rows)) for place, rows in groups.items()]

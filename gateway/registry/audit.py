"""The audit log: a chain of hashes over what was decided, by whom and why. Pure.

Each entry's hash is the SHA-256 of its body, and the body holds the hash of the entry
before, so that no byte of the past can change unseen. Entries also name the SHA-256 of
every row of state that they wrote: state that was changed past the log does not match,
and state that is ahead of the log shows that the log was cut off. Somebody who rewrites
the whole file is found by a head hash that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import cast

GENESIS = "0" * 64
"""The hash before the first entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One change, as it was recorded.

    Attributes:
        seq: Place in the log, from 1 on without gaps.
        time: When, RFC 3339 in UTC with milliseconds.
        actor: Who.
        action: What was done, such as ``set_traffic``.
        model: To which model.
        from_revision: Of the model before.
        to_revision: Of the model after.
        reason: Why, in the actor's words.
        evidence: JSON object: the actor's own evidence (``given``), the readable
            difference (``change``), and what ties entry and state (``operation``,
            ``request``, ``versions``, ``wrote``).
        previous: Hash of the entry before; `GENESIS` for the first.
        hash: SHA-256 of `body`, in hexadecimal.
    """

    seq: int
    time: str
    actor: str
    action: str
    model: str
    from_revision: int
    to_revision: int
    reason: str
    evidence: Mapping[str, object]
    previous: str
    hash: str

    @property
    def body(self) -> bytes:
        """What is hashed: canonical JSON of all fields but the hash."""
        return canonical(
            {name: getattr(self, name) for name in _FIELDS if name != "hash"}
        )


_FIELDS = {field.name: field.type for field in fields(Entry)}
_KINDS: dict[object, type] = {"int": int, "str": str, "Mapping[str, object]": dict}


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a log: all that the next one needs to know."""

    seq: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, slots=True)
class StateRow:
    """A row of state, as far as the log speaks of it.

    Attributes:
        model: The model it belongs to.
        key: Which row of it, such as ``version/3``.
        body: Its bytes.
        seq: The entry that wrote it.
    """

    model: str
    key: str
    body: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of the log found.

    Attributes:
        entries: Entries that are as they were written.
        head: Hash of the last of them; keep it elsewhere to find a rewritten log.
        bad_seq: First entry that is not; ``None`` if all are.
        fault: What is wrong with it; empty if nothing is.
    """

    entries: int
    head: str
    bad_seq: int | None = None
    fault: str = ""

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.fault


def canonical(value: object) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8.

    Raises:
        ValueError: It has no such text: NaN, infinities, half a surrogate pair.
        TypeError: It is not made of what JSON has.
    """
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def chain(
    head: Head,
    *,
    time: str,
    actor: str,
    action: str,
    model: str,
    from_revision: int,
    to_revision: int,
    reason: str,
    evidence: Mapping[str, object],
) -> Entry:
    """Return the entry that follows `head`."""
    entry = Entry(
        seq=head.seq + 1,
        time=time,
        actor=actor,
        action=action,
        model=model,
        from_revision=from_revision,
        to_revision=to_revision,
        reason=reason,
        evidence=evidence,
        previous=head.hash,
        hash="",
    )
    return parse(entry.body)


def parse(body: bytes) -> Entry:
    """Read an entry's body.

    Raises:
        ValueError: It is no canonical JSON of an entry.
    """
    value = json.loads(body)
    if not isinstance(value, dict) or value.keys() != _FIELDS.keys() - {"hash"}:
        raise ValueError("it does not have the fields of an entry")
    for name, found in value.items():
        if type(found) is not _KINDS[_FIELDS[name]]:
            raise ValueError(f"its {name} is of the wrong type")
    if canonical(value) != body:
        raise ValueError("it is not canonical JSON")
    return Entry(**value, hash=sha256(body))


def verify(
    entries: Iterable[tuple[int, object, object]],
    state: Iterable[StateRow] | None = None,
    operations: Mapping[str, int] | None = None,
    *,
    expect: str | None = None,
) -> Verdict:
    """Check the chain, and that the state is what the chain says.

    Args:
        entries: Rows of the log in order: number, body and hash as they are stored.
        state: Every row of state; ``None`` to leave it out.
        operations: Entry by operation id, as stored; ``None`` to leave them out.
        expect: A hash kept elsewhere, or how it begins; the log must hold it.

    Returns:
        The first fault. State without its entry is laid to the entry that would have
        written it, or that it contradicts.
    """
    head, anchored = Head(), expect in (None, GENESIS)
    wrote: dict[tuple[str, str], tuple[str, int]] = {}
    ids: dict[str, int] = {}
    for seq, body, stored in entries:
        try:
            entry = _read(head, seq, body, stored)
        except (ValueError, RecursionError) as error:
            return Verdict(head.seq, head.hash, head.seq + 1, str(error))
        rows = cast("Mapping[str, str]", entry.evidence.get("wrote", {}))
        for key, digest in rows.items():
            wrote[entry.model, key] = digest, seq
        ids[str(entry.evidence.get("operation", ""))] = seq
        head = Head(entry.seq, entry.hash)
        anchored = anchored or (expect is not None and entry.hash.startswith(expect))
    faults: list[tuple[int, str]] = []
    if state is not None:
        faults += _check_state(head, wrote, state)
    if operations is not None:
        faults += _check_operations(ids, operations)
    if not anchored:
        fault = f"no entry has the expected hash, {expect}"
        faults.append((head.seq + 1, f"{fault}: it was cut off or rewritten"))
    if faults:
        return Verdict(head.seq, head.hash, *min(faults))
    return Verdict(head.seq, head.hash)


def _read(head: Head, seq: int, body: object, stored: object) -> Entry:
    """Return the entry of a row that follows `head`; ValueError says what is wrong."""
    if seq != head.seq + 1:
        raise ValueError(f"entry {head.seq + 1} is missing: {seq} follows {head.seq}")
    if not isinstance(body, bytes):
        raise ValueError("its body is not stored as bytes")
    if stored != sha256(body).encode():
        raise ValueError("its hash is not that of its body")
    entry = parse(body)
    if entry.seq != seq:
        raise ValueError(f"its body is that of entry {entry.seq}")
    if entry.previous != head.hash:
        raise ValueError("it does not follow the entry before it")
    if not isinstance(entry.evidence.get("wrote", {}), dict):
        raise ValueError("its evidence does not say what it wrote")
    return entry


def _check_state(
    head: Head,
    wrote: dict[tuple[str, str], tuple[str, int]],
    state: Iterable[StateRow],
) -> Iterable[tuple[int, str]]:
    """Yield entries whose state is not there or not theirs, with the fault."""
    left = dict(wrote)
    for row in state:
        name = f"{row.key} of model {row.model!r}"
        digest, seq = left.pop((row.model, row.key), ("", row.seq))
        if row.seq > head.seq:
            yield head.seq + 1, f"{name} was written by entry {row.seq}, which is gone"
        elif not digest:
            yield seq, f"{name} is in the state, and no entry wrote it"
        elif row.seq != seq or sha256(row.body) != digest:
            yield max(row.seq, seq), f"{name} is not what the entry wrote"
    for (model, key), (_, seq) in left.items():
        yield seq, f"{key} of model {model!r} is gone from the state"


def _check_operations(
    ids: dict[str, int], operations: Mapping[str, int]
) -> Iterable[tuple[int, str]]:
    for operation in ids.keys() | operations.keys():
        said, stored = ids.get(operation), operations.get(operation)
        if said != stored:
            at = said or stored or 0
            yield at, f"operation {operation!r} is not recorded as the entry says"

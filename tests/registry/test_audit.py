"""The audit log: what was written stays, and whoever touches it is found."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RegistryUnavailable
from gateway.registry.audit import GENESIS, Entry, Head, canonical, chain, parse, verify
from gateway.registry.registry import Registry

from .registries import by, candidate, opened, split

GOLDEN = "3130855e8162a1032e022041b8b9d675af75c3aefe730f388feab036980abdc5"
START = Head()


def entry(head: Head = START, **fields: object) -> Entry:
    values = {
        "time": "2026-11-25T01:02:03.456Z",
        "actor": "ada",
        "action": "set_alias",
        "model": "fraud",
        "from_revision": 3,
        "to_revision": 4,
        "reason": "größer ✓",
        "evidence": {"given": {"b": 1, "a": [0.1, None, True]}, "wrote": {}},
    }
    return chain(head, **{**values, **fields})  # type: ignore[arg-type]


def test_the_hash_of_an_entry_is_the_same_in_every_release() -> None:
    one = entry()
    assert one.body.decode() == (
        '{"action":"set_alias","actor":"ada","evidence":{"given":{"a":[0.1,null,true],'
        '"b":1},"wrote":{}},"from_revision":3,"model":"fraud","previous":"'
        + GENESIS
        + '","reason":"größer ✓","seq":1,"time":"2026-11-25T01:02:03.456Z",'
        '"to_revision":4}'
    )
    assert one.hash == GOLDEN


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_canonical_json_has_one_text_per_value(value: object) -> None:
    try:
        text = canonical(value)
    except UnicodeEncodeError:
        return  # half a surrogate pair has no UTF-8
    assert canonical(json.loads(text)) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {1j}, b"x"])
def test_what_is_not_json_has_no_canonical_text(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical({"a": value})


@pytest.mark.parametrize(
    "change",
    [
        lambda body: {k: v for k, v in body.items() if k != "reason"},
        lambda body: {**body, "more": 1},
        lambda body: {**body, "seq": "1"},
        lambda body: {**body, "seq": True},
        lambda body: {**body, "evidence": []},
        lambda body: [body],
    ],
)
def test_a_body_that_is_no_entry_is_refused(
    change: Callable[[dict[str, object]], object],
) -> None:
    with pytest.raises(ValueError, match="it"):
        parse(canonical(change(json.loads(entry().body))))


def test_a_body_that_is_not_canonical_is_refused() -> None:
    with pytest.raises(ValueError, match="canonical"):
        parse(entry().body + b" ")


def log_of(count: int) -> list[tuple[int, bytes, bytes]]:
    head, rows = Head(), []
    for number in range(count):
        one = entry(head, reason=f"reason {number}")
        head = Head(one.seq, one.hash)
        rows.append((one.seq, one.body, one.hash.encode()))
    return rows


@pytest.mark.parametrize(
    ("damage", "bad"),
    [
        (lambda rows: rows[:2] + rows[3:], 3),
        (lambda rows: rows[1:], 1),
        (lambda rows: [rows[0], rows[2], rows[1], rows[3]], 2),
        (lambda rows: [rows[0], rows[1], rows[1], rows[3]], 3),
        (lambda rows: [(seq + 1, *rest) for seq, *rest in rows], 1),
        (lambda rows: [rows[0], (2, *rows[2][1:]), rows[3]], 2),
        (lambda rows: [rows[0], (2, "text", rows[1][2]), *rows[2:]], 2),
    ],
)
def test_gaps_and_other_orders_are_found(
    damage: Callable[[list[object]], list[tuple[int, object, object]]], bad: int
) -> None:
    rows = log_of(4)
    assert verify(rows).sound
    verdict = verify(damage(list(rows)))
    assert (verdict.bad_seq, verdict.entries) == (bad, bad - 1)
    assert verdict.fault


def test_a_rewritten_or_shortened_log_is_found_by_an_anchor() -> None:
    rows = log_of(4)
    anchor = rows[2][2].decode()
    assert verify(rows, expect=anchor).sound
    assert verify(rows, expect=GENESIS).sound
    assert verify(rows[:2], expect=anchor).bad_seq == 3
    again = entry(reason="another")
    assert (
        verify(
            [(1, again.body, again.hash.encode())], expect=rows[0][2].decode()
        ).bad_seq
        == 2
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with entries of several kinds, checkpointed into one file."""
    path = tmp_path_factory.mktemp("written") / "registry.sqlite"
    with opened(path) as registry:
        registry.import_versions("m", [candidate("a"), candidate("b")], by())
        registry.set_traffic("m", split(0.9, 0.1), by(operation_id="one"))
        registry.approve("m", 2, by("bob", evidence={"auc": 0.91}))
        registry.rollback("m", by())
        assert registry.verify().sound
    return path


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    path = tmp_path / "registry.sqlite"
    shutil.copy(written, path)
    return path


def tamper(path: Path, *statements: str, values: tuple[object, ...] = ()) -> None:
    """Change the file as somebody with a database browser would."""
    connection = sqlite3.connect(path, isolation_level=None)
    for name, kind in connection.execute(
        "SELECT name, type FROM sqlite_schema WHERE type = 'trigger'"
    ).fetchall():
        connection.execute(f"DROP {kind} {name}")
    for statement in statements:
        connection.execute(statement, values)
    connection.close()


def verdict_on(path: Path, expect: str | None = None) -> tuple[int | None, str]:
    registry = Registry(path, read_only=True)
    try:
        verdict = registry.verify(expect)
        return verdict.bad_seq, verdict.fault
    finally:
        registry.close()


def test_every_byte_of_every_body_is_held_by_the_chain(copy: Path) -> None:
    connection = sqlite3.connect(copy, isolation_level=None)
    rows = connection.execute(
        "SELECT seq, body, CAST(hash AS BLOB) FROM audit ORDER BY seq"
    ).fetchall()
    connection.close()
    assert verify(rows).sound
    for place, (seq, body, stored) in enumerate(rows):
        for at in range(len(body)):
            bad = bytearray(body)
            bad[at] ^= 1
            damaged = [*rows]
            damaged[place] = (seq, bytes(bad), stored)
            assert verify(damaged).bad_seq == seq
        for at in range(len(stored)):
            bad = bytearray(stored)
            bad[at] ^= 1
            damaged[place] = (seq, body, bytes(bad))
            assert verify(damaged).bad_seq == seq


FIELDS = {
    "seq": 9,
    "time": "2026-01-01T00:00:00.000Z",
    "actor": "eve",
    "action": "delete",
    "model": "n",
    "from_revision": 7,
    "to_revision": 7,
    "reason": "none",
    "evidence": {},
    "previous": "f" * 64,
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("seq", [1, 2, 3, 4])
@pytest.mark.parametrize("rehash", [False, True])
def test_every_field_of_every_entry_is_held(
    copy: Path, name: str, seq: int, rehash: bool
) -> None:
    """Also where the hash of the entry itself is made to match, but not the next."""
    connection = sqlite3.connect(copy)
    query = "SELECT body, hash FROM audit WHERE seq = ?"
    body, kept = connection.execute(query, (seq,)).fetchone()
    anchor = connection.execute("SELECT hash FROM audit WHERE seq = 4").fetchone()[0]
    connection.close()
    value = json.loads(body)
    assert value[name] != FIELDS[name]
    value[name] = FIELDS[name]
    changed = canonical(value)
    digest = parse(changed).hash if rehash else kept
    tamper(
        copy,
        f"UPDATE audit SET body = ?, hash = ? WHERE seq = {seq}",
        values=(changed, digest),
    )
    bad, fault = verdict_on(copy, anchor)
    assert fault
    assert bad in (seq, seq + 1)


@pytest.mark.parametrize(
    ("statement", "bad"),
    [
        ("UPDATE audit SET seq = 9 WHERE seq = 2", 2),
        ("UPDATE audit SET hash = hash || 'f' WHERE seq = 3", 3),
        ("UPDATE audit SET hash = x'ff' WHERE seq = 3", 3),
        ("UPDATE audit SET body = CAST(body AS TEXT) WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 4", 4),
        ("DELETE FROM audit", 1),
        ("UPDATE models SET body = replace(body, 'false', 'true')", 4),
        ("UPDATE models SET model = 'other'", 4),
        ("UPDATE models SET seq = 3", 4),
        ("DELETE FROM models", 4),
        ("UPDATE versions SET body = replace(body, 'ada', 'eve') WHERE version = 1", 1),
        ("UPDATE versions SET body = replace(body, 'bob', '') WHERE version = 2", 3),
        ("UPDATE versions SET version = 3 WHERE version = 2", 3),
        ("DELETE FROM versions WHERE version = 1", 1),
        ("INSERT INTO versions SELECT model, 7, body, 1 FROM versions LIMIT 1", 1),
        (
            "UPDATE revisions SET body = replace(body, '0.9', '0.8') WHERE seq = 2",
            2,
        ),
        ("DELETE FROM revisions WHERE revision = 2", 2),
        ("INSERT INTO revisions SELECT model, 9, body, 5 FROM revisions LIMIT 1", 5),
        ("DELETE FROM operations WHERE id = 'one'", 2),
        ("UPDATE operations SET id = 'two' WHERE id = 'one'", 2),
        ("INSERT INTO operations VALUES ('two', 9)", 9),
    ],
)
def test_state_and_log_hold_each_other(copy: Path, statement: str, bad: int) -> None:
    tamper(copy, statement)
    assert verdict_on(copy)[0] == bad


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET body = x'00'",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT seq, x'00', 'h' FROM audit LIMIT 1",
        "INSERT INTO audit VALUES (9, x'00', 'h')",
        "UPDATE revisions SET body = x'00'",
        "DELETE FROM revisions",
        "DELETE FROM versions",
        "UPDATE operations SET seq = 3",
        "DELETE FROM operations",
    ],
)
def test_sqlite_itself_forbids_to_change_the_past(copy: Path, statement: str) -> None:
    connection = sqlite3.connect(copy)
    with pytest.raises(sqlite3.IntegrityError, match=r"kept|grows"):
        connection.execute(statement)
    connection.close()
    assert verdict_on(copy) == (None, "")


def test_a_file_damaged_below_sqlite_is_an_error_with_a_way_out(copy: Path) -> None:
    size = copy.stat().st_size
    with copy.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(RegistryUnavailable, match="restore"):
        verdict_on(copy)

"""The embedded log: nothing that was acknowledged is lost, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.log import LABELS, PREDICTIONS, LogUnavailable, Place
from gateway.feedback.log_file import Limits, LogFile
from gateway.feedback.log_rows import row_of, stored_from
from gateway.feedback.types import Event, Stored

PLACE = Place(LABELS, 1)
EVENTS = st.builds(
    Event,
    st.binary(max_size=40),
    st.none() | st.binary(max_size=80),
    st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=3).map(
        tuple
    ),
    st.integers(0, 1 << 48),
)


class Clock:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


def _file(folder: Path, clock: Clock | None = None, partitions: int = 4) -> LogFile:
    return LogFile(folder / "log.sqlite", partitions, clock or Clock())


@given(EVENTS)
def test_an_event_is_what_it_was(event: Event) -> None:
    row = row_of(7, 123, event)
    stored = stored_from(PLACE, row, 0)
    assert stored is not None
    assert stored.event == event
    assert (stored.offset, stored.arrived_ms) == (7, 123)


@given(EVENTS, st.data())
def test_any_changed_part_of_an_event_is_found(
    event: Event, data: st.DataObject
) -> None:
    row = list(row_of(7, 123, event))
    place = data.draw(st.sampled_from([1, 2, 3, 5]))
    if isinstance(row[place], int):
        row[place] += 1
    else:
        row[place] = bytes(row[place]) + b"!"
    assert stored_from(PLACE, tuple(row), 0) is None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(EVENTS, max_size=5), max_size=8))
def test_batches_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Event]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    file = _file(folder)
    for batch in batches:
        file.append([(PLACE, batch), (Place(PREDICTIONS, 0), batch)])
    file.close()
    file = _file(folder)
    everything = [event for batch in batches for event in batch]
    for place in (PLACE, Place(PREDICTIONS, 0)):
        found = file.read(place, 0, 1000)
        assert [stored.event for stored in found] == everything
        assert [stored.offset for stored in found] == list(range(len(everything)))
    assert file.read(Place(PREDICTIONS, 1), 0, 1000) == []
    file.close()


def test_arrivals_never_go_back(tmp_path: Path) -> None:
    clock = Clock()
    file = _file(tmp_path, clock)
    file.append([(PLACE, [Event(b"a", b"1")])])
    clock.ms -= 5000
    file.append([(PLACE, [Event(b"a", b"2")])])
    file.close()
    file = _file(tmp_path, clock)
    file.append([(PLACE, [Event(b"a", b"3")])])
    assert [stored.arrived_ms for stored in file.read(PLACE, 0, 9)] == [1_000_000] * 3
    file.close()


def test_what_is_too_old_goes_and_offsets_go_on(tmp_path: Path) -> None:
    clock = Clock()
    file = _file(tmp_path, clock)
    file.append([(PLACE, [Event(b"", b"old")] * 10)])
    clock.ms += 10_000
    file.append([(PLACE, [Event(b"", b"new")])])
    while file.expire(Limits(5_000, 1 << 40)):
        pass
    assert file.extent(PLACE) == (10, 11)
    assert [stored.offset for stored in file.read(PLACE, 0, 99)] == [10]
    clock.ms += 10_000
    while file.expire(Limits(5_000, 1 << 40)):
        pass
    file.close()
    file = _file(tmp_path, clock)
    assert file.extent(PLACE) == (11, 11)
    file.append([(PLACE, [Event(b"", b"next")])])
    assert [stored.offset for stored in file.read(PLACE, 0, 99)] == [11]
    file.close()


def test_a_log_that_is_too_large_loses_its_oldest_in_every_topic(
    tmp_path: Path,
) -> None:
    clock = Clock()
    file = _file(tmp_path, clock)
    for _ in range(100):
        file.append([(Place(PREDICTIONS, 0), [Event(b"", bytes(20_000))])])
        file.append([(PLACE, [Event(b"", b"label")])])
        clock.ms += 100
    limits = Limits(1 << 40, 1_000_000)
    while file.nbytes() > limits.nbytes:
        assert file.expire(limits)
    blocks = file.read(Place(PREDICTIONS, 0), 0, 999)
    labels = file.read(PLACE, 0, 999)
    assert 10 < len(blocks) < 60
    assert abs(blocks[0].arrived_ms - labels[0].arrived_ms) <= 100
    file.close()


def test_another_number_of_partitions_is_refused(tmp_path: Path) -> None:
    _file(tmp_path, partitions=4).close()
    with pytest.raises(LogUnavailable, match="4 partitions"):
        _file(tmp_path, partitions=8)


def test_a_gateway_with_another_number_of_partitions_does_not_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "state" / "events").mkdir(parents=True)
    LogFile(tmp_path / "state" / "events" / "log.sqlite", 4).close()
    config = tmp_path / "baton.yaml"
    config.write_text(
        f"model_repository: {tmp_path}/models\nstate_dir: {tmp_path}/state\n"
        "grpc: {port: 0}\nmetrics: {port: 0}\n"
        "feedback: {enabled: true, partitions: 7}\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", str(config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 1
    assert "4 partitions and feedback.partitions says 7" in found.stderr


def test_a_flipped_bit_costs_one_event(tmp_path: Path) -> None:
    file = _file(tmp_path)
    file.append([(PLACE, [Event(b"key", b"%d" % n) for n in range(5)])])
    file.close()
    with sqlite3.connect(tmp_path / "log.sqlite") as db:
        db.execute("UPDATE events SET value = x'3939' WHERE value = x'32'")
    db.close()
    file = _file(tmp_path)
    assert [stored.event.value for stored in file.read(PLACE, 0, 9)] == [
        b"0",
        b"1",
        b"3",
        b"4",
    ]
    assert file.damaged == 1
    file.close()


@pytest.mark.parametrize("cut", [1, 50, 200, 5000])
def test_a_torn_file_gives_back_what_can_be_read(tmp_path: Path, cut: int) -> None:
    file = _file(tmp_path)
    for n in range(300):
        file.append([(PLACE, [Event(b"key", b"%d" % n + bytes(500))])])
    file.close()
    path = tmp_path / "log.sqlite"
    os.truncate(path, path.stat().st_size - cut)
    file = _file(tmp_path)
    found = file.read(PLACE, 0, 999)
    assert len(found) > 250
    for stored in found:
        assert stored.event.value == b"%d" % stored.offset + bytes(500)
    file.append([(PLACE, [Event(b"key", b"goes on")])])
    assert file.read(PLACE, 0, 999)[-1].event.value == b"goes on"
    if file.recovered is not None:
        assert file.recovered.aside.exists()
    file.close()


def test_rubbish_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    path.write_bytes(os.urandom(8192))
    file = _file(tmp_path)
    assert file.recovered is not None
    assert file.recovered.events == 0
    file.append([(PLACE, [Event(b"key", b"1")])])
    assert len(file.read(PLACE, 0, 9)) == 1
    file.close()


_WRITER = """
import sys
from pathlib import Path
from gateway.feedback.log import LABELS, Place
from gateway.feedback.log_file import LogFile
from gateway.feedback.types import Event
file = LogFile(Path(sys.argv[1]), 4)
number = file.extent(Place(LABELS, 1)).end
while True:
    events = [Event(b"", b"%d" % (number + n)) for n in range(7)]
    file.append([(Place(LABELS, 1), events)])
    number += 7
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(20):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            acknowledged = int(line)
        process.wait()
        process.stdout.close()
        file = LogFile(path, 4)
        values = [int(s.event.value or b"") for s in file.read(PLACE, 0, 1 << 20)]
        assert values == list(range(len(values)))
        assert len(values) in {acknowledged, acknowledged + 7}
        file.close()


async def test_appends_that_wait_share_a_transaction(tmp_path: Path) -> None:
    log = EmbeddedLog(_file(tmp_path))
    async with asyncio.TaskGroup() as group:
        for n in range(500):
            group.create_task(log.append(*PLACE, [Event(b"", b"%d" % n)]))
    found = await log.read(*PLACE, 0, 999)
    assert sorted(int(stored.event.value or b"") for stored in found) == list(
        range(500)
    )
    await log.close()


async def test_damage_that_is_met_later_is_set_aside_too(tmp_path: Path) -> None:
    """A file that was closed cleanly is not checked as a whole when it is opened."""
    log = EmbeddedLog(_file(tmp_path))
    await log.append(
        *PLACE, [Event(b"key", b"%d" % n + bytes(500)) for n in range(300)]
    )
    await log.close()
    path = tmp_path / "log.sqlite"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))
    log = EmbeddedLog(_file(tmp_path))
    with pytest.raises(LogUnavailable):
        await log.read(*PLACE, 0, 999)
    found = await log.read(*PLACE, 0, 999)
    assert 0 < len(found) < 300
    for stored in found:
        assert stored.event.value == b"%d" % stored.offset + bytes(500)
    assert log.file.recovered is not None
    assert log.file.recovered.aside.exists()
    await log.append(*PLACE, [Event(b"key", b"goes on")])
    assert (await log.read(*PLACE, 0, 999))[-1].event.value == b"goes on"
    await log.close()


async def test_a_poll_that_fails_gives_nothing_away(tmp_path: Path) -> None:
    """What was read of one partition before another failed is read again."""
    log = EmbeddedLog(_file(tmp_path))
    other = Place(LABELS, 2)
    for place in (PLACE, other):
        await log.append(*place, [Event(b"", b"1")])
    consumer = log.consumer("join")

    async def assigned(_: object) -> dict[Place, int]:
        return {}

    async def revoked(_: object) -> None:
        return

    await consumer.start(assigned, revoked)
    read = log.file.read

    def failing(place: Place, offset: int, most: int) -> list[Stored]:
        if place == other:
            raise sqlite3.OperationalError("disk I/O error")
        return read(place, offset, most)

    log.file.read = failing  # type: ignore[method-assign]
    with pytest.raises(LogUnavailable, match="disk I/O error"):
        await consumer.poll(10, 1.0)
    log.file.read = read  # type: ignore[method-assign]
    assert len(await consumer.poll(10, 1.0)) == 2
    await log.close()


async def test_whoever_waits_hears_of_what_nobody_foresaw(tmp_path: Path) -> None:
    log = EmbeddedLog(_file(tmp_path))
    wrong = Event(b"", 7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await log.append(*PLACE, [wrong])
    with pytest.raises(LogUnavailable, match="its log says why"):
        await log.append(*PLACE, [Event(7, b"")])  # type: ignore[arg-type]
    await log.append(*PLACE, [Event(b"", b"goes on")])
    assert len(await log.read(*PLACE, 0, 9)) == 1
    await log.close()


async def test_a_full_disk_refuses_and_harms_nothing(tmp_path: Path) -> None:
    file = _file(tmp_path)
    log = EmbeddedLog(file)
    await log.append(*PLACE, [Event(b"", b"before")])
    pages = file._db.execute("PRAGMA page_count").fetchone()[0]
    file._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(LogUnavailable, match="free space"):
        await log.append(*PLACE, [Event(b"", bytes(100_000))])
    file._db.execute("PRAGMA max_page_count = 1000000")
    await log.append(*PLACE, [Event(b"", b"after")])
    found = await log.read(*PLACE, 0, 9)
    assert [stored.event.value for stored in found] == [b"before", b"after"]
    assert [stored.offset for stored in found] == [0, 1]
    await log.close()

"""F19: a disk that is full where the join keeps its state, and the log has room."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.log_file import LogFile
from tests.adversity.harness import show
from tests.feedback.test_joiner import NAMES, PARTITIONS, Running, counts, said, until


async def test_a_join_without_room_waits_for_it_and_counts_each_label_once(
    tmp_path: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = EmbeddedLog(LogFile(tmp_path / "log.sqlite", PARTITIONS))
    running = Running(small_disk, log)
    ballast = small_disk / "ballast"
    rounds = 200
    async with running.joining() as joiner:
        await running.predicted()
        await until(lambda: joiner.health.snapshot()["lag"] == {"0": 0, "1": 0})
        with contextlib.suppress(OSError), ballast.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        for number in range(rounds):
            await running.labelled(
                *(said(name, 1.0, str(number), seq=number) for name in NAMES)
            )
        await until(lambda: "join_interrupted" in caplog.messages)
        before = counts(joiner).get("applied", 0)
        ballast.unlink()
        await until(lambda: counts(joiner).get("applied") == rounds * len(NAMES), 60)
        running.clock.ahead_ms = 66_000
        await until(lambda: sum(r[-1] for r in joiner.health.snapshot()["rows"]) == 20)
    assert before < rounds * len(NAMES)
    assert not list((small_disk / "joins").glob("*.damaged-*"))
    rows = list(running.rows())
    assert len(rows) == len(NAMES)
    assert {row.labels for row in rows} == {(("label", 1.0),)}
    await log.close()
    with capsys.disabled():
        total = rounds * len(NAMES)
        show(f"F19: {total} labels, {before} joined while the disk was full, all after")

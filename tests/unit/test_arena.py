"""Memory shared between a front and a worker, with a second process for real."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.arena import Arena
from workers.wire import CREDITS

OTHER_PROCESS = """
import sys
from workers.arena import Arena
arena = Arena.attach(int(sys.argv[1]))
for number, (question, answer) in enumerate(zip(arena.requests, arena.responses)):
    assert bytes(question) == bytes([number + 1]) * len(question), number
    answer[:] = bytes([number + 101]) * len(answer)
print(len(arena.requests[0]))
"""


def create(slot_bytes: int) -> Arena:
    arena = Arena.create(slot_bytes)
    assert arena is not None
    return arena


@given(st.integers(1, 3 * os.sysconf("SC_PAGE_SIZE")))
def test_slots_are_large_enough_and_do_not_overlap(slot_bytes: int) -> None:
    arena = create(slot_bytes)
    slots = [*arena.requests, *arena.responses]
    assert len(arena.requests) == len(arena.responses) == CREDITS
    assert all(len(slot) >= slot_bytes for slot in slots)
    for number, slot in enumerate(slots):
        slot[:] = bytes([number]) * len(slot)
    for number, slot in enumerate(slots):
        assert bytes(slot) == bytes([number]) * len(slot)
    arena.close()


def test_another_process_sees_the_same_slots() -> None:
    arena = create(5000)
    for number, slot in enumerate(arena.requests):
        slot[:] = bytes([number + 1]) * len(slot)
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(arena.fd)],
        pass_fds=[arena.fd],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(arena.requests[0])
    for number, slot in enumerate(arena.responses):
        assert bytes(slot) == bytes([number + 101]) * len(slot)
    arena.close()


def test_views_outlive_the_descriptor() -> None:
    arena = create(10)
    view = arena.requests[0]
    arena.close()
    view[:3] = b"abc"
    assert bytes(view[:3]) == b"abc"


def test_the_descriptor_is_not_inherited_by_accident() -> None:
    arena = create(10)
    assert not os.get_inheritable(arena.fd)
    arena.close()


def test_without_anonymous_memory_files_there_is_no_arena(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert Arena.create(10) is None


def test_a_refused_size_leaves_no_descriptor_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError("no room")

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match="no room"):
        Arena.create(10)
    assert set(os.listdir("/proc/self/fd")) == before

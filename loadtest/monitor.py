"""What a server takes of the machine while it is under load."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from loadtest.measure import slope

HOUR_S, MB = 3600.0, 1e6


@dataclass(frozen=True, slots=True)
class Usage:
    """A look at a server with all its processes.

    Attributes:
        at_s: When, seconds after the beginning of the phase.
        rss_bytes: Resident memory of all processes; shared pages count in each.
        cpu_s: CPU time so far.
        processes: How many there are.
    """

    at_s: float
    rss_bytes: int
    cpu_s: float
    processes: int


def look(family: Sequence[psutil.Process], at_s: float) -> Usage:
    """Return what processes use now; those that are gone count nothing."""
    rss, cpu, alive = 0, 0.0, 0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            rss += process.memory_info().rss
            cpu += times.user + times.system
            alive += 1
    return Usage(at_s, rss, cpu, alive)


def growth_mb_per_hour(usages: Sequence[Usage]) -> float:
    """Return how fast memory grew in the second half of a phase, by least squares.

    The first half is left out, since caches and arenas fill there.
    """
    half = usages[len(usages) // 2 :]
    times = [each.at_s / HOUR_S for each in half]
    return slope(times, [each.rss_bytes / MB for each in half])

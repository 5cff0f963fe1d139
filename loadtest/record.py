"""What a generator counts while it runs: durations, statuses, a line per second."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from typing import TextIO

import numpy as np

from loadtest.answers import OK
from loadtest.measure import Histogram

LATE = "LATE"
"""Right, but after the deadline."""
EXPIRED = "EXPIRED"
"""Cancelled by this client at the deadline."""
OVERFLOW = "OVERFLOW"
"""Due, but not sent: too many calls were open."""
UNANSWERED = "UNANSWERED"
"""Still open when the measurement was long over."""
WRONG = "WRONG_ANSWER"
"""Status OK, but not the bytes that were expected."""
CANCELLED = "CANCELLED_BY_CLIENT"
DROPPED = "DROPPED_BY_CLIENT"
"""Lost with a connection that this client dropped."""
MEANT = frozenset((OK, LATE, CANCELLED, DROPPED))
"""Ends of calls that are no failure of the server's (late is told apart)."""


class Record:
    """Counts of one measurement. Loop thread only.

    Durations are collected in an array, since that costs the least where it hurts,
    and folded into histograms some twenty times per second.

    Attributes:
        durations: Of right answers since the last fold, ns.
        lags: How late calls of an open loop were sent since the last fold, ns.
        statuses: Ends of calls that are not right answers.
        offered: Calls that were due.
    """

    def __init__(self, deadline_ns: int = 0, lines: TextIO | None = None) -> None:
        self.durations = array("q")
        self.lags = array("q")
        self.statuses: Counter[str] = Counter()
        self.offered = 0
        self.all = Histogram()
        self.lag = Histogram()
        self.good = 0
        self._deadline_ns = deadline_ns
        self._lines = lines
        self._reset()

    def _reset(self) -> None:
        self._now = Histogram()
        self._good = self.good
        self._offered = self.offered
        self._statuses = self.statuses.copy()

    def fail(self, status: str, calls: int = 1) -> None:
        """Count calls that ended without a right answer."""
        if calls:
            self.statuses[status] += calls

    def fold(self) -> None:
        """Put what was collected into the histograms."""
        if self.durations:
            took = np.frombuffer(self.durations, np.int64)
            limit = self._deadline_ns or int(took.max())
            self.good += int(np.count_nonzero(took <= limit))
            self._now.add_all(self.durations)
            self.durations = array("q")
        if self.lags:
            self.lag.add_all(self.lags)
            self.lags = array("q")

    def line(self, at_s: float, seconds: float) -> None:
        """End an interval: write what happened in it.

        Args:
            at_s: Its end, seconds after the beginning of the measurement.
            seconds: Its length.
        """
        self.fold()
        if self._lines is not None:
            ends = self.statuses - self._statuses
            found = {
                "at_s": round(at_s, 3),
                "seconds": round(seconds, 3),
                "offered": self.offered - self._offered,
                "answers": self._now.total,
                "good": self.good - self._good,
                "statuses": dict(ends),
                "histogram": self._now.encode(),
            }
            self._lines.write(json.dumps(found) + "\n")
            self._lines.flush()
        self.all.merge(self._now)
        self._reset()

    @property
    def bad(self) -> int:
        """Calls that failed, other than by this client's own will."""
        return sum(n for status, n in self.statuses.items() if status not in MEANT)

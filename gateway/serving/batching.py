"""The batch window: which waiting requests leave together, and when. Pure.

A window holds the waiting requests of one version and one inner shape. It never
looks at a clock and never polls: it is asked when a worker is free, and says
either what to send or when to ask again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.catalogue import BatchPolicy
from gateway.serving.pending import Pending, Phase

_SWEEP_SLACK = 64
"""Done requests a window keeps before it sweeps them out."""
_NEVER_NS = 1 << 63


class CloseReason:
    """Why a batch left; a label of ``baton_batches_total``.

    Plain strings: an enumeration's hash is a Python call, and every batch is counted
    by its reason.
    """

    FULL: Final = "full"
    WORKER_FREE: Final = "worker_free"
    DELAY: Final = "delay"
    DEADLINE: Final = "deadline"
    RETRY: Final = "retry"


@dataclass(eq=False, slots=True)
class Batch:
    """Requests that run together.

    Attributes:
        requests: At least one; rows and bytes within the policy's limits.
        rows: Rows of all requests.
        reason: Why it left.
        nbytes: Input bytes of all requests.
    """

    requests: list[Pending]
    rows: int
    reason: str
    nbytes: int = 0

    def split(self) -> tuple[Batch, Batch]:
        """Cut the batch in two, to find the request that a failure belongs to."""
        middle = len(self.requests) // 2
        return tuple(  # type: ignore[return-value]
            Batch(part, sum(p.rows for p in part), CloseReason.RETRY)
            for part in (self.requests[:middle], self.requests[middle:])
        )


class BatchWindow:
    """Waiting requests that may share a batch, most urgent level first.

    Requests that are done (cancelled, expired) stay where they are until they
    come to the front and are then passed over; when they outnumber the living,
    all are swept out. So leaving is cheap and memory stays in proportion.

    Args:
        policy: Limits and delays.
        levels: Number of priority levels, at least 1.
    """

    __slots__ = (
        "_bytes",
        "_dead",
        "_levels",
        "_live",
        "_policy",
        "_rows",
        "earliest_ns",
    )

    def __init__(self, policy: BatchPolicy, levels: int = 1) -> None:
        self._policy = policy
        self._levels: list[deque[Pending]] = [deque() for _ in range(levels)]
        self._live = 0
        self._dead = 0
        self._rows = 0
        self._bytes = 0
        self.earliest_ns = _NEVER_NS
        """Nothing that waits expires before."""

    def __len__(self) -> int:
        """Return the number of requests that still wait."""
        return self._live

    @property
    def rows(self) -> int:
        """Rows of the requests that still wait."""
        return self._rows

    def full(self) -> bool:
        """Return whether waiting longer would not make the next batch larger."""
        if not self._policy.across_requests:
            return self._live > 0
        if self._bytes >= self._policy.max_bytes:
            return True
        return self._rows >= self._target()

    def add(self, pending: Pending) -> None:
        """Let a request wait at the end of its level."""
        self._levels[pending.level].append(pending)
        # A call of `min` for every request costs four times as much.
        if pending.expires_ns < self.earliest_ns:  # noqa: PLR1730
            self.earliest_ns = pending.expires_ns
        self._live += 1
        self._rows += pending.rows
        self._bytes += pending.nbytes

    def reset(self) -> bool:
        """Make an empty window as good as new; whether it is."""
        self.earliest_ns = _NEVER_NS
        return not self._dead

    def expired(self, now_ns: int) -> list[Pending]:
        """Return what waits in vain; the caller resolves it (see `abandoned`)."""
        if now_ns < self.earliest_ns:
            return []
        found = [p for p in self.waiting() if p.expires_ns <= now_ns]
        left = [p.expires_ns for p in self.waiting() if p.expires_ns > now_ns]
        self.earliest_ns = min(left, default=_NEVER_NS)
        return found

    def abandoned(self, pending: Pending) -> None:
        """Note that a waiting request was resolved otherwise; its rows stay out."""
        self._live -= 1
        self._dead += 1
        self._rows -= pending.rows
        self._bytes -= pending.nbytes
        if self._dead > self._live + _SWEEP_SLACK:
            self._levels = [
                deque(p for p in level if p.phase is Phase.QUEUED and p is not pending)
                for level in self._levels
            ]
            self._dead = 0

    def wait_until_ns(self, now_ns: int, run_ns: int) -> int:
        """Return until when the window may wait for company, or 0: send now.

        Args:
            now_ns: The present instant.
            run_ns: How long a run is expected to take, for requests whose deadline
                would pass while waiting.
        """
        policy = self._policy
        if policy.max_delay_ns == 0 or self.full():
            return 0
        until = min(self._leave_by_ns(p, run_ns) for p in self.waiting())
        return until if until > now_ns else 0

    def take(self, now_ns: int, run_ns: int) -> Batch | None:
        """Take the next batch, or ``None`` where nothing waits.

        Takes requests in order until the next one would exceed the policy's rows
        or bytes; the first always fits.
        """
        policy = self._policy
        max_rows = policy.max_rows if policy.across_requests else 1
        reason = self._reason(now_ns, run_ns)
        if (
            not self._dead
            and len(self._levels) == 1
            and 0 < self._rows <= max_rows
            and self._bytes <= policy.max_bytes
        ):  # all of it
            everything = list(self._levels[0])
            self._levels[0].clear()
            return self._leave(everything, self._rows, self._bytes, reason)
        requests: list[Pending] = []
        rows = nbytes = 0
        for level in self._levels:
            while level:
                pending = level[0]
                if pending.phase is not Phase.QUEUED:
                    level.popleft()
                    self._dead -= 1
                    continue
                if requests and (
                    rows + pending.rows > max_rows
                    or nbytes + pending.nbytes > policy.max_bytes
                ):
                    return self._leave(requests, rows, nbytes, CloseReason.FULL)
                level.popleft()
                requests.append(pending)
                rows += pending.rows
                nbytes += pending.nbytes
        return self._leave(requests, rows, nbytes, reason) if requests else None

    def _leave(
        self, requests: list[Pending], rows: int, nbytes: int, reason: str
    ) -> Batch:
        self._live -= len(requests)
        self._rows -= rows
        self._bytes -= nbytes
        return Batch(requests, rows, reason, nbytes)

    def _target(self) -> int:
        return self._policy.target_rows or self._policy.max_rows

    def _reason(self, now_ns: int, run_ns: int) -> str:
        if self._rows >= self._target() > 0:
            return CloseReason.FULL
        if self._policy.max_delay_ns == 0:
            return CloseReason.WORKER_FREE
        for pending in self.waiting():
            if self._leave_by_ns(pending, run_ns) <= now_ns:
                waited = now_ns - pending.admitted_ns >= self._policy.max_delay_ns
                return CloseReason.DELAY if waited else CloseReason.DEADLINE
        return CloseReason.WORKER_FREE

    def _leave_by_ns(self, pending: Pending, run_ns: int) -> int:
        leave_by = min(
            pending.admitted_ns + self._policy.max_delay_ns,
            pending.deadline_ns - run_ns,
        )
        return min(leave_by, pending.queue_deadline_ns or leave_by)

    def waiting(self) -> Iterator[Pending]:
        """Yield what still waits, in order."""
        for level in self._levels:
            for pending in level:
                if pending.phase is Phase.QUEUED:
                    yield pending

"""What waits for one version: a window per inner shape, and retries. Pure."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from gateway.catalogue import VersionEntry
from gateway.errors import GatewayError, ModelFailed, QueueFull, TooLarge
from gateway.feedback.blocks import Form, Layout
from gateway.logs import get_logger
from gateway.serving.batching import Batch, BatchWindow, CloseReason
from gateway.serving.pending import Pending, Phase
from gateway.serving.statistics import VersionStatistics
from workers.spec import ModelSpec
from workers.wire import Failure

_log = get_logger("queues")

_LOG_PERIOD_NS = 1_000_000_000
"""At most one line a second per version says why requests fail."""


class VersionQueue:
    """All that waits for one load of one version in this front.

    Attributes:
        model: Model name.
        entry: The version, as the catalogue had it when the queue was made.
        statistics: Where its counts go.
        shadow: Goes to workers of the shadows' pool, and to no others.
        spec: Its tensors.
        run_ns: A recent run's duration, smoothed; for deadlines.
        slowest_run_ns: A slow run's duration, slowly forgotten; for the watchdog.
        running: Batches at workers.
        inflight_rows: Rows waiting or at workers.
        pace_ns: Time per row at which a backlog drains, smoothed; 0: none seen yet.
        layouts: Of the outputs, by their shapes, as the event log has them.
        forms: Likewise, by their shapes and the rows of a request.
        failure_logged_ns: When the log last said why a request failed.
    """

    def __init__(
        self,
        model: str,
        entry: VersionEntry,
        statistics: VersionStatistics,
        *,
        shadow: bool = False,
    ) -> None:
        assert entry.spec is not None  # ready versions have one
        self.model = model
        self.entry = entry
        self.spec: ModelSpec = entry.spec
        self.layouts: dict[tuple[tuple[int, ...], ...], Layout] = {}
        self.forms: dict[tuple[tuple[tuple[int, ...], ...], int], Form] = {}
        self.statistics = statistics
        self.shadow = shadow
        self.run_ns = entry.slowest_run_ns
        self.slowest_run_ns = entry.slowest_run_ns
        self.running = 0
        self.inflight_rows = 0
        self.pace_ns = 0
        self._paced_ns = 0
        self.failure_logged_ns = 0
        self._windows: dict[tuple[object, ...], BatchWindow] = {}
        self._spare: BatchWindow | None = None  # an empty one, for the next shape
        self._retries: deque[Batch] = deque()

    @property
    def levels(self) -> int:
        """Number of priority levels, at least 1."""
        return max(1, self.entry.queue.priority_levels)

    def add(self, pending: Pending) -> None:
        """Let a request wait in the window of its shape."""
        window = self._windows.get(pending.shape_key)
        if window is None:
            window, self._spare = self._spare, None
            if window is None:
                window = BatchWindow(self.entry.batching, self.levels)
            self._windows[pending.shape_key] = window
        window.add(pending)

    def retry(self, batch: Batch) -> None:
        """Put a batch that must run (again) before all that waits."""
        self._retries.append(batch)

    def abandoned(self, pending: Pending) -> None:
        """Note that a waiting request was resolved otherwise."""
        window = self._windows.get(pending.shape_key)
        if window is not None:
            window.abandoned(pending)
            if not len(window):
                del self._windows[pending.shape_key]

    def expired(self, now_ns: int) -> list[Pending]:
        """Return what waits and has expired."""
        found = [
            pending
            for batch in self._retries
            for pending in batch.requests
            if pending.phase is Phase.REQUEUED and pending.expires_ns <= now_ns
        ]
        for window in self._windows.values():
            found += window.expired(now_ns)
        return found

    def earliest_ns(self) -> int:
        """Return a bound below which nothing that waits expires; 0: nothing does."""
        found = [window.earliest_ns for window in self._windows.values()]
        found += [
            pending.expires_ns
            for batch in self._retries
            for pending in batch.requests
            if pending.phase is Phase.REQUEUED
        ]
        return min(found, default=0)

    def empty(self) -> bool:
        """Return whether nothing waits; lets go of retries that nobody waits for."""
        while self._retries and not _any_waits(self._retries[0]):
            self._retries.popleft()
        return not self._windows and not self._retries

    def run_error(self, failure: Failure, message: str, now_ns: int) -> GatewayError:
        """Make the client's error; the model's own words go to the log only."""
        name = f"'{self.model}' version {self.entry.version}"
        if now_ns - self.failure_logged_ns >= _LOG_PERIOD_NS:
            self.failure_logged_ns = now_ns
            _log.warning(
                "run_failed",
                model=self.model,
                version=self.entry.version,
                reason=message,
                failed_so_far=self.statistics.fail[0] + 1,
            )
        if failure is Failure.OUT_OF_MEMORY:
            return TooLarge(f"{name} ran out of memory on this request")
        return ModelFailed(f"{name} failed on this request; the server's log says why")

    def idle(self) -> bool:
        """Return whether nothing waits and nothing is at a worker."""
        return not self.running and self.empty()

    def full(self) -> bool:
        """Return whether a batch waits that waiting longer would not make larger."""
        if self._retries:
            return True
        return any(window.full() for window in self._windows.values())

    def take(self, now_ns: int) -> tuple[Batch | None, int]:
        """Return the next batch, or ``None`` and when to ask again (0: when fed)."""
        while self._retries:
            batch = self._retries.popleft()
            live = [p for p in batch.requests if p.phase is Phase.REQUEUED]
            if live:
                rows = sum(p.rows for p in live)
                nbytes = sum(p.nbytes for p in live)
                return Batch(live, rows, CloseReason.RETRY, nbytes), 0
        wake_ns = 0
        if len(self._windows) == 1 and not self.entry.batching.max_delay_ns:
            ((key, window),) = self._windows.items()
            taken = window.take(now_ns, self.run_ns)
            if not len(window):
                del self._windows[key]
                if window.reset():
                    self._spare = window
            return taken, 0
        for key in tuple(self._windows):
            window = self._windows.pop(key)
            until = window.wait_until_ns(now_ns, self.run_ns)
            taken = None if until else window.take(now_ns, self.run_ns)
            if len(window):
                self._windows[key] = window  # at the end: shapes take turns
            if taken is not None:
                return taken, 0
            if until and (not wake_ns or until < wake_ns):
                wake_ns = until
        return None, wake_ns

    def take_all(self) -> list[Pending]:
        """Take everything that waits, retries first; the queue is empty then."""
        taken = [
            pending
            for batch in self._retries
            for pending in batch.requests
            if pending.phase is Phase.REQUEUED
        ]
        for window in self._windows.values():
            taken.extend(window.waiting())
        self._retries.clear()
        self._windows.clear()
        return taken

    def drained(self, rows: int, now_ns: int) -> None:
        """Note that a batch of `rows` is done, to know how fast a backlog drains.

        Only what is done while more waits says so. All workers and whatever else
        holds things up are in it.
        """
        if self._paced_ns:
            pace_ns = (now_ns - self._paced_ns) // rows
            self.pace_ns += (pace_ns - self.pace_ns) // (8 if self.pace_ns else 1)
        self._paced_ns = now_ns
        if not self._windows:  # a backlog that is gone says nothing about the next
            self._paced_ns = self.pace_ns = 0

    def check_wait(self, now_ns: int, until_ns: int) -> None:
        """Refuse what could not be answered by `until_ns`, while that is cheap.

        A queue longer than its requests' patience answers nobody: each waits in vain
        for those before it, which do the same.

        Raises:
            QueueFull: With the time after which there should be room.
        """
        wait_ns = self.inflight_rows * self.pace_ns
        wait_ns += min(wait_ns, self.run_ns)  # its own batch must be done as well
        if wait_ns > until_ns - now_ns:
            late_ms = max(1, (now_ns + wait_ns - until_ns) // 1_000_000)
            raise QueueFull(
                f"'{self.model}' is {wait_ns // 1_000_000} ms behind, longer than this "
                "request may take; retry later",
                pushback_ms=late_ms,
            )

    def learn(self, run_ns: int) -> None:
        """Note how long a run took."""
        self.run_ns += (run_ns - self.run_ns) // 8
        self.slowest_run_ns = max(
            run_ns, self.slowest_run_ns - self.slowest_run_ns // 256
        )


def _any_waits(batch: Batch) -> bool:
    return any(pending.phase is Phase.REQUEUED for pending in batch.requests)


class WorkerPort(Protocol):
    """What the dispatcher needs of a worker link."""

    @property
    def handles(self) -> frozenset[int]:
        """Loads the worker has ready."""

    @property
    def shadow(self) -> bool:
        """It is of the shadows' pool."""

    @property
    def credits(self) -> int:
        """Batches it takes now; 0 while it loads a model or is lost."""

    def send(self, queue: VersionQueue, batch: Batch) -> None:
        """Send a batch; its outcome comes back to the dispatcher once."""

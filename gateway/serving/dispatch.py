"""The dispatcher: batches to free workers, outcomes back to requests.

Everything a front has in flight passes through here, and every admitted request
leaves through `_finish` exactly once: with rows, an error, or silence after its
client left. Loop thread only; no tasks, no futures.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from gateway.catalogue import Catalogue, State, VersionEntry
from gateway.errors import GatewayError, ModelFailed, WorkerLost
from gateway.logs import get_logger
from gateway.serving.admission import Admission
from gateway.serving.batching import Batch, CloseReason
from gateway.serving.expiry import Expiry
from gateway.serving.pending import Pending, Phase, Timing
from gateway.serving.queues import VersionQueue, WorkerPort
from gateway.serving.rows import BatchRows
from gateway.serving.statistics import VersionStatistics
from workers.wire import CREDITS, Failure, Result

_log = get_logger("dispatch")

_TIMER_TICK_NS = 1_000_000
"""Resolution of the loop's timers (uvloop rounds to milliseconds)."""
_TIMER_SLACK_NS = 1_500_000
"""A wait for company that would end within this ends now: a timer could not tell,
and leaving early is always allowed."""
_RUNNING, _DONE = Phase.RUNNING, Phase.DONE
_NEVER = -1
"""Pushback that forbids retries (gRFC A6): two dead workers are enough."""


class Dispatcher:
    """Queues per version, worker links, deadlines: one front's work in flight.

    Args:
        loop: The front's event loop, for two timers and one callback per turn.
        now_ns: Monotonic clock in nanoseconds, the loop's own.
        admission: Permits, given back when a request is finished.
        max_attempts: Workers a request may be running on when they die.
        pushback_ms: Wait asked of clients whose worker was lost.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        admission: Admission,
        *,
        max_attempts: int,
        pushback_ms: int,
    ) -> None:
        self._loop = loop
        self._now = now_ns
        self._admission = admission
        self._max_attempts = max_attempts
        self._pushback_ms = pushback_ms
        self._queues: dict[int, dict[str, VersionQueue]] = {}
        self._active: dict[VersionQueue, None] = {}
        self._running: dict[Batch, VersionQueue] = {}
        self._pump_due = False
        self._settling: set[VersionQueue] = set()
        self._retired: set[int] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._wake_ns = 0
        self._expiry = Expiry(loop, now_ns, self._active, self._running, self._fail)
        self._statistics: defaultdict[tuple[str, int], VersionStatistics]
        self._statistics = defaultdict(VersionStatistics)
        self.ports: list[WorkerPort] = []
        self.on_idle_handle: Callable[[int], None] = lambda handle: None

    # -- what is served ---------------------------------------------------------

    def statistics(self, model: str, version: int) -> VersionStatistics:
        """Return the counters of a version; they outlive its reloads."""
        return self._statistics[model, version]

    def all_statistics(self) -> Iterator[tuple[str, int, VersionStatistics]]:
        """Yield model, version and counters of everything ever served here."""
        for (model, version), statistics in self._statistics.items():
            yield model, version, statistics

    def queue_for(
        self, model: str, entry: VersionEntry, *, shadow: bool = False
    ) -> VersionQueue:
        """Return the queue of a ready version under a name, made on first use."""
        queues = self._queues.setdefault(entry.handle, {})
        if model not in queues:
            statistics = self.statistics(model, entry.version)
            queues[model] = VersionQueue(model, entry, statistics, shadow=shadow)
        return queues[model]

    def retain(self, catalogue: Catalogue, gone: Iterable[int]) -> list[int]:
        """Drop idle queues of loads that are gone; return those still busy.

        What waits for a load that no worker has any more moves to the load that
        took its place, or fails where there is none like it.

        Args:
            catalogue: What is served now.
            gone: Loads that it has no longer, since the last time.
        """
        held = [worker.handles for worker in catalogue.workers]
        held += [port.handles for port in self.ports]
        retired = {h: q for h in {*self._retired, *gone} if (q := self._queues.get(h))}
        for handle, queues in retired.items():
            if any(handle in handles for handles in held):
                continue
            for queue in [one for one in queues.values() if not one.empty()]:
                self._move(queue, catalogue)
                self._settle(queue)
        for queues in retired.values():
            for queue in [one for one in queues.values() if one.idle()]:
                del queues[queue.model]
                self._active.pop(queue, None)
        self._retired = {handle for handle, queues in retired.items() if queues}
        for handle in retired.keys() - self._retired:
            del self._queues[handle]
        return sorted(self._retired)

    def _move(self, queue: VersionQueue, catalogue: Catalogue) -> None:
        """Let what waits in a queue wait in that of its version's present load."""
        model = catalogue.models.get(queue.model)
        entry = model.versions.get(queue.entry.version) if model else None
        same = entry is not None and entry.state == State.READY
        for pending in queue.take_all():
            if pending.phase is Phase.DONE:
                continue  # cancelled just now: its stream ended with another's error
            if entry is None or not same or entry.spec != queue.spec:
                pending.phase = Phase.REQUEUED  # it is in no window
                text = f"the workers that had '{queue.model}' died; retry"
                error = WorkerLost(text, pushback_ms=self._pushback_ms)
                self._fail(queue, pending, error)
                continue
            successor = self.queue_for(queue.model, entry)
            pending.queue = successor
            queue.inflight_rows -= pending.rows
            successor.inflight_rows += pending.rows
            pending.level = min(pending.level, successor.levels - 1)
            pending.phase = Phase.QUEUED
            successor.add(pending)
            self._active[successor] = None
        self._pump_soon()

    def slowest_run_ns(self) -> int:
        """Return the slowest recent run over all versions, for the watchdog."""
        queues = (queue for those in self._queues.values() for queue in those.values())
        return max((queue.slowest_run_ns for queue in queues), default=0)

    # -- requests in ------------------------------------------------------------

    def submit(self, pending: Pending, queue: VersionQueue) -> None:
        """Take an admitted request; its outcome comes through its callbacks."""
        pending.queue = queue
        queue.inflight_rows += pending.rows
        queue.add(pending)
        self._active[queue] = None
        expiry = self._expiry
        if pending.expires_ns < expiry.due_ns or not expiry.due_ns:
            expiry.arm(pending.expires_ns)
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self.pump)

    def cancel(self, pending: Pending) -> None:
        """Forget a request whose client left; its callbacks are never called."""
        pending.dropped = True
        if pending.phase is Phase.DONE:
            return
        queue = pending.queue
        assert queue is not None  # it was submitted
        queue.statistics.dropped_rows["cancelled"] += pending.rows
        queue.statistics.failed(pending, "cancelled", self._now())
        self._finish(queue, pending)

    def _finish(self, queue: VersionQueue, pending: Pending) -> None:
        """Take a request out of everything it is in. The one way out."""
        if pending.phase is Phase.QUEUED:
            queue.abandoned(pending)
        pending.phase = Phase.DONE
        queue.inflight_rows -= pending.rows
        self._admission.release(queue.model, pending.nbytes)
        self._settle(queue)

    def _fail(self, queue: VersionQueue, pending: Pending, error: GatewayError) -> None:
        queue.statistics.failed(pending, error.label, self._now())
        self._finish(queue, pending)
        pending.on_error(error)

    def _settle(self, queue: VersionQueue) -> None:
        """Send what waits; look, once this turn is over, whether a load is free.

        Not at once: callbacks of a request may cancel others, and whoever is told
        that a load is idle may drop its queue, which the caller still uses.
        """
        if queue.entry.handle in self._retired:
            self._settling.add(queue)
            self._pump_soon()
        elif self._active:
            self._pump_soon()

    def _tell_idle(self) -> None:
        settling, self._settling = self._settling, set()
        for queue in settling:
            handle = queue.entry.handle
            if queue.idle():
                self._active.pop(queue, None)
                others = self._queues.get(handle, {})
                if all(other.idle() for other in others.values()):
                    self._retired.discard(handle)
                    self.on_idle_handle(handle)

    # -- batches out ------------------------------------------------------------

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Send what can be sent: to every free worker, versions taking turns."""
        self._pump_due = False
        now = self._now()
        wake_ns = 0
        progress = True
        while progress and self._active:
            progress = False
            for queue in tuple(self._active):
                port, credits_ = self._free_port(queue)
                if port is None or (credits_ < CREDITS and not queue.full()):
                    continue  # a busy worker prefetches full batches only
                batch, until = queue.take(now + _TIMER_SLACK_NS)
                if until and (not wake_ns or until < wake_ns):
                    wake_ns = until
                if batch is None:
                    if queue.empty():
                        self._active.pop(queue, None)
                    continue
                del self._active[queue]
                if not queue.empty():
                    self._active[queue] = None  # at the end: versions take turns
                self._send(port, queue, batch, now)
                progress = True
        if wake_ns != self._wake_ns:
            self._arm_wake(wake_ns)
        if self._settling:
            self._tell_idle()

    def _free_port(self, queue: VersionQueue) -> tuple[WorkerPort | None, int]:
        """Return the worker with most credits that runs a queue's load, and how many.

        A load may be in the workers that answer and in the shadows' pool.
        """
        best: WorkerPort | None = None
        most, handle, shadow = 0, queue.entry.handle, queue.shadow
        for port in self.ports:
            credits_ = port.credits
            if credits_ > most and handle in port.handles and port.shadow is shadow:
                best, most = port, credits_
        return best, most

    def _send(
        self, port: WorkerPort, queue: VersionQueue, batch: Batch, now: int
    ) -> None:
        for pending in batch.requests:
            pending.phase = _RUNNING
            pending.sent_ns = now
        queue.running += 1
        self._running[batch] = queue
        queue.statistics.sent(batch.reason, batch.rows)
        port.send(queue, batch)

    def _arm_wake(self, wake_ns: int) -> None:
        """Ask again when a window's wait for company ends; one timer for all."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self._wake_ns = wake_ns
        if wake_ns:
            due_ns = wake_ns - _TIMER_TICK_NS
            self._wake = self._loop.call_at(due_ns / 1e9, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._wake_ns = 0
        self.pump()

    # -- outcomes back ----------------------------------------------------------

    def port_changed(self) -> None:
        """Send what waits: a worker came, resumed, or loaded something."""
        self._pump_soon()

    def batch_done(self, queue: VersionQueue, batch: Batch, result: Result) -> None:
        """Give every request of a batch its rows.

        The buffers of `result` are valid only during this call.
        """
        queue.running -= 1
        self._running.pop(batch, None)
        now = self._now()
        timing = Timing(result.input_ns, result.infer_ns, result.output_ns)
        queue.learn(sum(timing))
        statistics = queue.statistics
        statistics.ran(result.executions, result.batch_rows, timing)
        rows = BatchRows(queue.spec, result.tensors, batch.rows)
        live, starts = self._live_of(batch)
        statistics.answered(live, timing, now)
        nbytes = 0
        for pending in live:  # out of everything first: callbacks may cancel others
            pending.phase = _DONE
            nbytes += pending.nbytes
            queue.inflight_rows -= pending.rows
        queue.drained(batch.rows, now)
        self._admission.release(queue.model, nbytes, len(live))
        for pending, start in zip(live, starts, strict=True):
            if pending.dropped:
                continue
            try:
                pending.on_result(rows, start)
            except Exception:  # the edge: one reply must not cost the others theirs
                _log.exception("reply_failed", model=queue.model)
                text = f"'{queue.model}' gave an answer that cannot be sent"
                pending.on_error(ModelFailed(text))
        self._settle(queue)

    def _live_of(self, batch: Batch) -> tuple[list[Pending], list[int]]:
        """Return the requests of a batch that still wait, and their first rows."""
        live: list[Pending] = []
        starts: list[int] = []
        start = 0
        for pending in batch.requests:
            if pending.phase is _RUNNING:
                live.append(pending)
                starts.append(start)
            start += pending.rows
        return live, starts

    def batch_failed(
        self, queue: VersionQueue, batch: Batch, failure: Failure, message: str
    ) -> None:
        """Deal with a batch that gave no result: find the request it belongs to."""
        queue.running -= 1
        self._running.pop(batch, None)
        live = [p for p in batch.requests if p.phase is Phase.RUNNING]
        if failure is Failure.UNKNOWN_HANDLE:
            self._again(queue, live)
        elif len(batch.requests) > 1:  # even if one is left: another may be to blame
            for part in Batch(live, 0, batch.reason).split():
                self._again(queue, part.requests, counts=False)
        elif live:
            error = queue.run_error(failure, message, self._now())
            self._fail(queue, live[0], error)
        self._settle(queue)

    def batch_lost(self, queue: VersionQueue, batch: Batch, *, ran: bool) -> None:
        """Deal with a batch whose worker died.

        Args:
            queue: Its version.
            batch: The batch.
            ran: It may have been running, and so may be what killed the worker.
        """
        queue.running -= 1
        self._running.pop(batch, None)
        live = [p for p in batch.requests if p.phase is Phase.RUNNING]
        # Alone, so that a request that kills its worker takes no other along.
        for part in [[pending] for pending in live] if ran else [live]:
            self._again(queue, part, counts=ran)
        self._settle(queue)

    def _again(
        self,
        queue: VersionQueue,
        live: list[Pending],
        *,
        counts: bool = True,
    ) -> None:
        again = []
        for pending in live:
            if pending.phase is not Phase.RUNNING:
                continue  # cancelled just now: its stream ended with another's error
            pending.attempts += counts
            if pending.attempts >= self._max_attempts:
                text = f"'{queue.model}' lost its worker {pending.attempts} times"
                error = WorkerLost(f"{text} on this request", pushback_ms=_NEVER)
                self._fail(queue, pending, error)
            else:
                pending.phase = Phase.REQUEUED
                # It left the queue in time: only the deadline counts now.
                pending.expires_ns = pending.deadline_ns
                again.append(pending)
        if again:
            queue.retry(Batch(again, 0, CloseReason.RETRY))
            self._active[queue] = None

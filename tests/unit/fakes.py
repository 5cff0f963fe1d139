"""Requests, versions, a loop and workers for tests of the pure serving core."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.catalogue import BatchPolicy, QueuePolicy, State, VersionEntry
from gateway.errors import GatewayError
from gateway.serving.batching import Batch
from gateway.serving.pending import Pending
from gateway.serving.queues import VersionQueue
from gateway.serving.rows import BatchRows
from workers.spec import ModelSpec, TensorSpec

FAR_NS = 1 << 62


class Request(Pending):
    """A request whose outcome goes to a client, where one waits for it."""

    client: Client | None = None

    def on_result(self, rows: BatchRows, start: int) -> None:
        if self.client is not None:
            self.client.on_result(self, rows, start)

    def on_error(self, error: GatewayError) -> None:
        if self.client is not None:
            self.client.on_error(self, error)


def make_pending(client: Client | None = None, **changes: Any) -> Request:
    """Return a request of one row; nobody waits for it, or `client` does."""
    values: dict[str, Any] = {
        "rows": 1,
        "inputs": [],
        "shape_key": (),
        "nbytes": 8,
        "level": 0,
        "admitted_ns": 0,
        "queue_deadline_ns": 0,
        "deadline_ns": FAR_NS,
    }
    request = Request(**(values | changes))
    if client is not None:
        request.client = client
        client.pending = request
    return request


def make_entry(
    handle: int = 1,
    *,
    version: int = 1,
    batching: BatchPolicy | None = None,
    levels: int = 0,
    state: State = State.READY,
) -> VersionEntry:
    """Return a version with one INT64 input and one INT64 output per row."""
    policy = batching or BatchPolicy(max_rows=4, max_bytes=1 << 20)
    tensors = (TensorSpec("x", "INT64", ()),)
    return VersionEntry(
        version=version,
        state=state,
        handle=handle,
        spec=ModelSpec(tensors, (TensorSpec("y", "INT64", ()),), policy.max_rows),
        batching=policy,
        queue=QueuePolicy(max_requests=1000, priority_levels=levels),
        slowest_run_ns=1_000_000,
    )


@dataclass(order=True)
class FakeTimer:
    """A callback at an instant."""

    when_ns: int
    number: int
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """An event loop and its clock: time moves when told to, at most to a timer."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[FakeTimer] = []
        self._numbers = iter(range(1 << 60))

    def now_ns(self) -> int:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def call_at(self, when_s: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(round(when_s * 1e9), next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def turn(self) -> None:
        """Run everything that is ready, until nothing is."""
        while self._soon or self._next_due() <= self.now:
            while self._soon:
                self._soon.popleft()()
            if self._next_due() <= self.now:
                heapq.heappop(self._timers).callback()

    def advance(self, to_ns: int) -> None:
        """Let time pass, stopping at each timer on the way."""
        while self._next_due() <= to_ns:
            self.now = max(self.now, self._next_due())
            self.turn()
        self.now = max(self.now, to_ns)
        self.turn()

    def timers(self) -> int:
        """Return how many timers are armed."""
        return sum(not timer.cancelled for timer in self._timers)

    def next_timer_ns(self) -> int:
        """Return when the next timer is due."""
        return self._next_due()

    def _next_due(self) -> int:
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0].when_ns if self._timers else FAR_NS


class FakePort:
    """A worker as the dispatcher sees it; keeps what it was sent."""

    def __init__(
        self, handles: set[int], slots: int = 2, *, shadow: bool = False
    ) -> None:
        self.handles = frozenset(handles)
        self.shadow = shadow
        self.slots = slots
        self.paused = False
        self.sent: list[tuple[VersionQueue, Batch]] = []
        self.log: list[tuple[VersionQueue, Batch]] = []

    @property
    def credits(self) -> int:
        return 0 if self.paused else self.slots - len(self.sent)

    def send(self, queue: VersionQueue, batch: Batch) -> None:
        assert self.credits > 0, "sent without a credit"
        assert queue.entry.handle in self.handles, "sent to a worker without the model"
        assert queue.shadow is self.shadow, "sent to a worker of others"
        self.sent.append((queue, batch))
        self.log.append((queue, batch))


class Client:
    """Whoever waits for one request: notes every outcome it is given."""

    def __init__(self) -> None:
        self.pending: Request | None = None
        self.results: list[list[int]] = []
        self.errors: list[GatewayError] = []
        self.cancelled = False

    def on_result(self, pending: Pending, rows: BatchRows, start: int) -> None:
        assert pending is self.pending
        (tensor,) = rows.cut(start, start + pending.rows)
        data = bytes(tensor.data)
        values = [
            int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)
        ]
        assert tensor.dims == (len(values),)
        self.results.append(values)

    def on_error(self, pending: Pending, error: GatewayError) -> None:
        assert pending is self.pending
        self.errors.append(error)

    @property
    def outcomes(self) -> int:
        return len(self.results) + len(self.errors)


def seeds(count: int) -> list[random.Random]:
    """Return generators that are the same in every run."""
    return [random.Random(seed) for seed in range(count)]

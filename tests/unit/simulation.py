"""A seeded world around the dispatcher: clients, workers, faults, and a fake clock.

Everything happens through the dispatcher's public face. The world keeps its own
books and checks them after every step; `finish` heals it and checks that nobody
was forgotten.
"""

from __future__ import annotations

import random
from collections import Counter

from gateway.catalogue import BatchPolicy, Catalogue, ModelEntry, VersionEntry
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    ModelFailed,
    QueueTimeout,
    TooLarge,
    WorkerLost,
)
from gateway.serving.admission import Admission
from gateway.serving.batching import Batch
from gateway.serving.dispatch import Dispatcher
from gateway.serving.pending import Pending, Phase
from gateway.serving.queues import VersionQueue
from tests.unit.fakes import (
    FAR_NS,
    Client,
    FakeLoop,
    FakePort,
    make_entry,
    make_pending,
)
from workers.wire import CREDITS, Failure, Result, WireTensor

MS = 1_000_000
LATE_NS = 6 * MS
"""Expiry comes within 5 ms of its instant; timers are in whole milliseconds."""
POISON = 1 << 40
"""Values from here on make the model fail."""
OOM_ROWS = 5
"""Rows of a batch of `BIG_MODEL` above which its run finds no memory."""
BIG_MODEL = "m3"


class SimulatedClient(Client):
    """A client that may share a stream with others: an error ends them all."""

    def __init__(self, world: World, model: str, values: list[int]) -> None:
        super().__init__()
        self.world = world
        self.model = model
        self.values = values
        self.siblings: list[SimulatedClient] = []

    def on_error(self, pending: Pending, error: GatewayError) -> None:
        super().on_error(pending, error)
        for sibling in self.siblings:
            if sibling is not self:
                self.world.cancel(sibling)

    @property
    def waits(self) -> bool:
        return not self.outcomes and not self.cancelled


class World:
    """One front's dispatcher in a world drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loop = FakeLoop()
        self.admission = Admission(1 << 30, 25)
        self.max_attempts = self.random.randint(1, 3)
        self.dispatcher = Dispatcher(
            self.loop,  # type: ignore[arg-type]
            self.loop.now_ns,
            self.admission,
            max_attempts=self.max_attempts,
            pushback_ms=25,
        )
        self.idle_told: set[int] = set()
        self.dispatcher.on_idle_handle = self.told_idle
        self.models: dict[str, VersionEntry] = {}
        self.loads: dict[int, VersionEntry] = {}
        self.retired: set[int] = set()
        for number in range(self.random.randint(1, 3)):
            self._load(f"m{number + 1}", self._policy())
        self.published = {*self.loads}
        self.clients: list[SimulatedClient] = []
        self.next_value = 0
        for _ in range(self.random.randint(0, 3)):
            self.add_port()

    def _load(self, model: str, policy: BatchPolicy) -> None:
        handle = len(self.loads) + 1
        entry = make_entry(handle, batching=policy, levels=self.random.randint(2, 3))
        self.models[model] = self.loads[handle] = entry

    def _policy(self) -> BatchPolicy:
        draw = self.random
        max_rows = draw.choice([0, 1, 4, 8])
        return BatchPolicy(
            max_rows=max_rows,
            max_bytes=draw.choice([16, 64, 1 << 20]),
            max_delay_ns=draw.choice([0, 0, 2 * MS, 20 * MS]),
            target_rows=draw.choice([0, 0, 2]) if max_rows else 0,
            across_requests=max_rows > 0 and draw.random() < 0.8,
        )

    def reload(self) -> None:
        """Put a new load of a model in place of the present one."""
        model = self.random.choice(list(self.models))
        policy = self.models[model].batching
        self._load(model, policy if self.random.random() < 0.7 else self._policy())
        for port in self.ports:
            if self.random.random() < 0.8:
                port.handles |= {self.models[model].handle}
        self.publish()

    def catalogue(self) -> Catalogue:
        models = {
            name: ModelEntry(name, {entry.version: entry})
            for name, entry in self.models.items()
        }
        return Catalogue(models=models)

    def publish(self) -> None:
        """Tell the dispatcher what is served now, as a front does."""
        catalogue = self.catalogue()
        handles = catalogue.handles(catalogue.models)
        gone, self.published = self.published - handles, handles
        self.retired.update(self.dispatcher.retain(catalogue, gone))
        self.dispatcher.port_changed()

    def told_idle(self, handle: int) -> None:
        """Drop the queue of a load that is gone, as a front does."""
        self.idle_told.add(handle)
        self.retired.update(self.dispatcher.retain(self.catalogue(), {handle}))

    # -- what happens -----------------------------------------------------------

    def step(self) -> None:
        """Let one random thing happen, and everything that follows from it."""
        actions = {
            self.submit: 30,
            self.submit_stream: 4,
            self.cancel_one: 6,
            self.answer_one: 30,
            self.lose_port: 2,
            self.add_port: 3,
            self.reload: 1,
            self.publish: 1,
            self.pause_or_resume: 4,
            self.pass_time: 20,
        }
        (action,) = self.random.choices(list(actions), list(actions.values()))
        action()
        if self.random.random() < 0.7:  # several events may share a turn of the loop
            self.loop.turn()
            self.check()

    def submit(self, deadline_ns: int = 0) -> SimulatedClient:
        draw = self.random
        model = draw.choice(list(self.models))
        entry = self.models[model]
        limit = entry.batching.max_rows
        rows = draw.randint(1, limit) if limit else 1
        values = [self.next_value + n for n in range(rows)]
        self.next_value += rows
        if draw.random() < 0.08:
            values[draw.randrange(rows)] += POISON
        now = self.loop.now
        raw = b"".join(value.to_bytes(8, "little") for value in values)
        client = SimulatedClient(self, model, values)
        pending = make_pending(
            client,
            rows=rows,
            inputs=[(0, (rows,), raw)],
            shape_key=(draw.choice("ab"),),
            nbytes=len(raw),
            level=draw.randint(0, 1),
            admitted_ns=now,
            queue_deadline_ns=draw.choice([0, 0, now + draw.randint(1, 60) * MS]),
            deadline_ns=deadline_ns or self._deadline(),
        )
        self.clients.append(client)
        self.admission.acquire(model, len(raw), 1_000_000)
        self.idle_told.discard(entry.handle)
        queue = self.dispatcher.queue_for(model, entry)
        self.dispatcher.submit(pending, queue)
        return client

    def submit_stream(self) -> None:
        deadline = self._deadline()
        stream = [self.submit(deadline) for _ in range(self.random.randint(2, 5))]
        for client in stream:
            client.siblings = stream

    def _deadline(self) -> int:
        near = self.loop.now + self.random.randint(1, 90) * MS
        return self.random.choice([FAR_NS, near])

    def cancel_one(self) -> None:
        if self.clients:
            self.cancel(self.random.choice(self.clients))

    def cancel(self, client: SimulatedClient) -> None:
        assert client.pending is not None
        if client.waits:
            client.cancelled = True
        self.dispatcher.cancel(client.pending)

    def pass_time(self) -> None:
        step = self.random.choice([0, MS // 2, MS, 7 * MS, 30 * MS])
        self.loop.advance(self.loop.now + step)

    # -- workers ----------------------------------------------------------------

    @property
    def ports(self) -> list[FakePort]:
        return self.dispatcher.ports  # type: ignore[return-value]

    def add_port(self, *, everything: bool = False) -> FakePort:
        handles = {
            entry.handle
            for entry in self.models.values()
            if everything or self.random.random() < 0.8
        }
        port = FakePort(handles, CREDITS)
        self.dispatcher.ports.append(port)
        self.dispatcher.port_changed()
        return port

    def lose_port(self) -> None:
        if self.ports:
            port = self.random.choice(self.ports)
            self.dispatcher.ports.remove(port)
            sent, port.sent = port.sent, []
            for position, (queue, batch) in enumerate(sent):
                self.dispatcher.batch_lost(queue, batch, ran=position == 0)

    def pause_or_resume(self) -> None:
        if self.ports:
            port = self.random.choice(self.ports)
            port.paused = not port.paused
            if not port.paused:
                self.dispatcher.port_changed()

    def answer_one(self) -> None:
        busy = [port for port in self.ports if port.sent]
        if busy:
            port = self.random.choice(busy)
            queue, batch = port.sent.pop(0)
            if self.random.random() < 0.03:
                failure = Failure.UNKNOWN_HANDLE
                self.dispatcher.batch_failed(queue, batch, failure, "not here")
            else:
                self.run(queue, batch)

    def run(self, queue: VersionQueue, batch: Batch) -> None:
        """Do what a worker does with a batch, whoever still waits for it."""
        raw = b"".join(bytes(p.inputs[0][2]) for p in batch.requests)
        rows = len(raw) // 8
        assert rows == batch.rows
        values = [int.from_bytes(raw[8 * n : 8 * n + 8], "little") for n in range(rows)]
        if max(values) >= POISON:
            failure = Failure.MODEL_FAILED
            self.dispatcher.batch_failed(queue, batch, failure, "poisoned")
        elif queue.model == BIG_MODEL and rows > OOM_ROWS:
            failure = Failure.OUT_OF_MEMORY
            self.dispatcher.batch_failed(queue, batch, failure, "no memory")
        else:
            tensor = WireTensor(0, (rows,), (memoryview(raw),))
            result = Result(1, 1, self.random.randint(1, 3 * MS), 1, 1, rows, [tensor])
            self.dispatcher.batch_done(queue, batch, result)

    # -- the books --------------------------------------------------------------

    def check(self) -> None:
        """Check everything that must hold whenever the loop has nothing to do."""
        waiting = [client for client in self.clients if client.waits]
        assert self.admission.inflight_requests == len(waiting)
        assert self.admission.inflight_bytes == sum(
            8 * len(client.values) for client in waiting
        )
        self._check_memory(waiting)
        for client in self.clients:
            self._check_client(client)
        for port in self.ports:
            for queue, batch in port.sent:
                self._check_batch(queue.entry, batch)
        self._check_nobody_waits_in_vain(waiting)

    def _check_memory(self, waiting: list[SimulatedClient]) -> None:
        """Who waits is found once by whoever looks for the expired, and nobody else."""
        dispatcher = self.dispatcher
        found = [
            pending
            for batch in dispatcher._running
            for pending in batch.requests
            if pending.phase is Phase.RUNNING
        ]
        for queue in dispatcher._active:
            for window in queue._windows.values():
                found += window.waiting()
            for batch in queue._retries:
                found += [p for p in batch.requests if p.phase is Phase.REQUEUED]
        assert Counter(found) == Counter(client.pending for client in waiting)
        out = {batch for port in self.ports for _, batch in port.sent}
        assert set(dispatcher._running) == out

    def _check_client(self, client: SimulatedClient) -> None:
        pending = client.pending
        assert pending is not None
        assert client.outcomes + client.cancelled <= 1, "more than one outcome"
        assert (pending.phase is Phase.DONE) == (not client.waits)
        assert pending.attempts <= self.max_attempts
        if client.results:
            assert client.results == [client.values], "not its own rows"
        for error in client.errors:
            self._check_error(client, pending, error)
        if client.waits:
            expires_ns = pending.deadline_ns
            if pending.phase is Phase.QUEUED:
                expires_ns = pending.expires_ns
            assert self.loop.now < expires_ns + LATE_NS, "overdue"

    def _check_error(
        self, client: SimulatedClient, pending: Pending, error: GatewayError
    ) -> None:
        now = self.loop.now
        if isinstance(error, ModelFailed):
            assert max(client.values) >= POISON, "blamed for another's rows"
        elif isinstance(error, TooLarge):
            assert client.model == BIG_MODEL
            assert len(client.values) > OOM_ROWS, "blamed for another's rows"
        elif isinstance(error, DeadlineExceeded):
            assert pending.deadline_ns <= now
        elif isinstance(error, QueueTimeout):
            assert 0 < pending.queue_deadline_ns <= now
            assert not pending.sent_ns, "it had left the queue in time"
        else:
            assert isinstance(error, WorkerLost)
            current = self.models[client.model].handle
            assert (
                pending.attempts == self.max_attempts
                or pending.queue.entry.handle != current
            )

    def _check_batch(self, entry: VersionEntry, batch: Batch) -> None:
        policy = entry.batching
        assert batch.rows == sum(p.rows for p in batch.requests)
        assert batch.rows <= max(policy.max_rows, 1)
        assert {p.queue.entry.handle for p in batch.requests} == {entry.handle}
        assert len({p.shape_key for p in batch.requests}) == 1
        assert len(set(batch.requests)) == len(batch.requests)
        if len(batch.requests) > 1:
            assert policy.across_requests
            assert sum(p.nbytes for p in batch.requests) <= policy.max_bytes

    def _check_nobody_waits_in_vain(self, waiting: list[SimulatedClient]) -> None:
        """Where a worker is idle, work is sent or waits for company, timer armed."""
        idle = {
            handle
            for port in self.ports
            if port.credits == CREDITS
            for handle in port.handles
        }
        for client in waiting:
            pending = client.pending
            assert pending is not None
            handle = pending.queue.entry.handle
            if handle not in idle or pending.phase is Phase.RUNNING:
                continue
            delay = self.loads[handle].batching.max_delay_ns
            assert pending.phase is Phase.QUEUED, "a retry was forgotten"
            assert self.loop.now < pending.admitted_ns + delay, "forgotten"
            due = self.loop.next_timer_ns()
            assert due <= pending.admitted_ns + delay, "nobody will wake it"

    # -- the end ----------------------------------------------------------------

    def finish(self) -> None:
        """Heal the world; then everyone gets an answer, and nothing is left."""
        for port in tuple(self.ports):
            port.paused = False
        self.add_port(everything=True)
        self.publish()
        turns = 0
        while any(client.waits for client in self.clients):
            self.loop.turn()
            self.check()
            busy = [port for port in self.ports if port.sent]
            for port in busy:
                self.run(*port.sent.pop(0))
            if not busy:
                self.loop.advance(self.loop.now + MS)
            turns += 1
            assert turns < 20 * len(self.clients) + 100, "no end in sight"
        self._settle_abandoned()
        self.loop.advance(self.loop.now + 10_000 * MS)
        self.check()
        self._check_nothing_is_left()

    def _settle_abandoned(self) -> None:
        """Answer batches that nobody waits for any more."""
        self.loop.turn()
        for port in self.ports:
            while port.sent:
                self.run(*port.sent.pop(0))
        self.loop.turn()

    def _check_nothing_is_left(self) -> None:
        assert self.admission.by_model() == {}
        assert self.admission.inflight_bytes == 0
        assert self.retired <= self.idle_told, "a load became free and nobody was told"
        assert self.dispatcher.retain(Catalogue(), self.published) == []
        outcomes = {"ok": 0, "cancelled": 0}
        for _, _, statistics in self.dispatcher.all_statistics():
            for label, count in statistics.outcomes.items():
                outcomes[label] = outcomes.get(label, 0) + count
            assert statistics.success[0] == statistics.outcomes["ok"]
            assert statistics.outcomes.total() == (
                statistics.success[0] + statistics.fail[0]
            )
        assert outcomes["ok"] == sum(len(c.results) for c in self.clients)
        assert outcomes["cancelled"] == sum(c.cancelled for c in self.clients)
        assert sum(outcomes.values()) == len(self.clients)

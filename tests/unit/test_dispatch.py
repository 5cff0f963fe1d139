"""The dispatcher: one outcome for every request, whatever happens to workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise

import pytest

from gateway.catalogue import BatchPolicy, Catalogue, VersionEntry, WorkerEntry
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
from tests.unit.fakes import Client, FakeLoop, FakePort, make_entry, make_pending
from tests.unit.simulation import MS, World
from workers.wire import CREDITS, Failure, Result, WireTensor

SEEDS = int(os.environ.get("BATON_SEEDS", "600"))
CHUNKS = 6


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_request_gets_exactly_one_outcome_in_any_world(chunk: int) -> None:
    for seed in range(chunk, SEEDS, CHUNKS):
        world = World(seed)
        try:
            for _ in range(80):
                world.step()
            world.finish()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


class Bench:
    """A dispatcher with one version, and hands to turn everything by."""

    def __init__(self, max_attempts: int = 2, **policy: object) -> None:
        self.loop = FakeLoop()
        self.admission = Admission(1 << 20, 25)
        self.dispatcher = Dispatcher(
            self.loop,  # type: ignore[arg-type]
            self.loop.now_ns,
            self.admission,
            max_attempts=max_attempts,
            pushback_ms=25,
        )
        self.idle: list[int] = []
        self.dispatcher.on_idle_handle = self.idle.append
        limits = {"max_rows": 4, "max_bytes": 1 << 20} | policy
        self.policy = BatchPolicy(**limits)  # type: ignore[arg-type]
        self.entry = make_entry(1, batching=self.policy)
        self.next_value = 0

    def port(self, *handles: int) -> FakePort:
        port = FakePort(set(handles or (1,)), CREDITS)
        self.dispatcher.ports.append(port)
        self.dispatcher.port_changed()
        self.loop.turn()
        return port

    def submit(self, *, entry: VersionEntry | None = None, **changes: object) -> Client:
        entry = entry or self.entry
        rows = changes.pop("rows", 1)
        assert isinstance(rows, int)
        client = Client()
        raw = b"".join((self.next_value + n).to_bytes(8, "little") for n in range(rows))
        self.next_value += rows
        pending = make_pending(
            client,
            rows=rows,
            inputs=[(0, (rows,), raw)],
            nbytes=len(raw),
            admitted_ns=self.loop.now,
            **changes,
        )
        model = f"m{entry.handle}"
        self.admission.acquire(model, len(raw), 1000)
        queue = self.dispatcher.queue_for(model, entry)
        self.dispatcher.submit(pending, queue)
        return client

    def cancel(self, client: Client) -> None:
        assert client.pending is not None
        self.dispatcher.cancel(client.pending)

    def succeed(self, port: FakePort) -> Batch:
        queue, batch = port.sent.pop(0)
        raw = b"".join(bytes(p.inputs[0][2]) for p in batch.requests)
        tensor = WireTensor(0, (batch.rows,), (raw,))
        result = Result(1, 10, 20, 30, 1, batch.rows, [tensor])
        self.dispatcher.batch_done(queue, batch, result)
        self.loop.turn()
        return batch

    def fail(self, port: FakePort, failure: Failure) -> Batch:
        queue, batch = port.sent.pop(0)
        self.dispatcher.batch_failed(queue, batch, failure, "secret words")
        self.loop.turn()
        return batch

    def lose(self, port: FakePort) -> None:
        self.dispatcher.ports.remove(port)
        for position, (queue, batch) in enumerate(port.sent):
            self.dispatcher.batch_lost(queue, batch, ran=position == 0)
        port.sent.clear()
        self.loop.turn()


def only_error(client: Client) -> GatewayError:
    assert client.results == []
    (error,) = client.errors
    return error


class TestFailures:
    def test_the_culprit_alone_is_blamed(self) -> None:
        bench = Bench(max_rows=8)
        clients = [bench.submit() for _ in range(8)]
        culprit = clients[5].pending
        port = bench.port()
        runs = 0
        while port.sent:
            _, batch = port.sent[0]
            runs += 1
            if culprit in batch.requests:
                bench.fail(port, Failure.MODEL_FAILED)
            else:
                bench.succeed(port)
        error = only_error(clients.pop(5))
        assert isinstance(error, ModelFailed)
        assert "secret" not in error.message
        assert all(len(client.results) == 1 for client in clients)
        assert runs == 7  # 8; 4 4; 2 2; 1 1

    def test_a_culprit_that_left_takes_the_blame_with_it(self) -> None:
        bench = Bench()
        culprit, other = bench.submit(), bench.submit()
        port = bench.port()
        bench.cancel(culprit)
        bench.fail(port, Failure.MODEL_FAILED)
        bench.succeed(port)
        assert other.results == [[1]]
        assert other.errors == []
        assert culprit.outcomes == 0

    def test_a_batch_too_large_for_the_memory_is_run_in_parts(self) -> None:
        bench = Bench()
        clients = [bench.submit() for _ in range(4)]
        port = bench.port()
        while port.sent:
            _, batch = port.sent[0]
            if batch.rows > 1:
                bench.fail(port, Failure.OUT_OF_MEMORY)
            else:
                bench.succeed(port)
        assert [client.results for client in clients] == [[[n]] for n in range(4)]

    def test_a_request_too_large_for_the_memory_is_told_so(self) -> None:
        bench = Bench()
        client = bench.submit(rows=4)
        bench.fail(bench.port(), Failure.OUT_OF_MEMORY)
        assert isinstance(only_error(client), TooLarge)

    def test_a_worker_that_does_not_know_the_load_is_not_asked_forever(self) -> None:
        bench = Bench(max_attempts=3)
        client = bench.submit()
        port = bench.port()
        for _ in range(3):
            bench.fail(port, Failure.UNKNOWN_HANDLE)
        assert isinstance(only_error(client), WorkerLost)
        assert not port.sent

    def test_a_reply_that_cannot_be_made_costs_the_others_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench()
        clients = [bench.submit() for _ in range(3)]
        broken = clients[1].pending
        assert broken is not None

        def break_down(rows: object, start: int) -> None:
            raise IndexError("an output that is not there")

        monkeypatch.setattr(broken, "on_result", break_down)
        bench.succeed(bench.port())
        assert [client.outcomes for client in clients] == [1, 1, 1]
        assert isinstance(only_error(clients[1]), ModelFailed)
        assert bench.admission.inflight_requests == 0


class TestLostWorkers:
    def test_a_request_runs_again_and_is_given_up_after_the_last_attempt(self) -> None:
        bench = Bench(max_attempts=2)
        client = bench.submit()
        bench.lose(bench.port())
        assert client.outcomes == 0
        bench.lose(bench.port())
        error = only_error(client)
        assert isinstance(error, WorkerLost)
        assert error.pushback_ms == -1  # it may be what killed them: never again
        assert bench.admission.inflight_requests == 0

    def test_a_request_that_kills_workers_takes_no_other_along(self) -> None:
        bench = Bench(max_attempts=2)
        killer, *others = [bench.submit() for _ in range(4)]
        bench.lose(bench.port())
        port = bench.port()
        assert len(port.sent[0][1].requests) == 1
        bench.lose(port)
        assert isinstance(only_error(killer), WorkerLost)
        port = bench.port()
        while port.sent:
            bench.succeed(port)
        assert all(client.outcomes == 1 for client in others)

    def test_what_was_only_prefetched_has_lost_nothing(self) -> None:
        bench = Bench(max_attempts=1, max_rows=1)
        first, second = bench.submit(), bench.submit()
        bench.lose(bench.port())
        assert isinstance(only_error(first), WorkerLost)
        assert second.outcomes == 0
        bench.succeed(bench.port())
        assert second.results == [[1]]

    def test_retries_go_before_what_waits(self) -> None:
        bench = Bench(max_rows=1)
        first = bench.submit()
        port = bench.port()
        second = bench.submit()
        bench.lose(port)
        third = bench.submit()
        port = bench.port()
        order = []
        while port.sent:
            order += bench.succeed(port).requests
        assert order == [first.pending, second.pending, third.pending]

    def test_a_retry_waits_beyond_its_queue_timeout_but_not_its_deadline(self) -> None:
        bench = Bench()
        now = bench.loop.now
        client = bench.submit(
            queue_deadline_ns=now + 10 * MS, deadline_ns=now + 100 * MS
        )
        bench.lose(bench.port())
        bench.loop.advance(now + 50 * MS)
        assert client.outcomes == 0
        bench.loop.advance(now + 105 * MS)
        assert isinstance(only_error(client), DeadlineExceeded)

    @pytest.mark.parametrize("ending", ["cancel", "deadline"])
    def test_a_load_whose_last_retry_is_given_up_becomes_idle(
        self, ending: str
    ) -> None:
        bench = Bench()
        client = bench.submit(deadline_ns=bench.loop.now + 10 * MS)
        bench.lose(bench.port())
        worker = WorkerEntry(0, 1, "", frozenset({1}))  # it is about to connect
        assert bench.dispatcher.retain(Catalogue(workers=(worker,)), {1}) == [1]
        assert bench.idle == []
        if ending == "cancel":
            bench.cancel(client)
            bench.loop.turn()
        else:
            bench.loop.advance(bench.loop.now + 20 * MS)
        assert bench.idle == [1]
        assert bench.dispatcher.retain(Catalogue(), {1}) == []


class TestStreams:
    """An error may end a stream, which cancels its other requests at once."""

    def tie(self, bench: Bench, clients: list[Client]) -> None:
        for client in clients:
            assert client.pending is not None

            told = client.on_error

            def on_error(
                pending: Pending,
                error: GatewayError,
                told: Callable[[Pending, GatewayError], None] = told,
            ) -> None:
                told(pending, error)
                for other in clients:
                    bench.cancel(other)

            client.on_error = on_error

    def test_requests_with_one_deadline_end_once(self) -> None:
        bench = Bench()
        deadline = bench.loop.now + 10 * MS
        clients = [bench.submit(deadline_ns=deadline) for _ in range(3)]
        self.tie(bench, clients)
        bench.loop.advance(deadline + 10 * MS)
        assert sum(client.outcomes for client in clients) == 1
        assert bench.admission.inflight_requests == 0
        assert bench.admission.inflight_bytes == 0

    def test_a_lost_batch_ends_each_once(self) -> None:
        bench = Bench(max_attempts=1)
        clients = [bench.submit() for _ in range(3)]
        self.tie(bench, clients)
        bench.lose(bench.port())
        assert sum(client.outcomes for client in clients) == 1
        assert bench.admission.inflight_requests == 0
        assert bench.dispatcher.retain(Catalogue(), {1}) == []


class TestTurns:
    def test_versions_take_turns(self) -> None:
        bench = Bench(max_rows=1)
        entries = [
            make_entry(handle, version=handle, batching=bench.policy)
            for handle in (1, 2, 3)
        ]
        for entry, count in zip(entries, (30, 10, 10), strict=True):
            for _ in range(count):
                bench.submit(entry=entry)
        port = bench.port(1, 2, 3)
        order = [bench.succeed(port).requests[0].queue.entry.handle for _ in range(30)]
        for start in range(0, 30, 3):
            assert sorted(order[start : start + 3]) == [1, 2, 3]

    def test_shapes_of_a_version_take_turns(self) -> None:
        bench = Bench(max_rows=1)
        for shape in "aaaaaabb":
            bench.submit(shape_key=(shape,))
        port = bench.port()
        order = [bench.succeed(port).requests[0].shape_key[0] for _ in range(8)]
        assert order[:4] in (["a", "b"] * 2, ["b", "a"] * 2)

    def test_batches_spread_over_workers(self) -> None:
        bench = Bench(max_rows=1)
        ports = [bench.port() for _ in range(3)]
        for _ in range(3):
            bench.submit()
        bench.loop.turn()
        assert [len(port.sent) for port in ports] == [1, 1, 1]

    def test_a_paused_worker_gets_nothing_until_it_resumes(self) -> None:
        bench = Bench()
        port = bench.port()
        port.paused = True
        bench.submit()
        bench.loop.turn()
        assert not port.sent
        port.paused = False
        bench.dispatcher.port_changed()
        bench.loop.turn()
        assert len(port.sent) == 1

    def test_a_load_no_worker_has_waits_for_one_and_holds_up_nobody(self) -> None:
        bench = Bench()
        other = make_entry(2, version=2)
        stuck = bench.submit(entry=other)
        port = bench.port(1)
        served = bench.submit()
        bench.loop.turn()
        bench.succeed(port)
        assert served.results
        assert stuck.outcomes == 0
        bench.succeed(bench.port(2))
        assert stuck.results


class TestTime:
    def test_a_window_is_sent_when_its_delay_ends(self) -> None:
        bench = Bench(max_delay_ns=10 * MS)
        port = bench.port()
        start = bench.loop.now
        bench.submit()
        bench.loop.advance(start + 4 * MS)
        bench.submit()
        bench.loop.advance(start + 8 * MS)  # timers are in whole milliseconds
        assert not port.sent
        bench.loop.advance(start + 10 * MS)
        ((_, batch),) = port.sent
        assert batch.rows == 2

    def test_one_timer_serves_all_who_wait(self) -> None:
        bench = Bench(max_delay_ns=10 * MS, max_rows=64)
        bench.port()
        for _ in range(50):
            bench.submit(deadline_ns=bench.loop.now + 500 * MS)
            bench.loop.turn()
        assert bench.loop.timers() == 2  # the window's, and the deadlines'

    def test_a_queue_timeout_does_not_end_a_run(self) -> None:
        bench = Bench()
        port = bench.port()
        now = bench.loop.now
        client = bench.submit(queue_deadline_ns=now + 10 * MS)
        bench.loop.turn()
        bench.loop.advance(now + 50 * MS)
        assert client.outcomes == 0
        bench.succeed(port)
        assert client.results == [[0]]

    def test_a_queue_timeout_ends_the_wait(self) -> None:
        bench = Bench()
        now = bench.loop.now
        client = bench.submit(queue_deadline_ns=now + 10 * MS)
        bench.loop.advance(now + 9 * MS)
        assert client.outcomes == 0
        bench.loop.advance(now + 15 * MS)
        assert isinstance(only_error(client), QueueTimeout)
        assert not bench.port().sent

    def test_a_deadline_ends_a_run_whose_result_is_then_dropped(self) -> None:
        bench = Bench()
        port = bench.port()
        now = bench.loop.now
        late = bench.submit(deadline_ns=now + 10 * MS)
        patient = bench.submit()
        bench.loop.advance(now + 20 * MS)
        assert isinstance(only_error(late), DeadlineExceeded)
        bench.succeed(port)
        assert late.outcomes == 1
        assert patient.results == [[1]]

    def test_a_shorter_deadline_that_comes_later_is_kept(self) -> None:
        bench = Bench()
        now = bench.loop.now
        long = bench.submit(deadline_ns=now + 500 * MS)
        short = bench.submit(deadline_ns=now + 10 * MS)
        bench.loop.advance(now + 16 * MS)
        assert (long.outcomes, short.outcomes) == (0, 1)


class TestMany:
    """Enough requests that leave for a window to sweep them out."""

    @pytest.mark.parametrize("ending", ["cancel", "deadline"])
    def test_each_of_many_who_leave_has_one_outcome(self, ending: str) -> None:
        bench = Bench(max_rows=512)
        deadline = bench.loop.now + 10 * MS
        stays = bench.submit()
        leave = [bench.submit(deadline_ns=deadline) for _ in range(200)]
        if ending == "cancel":
            for client in leave:
                bench.cancel(client)
        else:
            bench.loop.advance(deadline + 6 * MS)
        port = bench.port()
        while port.sent:
            bench.succeed(port)
        assert stays.results == [[0]]
        outcomes = 0 if ending == "cancel" else 1
        assert {(c.outcomes, len(c.results)) for c in leave} == {(outcomes, 0)}
        assert bench.admission.by_model() == {}
        assert bench.admission.inflight_bytes == 0


class TestLoads:
    def test_idle_loads_that_are_gone_are_let_go_and_busy_ones_named(self) -> None:
        bench = Bench()
        bench.submit()
        port = bench.port()
        assert bench.dispatcher.retain(Catalogue(), {1}) == [1]
        bench.succeed(port)
        assert bench.idle == [1]
        assert bench.dispatcher.retain(Catalogue(), {1}) == []

    def test_counters_outlive_the_load(self) -> None:
        bench = Bench()
        bench.submit()
        bench.succeed(bench.port())
        bench.dispatcher.retain(Catalogue(), {1})
        ((model, version, statistics),) = bench.dispatcher.all_statistics()
        assert (model, version, statistics.outcomes["ok"]) == ("m1", 1, 1)

    def test_cancelling_twice_or_after_the_result_changes_nothing(self) -> None:
        bench = Bench()
        client = bench.submit()
        bench.succeed(bench.port())
        for _ in range(2):
            bench.cancel(client)
        assert client.outcomes == 1
        assert bench.admission.inflight_requests == 0
        assert client.pending is not None
        assert client.pending.phase is Phase.DONE

    def test_stages_of_a_batch_are_counted_once_per_request(self) -> None:
        bench = Bench()
        for _ in range(3):
            bench.submit()
        bench.succeed(bench.port())
        statistics = bench.dispatcher.statistics("m1", 1)
        assert statistics.executions == 1
        assert statistics.compute_input == [3, 30]
        assert statistics.runs == {3: [1, 10, 20, 30]}
        assert statistics.rows == 3


def test_a_slow_run_is_remembered_and_slowly_forgotten() -> None:
    bench = Bench()
    bench.submit()
    bench.succeed(bench.port())
    ((queue,),) = (those.values() for those in bench.dispatcher._queues.values())
    queue.learn(100 * MS)
    seen = [bench.dispatcher.slowest_run_ns()]
    assert seen == [100 * MS]
    for _ in range(2000):
        queue.learn(MS)
        seen.append(bench.dispatcher.slowest_run_ns())
    assert all(after <= before for before, after in pairwise(seen))
    assert seen[256] > 30 * MS
    assert seen[-1] < 2 * MS

"""Who makes calls when: closed loops and streams. Loop thread only."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from contextlib import suppress

from loadtest.answers import LOST, OK
from loadtest.calls import Call
from loadtest.http2 import Connection
from loadtest.load import Load, LoadFailed
from loadtest.record import (
    CANCELLED,
    DROPPED,
    EXPIRED,
    UNANSWERED,
    WRONG,
    Record,
)
from loadtest.requests import PREFIX_BYTES, Request
from loadtest.wire import close

CONNECT_S = 20.0
"""Longest time until all connections stand."""
CONNECTING = 64
"""Connections opened at a time: servers have a bounded backlog."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 1.0
"""Before a lost connection is opened again."""
TICK_S = 0.05
"""Between folds of the record, and at most between looks at deadlines."""
LINE_NS = 1_000_000_000
"""Between lines of the record."""
DRAIN_NS = 5_000_000_000
"""Wait for the last answers where calls have no deadline."""


class Driver:
    """Keeps connections open and judges answers; subclasses make the calls.

    Attributes:
        connections: Those that may make calls.
        reconnects: Connections opened in place of lost or retired ones.
        problems: What made it impossible to go on.
    """

    def __init__(self, load: Load, request: Request, record: Record) -> None:
        self.connections: list[Connection] = []
        self.reconnects = 0
        self.problems: list[str] = []
        self.end_ns = 0
        self._load = load
        self._request = request
        self._record = record
        self._deadline_ns = round(load.deadline_ms * 1e6)
        size = PREFIX_BYTES + load.reply_bytes
        self._length = load.messages * size if load.reply_bytes else 0
        self._expected = load.expected()
        self._until_check = load.check_every
        self._random = random.Random(load.seed)
        self._moody = load.cancel_share + load.drop_share > 0
        self._dressed = self._moody or load.check_every > 0
        self._dropped: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._count = load.connections
        self._all_ready = asyncio.Event()
        self._ssl: ssl.SSLContext | None = None
        if load.authorities:
            self._ssl = ssl.create_default_context(cafile=load.authorities)
            self._ssl.set_alpn_protocols(["h2"])

    # -- Connections

    async def open(self) -> None:
        """Open all connections and wait until each may make calls.

        Raises:
            LoadFailed: If that does not succeed in time.
        """
        gate = asyncio.Semaphore(CONNECTING)

        async def one() -> None:
            async with gate:
                await self._connect()

        try:
            async with asyncio.timeout(CONNECT_S), asyncio.TaskGroup() as group:
                for _ in range(self._count):
                    group.create_task(one())
                group.create_task(self._all_ready.wait())
        except (TimeoutError, ExceptionGroup) as error:
            errors = getattr(error, "exceptions", ("no answer",))
            raise LoadFailed(
                f"only {len(self.connections)} of {self._count} connections to"
                f" {self._request.authority} within {CONNECT_S:g} s ({errors[0]});"
                " is a gRPC server listening there?"
            ) from None

    async def _connect(self) -> None:
        await self._loop.create_connection(
            lambda: Connection(self, self._request),
            self._load.host,
            self._load.port,
            ssl=self._ssl,
        )

    async def _reconnect(self) -> None:
        pause_s = FIRST_PAUSE_S
        while time.monotonic_ns() < self.end_ns:
            with suppress(OSError):
                await self._connect()
                self.reconnects += 1
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def ready(self, connection: Connection) -> None:
        """Take a connection into use."""
        self.connections.append(connection)
        if len(self.connections) >= self._count:
            self._all_ready.set()
        if self.end_ns:
            self.begin(connection, time.monotonic_ns())

    def closed(self, connection: Connection, error: Exception | None) -> None:
        """Open another connection in place of one that is gone."""
        del error  # its calls are counted; the server's log has the reason
        if connection in self.connections:
            self.connections.remove(connection)
        self._dropped.discard(connection)
        if connection.problem and connection.problem not in self.problems:
            self.problems.append(connection.problem)
        if time.monotonic_ns() < self.end_ns:
            task = self._loop.create_task(self._reconnect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # -- Calls

    async def run(self) -> None:
        """Make calls for the length of the measurement, then wait for answers."""
        started_ns = time.monotonic_ns()
        self.end_ns = started_ns + round(self._load.seconds * 1e9)
        for connection in tuple(self.connections):
            self.begin(connection, started_ns)
        tick_s = TICK_S
        if self._deadline_ns:
            tick_s = min(tick_s, max(self._deadline_ns / 4e9, 0.001))
        line_ns = started_ns
        while (now_ns := time.monotonic_ns()) < self.end_ns:
            left_s = (self.end_ns - now_ns) / 1e9
            await asyncio.sleep(min(tick_s, left_s + 0.0005))
            line_ns = self._look(started_ns, line_ns)
        self.finish()
        give_up_ns = self.end_ns + (self._deadline_ns or DRAIN_NS)
        while any(c.open for c in self.connections):
            if time.monotonic_ns() > give_up_ns:
                break
            await asyncio.sleep(0.002)
            self._expire(time.monotonic_ns())
        left = sum(len(each.open) for each in self.connections)
        self._record.fail(UNANSWERED, left)
        self._record.line(self._load.seconds, (self.end_ns - line_ns) / 1e9)
        for task in tuple(self._tasks):
            task.cancel()
        for connection in tuple(self.connections):
            connection.close()

    def _look(self, started_ns: int, line_ns: int) -> int:
        """Fold, look at deadlines; return when the last line was written."""
        now_ns = time.monotonic_ns()
        self._record.fold()
        self._expire(now_ns)
        if now_ns - line_ns < LINE_NS or now_ns >= self.end_ns:
            return line_ns
        self._record.line((now_ns - started_ns) / 1e9, (now_ns - line_ns) / 1e9)
        return now_ns

    def _expire(self, now_ns: int) -> None:
        """Cancel calls whose deadline is past; they stand in order of age."""
        if not self._deadline_ns:
            return
        for connection in tuple(self.connections):
            while connection.open:
                call = next(iter(connection.open.values()))
                if call.start_ns + self._deadline_ns > now_ns:
                    break
                connection.cancel(call.stream)
                self._end(connection, EXPIRED, now_ns)
            connection.flush()

    def _end(self, connection: Connection, status: str, now_ns: int) -> None:
        """Count a call that is no right answer, and go on."""
        if status == LOST and connection in self._dropped:
            status = DROPPED
        self._record.fail(status)
        if now_ns < self.end_ns and not connection.retiring:
            self.again(connection, now_ns)

    def answered(
        self, connection: Connection, call: Call, status: str, now_ns: int
    ) -> None:
        """Count the end of a call and make the next."""
        if status == OK and self.right(call):
            if now_ns <= self.end_ns or self.waits:
                self._record.durations.append(now_ns - call.start_ns)
            if now_ns < self.end_ns and not connection.retiring:
                self.again(connection, now_ns)
            return
        if status == OK:
            status = WRONG
        self._end(connection, status, now_ns)

    def right(self, call: Call) -> bool:
        """Say whether an answer with status OK has the right length and bytes."""
        if self._length and call.received != self._length:
            return False
        return call.body is None or self.same(bytes(call.body[PREFIX_BYTES:]))

    def same(self, reply: bytes) -> bool:
        """Compare a sampled answer: equal bytes, or numbers that are close.

        A row in other company may differ in its last bits.
        """
        return reply == self._expected or close(
            reply, self._expected, streamed=self._load.outstanding > 0
        )

    def call(self, connection: Connection, start_ns: int) -> None:
        """Make a call; some have their bytes checked, some are cancelled."""
        call = connection.start(start_ns)
        if not self._dressed:
            return
        self._until_check -= 1
        if not self._until_check:
            self._until_check = self._load.check_every
            call.body = bytearray()
        self._leave_some(connection, call)

    def _leave_some(self, connection: Connection, call: Call) -> None:
        """Decide whether, when and how a call is given up."""
        if not self._moody:
            return
        share = self._random.random()
        if share < self._load.cancel_share + self._load.drop_share:
            after_s = self._random.random() * self._load.cancel_within_ms / 1e3
            cancels = share < self._load.cancel_share
            leave = self._cancel if cancels else self._drop
            self._loop.call_later(after_s, leave, connection, call)

    def _cancel(self, connection: Connection, call: Call) -> None:
        if connection.open.get(call.stream) is call:
            connection.cancel(call.stream)
            self._end(connection, CANCELLED, time.monotonic_ns())
            connection.flush()

    def _drop(self, connection: Connection, call: Call) -> None:
        if connection.open.get(call.stream) is call:
            self._dropped.add(connection)
            connection.abort()

    def message(
        self, connection: Connection, call: Call, payload: bytes, now_ns: int
    ) -> None:
        """Only streams have messages."""

    # -- For subclasses

    waits = False
    """Answers after the end count, since their calls were due before."""

    def begin(self, connection: Connection, now_ns: int) -> None:
        """Make the first calls of a connection."""

    def again(self, connection: Connection, now_ns: int) -> None:
        """A call of a connection ended: make another, if that is the plan."""

    def finish(self) -> None:
        """The time is over."""


class Idle(Driver):
    """Connections that make no calls."""

    def __init__(self, load: Load, request: Request, record: Record) -> None:
        super().__init__(load, request, record)
        self._count = load.idle

    def close(self) -> None:
        """Close all connections."""
        for connection in tuple(self.connections):
            connection.close()


class ClosedLoop(Driver):
    """Each connection keeps its number of calls open."""

    def begin(self, connection: Connection, now_ns: int) -> None:
        """Open as many calls as are to be open."""
        if self._load.calls > connection.max_calls:
            problem = too_many(self._load.calls, connection.max_calls)
            if problem not in self.problems:
                self.problems.append(problem)
        for _ in range(min(self._load.calls, connection.max_calls)):
            self.again(connection, now_ns)
        connection.flush()

    def again(self, connection: Connection, now_ns: int) -> None:
        """Keep the number of open calls."""
        self._record.offered += 1
        self.call(connection, now_ns)


class Streams(Driver):
    """Each connection keeps streams open, each stream a number of messages."""

    def begin(self, connection: Connection, now_ns: int) -> None:
        """Open the streams."""
        for _ in range(min(self._load.calls, connection.max_calls)):
            self.again(connection, now_ns)
        connection.flush()

    def again(self, connection: Connection, now_ns: int) -> None:
        """Open a stream with all its messages."""
        call = connection.start_stream(now_ns)
        for _ in range(self._load.outstanding):
            connection.write(call)
            call.times.append(now_ns)
        self._leave_some(connection, call)

    def message(
        self, connection: Connection, call: Call, payload: bytes, now_ns: int
    ) -> None:
        """Count an answer and send the next message."""
        if not call.times:
            self._record.fail(WRONG)
            return
        took_ns = now_ns - call.times.popleft()
        if self._load.reply_bytes not in (0, len(payload)) or not self._checked(
            payload
        ):
            self._record.fail(WRONG)
        elif now_ns <= self.end_ns:
            self._record.durations.append(took_ns)
        if now_ns >= self.end_ns or connection.retiring:
            connection.half_close(call)
            return
        connection.write(call)
        call.times.append(now_ns)

    def answered(
        self, connection: Connection, call: Call, status: str, now_ns: int
    ) -> None:
        """Count what a stream left unanswered; open another."""
        meant = now_ns >= self.end_ns or connection.retiring
        if status != OK or call.times or not meant:
            self._end(connection, WRONG if status == OK else status, now_ns)

    def _checked(self, payload: bytes) -> bool:
        if not self._load.check_every:
            return True
        self._until_check -= 1
        if self._until_check:
            return True
        self._until_check = self._load.check_every
        return self.same(payload)

    def finish(self) -> None:
        """Half-close, so that the server ends the streams in good order."""
        for connection in self.connections:
            for call in tuple(connection.open.values()):
                connection.half_close(call)
            connection.flush()


def too_many(calls: int, allowed: int) -> str:
    """Return what to say of more calls than a connection may have."""
    return (
        f"the server allows {allowed} calls per connection, not {calls}:"
        " use more connections"
    )

"""A worker's blocking loop: frames in from every front, runs, frames out.

One thread. A run holds the thread; frames that arrive meanwhile wait in their
sockets, bounded by each front's credits, and those of the same version and shape
are merged into the next run. The loop never blocks on a slow front: what a
socket does not take is kept per connection, again bounded by credits.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workers import wire
from workers.arena import Arena
from workers.execute import Loaded, RunError, execute
from workers.plain import QuickRun, plain_tensor, run_head
from workers.signature import LoadRefused
from workers.spec import LOAD_ORDER, LOAD_REPORT, LoadOrder, LoadReport
from workers.wire import Buffer, FrameReader, Kind

READ_BYTES = 1 << 18
_JOIN_BUFFERS = 8
"""So few buffers leave as one: results that are large lie in the arena."""
_SENDMSG_BUFFERS = 512  # below IOV_MAX (1024 on Linux)


@dataclass(eq=False, slots=True)
class Peer:
    """One connection: a front's data link, or the supervisor's control link.

    `writing`: the socket took no more, and the poll says when it does again.
    """

    sock: socket.socket
    reader: FrameReader = field(default_factory=FrameReader)
    outbox: deque[Buffer] = field(default_factory=deque)
    arena: Arena | None = None
    writing: bool = False


@dataclass(eq=False, slots=True)
class Waiting:
    """A run that waits for its turn, and whom to answer."""

    peer: Peer
    run: wire.Run


class WorkerLoop:
    """Serves runs until it is told to stop or the supervisor goes away.

    Args:
        listener: Listening Unix socket for the fronts.
        control: Connected Unix socket to the supervisor.
        load: Turns an order into a loaded version; raises with a reason for people.
    """

    def __init__(
        self,
        listener: socket.socket,
        control: socket.socket,
        load: Callable[[LoadOrder], Loaded],
    ) -> None:
        self._listener = listener
        self._control = Peer(control)
        self._load = load
        self._loaded: dict[int, Loaded] = {}
        self._mergeable: set[int] = set()
        self._quick: dict[int, QuickRun] = {}
        self._crowded = False
        self._peers: set[Peer] = set()
        self._waiting: deque[Waiting] = deque()
        # Without `selectors`: its bookkeeping cost as much as the rest of a poll.
        self._poller = select.epoll()
        self._polled: dict[int, Peer | socket.socket] = {}
        self._stopping = False

    def run(self) -> None:
        """Serve until stopped, and then until the last front has left.

        A service manager may send SIGTERM to every process at once; the fronts still
        need their workers to answer what they have in flight.
        """
        self.prepare()
        wakeup, waker = socket.socketpair()
        waker.setblocking(False)
        self._watch(wakeup, wakeup)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is not for us
        while not self._stopping or self._waiting or self._peers:
            self.poll(0 if self._waiting else None)
            if self._waiting:
                self._run_next()

    def prepare(self) -> None:
        """Get ready to poll."""
        self._listener.setblocking(False)
        self._control.sock.setblocking(False)
        self._watch(self._listener, self._listener)
        self._watch(self._control.sock, self._control)

    def _stop(self) -> None:
        self._stopping = True

    def _watch(self, sock: socket.socket, owner: Peer | socket.socket) -> None:
        """Have the poll say when there is something to read."""
        self._poller.register(sock, select.EPOLLIN)
        self._polled[sock.fileno()] = owner

    def poll(self, timeout: float | None) -> None:
        """Read, and answer, what is there within `timeout` seconds."""
        ready = self._poller.poll(timeout)
        self._crowded = len(ready) > 1
        for fd, events in ready:
            owner = self._polled.get(fd)
            if isinstance(owner, Peer):
                if events & select.EPOLLOUT:
                    self._flush(owner)
                if events & ~select.EPOLLOUT:
                    self._read(owner)
            elif owner is self._listener:
                self._accept()
            elif owner is not None:
                owner.recv(4096)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        peer = Peer(sock)
        self._peers.add(peer)
        self._watch(sock, peer)

    def _read(self, peer: Peer) -> None:
        try:
            if peer.arena is None and peer is not self._control:
                data, fds, _, _ = socket.recv_fds(peer.sock, READ_BYTES, 1)
                if fds:
                    peer.arena = Arena.attach(fds[0])
            else:
                data = peer.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        if not (self._crowded or self._waiting) and self._run_quick(peer, data):
            return
        try:
            for frame in peer.reader.feed(data):
                if frame.kind == Kind.RUN:
                    slots = peer.arena.requests if peer.arena else ()
                    self._waiting.append(Waiting(peer, wire.decode_run(frame, slots)))
                elif frame.kind == Kind.CONTROL and peer is self._control:
                    self._command(frame.id, json.loads(bytes(frame.body)))
        except wire.WireError:
            self._drop(peer)

    def _run_quick(self, peer: Peer, data: bytes) -> bool:
        """Run and answer what is the usual frame and all there is to do."""
        if not peer.reader.empty:
            return False
        plain = plain_tensor(data, Kind.RUN, wire.RUN_HEAD.size)
        if plain is None:
            return False
        handle, rows, slot, alone = run_head(data)
        quick = self._quick.get(handle)
        if quick is None or alone or slot >= wire.CREDITS:
            return False
        if peer.arena is not None:
            peer.arena.started[slot] = plain[0]
        result = quick.run(data, plain, rows)
        if result is None or len(result) > ARENA_MIN_BYTES:
            return False
        self._send(peer, [result])
        return True

    def _drop(self, peer: Peer) -> None:
        if peer.sock.fileno() < 0:
            return  # dropped a moment ago, while writing
        self._poller.unregister(peer.sock)
        del self._polled[peer.sock.fileno()]
        peer.sock.close()
        if peer is self._control:
            self._stopping = True  # the supervisor is gone
            self._waiting.clear()
            for front in tuple(self._peers):
                self._drop(front)
            return
        self._peers.discard(peer)
        self._waiting = deque(w for w in self._waiting if w.peer is not peer)
        if peer.arena is not None:
            peer.arena.close()

    def _send(self, peer: Peer, buffers: list[Buffer]) -> None:
        if peer is not self._control and peer not in self._peers:
            return  # it left while its batch ran
        if not peer.outbox and len(buffers) <= _JOIN_BUFFERS:
            data = b"".join(buffers) if len(buffers) > 1 else buffers[0]
            try:
                sent = peer.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(peer)
                return
            if sent == len(data):
                return
            buffers = [memoryview(data)[sent:]]
        was_empty = not peer.outbox
        peer.outbox.extend(buffers)
        if was_empty:
            self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        outbox = peer.outbox
        try:
            while outbox:
                head = [outbox[i] for i in range(min(len(outbox), _SENDMSG_BUFFERS))]
                sent = peer.sock.sendmsg(head)
                while outbox and sent >= len(outbox[0]):
                    sent -= len(outbox.popleft())
                if sent:
                    outbox[0] = memoryview(outbox[0])[sent:]
        except BlockingIOError:
            peer.writing = True
            self._poller.modify(peer.sock, select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError:
            self._drop(peer)
            return
        if peer.writing:
            peer.writing = False
            self._poller.modify(peer.sock, select.EPOLLIN)

    def _command(self, id_: int, command: dict[str, Any]) -> None:
        match command["op"]:
            case "load":
                report = self._open(LOAD_ORDER.validate_python(command["order"]))
                self._reply(id_, LOAD_REPORT.dump_json(report))
            case "unload":
                loaded = self._loaded.pop(command["handle"], None)
                self._mergeable.discard(command["handle"])
                self._quick.pop(command["handle"], None)
                if loaded is not None:
                    loaded.close()
                self._reply(id_, b"{}")

    def _reply(self, id_: int, body: bytes) -> None:
        frame = wire.encode_frame(Kind.CONTROL, id_, body, wire.REPLY)
        self._send(self._control, [frame])

    def _open(self, order: LoadOrder) -> LoadReport:
        """Load a version; fronts are told to look elsewhere while it takes."""
        for peer in tuple(self._peers):
            self._send(peer, [wire.encode_frame(Kind.PAUSE, 0)])
        try:
            loaded = self._load(order)
        except LoadRefused as refused:
            return LoadReport(order.handle, error=str(refused))
        except Exception:  # the edge: one bad model must not end the worker
            traceback.print_exc()
            reason = "loading failed with an internal error; the server's log says why"
            return LoadReport(order.handle, error=reason)
        finally:
            for peer in tuple(self._peers):
                self._send(peer, [wire.encode_frame(Kind.RESUME, 0)])
        self._loaded[order.handle] = loaded
        quick = loaded.quick()
        if quick is not None:
            self._quick[order.handle] = quick
        if order.across_requests:
            self._mergeable.add(order.handle)
        return loaded.report

    def _take_group(self) -> tuple[Loaded | None, list[Waiting]]:
        """Take the oldest run and every waiting one that can share its run."""
        first = self._waiting.popleft()
        loaded = self._loaded.get(first.run.handle)
        group = [first]
        if loaded is None or first.run.handle not in self._mergeable:
            return loaded, group
        if first.run.alone or not self._waiting:
            return loaded, group
        limit = loaded.spec.max_batch_rows
        rows = first.run.rows
        shape = _inner_shape(first.run)
        for waiting in tuple(self._waiting):
            run = waiting.run
            if (
                run.handle == first.run.handle
                and not run.alone
                and rows + run.rows <= limit
                and _inner_shape(run) == shape
            ):
                self._waiting.remove(waiting)
                group.append(waiting)
                rows += run.rows
        return loaded, group

    def _run_next(self) -> None:
        loaded, group = self._take_group()
        if loaded is None:
            self._fail(group[0], wire.Failure.UNKNOWN_HANDLE, "the version is not here")
        else:
            self._answer(loaded, group)

    def _answer(self, loaded: Loaded, group: list[Waiting]) -> None:
        for waiting in group:
            arena = waiting.peer.arena
            if arena is not None:
                arena.started[waiting.run.slot] = waiting.run.id
        try:
            results = execute(loaded, [waiting.run for waiting in group])
            frames = [
                _encode(result, waiting)
                for waiting, result in zip(group, results, strict=True)
            ]
        except Exception as error:  # the edge: one bad run must not end the worker
            if len(group) > 1:  # nor may one front's rows fail another's: one by one
                for waiting in group:
                    self._answer(loaded, [waiting])
                return
            if isinstance(error, RunError):
                self._fail(group[0], error.failure, str(error))
            else:
                traceback.print_exc()
                self._fail(group[0], wire.Failure.MODEL_FAILED, "internal error")
            return
        for waiting, buffers in zip(group, frames, strict=True):
            self._send(waiting.peer, buffers)

    def _fail(self, waiting: Waiting, failure: wire.Failure, message: str) -> None:
        body = message.encode()
        frame = wire.encode_frame(Kind.FAILURE, waiting.run.id, body, failure)
        self._send(waiting.peer, [frame])


ARENA_MIN_BYTES = 1 << 17
"""Results of at least this many bytes travel through the arena."""


def _encode(result: wire.Result, waiting: Waiting) -> list[Buffer]:
    arena = waiting.peer.arena
    slot = arena.responses[waiting.run.slot] if arena else None
    size = sum(tensor.nbytes() for tensor in result.tensors)
    return wire.encode_result(result, slot if size >= ARENA_MIN_BYTES else None)


def _inner_shape(run: wire.Run) -> tuple[tuple[int, tuple[int, ...]], ...]:
    return tuple((tensor.index, tensor.dims[1:]) for tensor in run.tensors)


def connect_control(path: str, hello: dict[str, Any]) -> socket.socket:
    """Connect to the supervisor and introduce this process."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.connect(path)
    control.sendall(wire.encode_frame(Kind.HELLO, 0, json.dumps(hello).encode()))
    return control


def listen(path: str) -> socket.socket:
    """Listen on a Unix socket that only this user can reach."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener

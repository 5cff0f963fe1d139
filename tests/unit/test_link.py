"""A front's end of a worker link, with a worker that answers as it is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.catalogue import WorkerEntry
from gateway.clock import now_ns
from gateway.errors import ModelFailed, WorkerLost
from gateway.serving.admission import Admission
from gateway.serving.dispatch import Dispatcher
from gateway.serving.link import LinkSettings, WorkerLink
from tests.unit.fakes import Client, make_entry, make_pending
from workers import wire
from workers.wire import CREDITS, Failure, Frame, FrameReader, Kind, Result, WireTensor


class Answered(Client):
    """A client that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.done = asyncio.Event()

    def on_result(self, *arguments: object) -> None:
        super().on_result(*arguments)  # type: ignore[arg-type]
        self.done.set()

    def on_error(self, *arguments: object) -> None:
        super().on_error(*arguments)  # type: ignore[arg-type]
        self.done.set()


class Rig:
    """A dispatcher, its link, and the worker's end of the socket."""

    def __init__(self, dispatcher: Dispatcher, link: WorkerLink) -> None:
        self.dispatcher = dispatcher
        self.link = link
        self.entry = make_entry(1)
        self.lost = asyncio.Event()
        self.sock: socket.socket
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    def submit(self, value: int) -> Answered:
        client = Answered()
        raw = value.to_bytes(8, "little")
        pending = make_pending(client, inputs=[(0, (1,), raw)], admitted_ns=now_ns())
        self.dispatcher._admission.acquire("m", 8, 100)
        queue = self.dispatcher.queue_for("m", self.entry)
        self.dispatcher.submit(pending, queue)
        return client

    async def read(self) -> Frame:
        loop = asyncio.get_running_loop()
        while not self._frames:
            self._frames += self._reader.feed(await loop.sock_recv(self.sock, 1 << 16))
        return self._frames.pop(0)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)


@asynccontextmanager
async def linked(folder: Path, max_attempts: int = 1) -> AsyncIterator[Rig]:
    loop = asyncio.get_running_loop()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "w"))
    listener.listen()
    listener.setblocking(False)
    admission = Admission(1 << 20, 25)
    dispatcher = Dispatcher(
        loop, now_ns, admission, max_attempts=max_attempts, pushback_ms=25
    )
    worker = WorkerEntry(0, 1, str(folder / "w"), frozenset({1}))
    lost = asyncio.Event()
    link = WorkerLink(
        worker,
        dispatcher,
        LinkSettings(0, 0, hang_timeout_ns=10**11, fronts=1),
        now_ns=now_ns,
        on_lost=lambda _: lost.set(),
        on_hang=lambda _: None,
    )
    await link.connect()
    rig = Rig(dispatcher, link)
    rig.lost = lost
    rig.sock, _ = await loop.sock_accept(listener)
    rig.sock.setblocking(False)
    assert (await rig.read()).kind == Kind.HELLO
    try:
        yield rig
    finally:
        link.close()
        await lost.wait()
        rig.sock.close()
        listener.close()
        assert link.credits == 0
        assert dispatcher.ports == []
        assert admission.inflight_requests == 0


def result_of(frame: Frame) -> bytes:
    """Return the identity's answer to a RUN frame."""
    run = wire.decode_run(frame)
    tensors = [WireTensor(0, run.tensors[0].dims, run.tensors[0].data)]
    return b"".join(wire.encode_result(Result(run.id, 1, 2, 3, 1, run.rows, tensors)))


async def test_a_result_reaches_its_request_and_frees_the_credit(
    tmp_path: Path,
) -> None:
    async with linked(tmp_path) as rig:
        client = rig.submit(77)
        frame = await rig.read()
        assert rig.link.credits == CREDITS - 1
        await rig.write(result_of(frame))
        await client.done.wait()
        assert client.results == [[77]]
        assert rig.link.credits == CREDITS


async def test_a_failure_reaches_its_request(tmp_path: Path) -> None:
    async with linked(tmp_path) as rig:
        client = rig.submit(1)
        frame = await rig.read()
        failure = Failure.MODEL_FAILED
        await rig.write(wire.encode_frame(Kind.FAILURE, frame.id, b"\xff", failure))
        await client.done.wait()
        assert isinstance(client.errors[0], ModelFailed)


def garbled(frame: Frame) -> dict[str, bytes]:
    good = result_of(frame)
    prefix = wire.PREFIX.pack(len(good) - 32, Kind.RESULT, 0, 1, frame.id)
    return {
        "truncated result": prefix + good[16:-16],
        "empty result": wire.encode_frame(Kind.RESULT, frame.id),
        "unknown failure": wire.encode_frame(Kind.FAILURE, frame.id, b"", 99),
        "answer to nothing": wire.encode_frame(Kind.FAILURE, 1 << 40, b"", 1),
    }


@pytest.mark.parametrize(
    "damage",
    ["truncated result", "empty result", "unknown failure", "answer to nothing"],
)
async def test_an_answer_that_cannot_be_read_is_a_lost_worker(
    tmp_path: Path, damage: str
) -> None:
    async with linked(tmp_path) as rig:
        client = rig.submit(1)
        frame = await rig.read()
        await rig.write(garbled(frame)[damage])
        await rig.lost.wait()
        assert [type(error) for error in client.errors] == [WorkerLost]


async def test_a_paused_worker_is_sent_nothing_until_it_resumes(tmp_path: Path) -> None:
    async with linked(tmp_path) as rig:
        first = rig.submit(1)
        frame = await rig.read()
        pause = wire.encode_frame(Kind.PAUSE, 0)
        await rig.write(pause + result_of(frame))  # the pause is read first
        await first.done.wait()
        assert rig.link.credits == 0
        second = rig.submit(2)
        await rig.write(wire.encode_frame(Kind.RESUME, 0))
        await rig.write(result_of(await rig.read()))
        await second.done.wait()
        assert second.results == [[2]]

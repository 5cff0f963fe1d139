"""Control messages over a real Unix socket, both ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.channel import Answer, Channel, ChannelClosed
from gateway.errors import (
    Code,
    GatewayError,
    InvalidRequest,
    LoadFailed,
    NotReady,
    UnknownModel,
)
from gateway.registry.config_text import ConfigRefused
from workers import wire
from workers.wire import Kind

Message = dict[str, Any]


class End:
    """One end: its channel, and everything that came in."""

    def __init__(self) -> None:
        self.channel = Channel(self._on_message, self._on_closed)
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: list[Answer] = []
        self.closed = asyncio.Event()
        self.closings = 0
        self.reply: Callable[[Message], Message | GatewayError | None] = lambda _: None

    def _on_message(self, channel: Channel, message: Message, answer: Answer) -> None:
        assert channel is self.channel
        self.answers.append(answer)
        self.inbox.put_nowait(message)
        reply = self.reply(message)
        if reply is not None:
            answer(reply)

    def _on_closed(self, channel: Channel) -> None:
        assert channel is self.channel
        self.closings += 1
        self.closed.set()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[End, End]]:
    loop = asyncio.get_running_loop()
    near, far = End(), End()
    server = await loop.create_unix_server(lambda: far.channel, str(folder / "s"))
    await loop.create_unix_connection(lambda: near.channel, str(folder / "s"))
    near.channel.hello({})  # the other end is there only once it is accepted
    await far.inbox.get()
    far.answers.clear()
    try:
        yield near, far
    finally:
        for end in (near, far):
            end.channel.close()
            await end.closed.wait()
        server.close()
        await server.wait_closed()


async def test_notifications_arrive_in_order_both_ways(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        near.channel.hello({"role": "front"})
        for number in range(100):
            near.channel.tell({"n": number, "text": "é\0"})
        assert await far.inbox.get() == {"role": "front"}
        for number in range(100):
            assert await far.inbox.get() == {"n": number, "text": "é\0"}
        far.channel.tell({"back": None})
        assert await near.inbox.get() == {"back": None}


async def test_every_question_gets_its_own_answer_in_any_order(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        asked = [near.channel.ask({"n": number}) for number in range(20)]
        for _ in range(20):
            await far.inbox.get()
        for number in reversed(range(20)):
            far.answers[number]({"square": number**2})
        assert await asyncio.gather(*asked) == [{"square": n**2} for n in range(20)]


async def test_both_ends_may_ask_at_once(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        near.reply = lambda message: {"near": message["q"]}
        far.reply = lambda message: {"far": message["q"]}
        asked = near.channel.ask({"q": 1}), far.channel.ask({"q": 2})
        assert [await one for one in asked] == [{"far": 1}, {"near": 2}]


@pytest.mark.parametrize("kind", [InvalidRequest, NotReady, UnknownModel, LoadFailed])
async def test_an_error_arrives_as_itself(
    tmp_path: Path, kind: type[GatewayError]
) -> None:
    async with connected(tmp_path) as (near, far):
        far.reply = lambda message: kind("the reason")
        with pytest.raises(GatewayError, match="the reason") as caught:
            await near.channel.ask({})
        assert type(caught.value) is kind


async def test_an_error_of_another_module_keeps_its_code(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        far.reply = lambda message: ConfigRefused("config.pbtxt:3: no")
        with pytest.raises(LoadFailed, match="pbtxt:3: no") as caught:
            await near.channel.ask({})
        assert caught.value.code is Code.FAILED_PRECONDITION
        far.reply = lambda message: GatewayError("a bug")
        with pytest.raises(GatewayError) as caught:
            await near.channel.ask({})
        assert type(caught.value) is GatewayError


async def test_answering_a_notification_does_nothing(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        far.reply = lambda message: {"nobody": "asked"}
        near.channel.tell({"op": "x"})
        await far.inbox.get()
        far.reply = lambda message: {"yes": 1}
        assert await near.channel.ask({}) == {"yes": 1}
        assert near.inbox.empty()


async def test_a_second_answer_or_one_too_late_is_ignored(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        first = near.channel.ask({"n": 1})
        await far.inbox.get()
        first.cancel()
        for _ in range(2):
            far.answers[0]({"late": True})
        far.reply = lambda message: {"n": 2}
        assert await near.channel.ask({}) == {"n": 2}


async def test_a_large_message_passes_whole(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        far.reply = lambda message: {"length": len(message["data"])}
        answer = await near.channel.ask({"data": "x" * 3_000_000})
        assert answer == {"length": 3_000_000}


async def test_what_was_asked_fails_when_the_other_end_goes(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        asked = [near.channel.ask({}) for _ in range(3)]
        await far.inbox.get()
        far.channel.close()
        for future in asked:
            with pytest.raises(ChannelClosed):
                await future
        await near.closed.wait()
        assert near.closings == far.closings == 1


async def test_after_the_end_asking_fails_and_telling_is_lost(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        far.channel.close()
        await near.closed.wait()
        with pytest.raises(ChannelClosed):
            await near.channel.ask({})
        near.channel.tell({})
        near.channel.close()


async def test_what_was_written_before_closing_arrives(tmp_path: Path) -> None:
    async with connected(tmp_path) as (near, far):
        near.channel.tell({"data": "x" * 1_000_000})
        near.channel.close()
        await far.closed.wait()
        assert len((await far.inbox.get())["data"]) == 1_000_000


@pytest.mark.parametrize(
    "junk",
    [
        wire.PREFIX.pack((1 << 30) + 1, Kind.CONTROL, 0, 0, 1),
        wire.encode_frame(Kind.CONTROL, 1, b"not json"),
        wire.encode_frame(Kind.CONTROL, 1, b"\xff"),
    ],
    ids=["too large", "no json", "no text"],
)
async def test_nonsense_closes_the_connection(tmp_path: Path, junk: bytes) -> None:
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    end = End()
    server = await loop.create_unix_server(lambda: end.channel, str(tmp_path / "s"))
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    writer.write(junk)
    assert await reader.read() == b""
    await end.closed.wait()
    assert end.inbox.empty()
    writer.close()
    server.close()
    await server.wait_closed()
    del writer, reader
    gc.collect()
    assert all("data_received" in str(c["message"]) for c in complaints)

"""Load whose answers say which version gave them, and judgement of them by time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from gateway.protocol import inference_pb2 as pb
from tests.adversity.harness import infer_method, until
from tests.gateway_process import SERVICE
from tests.traffic.served import MODEL
from tests.versions import answer, ask


@dataclass(frozen=True, slots=True)
class Answer:
    """A version that answered, and when it was asked for and got (monotonic)."""

    version: int
    asked_s: float
    got_s: float
    address: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Versions that were to answer from some moment between the two times on."""

    versions: frozenset[int]
    asked_s: float
    acknowledged_s: float


@dataclass
class Askers:
    """Asks for answers until stopped, one after the other on each connection.

    Args:
        addresses: Each gets `each` connections of unary requests.
        each: How many.
        streams: Of each address: streams with one request under way.
        timeout_s: Deadline of a unary request.
    """

    addresses: Sequence[str]
    each: int = 4
    streams: int = 1
    timeout_s: float = 10.0
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Askers:
        self._stopping = asyncio.Event()
        self._channels = []
        self._tasks = []
        for address in self.addresses:
            for number in range(self.each + self.streams):
                channel = grpc.aio.insecure_channel(
                    address, options=[("grpc.use_local_subchannel_pool", 1)]
                )
                self._channels.append(channel)
                asker = self._ask if number < self.each else self._stream
                task = asyncio.create_task(asker(channel, address))
                self._tasks.append(task)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        for channel in self._channels:
            await channel.close()

    async def _ask(self, channel: grpc.aio.Channel, address: str) -> None:
        method = infer_method(channel)
        request = ask(MODEL).SerializeToString()
        while not self._stopping.is_set():
            asked = time.monotonic()
            try:
                response = await method(request, timeout=self.timeout_s)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            else:
                self._note(response, asked, address)

    async def _stream(self, channel: grpc.aio.Channel, address: str) -> None:
        method: Any = channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        call = method()
        while not self._stopping.is_set():
            asked = time.monotonic()
            try:
                await call.write(ask(MODEL))
                response = await call.read()
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"stream: {error.code().name}: {error.details()}")
                return
            if response.error_message:
                self.failures.append(f"stream: {response.error_message}")
            else:
                self._note(response.infer_response, asked, address)
        await call.done_writing()
        await call.read()

    def _note(
        self, response: pb.ModelInferResponse, asked_s: float, address: str
    ) -> None:
        version = int(answer(response))
        assert response.model_version == str(version)
        self.answers.append(Answer(version, asked_s, time.monotonic(), address))

    async def answered(self, more: int, timeout_s: float = 30.0) -> None:
        """Wait for so many more answers."""
        goal = len(self.answers) + more
        await until(lambda: len(self.answers) >= goal, timeout_s)


def misrouted(answers: Sequence[Answer], decisions: Sequence[Decision]) -> list[str]:
    """Return answers of versions that were not in force while they were made.

    Args:
        answers: What came.
        decisions: In order; the first one was in force before all answers.
    """
    found = []
    for one in answers:
        allowed: set[int] = set()
        for place, decision in enumerate(decisions):
            last = place + 1 == len(decisions)
            gone_s = float("inf") if last else decisions[place + 1].acknowledged_s
            if decision.asked_s <= one.got_s and gone_s >= one.asked_s:
                allowed |= decision.versions
        if one.version not in allowed:
            found.append(f"{one}: in force {sorted(allowed)}")
    return found

"""gRPC's interoperability cases by grpcio's two clients, as data.

Source: grpc/grpc, doc/interop-test-descriptions.md; the names of the cases are its.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from tests.conformance import interop_pb2 as pb
from tests.conformance.interop_service import ECHO_INITIAL, ECHO_TRAILING

SERVICE = "/grpc.testing.TestService/"
TIMEOUT_S = 20.0
SIZES = ((27_182, 31_415), (8, 9), (1_828, 2_653), (45_904, 58_979))
"""Request and response bytes of ping_pong and of the streaming cases."""
SPECIAL = (
    "\t\ntest with whitespace\r\nand Unicode BMP "
    "\N{WHITE SMILING FACE} and non-BMP \N{SMILING FACE WITH HORNS}\t\n"
)
METADATA = ((ECHO_INITIAL, "test_initial_metadata_value"), (ECHO_TRAILING, b"\xab" * 3))
Code = grpc.StatusCode


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: Of the case.
        method: What is called.
        requests: Messages sent.
        answers: Messages that must come back.
        code: Status that the call must end with.
        details: Message of that status, where the case says which.
        timeout_s: Deadline.
        metadata: Sent along; must come back, the second as a trailer.
        streaming: It is no unary call.
        ping_pong: Each request waits for the answer to the one before.
        open: The client never half-closes.
        cancel_after: Answers after which the call is cancelled; -1 for never.
    """

    name: str
    method: str
    requests: Sequence[Any]
    answers: Sequence[Any] = ()
    code: grpc.StatusCode = Code.OK
    details: str | None = None
    timeout_s: float = TIMEOUT_S
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    streaming: bool = True
    ping_pong: bool = False
    open: bool = False
    cancel_after: int = -1


@dataclass(frozen=True)
class Seen:
    """What a client saw of a call."""

    answers: list[bytes]
    code: grpc.StatusCode
    details: str
    initial: tuple[Any, ...]
    trailing: tuple[Any, ...]


def _payload(size: int) -> pb.Payload:
    return pb.Payload(body=bytes(size))


def _asks(asked: int, sent: int, **more: Any) -> pb.StreamingOutputCallRequest:
    parameters = [pb.ResponseParameters(size=asked)]
    return pb.StreamingOutputCallRequest(
        response_parameters=parameters, payload=_payload(sent), **more
    )


def _output(size: int) -> pb.StreamingOutputCallResponse:
    return pb.StreamingOutputCallResponse(payload=_payload(size))


def cases() -> list[Case]:
    """Return all of them."""
    large = pb.SimpleRequest(response_size=314_159, payload=_payload(271_828))
    large_answer = pb.SimpleResponse(payload=_payload(314_159))
    pings = [_asks(asked, sent) for sent, asked in SIZES]
    pongs = [_output(asked) for _, asked in SIZES]
    inputs = [pb.StreamingInputCallRequest(payload=_payload(n)) for n, _ in SIZES]
    total = pb.StreamingInputCallResponse(aggregated_payload_size=74_922)
    every = [pb.ResponseParameters(size=asked) for _, asked in SIZES]
    outputs = pb.StreamingOutputCallRequest(response_parameters=every)
    duplex, empty = "FullDuplexCall", pb.Empty()
    return [
        Case("empty_unary", "EmptyCall", [empty], [empty], streaming=False),
        Case("large_unary", "UnaryCall", [large], [large_answer], streaming=False),
        Case("client_streaming", "StreamingInputCall", inputs, [total]),
        Case("server_streaming", "StreamingOutputCall", [outputs], pongs),
        Case("ping_pong", duplex, pings, pongs, ping_pong=True),
        Case("empty_stream", duplex, []),
        Case("half_duplex", "HalfDuplexCall", pings, pongs),
        Case(
            "timeout_on_sleeping_server",
            duplex,
            [pb.StreamingOutputCallRequest(payload=_payload(27_182))],
            code=Code.DEADLINE_EXCEEDED,
            timeout_s=0.1,
            open=True,
        ),
        Case(
            "cancel_after_begin",
            "StreamingInputCall",
            [],
            code=Code.CANCELLED,
            open=True,
            cancel_after=0,
        ),
        Case(
            "cancel_after_first_response",
            duplex,
            pings[:1],
            pongs[:1],
            code=Code.CANCELLED,
            open=True,
            cancel_after=1,
        ),
        *_status_cases(duplex),
        Case(
            "custom_metadata",
            "UnaryCall",
            [large],
            [large_answer],
            metadata=METADATA,
            streaming=False,
        ),
        Case("custom_metadata, streaming", duplex, pings, pongs, metadata=METADATA),
        Case(
            "unimplemented_method",
            "UnimplementedCall",
            [empty],
            code=Code.UNIMPLEMENTED,
            streaming=False,
        ),
    ]


def fault(case: Case, seen: Seen) -> str:
    """Return what is wrong with a call, or nothing."""
    if seen.code != case.code or case.details not in (None, seen.details):
        return f"{seen.code.name} {seen.details!r}"
    if seen.answers != [answer.SerializeToString() for answer in case.answers]:
        return f"{len(seen.answers)} answers, not those that were due"
    if case.metadata and case.metadata[1] not in seen.trailing:
        return f"trailers {seen.trailing}"
    # grpc.aio's client may drop the headers of a stream that ends in the same read.
    if case.metadata and not case.streaming and case.metadata[0] not in seen.initial:
        return f"headers {seen.initial}"
    return ""


def call_sync(channel: grpc.Channel, case: Case) -> Seen:
    """Make a case's call with grpcio's blocking client."""
    sent = [request.SerializeToString() for request in case.requests]
    how = {"timeout": case.timeout_s, "metadata": case.metadata or None}
    answers: list[bytes] = []
    answered, over = threading.Semaphore(1), threading.Event()

    def requests() -> Iterator[bytes]:
        for message in sent:
            if case.ping_pong:
                answered.acquire()
            yield message
        if case.open:
            over.wait()

    if case.streaming:
        call = channel.stream_stream(SERVICE + case.method)(requests(), **how)
        with suppress(grpc.RpcError):
            if case.cancel_after == 0:
                call.cancel()
            for answer in call:
                answers.append(answer)
                answered.release()
                if len(answers) == case.cancel_after:
                    call.cancel()
        over.set()
    else:
        call = channel.unary_unary(SERVICE + case.method).future(sent[0], **how)
        if call.exception() is None:
            answers.append(call.result())
    return Seen(
        answers,
        call.code(),
        call.details() or "",
        tuple(call.initial_metadata() or ()),
        tuple(call.trailing_metadata() or ()),
    )


async def call_aio(channel: grpc.aio.Channel, case: Case) -> Seen:
    """Make a case's call with grpcio's asyncio client."""
    sent = [request.SerializeToString() for request in case.requests]
    how = {"timeout": case.timeout_s, "metadata": case.metadata or None}
    answers: list[bytes] = []
    answered, over = asyncio.Semaphore(1), asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        for message in sent:
            if case.ping_pong:
                await answered.acquire()
            yield message
        if case.open:
            await over.wait()

    call: Any
    with suppress(grpc.RpcError, asyncio.CancelledError):
        if case.streaming:
            call = channel.stream_stream(SERVICE + case.method)(requests(), **how)
            if case.cancel_after == 0:
                call.cancel()
            async for answer in call:
                answers.append(answer)
                answered.release()
                if len(answers) == case.cancel_after:
                    call.cancel()
        else:
            call = channel.unary_unary(SERVICE + case.method)(sent[0], **how)
            answers.append(await call)
    code, details = await call.code(), await call.details()
    over.set()
    initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
    found = tuple(initial or ()), tuple(trailing or ())
    return Seen(answers, code, details or "", *found)


def _status_cases(duplex: str) -> list[Case]:
    plain = pb.EchoStatus(code=2, message="test status message")
    special = pb.EchoStatus(code=2, message=SPECIAL)
    unknown = {"code": Code.UNKNOWN, "details": plain.message}
    return [
        Case(
            "status_code_and_message",
            "UnaryCall",
            [pb.SimpleRequest(response_status=plain)],
            streaming=False,
            **unknown,
        ),
        Case(
            "status_code_and_message, streaming",
            duplex,
            [pb.StreamingOutputCallRequest(response_status=plain)],
            **unknown,
        ),
        Case(
            "special_status_message",
            "UnaryCall",
            [pb.SimpleRequest(response_status=special)],
            streaming=False,
            code=Code.UNKNOWN,
            details=SPECIAL,
        ),
    ]

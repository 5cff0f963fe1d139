"""The Outcomes and EventLog services: labels in, and the event log to read."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from gateway.clock import now_ns
from gateway.config import Config, GrpcConfig
from gateway.controller.joined import ANSWER_BYTES, ROWS, Joined, stored_message
from gateway.controller.seam import Handlers
from gateway.errors import GatewayError, InvalidRequest
from gateway.feedback.cloudevents import Rejected, check_event, encode
from gateway.feedback.joiner import Joiner
from gateway.feedback.letters import Origin, origin
from gateway.feedback.log import DEAD_LETTERS, LABELS, TOPICS, EventLog
from gateway.feedback.partition import partitions_of
from gateway.feedback.types import Event, Reason
from gateway.feedback_config import FeedbackConfig
from gateway.logs import get_logger
from gateway.protocol import outcomes_pb2 as pb
from gateway.rpc import Methods, StreamCall
from gateway.transport.listener import Listener

_log = get_logger("outcomes")

SOCKET = "outcomes.sock"
OUTCOMES = "/baton.v1.Outcomes/"
EVENT_LOG = "/baton.v1.EventLog/"
MAX_LABELS = 10_000
"""In a message."""
_SLICE_NS = 5_000_000
"""How long labels are checked before the loop's other work has its turn."""
_APPENDED = 500
"""Labels that are appended before it has."""
MAX_READ = 1000
MAX_REFUSALS = 1000
"""That a stream's answer names; more are counted."""
_MESSAGE = 16 << 20


async def start(log: EventLog, joiner: Joiner, config: Config) -> Listener:
    """Serve labels and the log on ``outcomes.sock``, and on the port if there is one.

    Args:
        log: Where labels go, and what is read.
        joiner: Whose rows are read.
        config: The gateway's configuration.

    Returns:
        What listens; stop it before `log` is closed.
    """
    feedback = config.feedback
    service = OutcomesService(log, joiner, feedback)
    grpc = GrpcConfig(max_connections=256, max_message_bytes=_MESSAGE)
    listener = Listener(service.methods(), grpc, now_ns)
    path = config.state_dir / SOCKET
    await listener.start_unix(path, private=True)
    where = [f"unix:{path}"]
    if feedback.port is not None:
        port = await listener.start(f"{feedback.host}:{feedback.port}")
        where.append(f"{feedback.host}:{port}")
    _log.info("outcomes", address=",".join(where))
    return listener


class OutcomesService:
    """Answers both services.

    Args:
        log: Where labels go, and what is read.
        joiner: Whose rows are read.
        config: Which labels there are.
    """

    def __init__(self, log: EventLog, joiner: Joiner, config: FeedbackConfig) -> None:
        self._log = log
        self._joined = Joined(joiner, log.partitions)
        self._config = config

    def methods(self) -> Methods:
        """Return the table of methods."""
        handlers = Handlers()
        unary, streaming = handlers.unary, handlers.streaming
        return Methods(
            unary={
                OUTCOMES + "Report": unary(pb.ReportRequest, self._report),
                EVENT_LOG + "Read": unary(pb.ReadRequest, self._read),
                EVENT_LOG + "Extents": unary(pb.ExtentsRequest, self._extents),
                EVENT_LOG + "Replay": unary(pb.ReplayRequest, self._replay),
                EVENT_LOG + "Look": unary(pb.LookRequest, self._joined.look),
            },
            streams={
                OUTCOMES + "ReportStream": lambda call: _Stream(call, self),
                EVENT_LOG + "Rows": streaming(pb.RowsRequest, self._joined.rows),
            },
        )

    async def _report(self, request: pb.ReportRequest, _peer: str) -> pb.ReportResponse:
        return await self.take(request)

    async def take(self, request: pb.ReportRequest) -> pb.ReportResponse:
        """Append the labels that are good; they are durable on return.

        Raises:
            InvalidRequest: There are too many.
            LogUnavailable: Some may be in the log; sent again they count once.
        """
        if len(request.labels) > MAX_LABELS:
            text = f"{len(request.labels)} labels: send at most {MAX_LABELS} a message"
            raise InvalidRequest(text)
        answer = pb.ReportResponse()
        events: list[Event] = []
        until = now_ns() + _SLICE_NS
        for place, message in enumerate(request.labels):
            if now_ns() > until:
                await asyncio.sleep(0)
                until = now_ns() + _SLICE_NS
            try:
                events.append(self._event(message))
            except Rejected as error:
                answer.refusals.add(
                    place=place, reason=error.reason, detail=error.detail
                )
        await self._append(LABELS, events)
        answer.taken = len(events)
        answer.refused = len(answer.refusals)
        return answer

    def _event(self, message: pb.LabelEvent) -> Event:
        label = check_event(message)
        if label.alias is not None and not self._config.by_request_id:
            text = "feedback.by_request_id is off: send prediction_id, or set it"
            raise Rejected(Reason.INVALID, text)
        event = encode(label)
        size = len(event.value or b"")
        if size > self._config.max_label_bytes:
            text = f"{size} bytes are more than feedback.max_label_bytes"
            raise Rejected(Reason.TOO_LARGE, text)
        return event

    async def _append(self, topic: str, events: Sequence[Event]) -> None:
        """Append events where their keys belong, in their order there."""
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        for at in range(0, len(events), _APPENDED):
            some = events[at : at + _APPENDED]
            places = partitions_of([event.key for event in some], self._log.partitions)
            shares: defaultdict[int, list[Event]] = defaultdict(list)
            for partition, event in zip(places, some, strict=True):
                shares[partition].append(event)
            for partition, share in sorted(shares.items()):
                append = self._log.append(topic, partition, share)
                tasks.append(loop.create_task(append))
            await asyncio.sleep(0)  # they begin now: the order stays what it is
        await asyncio.gather(*tasks)

    async def _read(self, request: pb.ReadRequest, _peer: str) -> pb.ReadResponse:
        _check_topic(request.topic)
        self._check_partition(request.partition)
        if request.offset < 0 or not 0 <= request.most <= MAX_READ:
            raise InvalidRequest(f"offset from 0, most from 0 to {MAX_READ}")
        found = await self._log.read(
            request.topic, request.partition, request.offset, request.most or MAX_READ
        )
        answer, room = pb.ReadResponse(), ANSWER_BYTES
        for stored in found:
            message = stored_message(stored)
            room -= message.ByteSize() + 16
            if room < 0 and answer.events:
                break  # the rest comes with the next call
            answer.events.append(message)
        return answer

    async def _extents(
        self, request: pb.ExtentsRequest, _peer: str
    ) -> pb.ExtentsResponse:
        if request.topic == ROWS:
            return await self._joined.extents()
        _check_topic(request.topic)
        answer = pb.ExtentsResponse()
        for partition in range(self._log.partitions):
            start, end = await self._log.extent(request.topic, partition)
            answer.partitions.add(start=start, end=end)
        return answer

    async def _replay(self, request: pb.ReplayRequest, _peer: str) -> pb.ReplayResponse:
        self._check_partition(request.partition)
        if len(request.offsets) > MAX_READ:
            raise InvalidRequest(f"send at most {MAX_READ} offsets a message")
        again: list[Origin] = []
        for offset in sorted(set(request.offsets)):
            found = await self._log.read(DEAD_LETTERS, request.partition, offset, 1)
            if not found or found[0].offset != offset:
                text = f"partition {request.partition} has no dead letter {offset}"
                raise InvalidRequest(f"{text}: `baton labels dlq` lists them")
            try:
                again.append(origin(found[0].event, self._log.partitions))
            except ValueError as error:
                raise InvalidRequest(f"dead letter {offset}: {error}") from None
        for one in again:
            await self._log.append(one.topic, one.partition, [one.event])
        return pb.ReplayResponse(replayed=len(again))

    def _check_partition(self, partition: int) -> None:
        if not 0 <= partition < self._log.partitions:
            raise InvalidRequest(f"partition: from 0 to {self._log.partitions - 1}")


def _check_topic(topic: str) -> None:
    if topic not in TOPICS:
        raise InvalidRequest(f"topic: one of {', '.join(TOPICS)}")


class _Stream:
    """One `ReportStream`: reads no further message while one is being appended."""

    def __init__(self, call: StreamCall, service: OutcomesService) -> None:
        self._call = call
        self._service = service
        self._waiting: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = self._over = False
        self._places = 0
        self._answer = pb.ReportResponse()

    def on_message(self, message: bytes) -> None:
        if self._over:
            return
        self._waiting.append(message)
        self._call.pause()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def on_half_close(self) -> None:
        self._closed = True
        if self._task is None:
            self._end()

    def on_cancel(self) -> None:
        # What is being appended is appended all the same.
        self._over = True
        self._waiting.clear()

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        """Nothing waits for it: there is one answer."""

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._take(self._waiting.pop(0))
        except GatewayError as error:
            self._end(error)
        except Exception:  # the edge: no text of ours reaches a client
            _log.exception("report_failed")
            self._end(GatewayError("failed; the controller's log says why"))
        self._task = None
        if self._over:
            return
        if self._closed:
            self._end()
        else:
            self._call.resume()

    async def _take(self, message: bytes) -> None:
        try:
            request = pb.ReportRequest.FromString(message)
        except DecodeError:
            raise InvalidRequest("the message is not a valid ReportRequest") from None
        part = await self._service.take(request)
        answer = self._answer
        answer.taken += part.taken
        answer.refused += part.refused
        for refusal in part.refusals[: MAX_REFUSALS - len(answer.refusals)]:
            refusal.place += self._places
            answer.refusals.append(refusal)
        self._places += len(request.labels)

    def _end(self, error: GatewayError | None = None) -> None:
        if self._over:
            return
        self._over = True
        self._waiting.clear()
        if error is None:
            self._call.send(self._answer.SerializeToString())
        self._call.finish(error)

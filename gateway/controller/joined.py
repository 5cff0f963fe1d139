"""What was joined, for people and programs to read: part of the EventLog service."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message

from gateway.errors import InvalidRequest
from gateway.feedback.joiner import Joiner
from gateway.feedback.label_state import Known
from gateway.feedback.look import Look
from gateway.feedback.partition import partition_of
from gateway.feedback.pending import Held
from gateway.feedback.shard import Shard
from gateway.feedback.types import Outcome, Prediction, Status, Stored, Value
from gateway.protocol import outcomes_pb2 as pb

ROWS = "rows"
"""Their topic, for `Extents`; no log has it."""
ANSWER_BYTES = 3 << 20
"""gRPC clients take 4 MiB unless told otherwise; one event alone may be more."""
MAX_LAST = 10_000
_PAGE = 1000
"""Rows that are read at a time, for the join waits meanwhile; and of each list that is
known of one prediction."""
_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_Numbered = tuple[int, Outcome]
_M = TypeVar("_M", bound=Message)
_T = TypeVar("_T")


class Joined:
    """Reads what a joiner has.

    Args:
        joiner: May be at work, or not yet.
        partitions: Of the log.
    """

    def __init__(self, joiner: Joiner, partitions: int) -> None:
        self._joiner = joiner
        self._partitions = partitions

    async def extents(self) -> pb.ExtentsResponse:
        """Return which rows each partition has; `elsewhere` is what others join."""
        answer = pb.ExtentsResponse()
        spans = await self._joiner.each(Shard.span)
        for partition in range(self._partitions):
            start, end = spans.get(partition, (0, 0))
            elsewhere = partition not in spans
            answer.partitions.add(start=start, end=end, elsewhere=elsewhere)
        return answer

    async def rows(self, request: pb.RowsRequest) -> AsyncIterator[pb.RowsResponse]:
        """Yield the rows that are asked for, a page at a time."""
        if not 0 <= request.partition < self._partitions:
            raise InvalidRequest(f"partition: from 0 to {self._partitions - 1}")
        if not 0 <= request.last <= MAX_LAST:
            raise InvalidRequest(f"last: from 0 to {MAX_LAST}")
        if request.status not in ("", *Status):
            raise InvalidRequest(f"status: one of {', '.join(Status)}")
        first, end = await self._joiner.ask(request.partition, Shard.span)
        start = max(request.start, first)
        end = min(request.end, end) if request.end else end
        if request.last:
            found = await self._last(request, start, end)
            for answer in _answers(request.partition, found, end):
                yield answer
            return
        while start < end:
            page = await self._page(request.partition, start, end)
            start = page[-1][0] + 1 if page else end
            fitting = [each for each in page if _fits(each[1], request)]
            for answer in _answers(request.partition, fitting, start):
                yield answer

    async def _last(
        self, request: pb.RowsRequest, start: int, end: int
    ) -> deque[_Numbered]:
        found: deque[_Numbered] = deque()
        while start < end and len(found) < request.last:
            begin = max(start, end - _PAGE)
            page = await self._page(request.partition, begin, end)
            fitting = [each for each in page if _fits(each[1], request)]
            found.extendleft(reversed(fitting[-(request.last - len(found)) :]))
            end = begin
        return found

    async def _page(self, partition: int, start: int, end: int) -> list[_Numbered]:
        most = min(end - start, _PAGE)
        read = partial(_read, after=start - 1, most=most)
        page = await self._joiner.ask(partition, read)
        return [each for each in page if each[0] < end]

    async def look(self, request: pb.LookRequest, _peer: str) -> pb.LookResponse:
        """Return what is known of a prediction."""
        if not _ID.fullmatch(request.prediction_id):
            text = "prediction_id: 36 characters, as in an answer's `prediction_id`"
            raise InvalidRequest(text)
        key = UUID(request.prediction_id)
        partition = partition_of(str(key).encode(), self._partitions)
        found = await self._joiner.ask(partition, partial(_look, key=key.bytes))
        return _looked(partition, found)


def _read(shard: Shard, *, after: int, most: int) -> list[_Numbered]:
    return shard.outcomes(after, most)


def _look(shard: Shard, *, key: bytes) -> Look:
    return shard.look(key)


def _fits(row: Outcome, request: pb.RowsRequest) -> bool:
    return (
        row.time_ms >= request.since_ms
        and request.model in ("", row.model)
        and request.version in (0, row.version)
        and request.status in ("", row.status)
    )


def _answers(
    partition: int, rows: Iterable[_Numbered], following: int
) -> Iterable[pb.RowsResponse]:
    """Yield rows in messages that clients take; the last one says what follows."""
    answer, room = pb.RowsResponse(), ANSWER_BYTES
    for number, row in rows:
        message = _row(partition, number, row)
        room -= message.ByteSize() + 8
        if room < 0 and answer.rows:
            answer.next = number
            yield answer
            answer = pb.RowsResponse()
            room = ANSWER_BYTES - message.ByteSize() - 8
        answer.rows.append(message)
    answer.next = following
    yield answer


def _row(partition: int, number: int, row: Outcome) -> pb.JoinedRow:
    return pb.JoinedRow(
        partition=partition,
        number=number,
        prediction_id=str(UUID(bytes=row.id)),
        row=row.row,
        model=row.model,
        version=row.version,
        role=row.role,
        policy=row.policy,
        propensity=row.propensity,
        revision=row.revision,
        snapshot=row.snapshot,
        unit=row.unit,
        bucket=row.bucket,
        segments=row.segments,
        time_ms=row.time_ms,
        cohort_ms=row.cohort_ms,
        outputs=[pb.Tensor(**tensor._asdict()) for tensor in row.output],
        labels=[_value(name, value) for name, value in row.labels],
        label_ms=row.label_ms,
        status=row.status.value,
        weight=row.weight,
        sign=row.sign,
        revision_of_row=row.revision_of_row,
        provisional=row.provisional,
    )


def _value(name: str, value: Value | None) -> pb.LabelValue:
    message = pb.LabelValue(label_name=name)
    match value:
        case bool():
            message.truth = value
        case str():
            message.text = value
        case float() | int():
            message.number = value
        case tuple():
            message.vector.values.extend(value)
    return message


def _looked(partition: int, found: Look) -> pb.LookResponse:
    answer = pb.LookResponse(partition=partition)
    pending = found.pending
    answers: Sequence[Prediction] = ()
    labels: dict[tuple[int, str], Known] = {}
    if pending is not None:
        answers = [one for _, one in sorted(pending.answers.items())]
        labels = pending.labels
        answer.known = True
        answer.model = pending.model
        answer.time_ms = pending.time_ms
        answer.arrived_ms = pending.arrived_ms
        answer.rows = pending.rows
        answer.closed = pending.closed
        answer.closes_ms = found.closes_ms
        answer.forgotten_ms = found.forgotten_ms
        answer.activated = pending.activated
        answer.needs_activation = found.needs_activation
    room = ANSWER_BYTES

    def fill(
        add: Callable[[_M], None], make: Callable[[_T], _M], things: Sequence[_T]
    ) -> None:
        nonlocal room
        for place, thing in enumerate(things[:_PAGE]):
            message = make(thing)
            room -= message.ByteSize() + 8
            if room < 0:
                answer.left_out += len(things) - place
                return
            add(message)
        answer.left_out += max(0, len(things) - _PAGE)

    fill(answer.answers.append, _answer, answers)
    fill(answer.labels.append, _known, sorted(labels.items()))
    fill(answer.waiting.append, _waiting, found.waiting)
    fill(answer.joined.append, partial(_row, partition, 0), found.rows)
    return answer


def _answer(one: Prediction) -> pb.JoinedAnswer:
    return pb.JoinedAnswer(
        version=one.version,
        role=one.role,
        policy=one.policy,
        propensity=one.propensity,
        revision=one.revision,
        snapshot=one.snapshot,
        unit=one.unit,
        bucket=one.bucket,
        segments=one.segments,
    )


def _known(label: tuple[tuple[int, str], Known]) -> pb.KnownLabel:
    (row, name), known = label
    return pb.KnownLabel(
        row=row,
        value=_value(name, known.value),
        seq=known.seq,
        time_ms=known.time_ms,
        weight=known.weight,
        parts=[
            pb.LabelPart(source=source, id=id_, number=number)
            for source, id_, number in known.parts
        ],
    )


def _waiting(one: tuple[Held, int]) -> pb.WaitingLabel:
    held, until_ms = one
    return pb.WaitingLabel(event=stored_message(held.stored), until_ms=until_ms)


def stored_message(stored: Stored) -> pb.StoredEvent:
    """Return an event of the log as a message."""
    event = stored.event
    return pb.StoredEvent(
        topic=stored.topic,
        partition=stored.partition,
        offset=stored.offset,
        arrived_ms=stored.arrived_ms,
        key=event.key,
        value=event.value,
        headers=[pb.Header(name=name, value=value) for name, value in event.headers],
    )

"""A small blocking client of the Outcomes and EventLog services."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc

from gateway.client_rpc import ClientError, ControllerClient
from gateway.errors import Code
from gateway.feedback.types import Event, Stored
from gateway.logs import escape
from gateway.protocol import outcomes_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

OUTCOMES = "/baton.v1.Outcomes/"
EVENT_LOG = "/baton.v1.EventLog/"
_TIMEOUT_S = 60.0
_Reply = TypeVar("_Reply", bound="Message")


class OutcomesClient(ControllerClient):
    """One channel to one gateway. Every method raises `ClientError` on failure.

    Args:
        address: ``unix:PATH`` or ``host:port``.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address, "outcomes.sock")

    def report(self, labels: Sequence[pb.LabelEvent]) -> pb.ReportResponse:
        """Send up to 10,000 labels; they may be sent again after an error."""
        request = pb.ReportRequest(labels=labels)
        return self._call(OUTCOMES + "Report", request, pb.ReportResponse)

    def report_stream(self, requests: Iterable[pb.ReportRequest]) -> pb.ReportResponse:
        """Send labels in many messages; the answer names the first 1,000 refusals."""
        method = self._channel.stream_unary(
            OUTCOMES + "ReportStream",
            request_serializer=pb.ReportRequest.SerializeToString,
            response_deserializer=pb.ReportResponse.FromString,
        )
        with self._told():
            answer: pb.ReportResponse = method(iter(requests), timeout=_TIMEOUT_S)
        return answer

    def extents(self, topic: str) -> Sequence[pb.PartitionExtent]:
        """Return what the partitions of a topic hold."""
        request = pb.ExtentsRequest(topic=topic)
        return self._call(EVENT_LOG + "Extents", request, pb.ExtentsResponse).partitions

    def events(
        self, topic: str, partition: int, start: int, end: int, *, most: int = 0
    ) -> Iterator[Stored]:
        """Yield a partition's events from one offset up to, not including, another.

        Args:
            topic: See `gateway.feedback.log`.
            partition: Of the topic.
            start: First offset; what is no longer held is left out.
            end: Offset that follows the last.
            most: Events that are asked for at a time; 0 is 1,000.
        """
        while start < end:
            request = pb.ReadRequest(
                topic=topic, partition=partition, offset=start, most=most
            )
            found = self._call(EVENT_LOG + "Read", request, pb.ReadResponse).events
            yield from (stored_of(one) for one in found if one.offset < end)
            if not found:
                return
            start = found[-1].offset + 1

    def replay(self, partition: int, offsets: Sequence[int]) -> int:
        """Append up to 1,000 dead letters to where they came from; return how many."""
        request = pb.ReplayRequest(partition=partition, offsets=offsets)
        return self._call(EVENT_LOG + "Replay", request, pb.ReplayResponse).replayed

    def rows(self, request: pb.RowsRequest) -> Iterator[pb.RowsResponse]:
        """Yield the joined rows of a partition that fit a request, in messages."""
        method = self._channel.unary_stream(
            EVENT_LOG + "Rows",
            request_serializer=pb.RowsRequest.SerializeToString,
            response_deserializer=pb.RowsResponse.FromString,
        )
        with self._told():
            call = method(request)
            try:
                yield from call
            finally:
                call.cancel()

    def look(self, prediction_id: str) -> pb.LookResponse:
        """Return what the join knows of a prediction now."""
        request = pb.LookRequest(prediction_id=prediction_id)
        return self._call(EVENT_LOG + "Look", request, pb.LookResponse)

    def _call(self, path: str, request: Message, reply: type[_Reply]) -> _Reply:
        method = self._channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        with self._told():
            answer: _Reply = method(request, timeout=_TIMEOUT_S)
        return answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise what gRPC raises as a `ClientError`."""
        try:
            yield
        except grpc.RpcError as error:
            code = Code(error.code().value[0])
            where, said = escape(self._address), escape(error.details() or "no reason")
            if code is Code.UNAVAILABLE:
                said = (
                    f"nothing answers at {where} ({said}): is feedback.enabled set, "
                    "and is this the gateway's outcomes.sock (--outcomes)? Sent again, "
                    "labels count once"
                )
            elif code is Code.UNIMPLEMENTED:
                said = f"what answers at {where} takes no labels: name outcomes.sock"
            raise ClientError(said, code) from None


def stored_of(one: pb.StoredEvent) -> Stored:
    """Return an event of the log as it was before it was a message."""
    value = one.value if one.HasField("value") else None
    headers = tuple([(header.name, header.value) for header in one.headers])
    event = Event(one.key, value, headers)
    return Stored(one.topic, one.partition, one.offset, one.arrived_ms, event)

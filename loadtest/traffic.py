"""Held-out records over the public API, and every answer checked. Loop thread only."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from gateway.protocol import inference_pb2 as pb
from loadtest.labels import Labels
from loadtest.measure import Histogram
from loadtest.sessions import open_session
from loadtest.training import INPUT, TrainedModel
from loadtest.wire import SERVICE, BadAnswer, channel, infer_request, tensors

STREAMS = 2
"""Streams per model, each on a connection of its own."""
WINDOW = 16
"""Requests of one stream that may wait for their answers."""
UNARY_ROWS = 4
ANSWER_S = 15.0
"""Longest wait for an answer before the call counts as failed."""
STATISTICS_S = 2.0
MAX_EXAMPLES = 5

RELATIVE = 1e-5
ABSOLUTE = 2.5e-7
"""Two units in the last place of 1.0: a probability computed as 1 - p carries that
error whatever its size, and batches of other lengths round differently."""
TRAINED = 1e-5
"""Tolerated difference of a probability in float32 from scikit-learn's in float64."""


class Source(Protocol):
    """Records, and what a server has to say about them."""

    @property
    def model(self) -> TrainedModel:
        """The records with their true labels."""

    def check(
        self, response: pb.ModelInferResponse, rows: NDArray[np.intp]
    ) -> tuple[bool, int]:
        """Judge an answer; see `Reference.check`."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What ONNX Runtime answers for each held-out record, alone and in this process.

    Attributes:
        model: The records with their true labels.
        label_output: Name of the output with the labels.
        labels: int64, shape (records,).
        probability_output: Name of the output with the probabilities.
        probabilities: float32, shape (records, classes).
    """

    model: TrainedModel
    label_output: str
    labels: NDArray[np.int64]
    probability_output: str
    probabilities: NDArray[np.float32]

    @property
    def accuracy(self) -> float:
        """Share of held-out records whose label the model finds without a server."""
        return float(np.mean(self.labels == self.model.labels))

    @property
    def as_trained(self) -> bool:
        """Whether the exported file says what scikit-learn says, record by record."""
        expected = self.model.expected
        return bool(
            np.array_equal(self.labels, expected.argmax(1))
            and np.allclose(self.probabilities, expected, rtol=0, atol=TRAINED)
        )

    def check(
        self, response: pb.ModelInferResponse, rows: NDArray[np.intp]
    ) -> tuple[bool, int]:
        """Judge an answer about the records `rows`.

        Returns:
            Whether it is what the model says, and how many labels are true.
        """
        try:
            outputs = tensors(response)
        except BadAnswer:
            return False, 0
        labels = outputs.get(self.label_output)
        probabilities = outputs.get(self.probability_output)
        if labels is None or labels.shape != rows.shape:
            return False, 0
        right = int(np.count_nonzero(labels == self.model.labels[rows]))
        expected = self.probabilities[rows]
        if probabilities is None or probabilities.shape != expected.shape:
            return False, right
        allowed = RELATIVE * expected + ABSOLUTE  # a third of the cost of allclose
        close = (np.abs(probabilities - expected) <= allowed).all()
        return bool(close and (labels == self.labels[rows]).all()), right


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of a model that may answer; an answer says which of them it is of.

    Attributes:
        by_number: At least one; all trained on the same data.
    """

    by_number: Mapping[int, Reference]

    @property
    def model(self) -> TrainedModel:
        """The records with their true labels."""
        return next(iter(self.by_number.values())).model

    def check(
        self, response: pb.ModelInferResponse, rows: NDArray[np.intp]
    ) -> tuple[bool, int]:
        """Judge an answer by the version that it names; see `Reference.check`."""
        source = self.by_number.get(served_by(response))
        return (False, 0) if source is None else source.check(response, rows)


def served_by(response: pb.ModelInferResponse) -> int:
    """Return the version that an answer names; 0 if it names none."""
    text = response.parameters["version"].string_param
    return int(text) if text.isdecimal() else 0


def reference(model: TrainedModel, path: Path) -> Reference:
    """Run every held-out record through the model file, one at a time."""
    session = open_session(path)
    names = {output.type: output.name for output in session.get_outputs()}
    label, probability = names["tensor(int64)"], names["tensor(float)"]
    answers = [
        session.run([label, probability], {INPUT: record[np.newaxis]})
        for record in model.records
    ]
    return Reference(
        model,
        label,
        np.concatenate([answer[0] for answer in answers]),
        probability,
        np.concatenate([answer[1] for answer in answers]),
    )


@dataclass(slots=True)
class Tally:
    """What came of the requests for one model.

    Attributes:
        labels: Where it is noted what each prediction was worth; ``None``: nowhere.
        versions: Answers by the version they name.
    """

    labels: Labels | None = None
    requests: int = 0
    rows: int = 0
    right: int = 0
    agreed: int = 0
    failures: int = 0
    latency: Histogram = field(default_factory=Histogram)
    examples: list[str] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)

    @property
    def disagreements(self) -> int:
        """Answers that differ from what the model says."""
        return self.requests - self.agreed

    @property
    def accuracy(self) -> float:
        """Share of answered records with the true label."""
        return self.right / self.rows if self.rows else 0.0

    def fail(self, text: str) -> None:
        """Count a call that brought no answer; keep the first few reasons."""
        self.failures += 1
        self._example(text)

    def count(
        self,
        source: Source,
        response: pb.ModelInferResponse,
        rows: NDArray[np.intp],
        duration_ns: int,
    ) -> None:
        """Check and count one answer about the records `rows`."""
        self.requests += 1
        self.rows += len(rows)
        self.latency.add(duration_ns)
        agrees, right = source.check(response, rows)
        self.right += right
        self.versions[served_by(response)] += 1
        if self.labels is not None:
            prediction = response.parameters["prediction_id"].string_param
            self.labels.note(prediction, right / len(rows))
        if agrees:
            self.agreed += 1
        else:
            self._example(f"{source.model.name}: wrong answer for records {rows}")

    def _example(self, text: str) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(text)


async def stream_records(
    port: int, source: Source, tally: Tally, *, first: int, until: float
) -> None:
    """Send records one by one over a stream, round and round, until a time.

    Args:
        port: Of the server.
        source: Records and their answers.
        tally: Where answers and failures are counted.
        first: Record to begin with.
        until: Monotonic time after which nothing new is sent.
    """
    records, name = source.model.records, source.model.name
    requests = [
        infer_request(name, INPUT, records[i : i + 1], request_id=str(i))
        for i in range(len(records))
    ]
    places = np.arange(len(records)).reshape(-1, 1)
    waiting: dict[str, int] = {}
    async with channel(port) as connection:
        call = connection.stream_stream(
            f"{SERVICE}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(timeout=max(0.0, until - time.monotonic()) + ANSWER_S)

        async def send(index: int) -> None:
            request = requests[index % len(requests)]
            waiting[request.id] = time.monotonic_ns()
            await call.write(request)

        try:
            sent = first
            for sent in range(first, first + min(WINDOW, len(requests))):
                await send(sent)
            while waiting:
                message = await call.read()
                if message is grpc.aio.EOF:
                    tally.fail(f"{name}: stream ended, {len(waiting)} unanswered")
                    return
                response = message.infer_response
                sent_ns = waiting.pop(response.id, None)
                if message.error_message:
                    tally.fail(f"{name}: {message.error_message}")
                elif sent_ns is None:
                    tally.fail(f"{name}: answer to unknown id {response.id!r}")
                else:
                    took_ns = time.monotonic_ns() - sent_ns
                    tally.count(source, response, places[int(response.id)], took_ns)
                if time.monotonic() < until:
                    sent += 1
                    await send(sent)
            await call.done_writing()
            if await call.read() is not grpc.aio.EOF:
                tally.fail(f"{name}: more answers than requests")
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            tally.fail(f"{name}: stream: {_reason(error)}")


async def call_records(
    port: int, source: Source, tally: Tally, *, until: float
) -> None:
    """Send several records per unary call, one call after the other, until a time."""
    name, total = source.model.name, len(source.model.records)
    first = 0
    async with channel(port) as connection:
        infer = connection.unary_unary(
            f"{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        while time.monotonic() < until:
            rows = np.arange(first, first + UNARY_ROWS) % total
            first += UNARY_ROWS
            request = infer_request(
                name, INPUT, source.model.records[rows], request_id=f"unary-{first}"
            )
            started_ns = time.monotonic_ns()
            try:
                response = await infer(request, timeout=ANSWER_S)
            except grpc.aio.AioRpcError as error:
                tally.fail(f"{name}: unary: {_reason(error)}")
                return
            tally.count(source, response, rows, time.monotonic_ns() - started_ns)


async def send_load(
    port: int, work: Sequence[tuple[Source, Tally]], *, until: float
) -> None:
    """Drive all streams and unary loops of all models until a time."""
    async with asyncio.TaskGroup() as group:
        for source, tally in work:
            total = len(source.model.records)
            for index in range(STREAMS):
                first = index * total // STREAMS
                group.create_task(
                    stream_records(port, source, tally, first=first, until=until)
                )
            group.create_task(call_records(port, source, tally, until=until))


async def mean_batches(connection: grpc.aio.Channel) -> dict[str, float]:
    """Return the mean rows per run of each model since it was loaded.

    Raises:
        grpc.aio.AioRpcError: If the server does not say.
    """
    ask = connection.unary_unary(
        f"{SERVICE}/ModelStatistics",
        request_serializer=pb.ModelStatisticsRequest.SerializeToString,
        response_deserializer=pb.ModelStatisticsResponse.FromString,
    )
    answer = await ask(pb.ModelStatisticsRequest(), timeout=STATISTICS_S)
    rows: dict[str, int] = {}
    runs: dict[str, int] = {}
    for each in answer.model_stats:
        rows[each.name] = rows.get(each.name, 0) + each.inference_count
        runs[each.name] = runs.get(each.name, 0) + each.execution_count
    return {name: rows[name] / runs[name] for name in rows if runs[name]}


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)

"""Predictions as fronts have them, on their way into blocks. Pure.

`block_writer` makes blocks of them, which `columns` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from gateway.protocol import records_pb2 as pb

ID_BYTES = 16


class Choice(Protocol):
    """How an answer came about; see `Prediction` for the fields."""

    @property
    def version(self) -> int:
        """That answered."""

    @property
    def role(self) -> str:
        """Of its arm."""

    @property
    def policy(self) -> str:
        """That chose it."""

    @property
    def propensity(self) -> float:
        """Of the arm."""

    @property
    def revision(self) -> int:
        """Of the traffic table."""

    @property
    def snapshot(self) -> int:
        """Of the weights."""


class TensorLayout(NamedTuple):
    """A tensor as all rows of a prediction have it.

    Attributes:
        name: Of the output, or the input.
        datatype: As in the Open Inference Protocol.
        shape: Without the rows.
        is_input: Of the request; a layout has these behind those of the answer.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_input: bool = False


Layout = tuple[TensorLayout, ...]


Context = tuple[str, int, tuple[str, ...]]
"""Unit, bucket and segments of a request; hashable."""
NO_CONTEXT: Context = ("", -1, ())


class Form(NamedTuple):
    """How the data of a prediction is divided.

    Attributes:
        layout: Of outputs, then of inputs if they are recorded.
        sizes: Bytes of each tensor in it, of all rows.
    """

    layout: Layout
    sizes: tuple[int, ...]


Offered = tuple[bytes, str, int, int, int, Choice, Context, Form, bytes, bytes]
"""A prediction as a front has it; a plain tuple, which is made in a fifth of the time:

- its id, 36 ASCII characters,
- the name of the model that the client used,
- when its request was admitted, and when it was answered, on the monotonic clock,
- rows of the request, at least 1,
- which version answered, and why; equal ones should be one object, and of one model,
- what of the request took part in that,
- how its data is divided; equal ones should be one object,
- the data: elements of all rows of one tensor, then of the next,
- the client's own id, in UTF-8; empty for none.
"""
COLUMNS = 10
"""Members of `Offered`."""


class Answer(NamedTuple):
    """A prediction as it is best to write down.

    Attributes:
        name: Its id, 36 ASCII characters.
        model: Name the client used.
        admitted_ns: When its request was admitted, on the monotonic clock.
        latency_us: From there to the answer.
        rows: Of the request, at least 1.
        choice: Which version answered, and why.
        context: What of the request took part in that.
        layout: Of the outputs, then of the inputs if they are recorded.
        outputs: Elements of all rows, of each tensor of the layout.
        request_id: The client's own, in UTF-8; empty for none.
    """

    name: bytes
    model: str
    admitted_ns: int
    latency_us: int
    rows: int
    choice: Choice
    context: Context
    layout: Layout
    outputs: Sequence[bytes]
    request_id: bytes

    def offered(self) -> Offered:
        """Return it as a front would have it."""
        return (
            self.name,
            self.model,
            self.admitted_ns,
            self.admitted_ns + self.latency_us * 1000,
            self.rows,
            self.choice,
            self.context,
            Form(self.layout, tuple(map(len, self.outputs))),
            b"".join(self.outputs),
            self.request_id,
        )


def id_of(name: bytes) -> bytes:
    """Return the 16 bytes of an id of 36 characters; of many, joined, all theirs."""
    return bytes.fromhex(name.translate(None, b"-").decode("ascii"))


def predictions_in(value: bytes) -> int:
    """Return how many predictions a block holds; 0 if it is none."""
    try:
        return len(pb.Block.FromString(value).ids) // ID_BYTES
    except DecodeError:
        return 0

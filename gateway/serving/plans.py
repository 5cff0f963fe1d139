"""What is the same in request after request, worked out once. Pure.

A `Plan` is what all requests of a form (see `gateway.serving.forms`) have in common:
the version, the checked shapes, the limits, and a reply with holes where the id and
the rows go.

Source: protobuf's wire format (a tag is field number << 3 | wire type; everything
here is of type 2, length-delimited) and the field numbers of ``inference.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.catalogue import VersionEntry
from gateway.errors import TooLarge
from gateway.protocol.inference_pb2 import ModelInferRequest, ModelInferResponse
from gateway.serving.pending import RowTensor
from gateway.serving.queues import VersionQueue
from gateway.serving.requests import CheckedInputs
from gateway.serving.rows import BatchRows
from workers.wire import Buffer

if TYPE_CHECKING:
    from gateway.serving.mirrors import Way

PREDICTION_ID = "prediction_id"
"""Response parameter: the id minted for this prediction (UUIDv7)."""
SERVED_VERSION = "version"
"""Response parameter: the version that served, as in ``model_version``."""

_RAW_OUTPUT = b"\x32"
_MAX_REPLY_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message holds less than 2 GiB."""
_PLACE = "?" * 36
_MAX_TEMPLATES = 16
_UNSAFE = frozenset({"BYTES", "BOOL"})
"""Datatypes whose bytes are checked one by one, in every request."""


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@dataclass(frozen=True, slots=True)
class Template:
    """A reply with holes: for one set of output shapes.

    Attributes:
        head: Name, version and the version parameter.
        place: The prediction id's parameter up to its value.
        described: Descriptions of the outputs; where there is one, and its length is
            known, its tag and length too.
        indices: Spec indices of the outputs, in the reply's order.
        raw: Per output its tag and length; ``None`` where lengths vary.
        size: Bytes of everything but what goes into the holes; of the tensors too,
            where their lengths are known.
    """

    head: bytes
    place: bytes
    described: bytes
    indices: tuple[int, ...]
    raw: list[bytes] | None
    size: int


class Plan:
    """How to serve a request of one form, and how its reply looks.

    Args:
        request: One request of this form.
        queue: Of the version that serves it.
        checked: What `check_inputs` said of it.
        outputs: Spec indices of the outputs asked for; ``None`` for all.
        level: Priority level.
        queue_timeout_ns: 0 for none.

    Attributes:
        model: Name the client used.
        asked_version: Version the client named, or empty.
        layout: Spec index and shape of every input.
        ways: To the shadows that get copies of these requests.
        sizes: Bytes of every raw tensor, in the request's order; ``None`` where the
            plan holds for this one request alone.
    """

    def __init__(
        self,
        request: ModelInferRequest,
        queue: VersionQueue,
        checked: CheckedInputs,
        *,
        outputs: tuple[int, ...] | None,
        level: int,
        queue_timeout_ns: int,
    ) -> None:
        self.model = request.model_name
        self.asked_version = request.model_version
        self.queue = queue
        self.entry: VersionEntry = queue.entry
        self.rows = checked.rows
        self.shape_key = checked.shape_key
        self.nbytes = checked.nbytes
        self.level = level
        self.queue_timeout_ns = queue_timeout_ns
        self.max_requests = queue.entry.queue.max_requests
        self.layout = [(index, dims) for index, dims, _ in checked.tensors]
        self._outputs = outputs
        self._templates: dict[tuple[tuple[int, ...], ...], Template] = {}
        names = [tensor.name for tensor in queue.spec.inputs]
        sent = [tensor.name for tensor in request.inputs]
        # Of every input in spec order: which of the request's raw tensors it is.
        self.order = [sent.index(names[index]) for index, _ in self.layout]
        self.straight = self.order == [0]
        self.ways: tuple[Way, ...] = ()
        self.sizes: list[int] | None = None
        if len(request.raw_input_contents) == len(sent) and not any(
            queue.spec.inputs[index].datatype in _UNSAFE for index, _ in self.layout
        ):
            self.sizes = [len(raw) for raw in request.raw_input_contents]

    def inputs(
        self, raws: list[Buffer]
    ) -> list[tuple[int, tuple[int, ...], Buffer]] | None:
        """Return the inputs of a request whose tensors are `raws`.

        ``None`` where their sizes are not those the plan was made for.
        """
        if self.straight:  # the usual case: one input
            if len(raws) != 1 or len(raws[0]) != self.nbytes:
                return None
            index, dims = self.layout[0]
            return [(index, dims, raws[0])]
        if [len(raw) for raw in raws] != self.sizes:
            return None
        return [
            (index, dims, raws[place])
            for (index, dims), place in zip(self.layout, self.order, strict=True)
        ]

    def reply(
        self,
        rows: BatchRows,
        start: int,
        id_field: bytes,
        name: bytes,
        final: bytes = b"",
    ) -> tuple[tuple[Buffer, ...], int]:
        """Build the serialised ModelInferResponse, in pieces, and its size.

        Args:
            rows: Outputs of the batch.
            start: The request's first row in it.
            id_field: Of the request, as `scan` gives it.
            name: Id of this prediction, 36 characters.
            final: More fields, serialised.

        Raises:
            TooLarge: The outputs do not fit a message.
        """
        if rows.plan is self:
            template: Template | None = rows.template
        else:
            template = self._templates.get(rows.shapes)
        if template is None:
            template = self._make(rows)
        rows.plan, rows.template = self, template
        plain = rows.plain
        raw = template.raw
        head = template.head
        if raw is not None and plain is not None:
            fixed = template.size + len(id_field) + len(final)
            if len(raw) == 1:
                data, size = plain[template.indices[0]]
                piece = data[start * size : (start + self.rows) * size]
                place = template.place
                described = template.described
                return (head, final, id_field, place, name, described, piece), fixed
            end = start + self.rows
            pieces: list[Buffer] = []
            for index, tag in zip(template.indices, raw, strict=True):
                data, size = plain[index]
                pieces += (tag, data[start * size : end * size])
            total = fixed
        else:
            pieces = []
            total = template.size + len(id_field) + len(final)
            tensors = rows.cut(start, start + self.rows)
            for index in template.indices:
                view = memoryview(tensors[index].data)
                tag = _RAW_OUTPUT + _encode_varint(len(view))
                pieces += (tag, view)
                total += len(tag) + len(view)
            self._check_size(total)
        before = (head, final, id_field, template.place, name, template.described)
        return (*before, *pieces), total

    def _check_size(self, nbytes: int) -> None:
        if nbytes > _MAX_REPLY_BYTES:
            text = f"the outputs of '{self.queue.model}' are {nbytes} bytes; ask for"
            raise TooLarge(f"{text} fewer rows or outputs")

    def _make(self, rows: BatchRows) -> Template:
        """Make the template for a batch's output shapes; protobuf writes its parts."""
        tensors: list[RowTensor] = rows.cut(0, self.rows)
        version = str(self.entry.version)
        indices = self._outputs
        if indices is None:
            indices = tuple(range(len(tensors)))
        head = ModelInferResponse(model_name=self.model, model_version=version)
        head.parameters[SERVED_VERSION].string_param = version
        identity = ModelInferResponse()
        identity.parameters[PREDICTION_ID].string_param = _PLACE
        before, _, after = identity.SerializeToString().partition(_PLACE.encode())
        assert not after, "the id is the last thing in its parameter"
        described = ModelInferResponse()
        for index in indices:
            tensor = self.queue.spec.outputs[index]
            described.outputs.add(
                name=tensor.name, datatype=tensor.datatype, shape=tensors[index].dims
            )
        start = head.SerializeToString()
        text = described.SerializeToString()
        size = len(start) + len(before) + len(_PLACE) + len(text)
        raw: list[bytes] | None = None
        if rows.plain is not None:
            sizes = [self.rows * rows.plain[index][1] for index in indices]
            raw = [_RAW_OUTPUT + _encode_varint(nbytes) for nbytes in sizes]
            size += sum(sizes) + sum(len(tag) for tag in raw)
            self._check_size(size)
            if len(raw) == 1:
                text += raw[0]
        template = Template(start, before, text, indices, raw, size)
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[rows.shapes] = template
        return template


@lru_cache(1024)
def stream_head(size: int) -> bytes:
    """Return what makes a ModelInferResponse of so many bytes a stream's answer."""
    return b"\x12" + _encode_varint(size)

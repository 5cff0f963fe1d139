"""Requests by the bytes that repeat. Pure.

Clients repeat themselves: of a ModelInferRequest only the id and the tensor's bytes
differ from one to the next, and perhaps the unit that traffic is split by. `scan`
takes a message apart without protobuf into that and the rest: its form, by which the
`Plan` to serve it is found. Whatever `scan` does not recognise, protobuf parses.

Source: protobuf's wire format (a tag is field number << 3 | wire type; everything
here is of type 2, length-delimited) and the field numbers of ``inference.proto``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.wire import Buffer

if TYPE_CHECKING:
    from gateway.serving.plans import Plan
    from gateway.serving.routing import Fork

_ID, _PARAMETERS, _RAW = 0x1A, 0x22, 0x3A
_BEFORE_RAW = frozenset({0x0A, 0x12, _ID, _PARAMETERS, 0x2A, 0x32})
"""Tags of model_name, model_version, id, parameters, inputs and outputs."""
_KEY = 0x0A
"""Tag of the key in an entry of a map."""
_WIDE_BYTES = 1 << 14
"""Tensors from this size on are not copied out of their message."""
_MISSES = 16
"""Requests of its length that a layout may not match before it gives way."""
_NO_KEYS: frozenset[bytes] = frozenset()

Span = tuple[int, int]
"""Where something begins and ends in a message."""


# Cut in parts it would cost a call for each, with every request.
def scan(  # noqa: C901, PLR0911, PLR0912
    message: bytes, cut_keys: frozenset[bytes] = _NO_KEYS
) -> tuple[bytes, bytes, list[Buffer], Span | None] | None:
    """Take a request apart.

    Args:
        message: Serialised ModelInferRequest.
        cut_keys: Names of parameters whose values differ from request to request.

    Returns:
        The message without its id, tensor bytes and a parameter of `cut_keys`; the id
        field as it stands; the raw tensors; where that parameter's map entry lies, if
        there is one. ``None`` where the message is not written the usual way: then it
        may be valid, and protobuf must say.
    """
    position = id_start = id_end = cut_start = cut_end = 0
    end = len(message)
    try:
        while position < end:
            tag = message[position]
            if tag == _RAW:
                break
            if tag not in _BEFORE_RAW:
                return None
            size = message[position + 1]
            after = position + 2
            if size > 127:
                size, after = _varint(message, position + 1)
            stop = after + size
            if tag == _ID:
                if id_end:
                    return None
                id_start, id_end = position, stop
            elif tag == _PARAMETERS and cut_keys and _key(message, after) in cut_keys:
                if cut_end or size > 127:
                    return None
                cut_start, cut_end = position, stop
            position = stop
        raws: list[Buffer] = []
        start = position
        while start < end:
            if message[start] != _RAW:
                return None
            size = message[start + 1]
            begin = start + 2
            if size > 127:
                size, begin = _varint(message, start + 1)
            start = begin + size
            if size < _WIDE_BYTES:
                raws.append(message[begin:start])
            else:
                raws.append(memoryview(message)[begin:start])
    except IndexError:
        return None
    if start != end:
        return None
    id_field = message[id_start:id_end]
    if not id_field.isascii() and not _is_text(id_field):
        return None
    if not cut_end:
        return message[:id_start] + message[id_end:position], id_field, raws, None
    if cut_start < id_end:
        return None  # protobuf writes fields in the order of their numbers
    middle = message[id_end:cut_start]
    form = message[:id_start] + middle + message[cut_end:position]
    return form, id_field, raws, (cut_start + 2, cut_end)


def _key(message: bytes, start: int) -> bytes:
    """Return the name of the parameter whose entry begins there; empty: it is later."""
    if message[start] != _KEY:
        return b""
    return message[start + 2 : start + 2 + message[start + 1]]


def tail(message: bytes, start: int) -> Buffer:
    """Return the rest of a message; a view of it where that is large."""
    if len(message) - start < _WIDE_BYTES:
        return message[start:]
    return memoryview(message)[start:]


class Layout:
    """Where everything lies in messages of one length that begin like one seen.

    The cheapest way to recognise a request: the same client sends the same bytes
    around its id and its one tensor. Tags and lengths are among those bytes, so what
    matches is written the same way.

    Args:
        message: A request that `scan` took apart.
        id_field: Its id field, as `scan` gave it.
        raw: Its only tensor.
        plan: How to serve it.
        unit: Where the text of its unit lies, if it is a parameter.

    Attributes:
        fork: Chooses between arms, one of which `plan` is; ``None`` without arms.
    """

    __slots__ = (
        "first",
        "fork",
        "id_end",
        "id_start",
        "misses",
        "plan",
        "raw_start",
        "second",
        "second_end",
        "third",
        "unit_end",
    )

    def __init__(
        self,
        message: bytes,
        id_field: bytes,
        raw: Buffer,
        plan: Plan,
        unit: Span | None,
    ) -> None:
        self.plan = plan
        self.fork: Fork | None = None
        self.misses = 0
        self.raw_start = len(message) - len(raw)
        self.second_end, self.unit_end = unit or (self.raw_start, 0)
        self.id_start = message.index(id_field) if id_field else self.second_end
        value_start = self.id_start + min(2, len(id_field))
        self.id_end = self.id_start + len(id_field)
        self.first = message[:value_start]
        self.second = message[self.id_end : self.second_end]
        self.third = message[self.unit_end : self.raw_start]

    def gives_way(self) -> bool:
        """Return whether another form of the same length may take its place now.

        Where many forms share a length, making a layout for each in turn costs more
        than it spares.
        """
        self.misses += 1
        return self.misses >= _MISSES

    def unit(self, message: bytes) -> str | None:
        """Return the unit of a message so far alike; ``None`` if it is not alike."""
        if message[self.unit_end : self.raw_start] != self.third:
            return None
        try:
            return message[self.second_end : self.unit_end].decode()
        except UnicodeDecodeError:
            return None


def layout_of(
    message: bytes,
    id_field: bytes,
    raws: list[Buffer],
    plan: Plan,
    unit: Span | None = None,
) -> Layout | None:
    """Return the layout of a request, if it is simple enough for one."""
    if not plan.straight or plan.sizes is None or len(id_field) > 129:
        return None
    if id_field and message.index(id_field) != _id_start(message):
        return None
    return Layout(message, id_field, raws[0], plan, unit)


def _id_start(message: bytes) -> int:
    """Return where the id field of a message that `scan` accepted begins."""
    position = 0
    while message[position] != _ID:
        size, after = _varint(message, position + 1)
        position = after + size
    return position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of up to 31 bits, and where it ends."""
    value = 0
    for shift in range(0, 35, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value, position
    raise IndexError


def _is_text(id_field: bytes) -> bool:
    """Whether an id is UTF-8, as protobuf demands; its tag and length are ASCII."""
    start = 2
    while id_field[start - 1] > 127:
        start += 1
    try:
        id_field[start:].decode()
    except UnicodeDecodeError:
        return False
    return True

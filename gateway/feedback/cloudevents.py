"""Labels as CloudEvents 1.0 in the Kafka protocol binding, both ways. Pure.

Binary mode has the attributes in headers (``ce_id``, ``ce_source``, ``ce_type``,
``ce_time``, ``ce_specversion``) and the body's type in ``content-type``; structured
mode (``content-type: application/cloudevents+json``) has everything in one JSON object.
Bodies are JSON objects or `LabelData` messages of ``protos/outcomes.proto``. What is
unknown in either is ignored.

The key decides the partition, and so whether a label meets its prediction: it has to
be the prediction's id. or, for a label that names the
client's own request id, ``<tenant>/<model>/<request id>`` (there are no tenants yet:
``/<model>/<request id>``). A tombstone (no
value at all) takes back every label of its key that came before it, of all rows and
names; ``baton.label.retracted.v1`` takes back one.
"""

from __future__ import annotations

import base64
import json
import math
import re
from binascii import unhexlify
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Never
from uuid import UUID

from google.protobuf.message import DecodeError

from gateway.feedback.types import Alias, Event, Label, LabelKind, Reason, Value
from gateway.protocol import outcomes_pb2 as pb

MAX_TEXT = 256
"""Characters of an id, a source, a name, or a class."""
MAX_VECTOR = 4096
MAX_REQUEST_ID = 127
"""Bytes of a client's own request id; fronts note no longer ones."""
FORWARDED = "forwarded"
"""Header of a label that is a copy, under the prediction's id, of one that named it by
the client's own request id: when the log took that one in, and its offset."""
_MOST_FORWARDED = 256 << 10
"""Bytes that a copy may have: those of the longest vector and texts, as JSON."""
Headers = tuple[tuple[str, bytes], ...]
_INT32 = (1 << 31) - 1
_INT64 = (1 << 63) - 1
_KINDS = {
    "baton.label.v1": LabelKind.VALUE,
    "baton.label.retracted.v1": LabelKind.RETRACTED,
    "baton.activation.v1": LabelKind.ACTIVATION,
}
_ALL_KINDS = (*_KINDS.values(), LabelKind.WITHDRAWN)
"""In the order of ``protos/outcomes.proto``."""
_TYPES = {kind: name for name, kind in _KINDS.items()}
_ANY_VERSION = re.compile(r"baton\.(?:label|label\.retracted|activation)\.v[0-9]+")
_PROTOBUF = ("application/protobuf", "application/x-protobuf")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class Rejected(Exception):
    """An event is no label that can be used.

    Attributes:
        reason: For counters and scripts.
        detail: For people: what is wrong and the way out.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def key_of(prediction_id: bytes, alias: Alias | None) -> bytes:
    """Return the key under which a label belongs into the log."""
    if alias is not None:
        return "/".join(alias).encode()
    return str(UUID(bytes=prediction_id)).encode()


def encode(label: Label) -> Event:
    """Return a label in binary mode with a JSON body; a withdrawal as a tombstone."""
    key = key_of(label.prediction_id, label.alias)
    said_by: Headers = (
        ("ce_id", label.event_id.encode()),
        ("ce_source", label.source.encode()),
    )
    if label.forwarded is not None:
        said_by = (*said_by, (FORWARDED, b"%d %d" % label.forwarded))
    if label.kind is LabelKind.WITHDRAWN:
        return Event(key, None, said_by, label.time_ms)
    body: dict[str, Any] = {}
    if label.alias is not None:
        body |= label.alias._asdict()
    else:
        body["prediction_id"] = str(UUID(bytes=label.prediction_id))
    body |= {"row": label.row, "label_name": label.name, "seq": label.seq}
    if label.value is not None:
        body["value"] = label.value
    body["weight"] = label.weight
    moment = _EPOCH + label.time_ms * _MS
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    headers = (
        *said_by,
        ("ce_specversion", b"1.0"),
        ("ce_type", _TYPES[label.kind].encode()),
        ("ce_time", time.encode()),
        ("content-type", b"application/json"),
    )
    value = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    return Event(key, value, headers, label.time_ms)


def decode(event: Event, max_bytes: int) -> Label:
    """Return the label in an event.

    Args:
        event: Of the labels topic.
        max_bytes: Largest value that is taken.

    Raises:
        Rejected: It holds none, or none that can be used.
    """
    value, headers = event.value or b"", dict(event.headers)
    forwarded = headers.get(FORWARDED)
    most = max_bytes if forwarded is None else max(max_bytes, _MOST_FORWARDED)
    if len(value) > most:
        text = f"{len(value)} bytes are more than feedback.max_label_bytes, {max_bytes}"
        raise Rejected(Reason.TOO_LARGE, text)
    try:
        if event.value is None:
            label = _tombstone(event, headers)
        else:
            label = _read(event.key, value, headers)
        if forwarded is None:
            return label
        arrived_ms, offset = map(int, forwarded.split())
        return label._replace(forwarded=(arrived_ms, offset))
    except (ValueError, DecodeError, RecursionError, OverflowError) as error:
        text = " ".join(str(error).split())[:200]
        raise Rejected(Reason.UNREADABLE, f"cannot be read: {text}") from None


def _read(key: bytes, value: bytes, headers: Mapping[str, bytes]) -> Label:
    content = headers.get("content-type", b"application/json").decode()
    if content.startswith("application/cloudevents"):
        return _structured(key, value, content)
    get = headers.get
    envelope = _envelope(
        get("ce_specversion", b"").decode(),
        get("ce_type", b"").decode(),
        get("ce_id", b"").decode(),
        get("ce_source", b"").decode(),
        get("ce_time", b"").decode(),
    )
    return _label(key, envelope, _body(value, content))


def _tombstone(event: Event, headers: Mapping[str, bytes]) -> Label:
    """Return the withdrawal that an event without a value is."""
    prediction_id, alias = b"", None
    parts = event.key.decode().split("/", 2)
    if len(parts) == 3:
        alias = _alias(*parts)
    if alias is None:
        prediction_id = _prediction_id(event.key)
    event_id, source = [
        headers.get(name, b"").decode()[:MAX_TEXT] for name in ("ce_id", "ce_source")
    ]
    return Label(
        event_id, source, prediction_id, alias, 0, "label", LabelKind.WITHDRAWN,
        None, 0, event.time_ms, 1.0,
    )  # fmt: skip


def check_event(event: pb.LabelEvent) -> Label:
    """Return the label that the Outcomes service was given.

    Raises:
        Rejected: It cannot be used.
    """
    data = event.data
    try:
        kind = _ALL_KINDS[event.kind]
    except IndexError:
        raise _invalid(f"kind: {event.kind} is none") from None
    if not 0 < event.time_ms < _MAX_MS:
        raise _invalid("time_ms: say when it became true, in Unix milliseconds")
    envelope = (
        kind,
        _text(event.id, "id"),
        _text(event.source, "source"),
        event.time_ms,
    )
    alias = _alias(data.tenant, data.model, data.request_id)
    if alias is None and not data.prediction_id:
        raise _invalid("data: give prediction_id, or request_id and model")
    if kind is LabelKind.WITHDRAWN and (
        data.row or data.label_name or data.seq or data.WhichOneof("value")
    ):
        text = "withdrawn is of all rows and names: leave out row, label_name, value"
        raise _invalid(f"{text}, seq")
    key = "/".join(alias) if alias else data.prediction_id
    return _label(key.encode(), envelope, _plain(data))


_MAX_MS = 253_402_300_800_000
"""The year 10,000, where dates end."""
_Envelope = tuple[LabelKind, str, str, int]


def _invalid(detail: str) -> Rejected:
    return Rejected(Reason.INVALID, detail)


def _envelope(
    version: object, type_: object, id_: object, source: object, time: object
) -> _Envelope:
    """Return kind, id, source and time of the attributes in this order."""
    if version != "1.0":
        if isinstance(version, str) and version:
            text = f"specversion {version[:20]!r} is not 1.0"
            raise Rejected(Reason.UNKNOWN_VERSION, text)
        raise _invalid("specversion is missing: this is no CloudEvent (ce_... headers)")
    kind = _KINDS.get(type_) if isinstance(type_, str) else None
    if kind is None:
        name = str(type_)[:80]
        known = ", ".join(_KINDS)
        if _ANY_VERSION.fullmatch(name):
            text = f"type {name!r} is of a version that is not known; known: {known}"
            raise Rejected(Reason.UNKNOWN_VERSION, text)
        raise _invalid(f"type {name!r} is none of {known}")
    if not isinstance(time, str) or not time:
        raise _invalid("time is missing: say when it became true (RFC 3339)")
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise _invalid(f"time {time[:40]!r} is not RFC 3339") from None
    if moment.tzinfo is None:
        raise _invalid(f"time {time[:40]!r} has no zone: add Z or an offset")
    time_ms = (moment - _EPOCH) // _MS
    if time_ms < 0:
        raise _invalid(f"time {time[:40]!r} is before 1970")
    return kind, _text(id_, "id"), _text(source, "source"), time_ms


def _structured(key: bytes, value: bytes, content: str) -> Label:
    if not content.startswith("application/cloudevents+json"):
        raise _invalid(f"content-type {content[:80]!r}: structured events are JSON")
    whole = _object(value.decode())
    get = whole.get
    envelope = _envelope(
        get("specversion"), get("type"), get("id"), get("source"), get("time")
    )
    body: Mapping[str, Any]
    if "data_base64" in whole:
        packed = base64.b64decode(_string(whole["data_base64"]), validate=True)
        body = _body(packed, _string(get("datacontenttype", "application/json")))
    else:
        data = whole.get("data")
        if not isinstance(data, dict):
            raise _invalid("data: must be an object")
        body = data
    return _label(key, envelope, body)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _invalid("data_base64, datacontenttype: must be text")
    return value


def _body(value: bytes, content: str) -> Mapping[str, Any]:
    if content == "application/json":
        return _object(value.decode())
    kind = content.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return _object(value.decode())
    if kind in _PROTOBUF:
        return _plain(pb.LabelData.FromString(value))
    text = f"content-type {content[:80]!r} is neither application/json nor protobuf"
    raise _invalid(text)


def _plain(data: pb.LabelData) -> Mapping[str, Any]:
    """Return a message as its JSON object would be."""
    body: dict[str, Any] = {field.name: value for field, value in data.ListFields()}
    match data.WhichOneof("value"):
        case "vector":
            body["value"] = list(data.vector.values)
        case str(name):
            body["value"] = body[name]
    return body


def _constant(name: str) -> Never:
    raise _invalid(f"{name}: numbers must be finite")


_JSON = json.JSONDecoder(parse_constant=_constant)


def _object(text: str) -> dict[str, Any]:
    found = _JSON.decode(text)
    if not isinstance(found, dict):
        raise _invalid("must be a JSON object")
    return found


def _label(key: bytes, envelope: _Envelope, body: Mapping[str, Any]) -> Label:
    kind, event_id, source, time_ms = envelope
    get = body.get
    alias = None
    if "request_id" in body:
        alias = _alias(get("tenant", ""), get("model", ""), body["request_id"])
    if alias is not None:
        prediction_id = b""
        if key != "/".join(alias).encode():
            raise _invalid("the key must be <tenant>/<model>/<request_id> of the body")
    else:
        prediction_id = _prediction_id(key)
        if get("prediction_id", text := key.decode()) != text:
            raise _invalid("the key must be the prediction_id of the body")
    weight = get("weight", 1.0)
    if type(weight) not in _NUMBERS or not 0 < weight < math.inf:
        raise _invalid("weight: must be a finite number above 0")
    return Label(
        event_id,
        source,
        prediction_id,
        alias,
        _count(get("row", 0), "row", _INT32),
        _text(get("label_name", "label"), "label_name"),
        kind,
        _value(get("value")) if kind is LabelKind.VALUE else None,
        _count(get("seq", 0), "seq", _INT64),
        time_ms,
        float(weight),
    )


_NUMBERS = (float, int)


def _prediction_id(key: bytes) -> bytes:
    try:
        if len(key) == 36 and key[8:24:5] == b"----" and key == key.lower():
            return unhexlify(key.replace(b"-", b""))
    except ValueError:
        pass
    text = "prediction_id: must be, as the key, 36 characters in lower case, 8-4-4-4-12"
    raise _invalid(text)


def _alias(tenant: object, model: object, request_id: object) -> Alias | None:
    if request_id == "":
        return None
    tenant = "" if tenant == "" else _text(tenant, "tenant")
    name = _text(request_id, "request_id")
    if len(name.encode()) > MAX_REQUEST_ID:
        raise _invalid(f"request_id: at most {MAX_REQUEST_ID} bytes are noted of one")
    return Alias(tenant, _text(model, "model"), name)


def _text(value: object, name: str) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_TEXT:
        raise _invalid(f"{name}: must be text of 1 to {MAX_TEXT} characters")
    if not value.isascii():
        value.encode()  # a lone surrogate is a ValueError
    return value


def _count(value: object, name: str, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise _invalid(f"{name}: must be a whole number from 0 to {most}")
    return value


def _value(value: object) -> Value:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, "value")
    if isinstance(value, list):
        if not 0 < len(value) <= MAX_VECTOR:
            raise _invalid(f"value: a vector has 1 to {MAX_VECTOR} numbers")
        return tuple(_number(one) for one in value)
    return _number(value)


def _number(value: object) -> float:
    if type(value) is float or type(value) is int:
        number = float(value)
        if math.isfinite(number):
            return number
    raise _invalid("value: must be a finite number, a boolean, text or a vector")

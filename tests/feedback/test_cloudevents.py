"""Labels as CloudEvents: there and back, beside the CloudEvents SDK, and bad ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from cloudevents.http import CloudEvent
from cloudevents.kafka import (
    KafkaMessage,
    from_binary,
    to_binary,
    to_structured,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.feedback.cloudevents import (
    Rejected,
    check_event,
    decode,
    encode,
    key_of,
)
from gateway.feedback.types import Alias, Event, Label, LabelKind, Value
from gateway.protocol import outcomes_pb2 as pb

MOST = 64 << 10
ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
KEY = str(ID).encode()
TYPES = {
    LabelKind.VALUE: "baton.label.v1",
    LabelKind.RETRACTED: "baton.label.retracted.v1",
    LabelKind.ACTIVATION: "baton.activation.v1",
}
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
VALUES: st.SearchStrategy[Value] = (
    NUMBERS
    | st.booleans()
    | TEXTS
    | st.lists(NUMBERS, min_size=1, max_size=5).map(tuple)
)


@st.composite
def labels(draw: st.DrawFn) -> Label:
    """Return any label there can be."""
    alias = draw(st.none() | st.builds(Alias, st.just("") | TEXTS, TEXTS, TEXTS))
    kind = draw(st.sampled_from([*TYPES]))
    return Label(
        draw(TEXTS),
        draw(TEXTS),
        b"" if alias else draw(st.uuids()).bytes,
        alias,
        draw(st.integers(0, (1 << 31) - 1)),
        draw(TEXTS),
        kind,
        draw(VALUES) if kind is LabelKind.VALUE else None,
        draw(st.integers(0, (1 << 63) - 1)),
        draw(st.integers(1, 253_402_300_799_999)),
        draw(st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)),
    )


def message_of(label: Label) -> pb.LabelEvent:
    """Return a label as a client of the Outcomes service would send it."""
    data = pb.LabelData(
        row=label.row, label_name=label.name, seq=label.seq, weight=label.weight
    )
    if label.alias:
        data.tenant, data.model, data.request_id = label.alias
    else:
        data.prediction_id = str(UUID(bytes=label.prediction_id))
    match label.value:
        case bool(truth):
            data.truth = truth
        case float(number):
            data.number = number
        case str(text):
            data.text = text
        case tuple(vector):
            data.vector.values.extend(vector)
    kind = pb.LabelKind.Value(label.kind.name)
    return pb.LabelEvent(
        id=label.event_id,
        source=label.source,
        kind=kind,
        time_ms=label.time_ms,
        data=data,
    )


def attributes_of(label: Label, content: str) -> dict[str, Any]:
    """Return the attributes of a label's event; an own one is among them."""
    headers = {k: v.decode() for k, v in encode(label).headers}
    return {
        "id": label.event_id,
        "source": label.source,
        "type": TYPES[label.kind],
        "time": headers["ce_time"],
        "specversion": "1.0",
        "datacontenttype": content,
        "colour": "unknown to us",
    }


def event_of(message: KafkaMessage) -> Event:
    """Return what a consumer would get."""
    value = message.value
    assert isinstance(value, bytes)
    return Event(message.key, value, tuple(message.headers.items()))


@given(labels(), st.none() | st.tuples(st.integers(1), st.integers(0)))
def test_a_label_comes_back_as_it_was(
    label: Label, forwarded: tuple[int, int] | None
) -> None:
    label = label._replace(forwarded=forwarded)
    event = encode(label)
    assert decode(event, MOST) == label
    assert event.key == key_of(label.prediction_id, label.alias)


@given(labels())
def test_the_service_takes_what_the_topic_takes(label: Label) -> None:
    assert check_event(message_of(label)) == label


@given(labels(), st.sampled_from([to_binary, to_structured]), st.booleans())
def test_events_of_the_sdk_are_read(
    label: Label, written: Callable[..., KafkaMessage], packed: bool
) -> None:
    """Both modes, both bodies, and fields that nobody knows."""
    event = encode(label)
    content = "application/protobuf" if packed else "application/json"
    body: Any = message_of(label).data.SerializeToString()
    if not packed:
        assert event.value is not None
        body = json.loads(event.value) | {"colour": "unknown to us"}
    made = CloudEvent(attributes_of(label, content), body)
    marshal = (
        (lambda data: data) if packed else (lambda data: json.dumps(data).encode())
    )
    if written is to_binary:
        message = to_binary(made, marshal, key_mapper=lambda _: event.key)
    else:
        unmarshalled = (lambda data: data) if not packed else marshal
        message = to_structured(
            made, data_marshaller=unmarshalled, key_mapper=lambda _: event.key
        )
        # The binding wants this header, and the SDK leaves it to its user.
        message.headers["content-type"] = b"application/cloudevents+json"
    assert decode(event_of(message), MOST) == label


@given(labels())
def test_the_sdk_reads_ours(label: Label) -> None:
    event = encode(label)
    assert event.value is not None
    found = from_binary(KafkaMessage(dict(event.headers), event.key, event.value))
    attributes = found.get_attributes()
    assert attributes["id"] == label.event_id
    assert attributes["source"] == label.source
    assert attributes["type"] == TYPES[label.kind]
    assert attributes["specversion"] == "1.0"
    assert found.get_data()["label_name"] == label.name


HEADERS = st.sampled_from(
    ["ce_id", "ce_source", "ce_type", "ce_time", "ce_specversion", "content-type"]
)
CONTENTS = st.binary(max_size=40) | st.sampled_from(
    [
        b"1.0", b"baton.label.v1", b"2026-01-01T00:00:00Z", b"application/json",
        b"application/protobuf", b"application/cloudevents+json",
    ]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["prediction_id", "tenant", "model", "request_id", "row", "label_name", "value",
     "seq", "weight", "specversion", "type", "id", "source", "time", "data",
     "data_base64", "datacontenttype"]
)  # fmt: skip
BODIES = st.binary(max_size=80) | st.dictionaries(FIELDS, JSON).map(
    lambda body: json.dumps(body).encode()
)


# The first JSON documents take a second to draw on a loaded machine.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([KEY, b""]) | st.binary(max_size=40),
    st.none() | BODIES,
    st.dictionaries(HEADERS, CONTENTS).map(lambda made: tuple(made.items())),
    st.booleans(),
)
def test_nothing_else_is_raised_than_rejected(
    key: bytes,
    value: bytes | None,
    headers: tuple[tuple[str, bytes], ...],
    whole: bool,
) -> None:
    if whole:  # so that the bodies are reached as well
        headers = (*encode(LABEL).headers, *headers)
    with suppress(Rejected):
        decode(Event(key, value, headers), MOST)


LABEL = Label(
    "e1", "crm", ID.bytes, None, 0, "label", LabelKind.VALUE, "up", 0,
    1_767_225_600_123, 1.0,
)  # fmt: skip
GOOD = dict(encode(LABEL).headers)


def _event(body: object, key: bytes = KEY, **headers: bytes) -> Event:
    value = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Event(key, value, tuple((GOOD | headers).items()))


@pytest.mark.parametrize(
    ("event", "reason", "text"),
    [
        (Event(b"x", None, tuple(GOOD.items())), "invalid", "36 characters"),
        (Event(b"/m", None), "invalid", "36 characters"),
        (Event(b"//r", None), "invalid", "model"),
        (Event(b"/m/" + b"r" * 128, None), "invalid", "127 bytes"),
        (Event(b"\xff", None), "unreadable", "utf-8"),
        (Event(KEY, b"{}"), "invalid", "no CloudEvent"),
        (_event(b"x" * (MOST + 1)), "too_large", "max_label_bytes"),
        (_event(b"{"), "unreadable", "line 1"),
        (_event(b"[" * 60_000), "unreadable", "cannot be read"),
        (_event(b"\xff"), "unreadable", "utf-8"),
        (_event({}, ce_specversion=b"2.0"), "unknown_version", "2.0"),
        (_event({}, ce_type=b"baton.label.v2"), "unknown_version", "baton.label.v1"),
        (_event({}, ce_type=b"order.paid.v1"), "invalid", "baton.label.v1"),
        (_event({}, ce_time=b"2026-01-01T00:00:00"), "invalid", "zone"),
        (_event({}, ce_time=b"yesterday"), "invalid", "RFC 3339"),
        (_event({}, ce_id=b""), "invalid", "id"),
        (_event({}), "invalid", "value"),
        (_event(b'{"value": NaN}'), "invalid", "finite"),
        (_event(b'{"value": 1e999}'), "invalid", "finite"),
        (_event(b'{"value": "\\ud800"}'), "unreadable", "surrogate"),
        (_event({"value": []}), "invalid", "vector"),
        (_event({"value": [1, True]}), "invalid", "finite"),
        (_event({"value": "x" * 257}), "invalid", "256"),
        (_event({"value": 1, "row": -1}), "invalid", "row"),
        (_event({"value": 1, "seq": True}), "invalid", "seq"),
        (_event({"value": 1, "weight": 0}), "invalid", "weight"),
        (_event({"value": 1, "weight": 10**400}), "unreadable", "cannot be read"),
        (_event({"value": 1}, KEY.upper()), "invalid", "lower case"),
        (_event({"value": 1}, b""), "invalid", "36 characters"),
        (_event({"value": 1, "prediction_id": "x"}), "invalid", "key"),
        (_event({"value": 1, "model": "m", "request_id": "r"}), "invalid", "key"),
        (
            _event(b"x", **{"content-type": b"application/cloudevents+avro"}),
            "invalid",
            "structured",
        ),
        (_event(b"x", **{"content-type": b"text/csv"}), "invalid", "content-type"),
    ],
)
def test_what_is_wrong_is_said(event: Event, reason: str, text: str) -> None:
    with pytest.raises(Rejected) as caught:
        decode(event, MOST)
    assert caught.value.reason == reason
    assert text in caught.value.detail


@pytest.mark.parametrize(
    "alias", [None, Alias("", "m", "r"), Alias("t", "m", "r/1"), Alias("", "m", "/")]
)
@pytest.mark.parametrize("forwarded", [None, (1_767_225_600_000, 7)])
def test_a_withdrawal_is_a_tombstone(
    alias: Alias | None, forwarded: tuple[int, int] | None
) -> None:
    made = LABEL._replace(
        prediction_id=b"" if alias else LABEL.prediction_id,
        alias=alias,
        kind=LabelKind.WITHDRAWN,
        value=None,
        forwarded=forwarded,
    )
    event = encode(made)
    assert event.value is None
    assert decode(event, MOST) == made
    # As other producers send it, there is nothing but the key.
    bare = made._replace(event_id="", source="", time_ms=0, forwarded=None)
    assert decode(Event(event.key, None), MOST) == bare
    if forwarded is None:
        message = message_of(made)
        message.data.ClearField("label_name")
        assert check_event(message) == made


def test_a_withdrawal_of_one_row_is_refused() -> None:
    message = message_of(LABEL._replace(kind=LabelKind.WITHDRAWN, value=None, row=1))
    with pytest.raises(Rejected, match="of all rows and names"):
        check_event(message)


def test_a_copy_may_be_longer_than_what_it_is_of() -> None:
    long = LABEL._replace(value=tuple(map(float, range(4096))), forwarded=(1, 2))
    assert decode(encode(long), 100) == long
    with pytest.raises(Rejected, match="max_label_bytes"):
        decode(encode(long._replace(forwarded=None)), 100)


def test_the_key_alone_may_name_the_prediction() -> None:
    assert decode(_event({"value": "up"}), MOST) == LABEL


def test_reading_is_quick() -> None:
    """Ten times what it takes on an idle core, so that only a blunder fails."""
    event = encode(LABEL)
    begun = time.process_time()
    for _ in range(2000):
        decode(event, MOST)
    assert (time.process_time() - begun) / 2000 < 100e-6

"""Request headers: what HTTP/2 and gRPC demand of them, and what they ask for."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Code
from gateway.rpc import Methods
from gateway.transport.heads import Head, HeadReader, check_request
from gateway.transport.hpack import Header
from gateway.transport.streams import Malformed
from tests.transport import peer

METHODS = Methods(
    unary={"/test.S/Echo": lambda call, message: None},
    streams={"/test.S/Stream": Any},  # type: ignore[dict-item]
    own_deadline=frozenset({"/test.S/Echo"}),
)
NS = {
    "H": 3600 * 10**9,
    "M": 60 * 10**9,
    "S": 10**9,
    "m": 10**6,
    "u": 10**3,
    "n": 1,
}


def fields(*more: tuple[str, str], path: str = "/test.S/Echo") -> list[Header]:
    return [(n.encode(), v.encode()) for n, v in peer.grpc_fields(path, more)]


def without(*names: bytes) -> list[Header]:
    return [field for field in fields() if field[0] not in names]


def reader() -> HeadReader:
    return HeadReader(METHODS, 16_384, 1000)


def read(*more: tuple[str, str], path: str = "/test.S/Echo") -> tuple[Head, int]:
    return reader().read(fields(*more, path=path))


def refusal(head: Head) -> dict[str, str]:
    assert head.refusal is not None
    decoded: dict[str, str] = dict(Decoder().decode(head.refusal.data))
    return decoded


MALFORMED = {
    "no method": without(b":method"),
    "no scheme": without(b":scheme"),
    "no path": without(b":path"),
    "an empty path": [*without(b":path")[:2], (b":path", b"")],
    "a path twice": [(b":path", b"/a"), *fields()],
    "a method twice": [(b":method", b"POST"), *fields()],
    "an unknown pseudo-header": [(b":status", b"200"), *fields()],
    "a pseudo-header behind the others": [*without(b":path"), (b":path", b"/a")],
    "a name in upper case": fields(("Upper", "x")),
    "an empty name": fields(("", "x")),
    "a name with a space": fields(("a b", "x")),
    "a name with a colon": fields(("a:b", "x")),
    "a name beyond ASCII": fields(("\u00e4", "x")),
    "a value with a line feed": fields(("a", "b\nc: d")),
    "a value with a carriage return": fields(("a", "b\rc")),
    "a value with a NUL": fields(("a", "b\0c")),
    "connection": fields(("connection", "close")),
    "keep-alive": fields(("keep-alive", "1")),
    "proxy-connection": fields(("proxy-connection", "x")),
    "transfer-encoding": fields(("transfer-encoding", "chunked")),
    "upgrade": fields(("upgrade", "h2c")),
    "te of another kind": fields(("te", "gzip")),
    "a content-length in words": fields(("content-length", "many")),
    "a negative content-length": fields(("content-length", "-1")),
    "an empty content-length": fields(("content-length", "")),
    "two lengths": fields(("content-length", "1"), ("content-length", "2")),
    "a huge content-length": fields(("content-length", "9" * 30)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request(name: str) -> None:
    with pytest.raises(Malformed):
        reader().read(MALFORMED[name])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=6))
def test_any_header_list_is_read_or_malformed(more: list[Header]) -> None:
    for headers in (more, fields() + more):
        try:
            found = check_request(tuple(headers))
        except Malformed:
            continue
        assert found[b":path"]
        assert isinstance(reader().read(headers)[0], Head)


@pytest.mark.parametrize("size", [0, 17, 10**17])
def test_content_length_is_kept(size: int) -> None:
    head, _ = read(("content-length", str(size)))
    assert head.length == size


def test_methods_are_found_by_their_path() -> None:
    unary, _ = read()
    assert (unary.simple, unary.own_deadline, unary.refusal) == (True, True, None)
    stream, _ = read(path="/test.S/Stream")
    assert (stream.simple, stream.stream, stream.refusal) == (False, Any, None)
    for path in ("/test.S/None", "/", "*", "/test.s/echo", "/test.S/Echo/"):
        answer = refusal(read(path=path)[0])
        assert answer["grpc-status"] == str(int(Code.UNIMPLEMENTED))
        assert answer["grpc-message"] == f"Method not found: {path}"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("application/grpc", None),
        ("application/grpc+proto", None),
        ("application/grpc;charset=utf-8", None),
        ("application/grpc-web", "415"),
        ("application/json", "415"),
        ("", "415"),
    ],
)
def test_content_types(value: str, status: str | None) -> None:
    headers = [*without(b"content-type"), (b"content-type", value.encode())]
    head, _ = reader().read(headers)
    assert (refusal(head)[":status"] if head.refusal else None) == status


def test_methods_of_http_other_than_post() -> None:
    head, _ = reader().read([(b":method", b"GET"), *without(b":method")])
    assert refusal(head)[":status"] == "405"
    assert refusal(head)["allow"] == "POST"
    assert head.body


def test_unknown_encodings_are_told_which_there_are() -> None:
    answer = refusal(read(("grpc-encoding", "br"))[0])
    assert answer["grpc-status"] == str(int(Code.UNIMPLEMENTED))
    assert answer["grpc-accept-encoding"] == "identity,deflate,gzip"


def test_headers_that_were_too_many() -> None:
    answer = refusal(reader().read(None)[0])
    assert answer["grpc-status"] == str(int(Code.RESOURCE_EXHAUSTED))
    assert "16384" in answer["grpc-message"]


# -- grpc-timeout -------------------------------------------------------------------


@given(st.integers(1, 99_999_999), st.sampled_from(sorted(NS)))
def test_timeouts_of_every_unit(value: int, unit: str) -> None:
    head, timeout_ns = read(("grpc-timeout", f"{value}{unit}"))
    assert head.refusal is None
    assert timeout_ns == min(value * NS[unit], (1 << 62) - 1)
    assert read(("grpc-timeout", f"{value:08}{unit}"))[1] == timeout_ns


def test_no_timeout_is_none() -> None:
    assert read()[1] == 0


@pytest.mark.parametrize("unit", sorted(NS))
def test_a_timeout_of_nothing_has_passed(unit: str) -> None:
    head, _ = read(("grpc-timeout", f"0{unit}"))
    assert refusal(head)["grpc-status"] == str(int(Code.DEADLINE_EXCEEDED))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1",
        "S",
        "1s",
        "1h",
        "-1S",
        "+1S",
        "1.5S",
        " 1S",
        "1S ",
        "123456789S",
        "1\u00b5",
    ],
)
def test_what_is_no_timeout(value: str) -> None:
    head, _ = read(("grpc-timeout", value))
    answer = refusal(head)
    assert answer["grpc-status"] == str(int(Code.INTERNAL))
    assert answer["grpc-message"] == "grpc-timeout must be up to 8 digits and a unit"


def test_calls_that_differ_in_their_timeout_share_the_rest() -> None:
    shared = reader()
    heads = {id(shared.read(fields(("grpc-timeout", f"{n}m")))[0]) for n in range(1, 9)}
    assert len(heads) == 1


def test_a_bad_timeout_leaves_no_trace() -> None:
    shared = reader()
    assert shared.read(fields(("grpc-timeout", "never")))[0].refusal is not None
    assert shared.read(fields())[0].refusal is None


def test_what_is_remembered_is_bounded() -> None:
    shared = reader()
    for number in range(3000):
        shared.read(fields(("x-request", str(number))))
    assert len(shared._known) <= 1024


# -- binary metadata ------------------------------------------------------------------


@given(st.binary(max_size=40))
def test_binary_metadata_comes_padded_or_not(raw: bytes) -> None:
    encoded = base64.b64encode(raw).decode()
    for value in (encoded, encoded.rstrip("=")):
        assert read(("x-raw-bin", value))[0].refusal is None


@pytest.mark.parametrize("value", ["a", "ab!d", "a===", "YQ==YQ==", "\u00e4", "YQ, b"])
def test_binary_metadata_that_is_no_base64(value: str) -> None:
    answer = refusal(read(("x-raw-bin", value))[0])
    assert answer["grpc-status"] == str(int(Code.INTERNAL))
    assert "x-raw-bin" in answer["grpc-message"]

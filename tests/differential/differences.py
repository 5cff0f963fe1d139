"""What the transports answer differently, and why: the one table of that.

Whatever is not in it is a bug of one of the two transports, and what is in it and no
longer differs fails a test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One known difference.

    Attributes:
        cases: Pattern of the names of the requests in which it shows.
        own: Pattern of what the own transport answers (`raw.Answer.line`).
        grpcio: Likewise.
        why: Why that is right.
    """

    cases: str
    own: str
    grpcio: str
    why: str

    def about(self, case: str) -> bool:
        """Return whether it is about a request."""
        return re.fullmatch(self.cases, case, re.DOTALL) is not None

    def explains(self, own: str, grpcio: str) -> bool:
        """Return whether two answers differ as it says."""
        return bool(
            re.fullmatch(self.own, own, re.DOTALL)
            and re.fullmatch(self.grpcio, grpcio, re.DOTALL)
        )


SILENT = "silent"
"""No answer at all, however long one waits."""
_MALFORMED = "reset 1"
_PARSING = r"13 (Error parsing|Illegal header key).*"
_ANY = r"0\b.*"

DIFFERENCES = (
    # -- messages ----------------------------------------------------------------
    Difference(
        "unary: two messages( in two frames)?",
        "12 a unary call takes one message, got 2",
        r"0 \| '\\x00hi'",
        "UNIMPLEMENTED is the status of a wrong number of messages (grpc/grpc, "
        "doc/statuscodes.md); grpcio drops the second message silently",
    ),
    Difference(
        "unary: cut in .*",
        "13 the body ends inside a message",
        "12 a unary call takes one message, got no",
        "grpc-go and grpc-java say INTERNAL; grpcio takes a cut body for its end",
    ),
    Difference(
        "unary: (one more byte|one and a half messages)",
        "13 the body ends inside a message",
        r"0 \| '\\x00hi'",
        "INTERNAL again; grpcio drops what is behind the first message",
    ),
    Difference(
        "stream: (cut in .*|one more byte|one and a half messages)",
        r"13 the body ends inside a message( \| .*)?",
        r"0( \| .*)?",
        "the same; grpcio takes a cut body for its end",
    ),
    Difference(
        "(unary|stream): flag (2|255)",
        r"13 a message with compression flag (2|255)( \| .*)?",
        rf"{_ANY}|{SILENT}|12 a unary call takes one message, got no",
        "the flag is 0 or 1 (grpc/grpc, doc/PROTOCOL-HTTP2.md), and grpc-go refuses "
        "too; grpcio takes the message, and once in some thousand times loses it",
    ),
    Difference(
        "unary: too large behind another",
        r"8 Received message larger than max .*",
        r"0 \| '\\x00hi'",
        "grpcio does not look at a second message",
    ),
    Difference(
        "(unary|stream): (one byte too large|too large.*|"
        "gzip that unpacks to too much)",
        r"8 Received message larger than max .*",
        r"8 SERVER: Received message larger than max .*",
        "wording",
    ),
    Difference(
        "(unary|stream): padding",
        _ANY,
        "reset 1",
        "DATA may be padded (RFC 9113, 6.1); grpcio cannot read it",
    ),
    # -- compression -------------------------------------------------------------
    Difference(
        "(unary|stream): (identity with the flag|the flag without an encoding)",
        r"13 a compressed message without grpc-encoding( \| .*)?",
        r"13 Compression bit set but no encoding configured",
        "wording",
    ),
    Difference(
        "(unary|stream): (an unknown encoding(, used)?|an empty encoding|GZIP)",
        r"12 grpc-encoding '.*' is not supported; use identity, gzip, deflate",
        "13 Error parsing 'grpc-encoding' metadata",
        "UNIMPLEMENTED, and which there are (grpc/grpc, doc/compression.md)",
    ),
    Difference(
        "(unary|stream): an empty gzip",
        "13 a compressed message cut short.*",
        _ANY,
        "no bytes are no gzip; grpcio does not unpack an empty message",
    ),
    Difference(
        "(unary|stream): (gzip that is (deflate|none)|deflate that is gzip|"
        "gzip (broken inside|cut short|with a wrong checksum|and more)|"
        "two gzip members)",
        r"13 a (message that is not valid|compressed message) .*",
        r"13 Decompression failed due to .*",
        "wording",
    ),
    # -- methods and HTTP --------------------------------------------------------
    Difference(
        "unary: path '.*'",
        r"12 Method not found: .*",
        r"12 Method not found!",
        "wording: the path shows a typing mistake at once",
    ),
    Difference(
        "unary: (content-type '(application/grpc( |x|-web)|Application/gRPC|"
        "application/json|text/plain|)'|no content-type)",
        "http 415 body",
        _ANY,
        "415 is what a server should say (doc/PROTOCOL-HTTP2.md); grpcio takes all",
    ),
    Difference(
        "unary: method '(GET|PUT|OPTIONS|post)'",
        "http 405 body",
        r"reset 2|13 Error parsing ':method' metadata",
        "plain HTTP for who does not speak gRPC",
    ),
    Difference(
        "unary: te None",
        _ANY,
        "reset 2",
        "`te` tells proxies apart that drop trailers; a client without it is served",
    ),
    Difference(
        "unary: (no authority|scheme ftp)",
        _ANY,
        rf"reset 2|{_PARSING}",
        "neither is used; RFC 9113 (8.3.1) wants no authority, and gRPC leaves it open",
    ),
    Difference(
        "unary: (method ''|te .*|no (scheme|method|path)|an empty path|two paths|"
        "a pseudo-header last|connection|transfer-encoding|upper case|"
        "a space in a name|a (NUL|line feed) in a value)",
        _MALFORMED,
        rf"reset 2|{_PARSING}|12 Method not found!|{_ANY}",
        "a malformed request is a stream error, PROTOCOL_ERROR (RFC 9113, 8.1.1)",
    ),
    # -- deadlines ---------------------------------------------------------------
    Difference(
        "unary: timeout '( 1S|1 S|1S |100000000S)'",
        "13 grpc-timeout must be up to 8 digits and a unit",
        _ANY,
        "up to 8 digits and a unit, no more (doc/PROTOCOL-HTTP2.md)",
    ),
    Difference(
        r"unary: timeout '(|1|S|1s|1x|[+-]1S|1\.5S|0x1S|1SS)'",
        "13 grpc-timeout must be up to 8 digits and a unit",
        "13 Error parsing 'grpc-timeout' metadata",
        "wording",
    ),
    Difference(
        "stream: a deadline .*",
        r"4 Deadline Exceeded \|.*\| trailing x-stream-bin=.*",
        r"4 Deadline Exceeded \| '\\x00one' \| initial x-stream=first",
        "grpcio ends the call itself and does not know the handler's trailers",
    ),
    # -- metadata ----------------------------------------------------------------
    Difference(
        "metadata: text beyond ASCII",
        _ANY,
        _ANY,
        "metadata is ASCII; the own transport keeps other bytes one by one, grpcio "
        "guesses UTF-8",
    ),
    Difference(
        "metadata: binaries joined.*",
        r"0 \| .*\[b.*",
        _PARSING,
        "lists joined by commas must be split (doc/PROTOCOL-HTTP2.md)",
    ),
    Difference(
        "metadata: binary .*",
        "13 metadata x-a-bin is not valid base64",
        _PARSING,
        "wording",
    ),
    Difference(
        "metadata: (usual fields|fields of gRPC's own|a tracing key)",
        _ANY,
        _ANY,
        "grpcio keeps some fields to itself; no handler of ours asks for them",
    ),
    # -- what handlers hear ------------------------------------------------------
    Difference(
        "client: a (cancelled stream|stream on a lost connection)",
        r".* \['begun', ('message of \d', )+'cancelled'\]",
        r".* \['begun', ('message of \d', )+'half-closed', 'cancelled'\]",
        "grpc.aio ends the requests of a cancelled call before it cancels the "
        "handler; one that is done by then does not hear of it",
    ),
)
"""The table; the first entry about a request counts."""


def known(case: str) -> Difference | None:
    """Return the entry about a request, if there is one."""
    return next((entry for entry in DIFFERENCES if entry.about(case)), None)

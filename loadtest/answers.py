"""What the header blocks of answers say: the status, found by their bytes. Pure.

Decoding a block costs ten times as much as the rest of an answer, and servers send the
same blocks again and again. So blocks are remembered while the table is what it was: a
block that changes the table changes what the others mean.
"""

from __future__ import annotations

import hpack

OK = "OK"
LOST = "CONNECTION_LOST"
UNPROCESSED = "GOAWAY"
"""The server said that it will not run the call."""
MALFORMED = "MALFORMED"
"""The stream ended without a status."""
STATUSES = (
    OK,
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""By number; source: the gRPC status codes."""
MAX_KNOWN = 1024


def reset_status(code: int) -> str:
    """Return the status of a stream that the server reset.

    Source: the table "Errors" of the gRPC over HTTP/2 protocol.
    """
    meaning = {
        7: "UNAVAILABLE",
        8: "CANCELLED",
        11: "RESOURCE_EXHAUSTED",
        12: "PERMISSION_DENIED",
    }
    return meaning.get(code, "INTERNAL")


class Undecodable(Exception):
    """The compression state is lost: the connection is of no use any more."""


class Answers:
    """The header blocks of one connection.

    Attributes:
        known: Statuses by block; None for a block that has none.
    """

    def __init__(self) -> None:
        self.known: dict[bytes, str | None] = {}
        self._decoder = hpack.Decoder()

    def status(self, block: bytes) -> str | None:
        """Return the status in a block; None if it has none.

        Raises:
            Undecodable: If the block is no header block.
        """
        entries = self._decoder.header_table.dynamic_entries
        before = (len(entries), entries[0] if entries else None)
        try:
            fields = dict(self._decoder.decode(block, raw=True))
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise Undecodable(str(error)) from error
        entries = self._decoder.header_table.dynamic_entries
        status = _status(fields)
        newest = entries[0] if entries else None
        if before[0] != len(entries) or before[1] is not newest:
            self.known.clear()
        elif len(self.known) < MAX_KNOWN:
            self.known[block] = status
        return status


def _status(fields: dict[bytes, bytes]) -> str | None:
    number = fields.get(b"grpc-status")
    if number is not None:
        known = number.isdigit() and int(number) < len(STATUSES)
        return STATUSES[int(number)] if known else "UNKNOWN"
    http = fields.get(b":status", b"200")
    return None if http == b"200" else f"HTTP_{http.decode('latin-1')}"

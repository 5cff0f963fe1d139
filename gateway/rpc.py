"""The seam between handlers and transports: message in, reply out through a call.

A handler is a plain function. It gets the request's bytes and a `Call`, and
answers through the call, now or later, exactly once. It creates no task and
awaits nothing, so that a transport can serve it without either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.errors import GatewayError

Buffer = bytes | bytearray | memoryview
"""A piece of a message."""
Metadata = Sequence[tuple[str, str | bytes]]
"""Keys in lower case; values of keys that end in ``-bin`` are bytes, others ASCII."""


class Call(Protocol):
    """One unary call. Loop thread only.

    Attributes:
        deadline_ns: Absolute deadline by the gateway's monotonic clock, or 0.
        on_cancel: Set by the handler: called once if the client goes away (or
            its deadline passes) before the reply; afterwards `reply` and `fail`
            do nothing.
        initial_metadata: Response headers of the handler's own; set before `reply`.
        trailing_metadata: Trailers of the handler's own; set before the call ends.
    """

    deadline_ns: int
    on_cancel: Callable[[], None] | None
    initial_metadata: Metadata
    trailing_metadata: Metadata

    def metadata(self, key: str) -> str | None:
        """Return a request header (lower-case key), or ``None``."""

    def metadata_bytes(self, key: str) -> bytes | None:
        """Return a binary request header (key ends in ``-bin``), or ``None``."""

    def peer(self) -> str:
        """Return who is at the other end, as the kernel knows it.

        ``uid 1000 (ada)`` over a Unix socket, else the address; empty if neither is
        known.
        """

    def reply(self, message: bytes) -> None:
        """Send the one response with status OK."""

    def reply_parts(self, parts: tuple[Buffer, ...], size: int) -> None:
        """Do the same with a message of `size` bytes in pieces, copied once."""

    def fail(self, error: GatewayError) -> None:
        """End the call with the error's status."""


class StreamCall(Protocol):
    """One streaming call. Loop thread only.

    Attributes:
        deadline_ns: Absolute deadline by the gateway's monotonic clock, or 0.
        initial_metadata: Response headers of the handler's own; set before the
            first `send`.
        trailing_metadata: Trailers of the handler's own; set before `finish`.
    """

    deadline_ns: int
    initial_metadata: Metadata
    trailing_metadata: Metadata

    def metadata(self, key: str) -> str | None:
        """Return a request header (lower-case key), or ``None``."""

    def metadata_bytes(self, key: str) -> bytes | None:
        """Return a binary request header (key ends in ``-bin``), or ``None``."""

    def send(self, message: bytes) -> None:
        """Queue one response message; the transport keeps the order."""

    def finish(self, error: GatewayError | None = None) -> None:
        """End the stream after what is queued: OK, or the error's status."""

    def pause(self) -> None:
        """Stop reading requests (back-pressure)."""

    def resume(self) -> None:
        """Read requests again."""


class StreamHandler(Protocol):
    """What a transport drives for one stream. Loop thread only."""

    def on_message(self, message: bytes) -> None:
        """One request message came in."""

    def on_half_close(self) -> None:
        """The client will send no more; answer what is open, then finish."""

    def on_cancel(self) -> None:
        """The client went away; nothing sent from now on arrives."""

    def on_sent(self, queued: int, queued_bytes: int) -> None:
        """The transport wrote responses out; so many, of so many bytes, still wait."""


@dataclass(frozen=True, slots=True)
class Methods:
    """All methods a transport serves, by full path (``/package.Service/Method``).

    Attributes:
        unary: One request, one reply.
        streams: Any streaming shape: called with the stream, returns its handler.
        own_deadline: Unary methods whose handlers end their calls by the deadline
            themselves; for all others the transport does.
    """

    unary: Mapping[str, Callable[[Call, bytes], None]]
    streams: Mapping[str, Callable[[StreamCall], StreamHandler]]
    own_deadline: frozenset[str] = frozenset()

"""Calls that are refused by their header list alone. Loop thread only."""

from __future__ import annotations

from gateway.transport.calls import Call
from gateway.transport.frames import HeaderBlock

_MAX_IGNORED_BYTES = 1 << 16
"""Of a body that does not speak gRPC; whoever sends more is answered at once."""


class RefusedCall(Call):
    """A call that is answered without its body.

    Who does not speak gRPC gets the answer once the request is over, as from any HTTP
    server: some HTTP clients read no answer before they have sent everything.
    """

    _ignored = 0
    _due: HeaderBlock | None = None

    def refuse(self, block: HeaderBlock) -> None:
        """Send the answer, or keep it until the request is over."""
        self.over = True  # for the methods of a call
        if self.head.body:
            self._due = block
        else:
            self._answer(block)

    def _answer(self, block: HeaderBlock) -> None:
        self._due = None
        http2 = self.owner.http2
        body = self.head.body
        http2.send_headers(self, block, end=not body)
        if body:
            http2.send_data(self, (body,), len(body))
            http2.finish(self, None)

    def on_data(self, data: bytes, ended: bool) -> None:
        """Nobody reads it; too much of it is not waited for."""
        self.owner.give_back(self, len(data))
        self._ignored += len(data)
        if self._due is not None and (ended or self._ignored > _MAX_IGNORED_BYTES):
            self._answer(self._due)

    def on_reset(self) -> None:
        """It is over anyway."""

    def expire(self) -> None:
        """It has no deadline."""

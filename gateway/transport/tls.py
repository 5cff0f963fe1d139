"""TLS of the data plane: one context whose certificate can be replaced."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from gateway.config import TlsConfig
from gateway.logs import get_logger
from gateway.preflight import load_tls

_log = get_logger("tls")

_REPORT_NS = 5_000_000_000
"""Shortest time between two log lines about handshakes that failed."""


class _Context(ssl.SSLContext):
    """Tells whoever wants to know of handshakes that fail, and why.

    No event loop hands that on: neither logs it nor calls the protocol. Who it was is
    not known here either, an `ssl.SSLObject` has no socket.
    """

    failed: Callable[[str], None]


class _Handshake(ssl.SSLObject):
    """Tells its context how the handshake went. Who only connects has not begun."""

    _asked = _begun = _over = False

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._begun, self._asked = self._asked, True
            raise
        except ssl.SSLError as error:
            self._over = True
            self._server().failed(error.reason or str(error))
            raise
        self._over = True

    def _server(self) -> _Context:
        assert isinstance(self.context, _Context)
        return self.context

    def __del__(self) -> None:
        # gRPC's clients hang up without an alert where they trust no certificate; no
        # loop tells this object, but uvloop lets go of it at once.
        if self._begun and not self._over:
            self._server().failed("the client hung up")


_Context.sslobject_class = _Handshake


class Certificates:
    """A server context, and the files it came from.

    A file that changes is read again for new connections; what cannot be read leaves
    the last good certificate in use and is said in the log.

    Args:
        config: Certificate, key, and who may connect.

    Attributes:
        context: To listen with. Offers HTTP/2 alone (ALPN ``h2``), TLS 1.2 or later.

    Raises:
        ValueError: The files cannot be used.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._seen = self._stamp()
        self._failures = self._unreported = 0
        self._reason = ""
        self._report_ns = 0
        self._current = self.context = self._make()
        # A context cannot be rid of an authority it trusts, nor a server of its
        # context: each handshake is given the one that is current.
        self.context.sni_callback = self._take_current

    def _take_current(
        self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        handshake.context = self._current

    def _make(self) -> _Context:
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.failed = self._failed
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        load_tls(context, self._config)
        if self._config.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is resumed is not asked for its certificate again.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what shows that a file was replaced or written."""
        return tuple(_identity(path) for path in self._files())

    def _files(self) -> tuple[Path, ...]:
        config = self._config
        files = (config.certificate, config.key)
        return files if config.client_ca is None else (*files, config.client_ca)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self._reason = reason

    def report_failures(self, now_ns: int) -> int:
        """Log handshakes that failed, rarely; return how many since the last call.

        Args:
            now_ns: Monotonic clock.
        """
        failed, self._failures = self._failures, 0
        self._unreported += failed
        if self._unreported and now_ns >= self._report_ns:
            _log.warning(
                "tls_handshakes_failed",
                count=self._unreported,
                last_reason=self._reason,
            )
            self._unreported = 0
            self._report_ns = now_ns + _REPORT_NS
        return failed

    def reload_if_changed(self) -> None:
        """Read the files again if they changed; existing connections go on."""
        seen = self._stamp()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._current = self._make()
        except ValueError as error:
            _log.error("certificate_not_reloaded", reason=str(error))
        else:
            _log.info("certificate_reloaded", path=str(self._config.certificate))


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

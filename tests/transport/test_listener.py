"""The listener on sockets, on uvloop and on asyncio's own loop.

Time is a clock of the test's own: hours pass in a tick of the listener's.
"""

from __future__ import annotations

import asyncio
import datetime
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.clock import now_ns
from gateway.config import GrpcConfig
from gateway.rpc import Call, Methods
from gateway.transport.frames import ErrorCode
from gateway.transport.listener import Listener
from tests.gateway_process import free_port
from tests.transport import peer
from tests.transport.peer import GOAWAY, OPENING, PING, PREFACE, TOP
from tests.transport.server import Download, Echo

WAIT_S = 10
S = 1_000_000_000
ECHO, STREAM, NEVER, DOWNLOAD = (
    peer.block(peer.grpc_fields(f"/test.S/{name}"))
    for name in ("Echo", "Stream", "Never", "Download")
)
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine on either loop, within a time."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda test: runner.run(asyncio.wait_for(test, 30))


class Clock:
    """Time as the listener sees it."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        return now_ns() + self.ahead_ns

    def advance(self, seconds: float) -> None:
        self.ahead_ns += int(seconds * S)


class Server:
    """A listener in this process, and its clients."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.clock = Clock()
        self.kept: list[Call] = []
        methods = Methods(
            unary={
                "/test.S/Echo": lambda call, message: call.reply(message),
                "/test.S/Never": lambda call, message: self.kept.append(call),
                "/test.S/Own": lambda call, message: self.kept.append(call),
            },
            streams={"/test.S/Stream": Echo, "/test.S/Download": Download},
            own_deadline=frozenset({"/test.S/Own"}),
        )
        self.listener = Listener(methods, GrpcConfig(**config), self.clock)
        self.port = free_port()
        self.clients: list[Client] = []

    @property
    def limits(self) -> dict[str, int]:
        return self.listener.server.statistics.limits

    async def connect(
        self, opening: bytes = OPENING, context: ssl.SSLContext | None = None
    ) -> Client:
        name = "localhost" if context else None
        return await self.client(
            opening,
            asyncio.open_connection(
                "127.0.0.1", self.port, ssl=context, server_hostname=name
            ),
        )

    async def fail_handshake(self, context: ssl.SSLContext | None) -> None:
        """Connect as a client that the server, or that itself, must turn away."""
        with suppress(OSError):  # TLS 1.3 tells it with the first read
            await (await self.connect(context=context)).end()

    async def client(self, opening: bytes, connecting: Any) -> Client:
        reader, writer = await connecting
        client = Client(reader, writer)
        self.clients.append(client)
        writer.write(opening)
        return client


class Client:
    """A raw connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader, self.writer = reader, writer
        self.received = b""

    def send(self, *sent: bytes) -> None:
        self.writer.write(b"".join(sent))

    async def read(self) -> bool:
        try:
            more = await self.reader.read(1 << 16)
        except (OSError, ssl.SSLError):
            more = b""
        self.received += more
        return bool(more)

    async def wait(self, what: bytes) -> None:
        """Read until something came."""
        async with asyncio.timeout(WAIT_S):
            while what not in self.received:
                assert await self.read(), f"closed before {what!r} came"

    async def end(self) -> None:
        """Read until the server closes."""
        async with asyncio.timeout(WAIT_S):
            while await self.read():
                pass

    async def frame(self, kind: int) -> peer.Frame:
        """Wait for a frame, take it and all before it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found, rest = peer.parse(self.received)
                for index, frame in enumerate(found):
                    if frame.kind == kind:
                        later = found[index + 1 :]
                        self.received = b"".join(peer.frame(*f) for f in later) + rest
                        return frame
                assert await self.read(), f"closed before a frame of type {kind}"

    async def echo(self, number: int, text: bytes = b"text") -> None:
        self.send(peer.headers(number, ECHO))
        self.send(peer.data(number, peer.message(text), end=True))
        await self.wait(peer.message(text))
        self.received = b""


@asynccontextmanager
async def serving(**config: Any) -> AsyncIterator[Server]:
    server = Server(config)
    await server.listener.start(f"127.0.0.1:{server.port}")
    try:
        yield server
    finally:
        for client in server.clients:
            client.writer.close()
        await server.listener.stop(0)
        for client in server.clients:
            with suppress(OSError, ssl.SSLError, TimeoutError):
                await asyncio.wait_for(client.writer.wait_closed(), 2)
        await until(lambda: not server.listener.connections)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the listener's time, not an event
            await asyncio.sleep(0.01)


# -- time ----------------------------------------------------------------------------


def test_a_silent_client_is_asked_and_then_closed(run: Run) -> None:
    async def scenario() -> None:
        async with serving(keepalive_s=60, keepalive_timeout_s=20) as server:
            there, gone = await server.connect(), await server.connect()
            await there.echo(1)
            await gone.echo(1)
            server.clock.advance(61)
            for client in (there, gone):
                asked = await client.frame(PING)
                assert asked.flags == 0
            there.send(peer.ping(asked.payload, ack=True))
            await there.echo(3)
            server.clock.advance(21)
            await gone.end()
            assert server.limits == {"keepalive": 1}
            await there.echo(5)

    run(scenario())


def test_a_client_must_say_in_time_that_it_speaks_http_2(run: Run) -> None:
    """Bytes that dribble in are no sign of life; pings are not asked for either."""

    async def scenario() -> None:
        async with serving(keepalive_s=0, keepalive_timeout_s=20) as server:
            late, silent = await server.connect(PREFACE[:3]), await server.connect(b"")
            client = await server.connect()
            await client.echo(1)
            await until(lambda: len(server.listener.connections) == 3)
            server.clock.advance(19)
            late.send(PREFACE[3:5])
            await client.echo(3)
            assert server.limits == {}
            server.clock.advance(2)
            await late.end()
            await silent.end()
            assert server.limits == {"preface": 2}
            await client.echo(5)

    run(scenario())


def test_a_tls_handshake_must_end_in_time(run: Run, tls: Tls) -> None:
    async def scenario() -> None:
        async with serving(tls=tls.files, keepalive_timeout_s=1) as server:
            stalled = await server.connect(b"\x16\x03\x01")
            await stalled.end()  # by the loop's clock, not the listener's
            await (await server.connect(context=tls.context())).echo(1)

    run(scenario())


def test_a_client_that_talks_is_not_asked(run: Run) -> None:
    async def scenario() -> None:
        async with serving(keepalive_s=60, keepalive_timeout_s=20) as server:
            client = await server.connect()
            for number in range(1, 9, 2):
                await client.echo(number)
                server.clock.advance(59)
            await client.echo(9)
            assert PING not in {f.kind for f in peer.parse(client.received)[0]}

    run(scenario())


def test_old_connections_retire_at_different_times_and_finish_their_calls(
    run: Run,
) -> None:
    async def scenario() -> None:
        config = {"max_connection_age_s": 1000, "max_connection_age_grace_s": 30}
        async with serving(**config) as server:
            clients = [await server.connect() for _ in range(20)]
            for client in clients:
                await client.echo(1)
            ages = {c._retire_ns for c in server.listener.connections}
            assert len(ages) == 20
            assert max(ages) - min(ages) > 20 * S
            started = server.clock()
            assert min(ages) > started + 890 * S
            assert max(ages) < started + 1101 * S
            busy, stuck, *rest = clients
            for client in (busy, stuck):
                client.send(peer.headers(3, NEVER))
                client.send(peer.data(3, peer.message(b"x"), end=True))
            await until(lambda: len(server.kept) == 2)
            server.clock.advance(1101)
            for client in clients:
                first = await client.frame(GOAWAY)
                assert first.payload == TOP.to_bytes(4, "big") + bytes(4)
                client.send(peer.ping((await client.frame(PING)).payload, ack=True))
                last = await client.frame(GOAWAY)
                assert int.from_bytes(last.payload[:4], "big") in (1, 3)
            for client in rest:
                await client.end()
            server.kept[0].reply(b"the last word")
            await busy.wait(b"the last word")
            await busy.end()
            server.clock.advance(31)
            await stuck.end()
            assert server.limits == {"connection_age": 20}
            await (await server.connect()).echo(1)

    run(scenario())


def test_deadlines_end_calls_that_their_handlers_leave_alone(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.connect()
            timeout = peer.block([("grpc-timeout", "50m")])
            client.send(peer.headers(1, NEVER + timeout))
            client.send(peer.data(1, peer.message(b"x"), end=True))
            await client.wait(b"grpc-status\x014")
            await client.echo(3)

    run(scenario())


# -- back-pressure -------------------------------------------------------------------


def congested(server: Server) -> list[Any]:
    return [c for c in server.listener.connections if c._congested]


@pytest.mark.parametrize("method", ["Echo", "Own"])
def test_deadlines_end_calls_whose_message_never_comes(run: Run, method: str) -> None:
    """Also of methods that mind the deadline themselves: they know of no call yet."""
    fields = peer.grpc_fields(f"/test.S/{method}", [("grpc-timeout", "5S")])
    begun = peer.message(b"all of it")[:-1]

    async def scenario() -> None:
        async with serving() as server:
            client = await server.connect()
            client.send(peer.headers(1, peer.block(fields)))
            client.send(peer.headers(3, peer.block(fields)), peer.data(3, begun))
            await client.echo(5)
            statistics = server.listener.server.statistics
            assert statistics.buffered_bytes == len(begun)
            server.clock.advance(6)
            for number in (1, 3):
                ended = await client.frame(peer.HEADERS)
                assert ended.stream == number
                assert b"grpc-status\x014" in ended.payload
            await until(lambda: not statistics.buffered_bytes)
            assert server.kept == []

    run(scenario())


def test_a_client_that_does_not_read_is_not_read(run: Run) -> None:
    """Its answers are bounded, other clients are served, and it may go on later."""

    async def scenario() -> None:
        config = {"write_buffer_bytes": 256 << 10}
        async with serving(**config) as server:
            opening = PREFACE + peer.settings((peer.INITIAL_WINDOW, TOP))
            slow = await server.connect(opening + peer.window_update(0, TOP - 65_535))
            other = await server.connect()
            await other.echo(1)
            slow.send(peer.headers(1, DOWNLOAD), peer.data(1, peer.message(b"x")))
            found: list[Any] = []
            await until(lambda: found.extend(congested(server)) or found)
            connection = found[0]
            calls = server.listener.server.statistics.calls
            slow.send(peer.headers(3, ECHO))
            slow.send(peer.data(3, peer.message(b"unread"), end=True))
            for number in range(3, 103, 2):
                await other.echo(number)
            assert connection._congested
            assert server.listener.server.statistics.calls == calls + 50
            waiting = sum(len(piece) for piece in connection.grpc.http2.out)
            waiting += connection._transport.get_write_buffer_size()  # type: ignore
            assert waiting < 4 << 20
            size = 0
            async with asyncio.timeout(WAIT_S):
                while size < 32 << 20:
                    size += len(await slow.reader.read(1 << 20))
            slow.send(peer.reset(1))
            await until(lambda: server.listener.server.statistics.calls == calls + 51)

    run(scenario())


def test_a_client_that_breaks_the_protocol_and_does_not_read_is_cut(run: Run) -> None:
    """What is written to it has some seconds to leave, with keepalive or without."""

    async def scenario() -> None:
        async with serving(keepalive_s=0, write_buffer_bytes=64 << 10) as server:
            opening = PREFACE + peer.settings((peer.INITIAL_WINDOW, TOP))
            client = await server.connect(opening + peer.window_update(0, TOP - 65_535))
            client.writer.transport.pause_reading()
            download = peer.headers(1, DOWNLOAD), peer.data(1, peer.message(b"x"))
            client.send(*download)
            await until(lambda: congested(server))
            connection = congested(server)[0]
            http2 = connection.grpc.http2
            http2.end(ErrorCode.NO_ERROR, "as after a violation")
            await until(lambda: connection._closing_ns)
            server.clock.advance(6)
            await until(lambda: not server.listener.connections)

    run(scenario())


@pytest.mark.parametrize("end", ["abort", "close"])
def test_calls_of_a_client_that_leaves_are_cancelled(run: Run, end: str) -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.connect()
            client.send(peer.headers(1, NEVER))
            client.send(peer.data(1, peer.message(b"x"), end=True))
            await until(lambda: server.kept)
            cancelled: list[bool] = []
            server.kept[0].on_cancel = lambda: cancelled.append(True)
            getattr(client.writer.transport, end)()
            await until(lambda: not server.listener.connections)
            assert cancelled == [True]
            server.kept[0].reply(b"too late")
            assert server.listener.server.statistics.open == 0

    run(scenario())


def test_one_connection_too_many_is_closed_without_a_word(run: Run) -> None:
    async def scenario() -> None:
        async with serving(max_connections=2) as server:
            first, second = await server.connect(), await server.connect()
            await first.echo(1)
            await second.echo(1)
            third = await server.connect()
            await third.end()
            assert third.received == b""
            assert server.limits == {"connections": 1}
            first.writer.close()
            await until(lambda: len(server.listener.connections) == 1)
            await (await server.connect()).echo(1)

    run(scenario())


# -- the end -------------------------------------------------------------------------


def test_stopping_lets_calls_end_within_the_grace(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server:
            idle, busy = await server.connect(), await server.connect()
            await idle.echo(1)
            busy.send(peer.headers(1, NEVER))
            busy.send(peer.data(1, peer.message(b"x"), end=True))
            await until(lambda: server.kept)
            stopping = asyncio.create_task(server.listener.stop(20))
            for client in (idle, busy):
                await client.frame(GOAWAY)
                client.send(peer.ping((await client.frame(PING)).payload, ack=True))
            await idle.end()
            with pytest.raises(OSError, match=r"[Cc]onnect"):
                await server.connect()
            assert not stopping.done()
            server.kept[0].reply(b"the last word")
            await busy.wait(b"the last word")
            await busy.end()
            await asyncio.wait_for(stopping, 5)

    run(scenario())


def test_stopping_cuts_what_outlasts_the_grace(run: Run) -> None:
    async def scenario() -> None:
        async with serving() as server:
            client = await server.connect()
            client.send(peer.headers(1, NEVER))
            client.send(peer.data(1, peer.message(b"x"), end=True))
            await until(lambda: server.kept)
            cancelled: list[bool] = []
            server.kept[0].on_cancel = lambda: cancelled.append(True)
            await asyncio.wait_for(server.listener.stop(0.2), 5)
            await client.end()
            await until(lambda: cancelled == [True])

    run(scenario())


# -- Unix sockets --------------------------------------------------------------------


def test_a_unix_socket_serves_the_same(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:  # by a process that died
        left_behind.bind(str(path))

    async def scenario() -> None:
        async with serving() as server:
            await server.listener.start_unix(path)
            client = await server.client(OPENING, asyncio.open_unix_connection(path))
            await client.echo(1)
            answer = await asyncio.to_thread(call_unix, path)
            assert answer == b"from grpcio"
            async with serving() as another:
                with pytest.raises(OSError, match="somebody listens on"):
                    await another.listener.start_unix(path)
            assert await asyncio.to_thread(call_unix, path) == b"from grpcio"

    run(scenario())


def test_a_file_that_is_no_socket_is_left_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("dear to somebody")

    async def scenario() -> None:
        async with serving() as server:
            with pytest.raises(OSError, match="no socket, so it is left alone"):
                await server.listener.start_unix(path)

    run(scenario())
    assert path.read_text() == "dear to somebody"


def call_unix(path: Path) -> bytes:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        echo = channel.unary_unary("/test.S/Echo")
        answer: bytes = echo(b"from grpcio", timeout=10)
        return answer


# -- TLS -----------------------------------------------------------------------------


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("test authority", self.key, authority=True)

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if authority else self.certificate.subject
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, name: str, folder: Path) -> int:
        """Write ``<name>.pem`` and ``<name>.key``; return the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key, authority=False)
        pem = serialization.Encoding.PEM
        private = key.private_bytes(
            pem,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / f"{name}.key").write_bytes(private)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
        return certificate.serial_number

    def write(self, path: Path) -> None:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))


class Tls:
    """Certificates in a folder, and contexts for clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.authority.write(folder / "ca.pem")
        self.serial = self.authority.issue("server", folder)
        self.authority.issue("client", folder)
        self.files = {
            "certificate": str(folder / "server.pem"),
            "key": str(folder / "server.key"),
        }

    def context(self, client: str = "", *, alpn: str = "h2") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        context.set_alpn_protocols([alpn])
        if client:
            pair = (self.folder / f"{client}.pem", self.folder / f"{client}.key")
            context.load_cert_chain(*pair)
        return context


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def tls_of(client: Client) -> ssl.SSLObject:
    found: ssl.SSLObject = client.writer.get_extra_info("ssl_object")
    return found


def serial(client: Client) -> int:
    raw = tls_of(client).getpeercert(binary_form=True)
    assert raw is not None
    return x509.load_der_x509_certificate(raw).serial_number


def test_tls_offers_http_2(run: Run, tls: Tls) -> None:
    async def scenario() -> None:
        async with serving(tls=tls.files) as server:
            client = await server.connect(context=tls.context())
            assert tls_of(client).selected_alpn_protocol() == "h2"
            assert serial(client) == tls.serial
            await client.echo(1)
            await client.echo(3, b"many" * 4000)
            answer = await asyncio.to_thread(call_tls, server.port, tls)
            assert answer == b"from grpcio"
            old = tls.context()
            old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, OSError)):
                await server.connect(context=old)
            plain = await server.connect()  # no TLS where TLS is spoken
            await plain.end()
            assert peer.parse(plain.received)[0] == []

    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        run(scenario())


def call_tls(port: int, tls: Tls) -> bytes:
    credentials = grpc.ssl_channel_credentials((tls.folder / "ca.pem").read_bytes())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        echo = channel.unary_unary("/test.S/Echo")
        answer: bytes = echo(b"from grpcio", timeout=10)
        return answer


def test_mutual_tls_refuses_who_has_no_certificate_of_the_authority(
    run: Run, tls: Tls
) -> None:
    Authority().issue("stranger", tls.folder)
    files = {**tls.files, "client_ca": str(tls.folder / "ca.pem")}

    async def scenario() -> None:
        async with serving(tls=files) as server:
            known = await server.connect(context=tls.context("client"))
            await known.echo(1)
            for name in ("", "stranger"):
                with suppress(OSError):  # TLS 1.3 tells it with the first read
                    refused = await server.connect(context=tls.context(name))
                    await refused.end()
                    assert refused.received == b""
            await known.echo(3)
            assert server.listener.server.statistics.accepted == 1

    run(scenario())


def test_handshakes_that_fail_are_counted_and_logged_rarely(
    run: Run, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    files = {**tls.files, "client_ca": str(tls.folder / "ca.pem")}

    def logged() -> list[tuple[int, str]]:
        return [
            (fields["count"], fields["last_reason"])
            for record in caplog.records
            if record.message == "tls_handshakes_failed"
            for fields in (vars(record)["fields"],)
        ]

    async def scenario() -> None:
        async with serving(tls=files) as server:
            await (await server.connect(context=tls.context("client"))).echo(1)
            await server.fail_handshake(None)
            await until(lambda: server.limits.get("tls_handshake") == 1)
            await until(lambda: len(logged()) == 1)
            server.clock.advance(-60)  # the next line is far, however slow the machine
            await server.fail_handshake(tls.context())  # has no certificate
            distrustful = ssl.create_default_context()
            await server.fail_handshake(distrustful)

            def all_told() -> bool:
                gc.collect()  # asyncio's own protocols are cycles, uvloop's are not
                return server.limits["tls_handshake"] == 3

            await until(all_told)
            assert len(logged()) == 1
            server.clock.advance(66)
            await until(lambda: len(logged()) == 2)

    gc.freeze()  # what other tests left is not looked through again and again
    try:
        run(scenario())
    finally:
        gc.unfreeze()
    (first, why), (count, last) = logged()
    assert (first, count) == (1, 2)
    assert why in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER")
    assert last in ("the client hung up", "PEER_DID_NOT_RETURN_A_CERTIFICATE")


def test_a_new_certificate_is_for_new_connections_and_garbage_for_none(
    run: Run, tls: Tls
) -> None:
    async def scenario() -> None:
        async with serving(tls=tls.files) as server:
            certificates = server.listener._certificates
            assert certificates is not None

            async def noticed() -> None:
                await until(lambda: certificates._seen == certificates._stamp())

            old = await server.connect(context=tls.context())
            await old.echo(1)
            renewed = tls.authority.issue("server", tls.folder)
            await noticed()
            new = await server.connect(context=tls.context())
            assert (serial(old), serial(new)) == (tls.serial, renewed)
            await old.echo(3)
            await new.echo(1)
            for name, text in (("server.pem", "garbage"), ("server.key", "garbage")):
                (tls.folder / name).write_text(text)
                await noticed()
                still = await server.connect(context=tls.context())
                assert serial(still) == renewed
                await still.echo(1)
            (tls.folder / "server.pem").unlink()
            await noticed()
            await (await server.connect(context=tls.context())).echo(1)
            last = tls.authority.issue("server", tls.folder)
            await noticed()
            assert serial(await server.connect(context=tls.context())) == last
            await old.echo(5)

    run(scenario())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_that_was_replaced_is_trusted_no_more(
    run: Run, tls: Tls, version: ssl.TLSVersion
) -> None:
    other = Authority()
    clients = tls.folder / "clients.pem"
    tls.authority.write(clients)
    other.issue("newcomer", tls.folder)

    def context(name: str) -> ssl.SSLContext:
        made = tls.context(name)
        made.minimum_version = made.maximum_version = version
        return made

    async def scenario() -> None:
        async with serving(tls={**tls.files, "client_ca": str(clients)}) as server:
            certificates = server.listener._certificates
            assert certificates is not None
            before = await server.connect(context=context("client"))
            await before.echo(1)
            other.write(clients)
            await until(lambda: certificates._seen == certificates._stamp())
            after = await server.connect(context=context("newcomer"))
            await after.echo(1)
            assert tls_of(after).selected_alpn_protocol() == "h2"
            with suppress(OSError):  # TLS 1.3 tells it with the first read
                refused = await server.connect(context=context("client"))
                await refused.end()
                assert refused.received == b""
            await before.echo(3)
            assert server.listener.server.statistics.accepted == 2

    run(scenario())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_must_show_a_certificate_shows_it_every_time(
    run: Run, tls: Tls, version: ssl.TLSVersion
) -> None:
    """A resumed session would outlive the trust in its certificate."""
    context = tls.context("client")
    context.minimum_version = context.maximum_version = version

    def visit(
        port: int, session: ssl.SSLSession | None
    ) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", port), WAIT_S) as plain,
            context.wrap_socket(
                plain, server_hostname="localhost", session=session
            ) as client,
        ):
            client.sendall(OPENING)
            assert client.recv(1)
            return client.session, client.session_reused

    async def scenario() -> None:
        files = {**tls.files, "client_ca": str(tls.folder / "ca.pem")}
        async with serving(tls=files) as server:
            session, _ = await asyncio.to_thread(visit, server.port, None)
            _, resumed = await asyncio.to_thread(visit, server.port, session)
            assert resumed is False

    run(scenario())


@pytest.mark.parametrize(
    ("name", "field"), [("server.pem", "certificate"), ("server.key", "key")]
)
def test_bad_files_at_the_start_are_named(
    run: Run, tls: Tls, name: str, field: str
) -> None:
    (tls.folder / name).write_text("garbage")

    async def scenario() -> None:
        listener = Listener(Methods({}, {}), GrpcConfig(tls=tls.files), now_ns)
        with pytest.raises(ValueError, match=rf"grpc.tls.{field}: .*{name} holds"):
            await listener.start(f"127.0.0.1:{free_port()}")

    run(scenario())

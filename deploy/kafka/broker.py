"""A real Kafka on this machine, for a trial and for tests: one node, or three.

Run it (``python deploy/kafka/broker.py --help``), or use `Cluster` as a context
manager. Needs Java 17 or later, and Maven for the first start, which fetches what
`pom.xml` names (44 MB) into a cache folder. Every node is broker and controller (KRaft)
in a JVM of its own that listens on 127.0.0.1 alone. Not for production: nodes that
share a disk and a processor live and die together.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
USER = "baton"
FETCH_TIMEOUT_S, START_TIMEOUT_S, STOP_TIMEOUT_S = 540.0, 60.0, 15.0
_MIN_JAVA = 17
_READY = "Kafka Server started"
"""KafkaRaftServer logs this once the controller has unfenced the broker."""
_PORTS = range(20_000, 32_000)
"""Below Linux' ephemeral ports: no connection takes the port of a node that is down."""


class KafkaUnavailable(RuntimeError):
    """Kafka cannot be had here; the message says what to install."""


class BrokerFailed(RuntimeError):
    """A node did not come up, or is gone; the message has the end of its log."""


@dataclass(frozen=True)
class Secured:
    """A way in with TLS (`ca`: PEM file) and SASL (PLAIN, SCRAM-SHA-256 and -512)."""

    bootstrap: str
    ca: Path
    username: str
    password: str


def find_java() -> Path:
    """Return the `java` of JAVA_HOME or PATH.

    Raises:
        KafkaUnavailable: There is none, or it is too old for Kafka 4.
    """
    cure = f"install Java {_MIN_JAVA} or later (Debian: openjdk-17-jre-headless)"
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if found is None:
        where = f"JAVA_HOME ({home})" if home else "PATH"
        raise KafkaUnavailable(f"no java in {where}: {cure}")
    said = _run([found, "-version"], "asking Java for its version")
    number = re.search(r'version "(\d+)', said)
    if number is None or int(number[1]) < _MIN_JAVA:
        raise KafkaUnavailable(f"{found} is too old: {cure}\n{said.strip()}")
    return Path(found)


def find_jars() -> Path:
    """Return a folder with exactly the jars of `jars.sha256`; fetch them if need be.

    It is kept in BATON_KAFKA_CACHE, or `baton` in the user's cache folder.

    Raises:
        KafkaUnavailable: Maven is missing or failed, or a jar is not the pinned one.
    """
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("BATON_KAFKA_CACHE") or Path(user, "baton")).absolute()
    folder = cache / f"kafka-{version()}"
    if not _differing(folder):
        return folder
    if (maven := shutil.which("mvn")) is None:
        cure = "install Maven (Debian: maven), which fetches Kafka's jars once"
        raise KafkaUnavailable(f"no mvn in PATH: {cure}, or bring them to {folder}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        fetched = Path(scratch, "jars")
        command = [maven, "-B", "-q", "--strict-checksums", "-f", str(HERE / "pom.xml")]
        command += ["dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        _run(command, f"fetching Kafka {version()}", FETCH_TIMEOUT_S)
        if wrong := _differing(fetched):
            raise KafkaUnavailable(f"not as jars.sha256 has them: {sorted(wrong)}")
        if _differing(folder):  # otherwise another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            fetched.rename(folder)
    return folder


def version() -> str:
    """Return the pinned version of Kafka."""
    jar = next(name for _, name in _pins() if name.startswith("kafka_2.13-"))
    return jar.removeprefix("kafka_2.13-").removesuffix(".jar")


def _pins() -> set[tuple[str, ...]]:
    lines = (HERE / "jars.sha256").read_text(encoding="ascii").splitlines()
    return {tuple(line.split()) for line in lines}


def _differing(folder: Path) -> set[str]:
    """Return the names of jars that are missing, too many, or not the pinned ones."""
    jars = folder.glob("*.jar")
    found = {(hashlib.sha256(jar.read_bytes()).hexdigest(), jar.name) for jar in jars}
    return {name for _, name in found ^ _pins()}


def _run(
    command: list[str],
    what: str,
    timeout_s: float = 60.0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end and return what it said."""
    try:
        said = subprocess.check_output(
            command, stderr=subprocess.STDOUT, timeout=timeout_s, cwd=cwd, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise KafkaUnavailable(f"{what} took more than {timeout_s:g} s") from error
    except subprocess.CalledProcessError as error:
        end = error.stdout[-2000:].decode(errors="replace").strip()
        raise KafkaUnavailable(f"{what}: {end}") from error
    return said.decode(errors="replace")


def _is_free(port: int) -> bool:
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return True
    return False


class Cluster:
    """Nodes 1 to `nodes`, which run from the start of the ``with`` block to its end.

    Args:
        data: Folder for data, logs and the certificate. One that an earlier cluster
            left goes on with its data, if `nodes` and `secure` are the same.
        nodes: 1 or 3.
        port: Of the first node; the others' follow, then those with TLS. None: any.
        secure: A second listener, with TLS and SASL.
        heap_mb: Java heap of each node; a JVM takes some 170 MB to begin with.
        properties: More lines for `server.properties`; they win.

    Raises:
        KafkaUnavailable: Java or Maven is missing.
        BrokerFailed: A port is taken, a node did not come up, or `data` does not fit.
    """

    def __init__(
        self,
        data: Path,
        *,
        nodes: int = 1,
        port: int | None = None,
        secure: bool = False,
        heap_mb: int = 256,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        if nodes not in (1, 3):
            raise ValueError(f"nodes: 1 or 3, not {nodes}")
        self._data = data.absolute()
        self._nodes = range(1, nodes + 1)
        self._secure = secure
        self._properties = dict(properties or {})
        self._java = [str(find_java()), "-Xms64m", f"-Xmx{heap_mb}m"]
        self._java += ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        self._java += [f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"]
        self._java += ["-cp", f"{find_jars()}/*"]
        free = list(islice(filter(_is_free, random.sample(_PORTS, 2000)), 3 * nodes))
        self._controllers, clients = free[:nodes], free[nodes:]
        if port is not None:
            clients = list(range(port, port + 2 * nodes))
        self._plain, self._tls = clients[:nodes], clients[nodes:] if secure else []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # The kernel kills a node when the thread that started it ends (pdeathsig).
        self._starter = ThreadPoolExecutor(1, "kafka-starter")

    def __enter__(self) -> Self:
        self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = self._identity()
        form = ["format", "-g", "-c", "server.properties", "-t", known["id"]]
        if self._secure:
            if not (self._data / "ca.pem").exists():
                self._make_certificate(known["password"])
            user = f"[name={USER},password={known['password']}]"
            for kind in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                form += ["--add-scram", f"{kind}={user}"]
        for node in self._nodes:
            (folder := self._folder(node)).mkdir(exist_ok=True)
            _write_secret(folder / "server.properties", self._config(node, known))
            if not (folder / "data" / "meta.properties").exists():
                tool = [*self._java, "kafka.tools.StorageTool", *form]
                _run(tool, "formatting the storage", cwd=folder)
        with contextlib.ExitStack() as unless_all_start:
            unless_all_start.push(self)
            self.start(*self._nodes)
            unless_all_start.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all nodes cleanly; who does not stop in time is killed."""
        for process in self._processes.values():
            process.terminate()
        give_up = time.monotonic() + STOP_TIMEOUT_S
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, give_up - time.monotonic()))
        self.kill(*self._nodes)
        self._starter.shutdown()

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers without TLS."""
        return ",".join(f"127.0.0.1:{port}" for port in self._plain)

    @property
    def secured(self) -> Secured:
        """The listener with TLS and SASL of a `secure` cluster."""
        assert self._secure, "the cluster was not asked to be secure"
        servers = ",".join(f"127.0.0.1:{port}" for port in self._tls)
        known = self._identity()
        return Secured(servers, self._data / "ca.pem", USER, known["password"])

    @property
    def pids(self) -> dict[int, int]:
        """The processes of the nodes that run."""
        return {n: p.pid for n, p in self._processes.items() if p.poll() is None}

    def kill(self, *nodes: int) -> None:
        """SIGKILL these nodes; returns when their processes are gone."""
        for node in nodes:
            if process := self._processes.get(node):
                process.kill()
                process.wait()

    def start(self, *nodes: int) -> None:
        """Start those of these nodes that do not run; returns when all serve."""
        give_up = time.monotonic() + START_TIMEOUT_S
        for node in nodes:
            if node not in self.pids:
                launched = self._starter.submit(self._launch, node)
                self._processes[node] = launched.result()
        for node in nodes:
            while _READY not in self._log(node, "console.log"):
                if node not in self.pids or time.monotonic() > give_up:
                    raise BrokerFailed(self._last_words(node, "did not come up"))
                time.sleep(0.02)

    def watch(self) -> None:
        """Return never; raise `BrokerFailed` when a node is gone."""
        while not (gone := set(self._nodes) - set(self.pids)):
            time.sleep(0.5)
        raise BrokerFailed(self._last_words(min(gone), "is gone"))

    def _folder(self, node: int) -> Path:
        return self._data / f"node-{node}"

    def _launch(self, node: int) -> subprocess.Popen[bytes]:
        for port in (self._plain[node - 1], *self._tls[node - 1 : node]):
            if not _is_free(port):
                raise BrokerFailed(f"port {port} is taken: choose another one")
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self._folder(node) / "console.log").open("wb") as console:
            return subprocess.Popen(
                [*guard, *self._java, "kafka.Kafka", "server.properties"],
                cwd=self._folder(node),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the starter, which stops it
            )

    def _log(self, node: int, name: str) -> str:
        log = self._folder(node) / name
        return log.read_text(errors="replace")[-20_000:] if log.exists() else ""

    def _last_words(self, node: int, what: str) -> str:
        """Return `what` happened and the end of the logs, without stack traces."""
        text = self._log(node, "broker.log") + self._log(node, "console.log")
        said = [line[:300] for line in text.splitlines() if not line.startswith("\tat")]
        title = f"node {node} {what}; from the logs in {self._folder(node)}:"
        return "\n  ".join([title, *said[-12:]])

    def _identity(self) -> dict[str, Any]:
        """Return id and password of the cluster, made with its folder."""
        asked = {"nodes": len(self._nodes), "secure": self._secure}
        file = self._data / "cluster.json"
        if not file.exists():
            # 16 bytes in URL-safe base64, as Kafka wants it; no dash, as its tools do.
            number = secrets.token_urlsafe(16).replace("-", "x")
            made = {"id": number, "password": secrets.token_hex(16)}
            _write_secret(file, json.dumps(asked | made))
        known: dict[str, Any] = json.loads(file.read_text())
        if any(known[key] != value for key, value in asked.items()):
            has = f"nodes: {known['nodes']}, secure: {known['secure']}"
            raise BrokerFailed(f"{self._data} has {has}: use it so, or another one")
        return known

    def _make_certificate(self, password: str) -> None:
        tool = [str(Path(self._java[0]).resolve().with_name("keytool"))]
        tool += ["-keystore", str(self._data / "broker.p12"), "-alias", "broker"]
        tool += ["-storepass:env", "STORE_PASSWORD"]
        make = ["-genkeypair", "-storetype", "PKCS12", "-keyalg", "EC", "-groupname"]
        make += ["secp256r1", "-dname", "CN=localhost", "-validity", "365"]
        make += ["-ext", "bc:c=ca:true", "-ext", "ku:c=digitalSignature,keyCertSign"]
        make += ["-ext", "san=dns:localhost,ip:127.0.0.1"]
        env = os.environ | {"STORE_PASSWORD": password}
        _run(tool + make, "making a certificate", env=env)
        pem = _run([*tool, "-exportcert", "-rfc"], "exporting it", env=env)
        (self._data / "ca.pem").write_text(pem)

    def _config(self, node: int, known: Mapping[str, Any]) -> str:
        """Return `server.properties` of a node."""
        local, voters = (
            "://127.0.0.1:",
            zip(self._nodes, self._controllers, strict=True),
        )
        clients = f"PLAINTEXT{local}{self._plain[node - 1]}"
        if self._secure:
            clients += f",SASL_SSL{local}{self._tls[node - 1]}"
        text = string.Template((HERE / "server.properties").read_text()).substitute(
            node=node,
            voters=",".join(f"{n}@127.0.0.1:{port}" for n, port in voters),
            clients=clients,
            controller=f"CONTROLLER{local}{self._controllers[node - 1]}",
            copies=len(self._nodes),
            in_sync=1 if len(self._nodes) == 1 else 2,
            user=USER,
            password=known["password"],
        )
        return text + "".join(f"{k}={v}\n" for k, v in self._properties.items())


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def main() -> None:
    """Run Kafka until a signal comes."""
    parser = argparse.ArgumentParser(description="A real Kafka for trials and tests.")
    add = parser.add_argument
    add("--nodes", type=int, choices=(1, 3), default=1)
    add("--port", type=int, default=9092, help="of the first node (default: 9092)")
    add("--data", type=Path, help="folder to keep (default: one that is removed)")
    add("--secure", action="store_true", help="with TLS and SASL on the next ports")
    add("--heap-mb", type=int, default=256, help="heap of each node (default: 256)")
    add("--property", action="append", default=[], help="more for server.properties")
    add("--fetch", action="store_true", help="only fetch what is not there yet")
    options = vars(parser.parse_args())
    options["properties"] = dict(x.partition("=")[::2] for x in options.pop("property"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as none:
        data = options.pop("data") or Path(none)
        try:
            print(f"Kafka {version()}: {find_java()}, {find_jars()}")
            if options.pop("fetch"):
                return
            with Cluster(data, **options) as kafka:
                print(f"Data in {data}; Ctrl-C stops it.")
                print(f"bootstrap servers: {kafka.bootstrap}")
                if options["secure"]:
                    for name, value in vars(kafka.secured).items():
                        print(f"with TLS and SASL, {name}: {value}")
                sys.stdout.flush()
                kafka.watch()
        except (KafkaUnavailable, BrokerFailed) as error:
            sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()

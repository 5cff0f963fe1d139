"""Suites that others wrote: each runs against one transport and counts its cases."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import grpc
from grpc_tools import protoc

from gateway.protocol import inference_pb2
from tests import onnx_models
from tests.certificates import HOST, Authority, Pair
from tests.conformance import grpcio_client
from tests.conformance.grpcio_client import Case, Seen
from tests.conformance.tools import GHZ, H2SPEC, INTEROP, Unavailable
from tests.gateway_process import free_port, gateway
from tests.protocol.served import add_model, floats
from tests.transports import gateway_settings
from tests.triton import test_tritonclient as triton

ROOT = Path(__file__).parents[2]
ORCA = {
    "loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}],
}
"""Policy of the interop client that keeps the load reports for its checks."""
INTEROP_CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "pick_first_unary",
    "rpc_soak",
    "channel_soak",
    "orca_per_rpc",
    "orca_oob",
)
CASE_TIMEOUT_S = 60
GHZ_CALLS = 2000
H2LOAD_CALLS = 20_000


@dataclass
class Result:
    """What came of one suite.

    Attributes:
        suite: Its name.
        version: Of the tool.
        passed: Cases that passed.
        total: Cases that ran; those a tool itself leaves out do not count.
        failures: One line for each case that failed.
        note: What a reader should know of the figures.
    """

    suite: str
    version: str
    passed: int = 0
    total: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    def add(self, case: str, *, fault: str = "") -> None:
        """Count one case; `fault` says what is wrong with it, if anything."""
        self.total += 1
        if fault:
            self.failures.append(f"{case}: {fault}")
        else:
            self.passed += 1

    def line(self) -> str:
        """Return it in one line."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.suite} {self.version}: {self.passed}/{self.total} passed{note}"


@contextmanager
def interop_server(transport: str, **config: Any) -> Iterator[int]:
    """Run the interoperability service in a process of its own; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "tests.conformance.interop_server"]
    command += ["--transport", transport, "--port", str(port)]
    command += ["--config", json.dumps(config)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "listening\n", "it did not start"
            yield port
            assert process.poll() is None, "the server died"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def run(
    command: list[str | Path], timeout_s: float = CASE_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run a tool; one that hangs has failed like any other."""
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(
            command, 124, "", f"no end within {timeout_s} s"
        )


def last_line(ran: subprocess.CompletedProcess[str]) -> str:
    """Return the last line a tool printed, errors first."""
    lines = (ran.stdout + ran.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit code {ran.returncode}"


def _interop(result: Result, port: int, *more: str | Path) -> Result:
    """Run cases of grpc-go's client against a server."""
    client = INTEROP.path()
    for case in INTEROP_CASES:
        command: list[str | Path] = [client, "--server_host", "127.0.0.1", *more]
        command += ["--server_port", str(port), "--test_case", case]
        if case.startswith("orca"):
            command += ["--service_config_json", json.dumps(ORCA)]
        ran = run(command)
        result.add(case, fault=last_line(ran) if ran.returncode else "")
    return result


def interop(transport: str) -> Result:
    """Run every case of grpc-go's interoperability client that needs no account."""
    INTEROP.path()
    with interop_server(transport) as port:
        return _interop(Result("grpc-go interop client", INTEROP.version), port)


def interop_tls(transport: str) -> Result:
    """Run the same cases over TLS."""
    INTEROP.path()
    with tempfile.TemporaryDirectory(prefix="baton-tls-") as name:
        authority = Authority(Path(name))
        flags = ["--use_tls", "--use_test_ca", "--ca_file", authority.certificate]
        flags += ["--server_host_override", HOST]
        result = Result("grpc-go interop client, TLS", INTEROP.version)
        with interop_server(transport, tls=_tls(authority.pair(HOST))) as port:
            return _interop(result, port, *flags)


def _tls(pair: Pair, client_ca: Path | None = None) -> dict[str, str]:
    """Return the ``grpc.tls`` section."""
    section = {"certificate": str(pair.certificate), "key": str(pair.key)}
    return section | ({"client_ca": str(client_ca)} if client_ca else {})


def _credentials(ca: Path, pair: Pair | None) -> grpc.ChannelCredentials:
    key = pair.key.read_bytes() if pair else None
    certificate = pair.certificate.read_bytes() if pair else None
    return grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate)


def _grpcio(
    transport: str,
    result: Result,
    calls: Callable[[str, grpc.ChannelCredentials | None, list[Case]], list[Seen]],
) -> Result:
    """Run grpcio's cases in clear text, over TLS, and with client certificates."""
    asked = grpcio_client.cases()
    empty = asked[:1]

    def check(how: str, port: int, credentials: grpc.ChannelCredentials | None) -> None:
        seen = calls(f"127.0.0.1:{port}", credentials, asked)
        for case, found in zip(asked, seen, strict=True):
            fault = grpcio_client.fault(case, found)
            result.add(f"{how} {case.name}", fault=fault)

    with tempfile.TemporaryDirectory(prefix="baton-tls-") as name:
        authority = Authority(Path(name))
        ca, server = authority.certificate, authority.pair(HOST)
        client = authority.pair("client")
        stranger = Authority(Path(name), "other").pair("stranger")
        with interop_server(transport) as port:
            check("clear text", port, None)
        with interop_server(transport, tls=_tls(server)) as port:
            check("TLS", port, _credentials(ca, None))
        with interop_server(transport, tls=_tls(server, ca)) as port:
            check("mTLS", port, _credentials(ca, client))
            for who, pair in (("nobody", None), ("a stranger", stranger)):
                address = f"127.0.0.1:{port}"
                (seen,) = calls(address, _credentials(ca, pair), empty)
                refused = seen.code == grpc.StatusCode.UNAVAILABLE
                fault = "" if refused else f"{seen.code.name} {seen.details}"
                result.add(f"mTLS refuses {who}", fault=fault)
    return result


def grpcio_sync(transport: str) -> Result:
    """Run the interoperability cases with grpcio's blocking client."""

    def calls(
        address: str, credentials: grpc.ChannelCredentials | None, asked: list[Case]
    ) -> list[Seen]:
        with (
            grpc.secure_channel(address, credentials)
            if credentials
            else grpc.insecure_channel(address)
        ) as channel:
            return [grpcio_client.call_sync(channel, case) for case in asked]

    return _grpcio(transport, Result("grpcio, blocking", grpc.__version__), calls)


def grpcio_aio(transport: str) -> Result:
    """Run the interoperability cases with grpcio's asyncio client."""

    async def make(
        address: str, credentials: grpc.ChannelCredentials | None, asked: list[Case]
    ) -> list[Seen]:
        async with (
            grpc.aio.secure_channel(address, credentials)
            if credentials
            else grpc.aio.insecure_channel(address)
        ) as channel:
            return [await grpcio_client.call_aio(channel, case) for case in asked]

    def calls(*how: Any) -> list[Seen]:
        return asyncio.run(make(*how))

    return _grpcio(transport, Result("grpcio, asyncio", grpc.__version__), calls)


def h2spec(transport: str) -> Result:
    """Run all of h2spec, the strict cases included."""
    program = H2SPEC.path()
    result = Result("h2spec -S", H2SPEC.version)
    with (
        tempfile.TemporaryDirectory(prefix="baton-h2spec-") as folder,
        interop_server(transport) as port,
    ):
        report = Path(folder) / "report.xml"
        command = [program, "-S", "-h", "127.0.0.1", "-p", str(port), "-o", "2"]
        # The case of a HEADERS frame larger than SETTINGS_MAX_FRAME_SIZE sends five
        # headers of this length. With the default, 4000, they fit the frames that we
        # announce (1 MiB), and are no more than too much metadata for one call; these
        # are more than a header block may have, also with Huffman's code.
        command += ["--max-header-length", "30000"]
        ran = run([*command, "-j", report], 240)
        if not report.exists():
            result.add("all", fault=last_line(ran))
            return result
        skipped = 0
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('package')} {case.get('classname')}"
            if case.find("skipped") is not None:
                skipped += 1
                continue
            wrong = case.find("failure")
            if wrong is None:
                wrong = case.find("error")
            text = "" if wrong is None else " ".join((wrong.text or "failed").split())
            if "Connection closed" in text and "connection reset by peer" in text:
                text = ""  # closed while more was on its way, which TCP calls reset
            result.add(name, fault=text)
    result.note = f"{skipped} skipped by h2spec itself" if skipped else ""
    return result


def ghz(transport: str) -> Result:
    """Let ghz call ModelInfer of a whole gateway, with deadlines."""
    program = GHZ.path()
    result = Result("ghz ModelInfer", GHZ.version)
    with tempfile.TemporaryDirectory(prefix="baton-ghz-") as name:
        folder = Path(name)
        add_model(folder / "models", "numbers", onnx_models.identity("FP32"))
        protos, request = folder / "protos.set", folder / "request"
        code = protoc.main(
            [
                "protoc",
                f"-Igateway/protocol={ROOT / 'protos'}",
                f"--descriptor_set_out={protos}",
                "--include_imports",
                inference_pb2.DESCRIPTOR.name,
            ]
        )
        assert code == 0
        request.write_bytes(floats("numbers", [[1, 2]], id="ghz").SerializeToString())
        settings = gateway_settings(transport)
        with gateway(folder / "models", grpc=settings) as running:
            command = [program, "--insecure", "--protoset", protos]
            command += ["--call", "inference.GRPCInferenceService.ModelInfer"]
            command += ["-n", str(GHZ_CALLS), "-c", "16", "-t", "5s", "-O", "json"]
            ran = run([*command, "-B", request, running.address])
    try:
        codes = json.loads(ran.stdout)["statusCodeDistribution"]
    except ValueError:
        codes = {last_line(ran): GHZ_CALLS}
    result.total, result.passed = GHZ_CALLS, codes.pop("OK", 0)
    result.failures = [f"{count} calls: {code}" for code, count in codes.items()]
    if result.passed != GHZ_CALLS and not codes:
        result.failures.append(f"{GHZ_CALLS - result.passed} calls had no outcome")
    return result


def h2load(transport: str) -> Result:
    """Let nghttp2's h2load make unary calls; each must be answered with 200."""
    program = shutil.which("h2load")
    if program is None:
        raise Unavailable("there is no h2load (Debian: nghttp2-client) on the PATH")
    version = run([program, "--version"]).stdout.strip().rpartition("/")[2]
    result = Result("h2load EmptyCall", version, total=H2LOAD_CALLS)
    with (
        tempfile.NamedTemporaryFile(prefix="baton-h2load-") as body,
        interop_server(transport) as port,
    ):
        body.write(bytes(5))  # an empty message, not compressed
        body.flush()
        url = f"http://127.0.0.1:{port}/grpc.testing.TestService/EmptyCall"
        command = [program, "-n", str(H2LOAD_CALLS), "-c", "4", "-m", "16"]
        command += ["-d", body.name, "-H", "te: trailers"]
        ran = run([*command, "-H", "content-type: application/grpc", url])
    found = re.search(r"^status codes: (\d+) 2xx", ran.stdout, re.MULTILINE)
    answered = re.search(r" (\d+) succeeded, ", ran.stdout)
    if found and answered:
        result.passed = min(int(found[1]), int(answered[1]))
    if result.passed != H2LOAD_CALLS:
        result.failures.append(" ".join(ran.stdout.split())[-400:] or last_line(ran))
    return result


def tritonclient(transport: str) -> Result:
    """Run the suite that drives a gateway with the unmodified tritonclient."""
    try:
        python = triton.environment()
    except AssertionError as error:
        last = str(error).strip().splitlines()[-1:]
        raise Unavailable(f"its environment does not build: {last}") from None
    pins = (triton.HERE / "requirements.txt").read_text(encoding="utf-8")
    version = re.search(r"^tritonclient\S*==(\S+)", pins, re.MULTILINE)
    result = Result("tritonclient", version[1] if version else "?")
    with tempfile.TemporaryDirectory(prefix="baton-triton-") as name:
        folder = Path(name)
        triton.write_models(folder / "models")
        model = folder / "model.onnx"
        model.write_bytes(triton.negation(2))
        with gateway(
            folder / "models",
            grpc=gateway_settings(transport),
            workers={"hang_timeout_ms": 60_000},
        ) as running:
            suite = [python, triton.HERE / "suite.py", running.address, model]
            ran = run(suite, triton.SUITE_TIMEOUT_S)
    counts = re.search(r"(\d+) passed, (\d+) failed\s*$", ran.stdout)
    if counts is None:
        result.add("all", fault=last_line(ran))
    else:
        result.passed = int(counts[1])
        result.total = result.passed + int(counts[2])
        if ran.returncode or result.passed != result.total:
            result.failures.append(ran.stdout[-2000:])
    return result


SUITES: dict[str, Callable[[str], Result]] = {
    "interop": interop,
    "interop_tls": interop_tls,
    "grpcio_sync": grpcio_sync,
    "grpcio_aio": grpcio_aio,
    "h2spec": h2spec,
    "ghz": ghz,
    "h2load": h2load,
    "tritonclient": tritonclient,
}

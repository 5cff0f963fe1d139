"""A model of several versions behind a real gateway, and its admin plane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from gateway.admin_client import AdminClient
from gateway.client_rpc import ClientError
from gateway.errors import Code
from gateway.protocol import admin_pb2 as admin
from gateway.protocol import inference_pb2 as pb
from tests.gateway_process import SERVICE, GatewayProcess, gateway, wait_for
from tests.versions import answer, ask, says

MODEL = "m"
_GONE = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN}
Metadata = Sequence[tuple[str, str]]


def arms(shares: dict[int, float]) -> list[dict[str, Any]]:
    """Return arms as JSON values; the first one is the champion."""
    return [
        {
            "version": version,
            "role": "challenger" if place else "champion",
            "share": share,
        }
        for place, (version, share) in enumerate(shares.items())
    ]


def table(shares: dict[int, float], kind: str = "fixed", **more: Any) -> dict[str, Any]:
    """Return a traffic table as JSON values; `more` are its other fields."""
    policy = {"kind": kind, **more.pop("policy", {})}
    return {"arms": arms(shares), "policy": policy, **more}


class Served:
    """A gateway, the client of its admin plane, and requests to one model."""

    def __init__(self, running: GatewayProcess) -> None:
        self.running = running
        self.state = Path(running.config["state_dir"])
        self.registry = self.state / "registry" / "registry.sqlite"
        self.address = f"unix:{self.state}/admin.sock"
        self.admin = AdminClient(self.address, timeout_s=60)

    def change(self, reason: str = "test", **more: Any) -> admin.Change:
        """Return what a change of the model says about itself."""
        actor = more.pop("actor", "")
        change = self.admin.change(more.pop("model", MODEL), reason, **more)
        if actor:
            change.actor = actor
        return change

    def set(self, shares: dict[int, float], kind: str = "fixed", **more: Any) -> Any:
        """Put a table in force; return the response."""
        return self.admin.set_traffic(self.change(), table(shares, kind, **more))

    def take_in(self, name: str, content: bytes, **more: Any) -> Any:
        """Import a version from a file of that name; return the response."""
        path = self.state.parent / f"{name}.onnx"
        path.write_bytes(content)
        return self.admin.import_(self.change(**more), str(path), {})

    def shown(self) -> dict[str, Any]:
        """Return the table in force, what was learnt, and what was counted."""
        return self.admin.traffic(MODEL)[0]

    def said(
        self,
        version: str = "",
        metadata: Metadata = (),
        *,
        model: str = MODEL,
        **more: str,
    ) -> float:
        """Return the number in one answer; `more` are parameters of the request."""
        return next(self.all_said([ask(model, version, **more)], metadata))

    def all_said(
        self, requests: Iterable[pb.ModelInferRequest], metadata: Metadata = ()
    ) -> Iterator[float]:
        """Yield the number in the answer to each unary request."""
        rpc = self.running.channel.unary_unary(
            SERVICE + "ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        calls: list[Any] = []
        for request in requests:
            calls.append(rpc.future(request, timeout=30, metadata=tuple(metadata)))
            if len(calls) >= 64:
                yield from (answer(call.result()) for call in calls)
                calls.clear()
        yield from (answer(call.result()) for call in calls)

    def drawn(self, count: int, **parameters: str) -> Counter[float]:
        """Return what unary requests were answered."""
        return Counter(self.all_said([ask(MODEL, **parameters)] * count))

    def streamed(
        self, requests: Iterable[pb.ModelInferRequest], metadata: Metadata = ()
    ) -> list[float]:
        """Return the numbers in the answers of a stream."""
        rpc = self.running.channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        found = []
        for response in rpc(iter(requests), timeout=30, metadata=tuple(metadata)):
            assert not response.error_message
            found.append(answer(response.infer_response))
        return found

    def admin_is_up(self) -> bool:
        """Return whether the controller answers."""
        with AdminClient(self.address, timeout_s=2) as client:
            try:
                client.show()
            except ClientError as error:
                # UNKNOWN: it was killed while it was asked.
                if error.code not in _GONE:
                    raise
                return False
        return True


@contextmanager
def serving(
    folder: Path, *, versions: Sequence[int] = (1, 2, 3), **settings: Any
) -> Iterator[Served]:
    """Serve versions that say their number; 1 is the champion until told otherwise.

    Args:
        folder: For a model repository, which stays empty.
        versions: To import.
        settings: See `gateway`.
    """
    with gateway(folder, **settings) as running:
        served = Served(running)
        with served.admin:
            wait_for(served.admin_is_up)
            for version in versions:
                served.take_in(str(version), says(version))
            yield served


def code_of(error: grpc.RpcError) -> str:
    """Return the name of the status that a call ended with."""
    return str(error.code().name)

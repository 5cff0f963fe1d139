"""Both transports, in front of the same handlers and of the same models."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests import onnx_models
from tests.differential.seam import Side, both_sides
from tests.gateway_process import GatewayProcess, gateway
from tests.protocol.served import (
    ALL,
    FREE,
    MAX_MESSAGE_BYTES,
    WEIGHTED,
    add_model,
    negation,
)


@pytest.fixture(scope="session")
def sides() -> Iterator[tuple[Side, Side]]:
    with both_sides() as served:
        yield served


@pytest.fixture(scope="session")
def gateways(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two of ``baton serve`` over one repository: own, grpcio."""
    root = tmp_path_factory.mktemp("models")
    identity = onnx_models.identity
    add_model(root, "numbers", {1: identity("FP32"), 2: negation(2)}, ALL)
    add_model(root, "texts", identity("BYTES", ("N", "length")))
    add_model(root, "small", identity("INT8"))
    add_model(root, "pair", onnx_models.two_by_two())
    add_model(root, "free", identity("FP32", ("A", "B")), FREE)
    add_model(root, "fixed", onnx_models.no_batch_axis())
    add_model(root, "weighted", onnx_models.with_default(), WEIGHTED)
    add_model(root, "divides", onnx_models.divides())
    add_model(root, "slow", onnx_models.loops())
    add_model(root, "broken", b"this is no model")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        served = [
            stack.enter_context(
                gateway(
                    root,
                    grpc={"transport": name, "max_message_bytes": MAX_MESSAGE_BYTES},
                    workers={"hang_timeout_ms": 60_000},
                )
            )
            for name in ("own", "grpcio")
        ]
        yield served[0], served[1]
        list(pool.map(GatewayProcess.stop, served))

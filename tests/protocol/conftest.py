"""One gateway for every test of the wire contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway_process import GatewayProcess, gateway
from tests.protocol.served import MAX_MESSAGE_BYTES, metric, write_repository


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Serve the models of `tests.protocol.served`; tests leave all of them loaded."""
    repository = tmp_path_factory.mktemp("protocol-models")
    write_repository(repository)
    with gateway(
        repository,
        grpc={"max_message_bytes": MAX_MESSAGE_BYTES},
        workers={"hang_timeout_ms": 60_000},
    ) as running:
        yield running
        assert metric(running, "baton_process_deaths_total") == 0, running.log_text()

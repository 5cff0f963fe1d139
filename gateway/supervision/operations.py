"""What fronts and the controller may ask of the supervisor."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from gateway.errors import GatewayError
from gateway.logs import get_logger
from gateway.registry.lifecycle import Lifecycle
from gateway.registry.repository import Repository
from gateway.supervision.fleet import Fleet, Operation
from gateway.traffic.table import MODEL_TRAFFIC, WEIGHTS

_log = get_logger("operations")


def operations(
    lifecycle: Lifecycle, repository: Repository, fleet: Fleet
) -> dict[str, Operation]:
    """Return the operations by name; arguments and results are JSON values."""
    return {**_of_models(lifecycle, repository), **_of_fronts(fleet)}


def _of_models(lifecycle: Lifecycle, repository: Repository) -> dict[str, Operation]:
    async def load(message: dict[str, Any]) -> dict[str, Any]:
        files = {
            name: base64.b64decode(content)
            for name, content in message["files"].items()
        }
        try:
            if files or message["config"] is not None:
                repository.check_free(message["model"])
            await lifecycle.load(message["model"], message["config"], files)
        except GatewayError as error:
            _log.error("load_failed", model=message["model"], reason=error.message)
            raise
        return {}

    async def unload(message: dict[str, Any]) -> dict[str, Any]:
        repository.check_free(message["model"])
        await lifecycle.unload(message["model"])
        _log.info("model_unloaded", model=message["model"])
        return {}

    async def index(_message: dict[str, Any]) -> dict[str, Any]:
        return {"models": await asyncio.to_thread(lifecycle.index)}

    async def ready(message: dict[str, Any]) -> dict[str, Any]:
        return lifecycle.ready(message["model"])

    return {"load": load, "unload": unload, "index": index, "ready": ready}


def _of_fronts(fleet: Fleet) -> dict[str, Operation]:
    async def serving(_message: dict[str, Any]) -> dict[str, Any]:
        return {"models": await fleet.fronts.serving()}

    async def statistics(_message: dict[str, Any]) -> dict[str, Any]:
        await fleet.fronts.refresh_counters()
        return {"versions": fleet.fronts.counters.versions()}

    async def traffic(message: dict[str, Any]) -> dict[str, Any]:
        table = MODEL_TRAFFIC.validate_python(message["traffic"])
        those = message["weights"] and WEIGHTS.validate_python(message["weights"])
        fronts = await fleet.fronts.set_traffic(message["model"], table, those)
        return {"fronts": fronts}

    async def weights(message: dict[str, Any]) -> dict[str, Any]:
        those = WEIGHTS.validate_python(message["weights"])
        fleet.fronts.set_weights(message["model"], those)
        return {}

    async def arms(message: dict[str, Any]) -> dict[str, Any]:
        if message["fresh"]:
            await fleet.fronts.refresh_counters()
        counters = fleet.fronts.counters
        return {
            "arms": counters.arms(),
            "ruled": counters.ruled(),
            "shadows": counters.shadows(),
        }

    async def decisions(message: dict[str, Any]) -> dict[str, Any]:
        found = await fleet.fronts.decisions(message["model"], message["limit"])
        return {"decisions": found}

    return {
        "serving": serving,
        "statistics": statistics,
        "traffic": traffic,
        "weights": weights,
        "arms": arms,
        "decisions": decisions,
    }

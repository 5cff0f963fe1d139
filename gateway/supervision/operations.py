"""What fronts may ask of the supervisor on behalf of their clients."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from gateway.errors import GatewayError
from gateway.logs import get_logger
from gateway.registry.lifecycle import Lifecycle
from gateway.supervision.fleet import Fleet, Operation

_log = get_logger("operations")


def operations(lifecycle: Lifecycle, fleet: Fleet) -> dict[str, Operation]:
    """Return the operations by name; arguments and results are JSON values."""

    async def load(message: dict[str, Any]) -> dict[str, Any]:
        files = {
            name: base64.b64decode(content)
            for name, content in message["files"].items()
        }
        try:
            await lifecycle.load(message["model"], message["config"], files)
        except GatewayError as error:
            _log.error("load_failed", model=message["model"], reason=error.message)
            raise
        return {}

    async def unload(message: dict[str, Any]) -> dict[str, Any]:
        await lifecycle.unload(message["model"])
        _log.info("model_unloaded", model=message["model"])
        return {}

    async def index(_message: dict[str, Any]) -> dict[str, Any]:
        return {"models": await asyncio.to_thread(lifecycle.index)}

    async def statistics(_message: dict[str, Any]) -> dict[str, Any]:
        await fleet.refresh_counters()
        return {"versions": fleet.counters.versions()}

    return {"load": load, "unload": unload, "index": index, "statistics": statistics}

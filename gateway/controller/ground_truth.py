"""Ground truth in the controller: predictions and labels in, joined, and reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gateway.config import Config
from gateway.controller import outcomes
from gateway.controller.recording import Recording
from gateway.feedback.joiner import Joiner
from gateway.feedback.log import EventLog
from gateway.logs import get_logger
from gateway.transport.listener import Listener

_log = get_logger("ground_truth")

FOLDER = "joins"
"""Of the shards, in `state_dir`."""
_GRACE_S = 5.0
_PERIOD_S = 1.0
"""Between reports to the supervisor, which has the metrics."""


class GroundTruth:
    """Runs from the moment it is made until it is stopped.

    Args:
        config: The gateway's configuration.
        tell: Sends the supervisor a message.
    """

    def __init__(self, config: Config, tell: Callable[[dict[str, Any]], None]) -> None:
        self._config = config
        self._tell = tell
        self._recording = Recording(config)
        self._listener: Listener | None = None
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        log = await asyncio.shield(self._recording.log)
        config = self._config
        joiner = Joiner(log, config.state_dir / FOLDER, config.feedback)
        joining = asyncio.get_running_loop().create_task(joiner.run())
        try:
            await self._serve(log, joiner)
            while True:
                self._tell({"op": "joined", "health": joiner.health.snapshot()})
                await asyncio.sleep(_PERIOD_S)
        finally:
            joining.cancel()
            with suppress(asyncio.CancelledError):
                await joining

    async def _serve(self, log: EventLog, joiner: Joiner) -> None:
        try:
            self._listener = await outcomes.start(log, joiner, self._config)
        except OSError as error:  # labels may still come through Kafka
            _log.error("outcomes_not_served", reason=str(error), see="feedback.port")

    async def stop(self) -> None:
        """Join and take in no more; what was sent by fronts is in the log."""
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        if self._listener is not None:
            await self._listener.stop(_GRACE_S)
        await self._recording.stop()

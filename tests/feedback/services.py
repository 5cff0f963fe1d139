"""The Outcomes and EventLog services on a loop of their own, for commands to call."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.config import Config
from gateway.controller.outcomes import SOCKET, start
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.joiner import Joiner
from gateway.feedback.log_file import LogFile
from gateway.feedback_config import FeedbackConfig

_T = TypeVar("_T")


class Gateway:
    """The services, on a loop of their own.

    Attributes:
        ahead_ms: Of the joiner's clock.
    """

    def __init__(
        self,
        folder: Path,
        feedback: FeedbackConfig = FeedbackConfig(partitions=2),  # noqa: B008 - frozen
        *,
        joins: bool = False,
    ) -> None:
        self.folder = folder
        self.feedback = feedback
        self.ahead_ms = 0
        self._joins = joins
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.run(self._start())

    def configure(self, **feedback: object) -> None:
        """Start both services anew, with other settings."""
        self.run(self._stop())
        changed = {"partitions": 2, **feedback}
        self.feedback = FeedbackConfig.model_validate(changed)
        self.run(self._start())

    async def _start(self) -> None:
        self.log = EmbeddedLog(LogFile(self.folder / "log.sqlite", 2))
        config = Config(state_dir=self.folder, feedback=self.feedback)
        joiner = Joiner(
            self.log, self.folder / "joins", self.feedback, now_ms=self.now_ms
        )
        self._joining = asyncio.create_task(joiner.run()) if self._joins else None
        self._listener = await start(self.log, joiner, config)

    async def _stop(self) -> None:
        await self._listener.stop(1)
        if self._joining is not None:
            self._joining.cancel()
            with suppress(asyncio.CancelledError):
                await self._joining
        await self.log.close()

    def now_ms(self) -> int:
        """Return the time by the joiner's clock."""
        return time.time_ns() // 1_000_000 + self.ahead_ms

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run on the loop of the services."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self) -> None:
        """End both services and the loop."""
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def baton(self, *words: str, given: str | None = None) -> Result:
        """Run a command."""
        env = {"BATON_OUTCOMES_ADDRESS": f"unix:{self.folder / SOCKET}"}
        return CliRunner().invoke(app, words, input=given, env=env)


def exported(gateway: Gateway, topic: str) -> list[dict[str, Any]]:
    """Return what `baton log export` writes."""
    file = gateway.folder / "out.jsonl"
    result = gateway.baton("log", "export", topic, str(file))
    assert not file.with_name("out.jsonl.part").exists()
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in file.read_text().splitlines()]

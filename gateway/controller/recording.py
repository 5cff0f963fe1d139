"""The event log in the controller: opens it, fills it from the fronts, trims it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path

from gateway.config import Config
from gateway.errors import GatewayError
from gateway.feedback.embedded import EmbeddedLog
from gateway.feedback.frames import SOCKET
from gateway.feedback.kafka import KafkaLog
from gateway.feedback.log import EventLog
from gateway.feedback.log_file import FILE, FOLDER, Limits, LogFile
from gateway.feedback.receiver import Receiver
from gateway.logs import get_logger
from gateway.transport.sockets import bind_unix

_log = get_logger("recording")

_RETRY_S = 5.0
_TRIM_PERIOD_S = 60.0


class Recording:
    """Has blocks from fronts appended to the event log, while it runs.

    Args:
        config: The gateway's configuration.

    Attributes:
        log: The event log, once it could be opened.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.log: asyncio.Future[EventLog] = asyncio.get_running_loop().create_future()
        self._receiver: Receiver | None = None
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        feedback = self._config.feedback
        log = await self._opened()
        try:
            self._receiver = await self._listening(log)
        except BaseException:
            await log.close()
            raise
        _log.info("recording", kafka=feedback.kafka is not None)
        self.log.set_result(log)
        limits = Limits(feedback.retention_h * 3_600_000, feedback.max_log_bytes)
        while isinstance(log, EmbeddedLog):
            try:
                await log.run(partial(log.file.expire, limits))
            except GatewayError as error:
                _log.error("event_log_not_trimmed", reason=error.message)
            except Exception:  # the edge: it may fit again next time
                _log.exception("event_log_not_trimmed")
            await asyncio.sleep(_TRIM_PERIOD_S)

    async def _opened(self) -> EventLog:
        """Return the log; tries until it can be opened, and fronts wait meanwhile."""
        while True:
            try:
                return await open_log(self._config)
            except (GatewayError, OSError) as error:
                reason = error.message if isinstance(error, GatewayError) else error
                _log.error("event_log_unusable", reason=str(reason))
            except Exception:  # the edge: a task that ends silently records nothing
                _log.exception("event_log_unusable")
            await asyncio.sleep(_RETRY_S)

    async def _listening(self, log: EventLog) -> Receiver:
        """Return what fronts connect to; tries until its socket can be bound."""
        path = self._config.state_dir / SOCKET
        receiver = Receiver(log)
        while True:
            try:
                await receiver.start(bind_unix(path, private=True))
            except OSError as error:
                _log.error(
                    "predictions_not_taken",
                    reason=str(error),
                    path=str(path),
                    fix="free the path, or make state_dir writable; fronts keep "
                    "predictions meanwhile, up to feedback.ring_bytes",
                )
            else:
                return receiver
            await asyncio.sleep(_RETRY_S)

    async def stop(self) -> None:
        """Take what fronts have sent, and close the log."""
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        if self._receiver is not None:
            await self._receiver.stop()
        if self.log.done():
            await self.log.result().close()


async def open_log(config: Config) -> EventLog:
    """Return the event log that is configured.

    Raises:
        GatewayError: Kafka's topics are unfit or cannot be reached, or the file
            cannot be used.
        OSError: Likewise.
    """
    feedback = config.feedback
    if feedback.kafka is not None:
        return await KafkaLog.open(feedback.kafka, feedback.partitions)
    folder = config.state_dir / FOLDER
    return EmbeddedLog(await asyncio.to_thread(_file, folder, feedback.partitions))


def _file(folder: Path, partitions: int) -> LogFile:
    folder.mkdir(parents=True, exist_ok=True)
    return LogFile(folder / FILE, partitions)

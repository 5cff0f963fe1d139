"""A joiner in a process of its own, to be killed: ``python -m ... CONFIG FOLDER``."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from gateway.feedback.joiner import Joiner
from gateway.feedback.kafka import KafkaLog
from gateway.feedback_config import FeedbackConfig
from gateway.logs import configure


async def run(config: FeedbackConfig, folder: Path) -> None:
    assert config.kafka is not None
    log = await KafkaLog.open(config.kafka, config.partitions)
    joiner = Joiner(log, folder, config)
    joining = asyncio.get_running_loop().create_task(joiner.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, joining.cancel)
    await asyncio.wait((joining,))
    await log.close()


if __name__ == "__main__":
    configure("info", "text", "joiner")
    uvloop.run(run(FeedbackConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])))

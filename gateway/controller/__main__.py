"""``python -m gateway.controller``: started by the supervisor."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from gateway.config import Config
from gateway.controller.process import Controller
from gateway.logs import configure
from workers.process import die_with_parent


def main() -> None:
    """Parse the supervisor's arguments and run the controller."""
    parser = argparse.ArgumentParser(prog="python -m gateway.controller")
    parser.add_argument("--config", required=True, type=Path, help="configuration")
    parser.add_argument("--control", required=True, help="the supervisor's socket")
    parser.add_argument("--parent", required=True, type=int, help="supervisor's pid")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    config = Config.model_validate_json(arguments.config.read_text())
    configure(config.log.level, config.log.format, "controller")
    sys.exit(uvloop.run(Controller(config).run(arguments.control)))


if __name__ == "__main__":
    main()

"""Entry of a worker process: ``python -m workers``, started by the supervisor."""

from __future__ import annotations

import argparse
import os

from workers import session
from workers.loop import WorkerLoop, connect_control, listen
from workers.process import die_with_parent, run_when_idle


def main() -> None:
    """Parse the supervisor's arguments, connect, and serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m workers")
    parser.add_argument("--control", required=True, help="the supervisor's socket")
    parser.add_argument("--listen", required=True, help="socket for the fronts")
    parser.add_argument("--worker", required=True, type=int, help="number")
    parser.add_argument("--parent", required=True, type=int, help="supervisor's pid")
    parser.add_argument("--idle", action="store_true", help="run when nobody else does")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    if arguments.idle:
        run_when_idle()
    listener = listen(arguments.listen)
    hello = {
        "role": "worker",
        "index": arguments.worker,
        "pid": os.getpid(),
        "path": arguments.listen,
    }
    control = connect_control(arguments.control, hello)
    WorkerLoop(listener, control, session.open_version).run()


if __name__ == "__main__":
    main()

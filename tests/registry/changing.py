"""Changes a registry until it is killed: python -m tests.registry.changing FILE SEED.

Each change that was acknowledged is a line on standard output: seq and hash.
"""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

from gateway.errors import GatewayError
from gateway.registry.records import Change
from gateway.registry.registry import Registry

from .registries import by, candidate, split


def main(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    registry = Registry(path)
    while True:
        change: Change = by(reason=f"change {draw.random()}")
        version = draw.randint(1, 9)
        share = draw.choice([0.1, 0.5, 0.9])
        work = draw.choice(
            [
                partial(registry.import_versions, "m", [candidate(str(seed))]),
                partial(registry.set_alias, "m", "champion", version),
                partial(registry.set_traffic, "m", split(share, 1 - share)),
                partial(registry.rollback, "m"),
                partial(registry.freeze, "m", draw.random() < 0.5),
            ]
        )
        try:
            done = work(change)
        except GatewayError:
            continue
        sys.stdout.write(f"{done.seq} {done.hash}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Children that are told to stop: which of them left as they should."""

from __future__ import annotations

import sys

import pytest

from gateway.supervision.children import Children
from tests.adversity.harness import until

_LEAVES = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
print("up", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("code", "failed"), [(0, []), (1, ["front-0"])])
async def test_a_child_that_leaves_with_an_error_is_reported(
    code: int, failed: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    children = Children(0.1, 0.1, give_up=pytest.fail)
    script = _LEAVES.format(code=code)
    children.start("front-0", lambda: [sys.executable, "-c", script])
    await until(lambda: "up" in capfd.readouterr().out)
    assert await children.stop("front", 10.0) == failed


async def test_a_child_stopped_before_it_could_do_anything_has_not_failed() -> None:
    children = Children(0.1, 0.1, give_up=pytest.fail)
    children.start("front-0", lambda: ["sleep", "60"])
    await until(children.running)
    assert await children.stop("front", 10.0) == []

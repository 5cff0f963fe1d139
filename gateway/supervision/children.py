"""Child processes: spawned, watched, started again with growing pauses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.logs import get_logger

_log = get_logger("children")

_QUIET_S = 60.0
"""A child that lived this long starts over with the shortest pause."""
_MAX_STILLBORN = 5
"""Deaths in a row of a child that was never healthy before the gateway gives up."""

_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}
"""glibc's allocator keeps up to 128 MiB that were freed, instead of giving every large
message back to the kernel and having the next one's pages cleared and mapped anew:
twice the rate of 600 KB images. What the environment says wins (mallopt(3))."""


def module(name: str) -> list[str]:
    """Return the command that runs a module of ours.

    ``-P``: code is not taken from the current folder, which is just where somebody
    happened to be, and may hold a folder by the name of one of our packages.
    """
    return [sys.executable, "-P", "-m", name]


def next_backoff_s(
    previous_s: float, lived_s: float, first_s: float, most_s: float
) -> float:
    """Return the pause before the next start: doubling, bounded, forgiven by calm."""
    if previous_s == 0 or lived_s >= _QUIET_S:
        return min(first_s, most_s)
    return min(previous_s * 2, most_s)


@dataclass(eq=False)
class Child:
    """One child to keep running.

    Attributes:
        name: For logs and metrics, such as ``worker-0``.
        command: Makes the command line of the next start.
        vital: The gateway gives up if it never becomes healthy.
        pid: Of the running process, or 0.
        healthy: It has reported in since the gateway started.
        stopping: It is not to be started again.
        deaths: How often it died unasked.
        failed: It was asked to leave, and did not leave cleanly.
    """

    name: str
    command: Callable[[], list[str]]
    vital: bool = True
    pid: int = 0
    healthy: bool = False
    stopping: bool = False
    deaths: int = 0
    failed: bool = False
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None
    awake: asyncio.Event = field(default_factory=asyncio.Event)


class Children:
    """Keeps children running until they are stopped.

    Args:
        first_backoff_s: Pause after the first death.
        max_backoff_s: Longest pause.
        give_up: Called with a reason when a child never becomes healthy.
    """

    def __init__(
        self,
        first_backoff_s: float,
        max_backoff_s: float,
        give_up: Callable[[str], None],
    ) -> None:
        self._first_s = first_backoff_s
        self._most_s = max_backoff_s
        self._give_up = give_up
        self._children: list[Child] = []

    def start(
        self, name: str, command: Callable[[], list[str]], *, vital: bool = True
    ) -> None:
        """Start a child and keep it running; see `Child`."""
        child = Child(name, command, vital)
        self._children.append(child)
        loop = asyncio.get_running_loop()
        child.task = loop.create_task(self._keep(child))

    def healthy(self, pid: int) -> None:
        """Note that a child has reported in."""
        for child in self._children:
            if child.pid == pid:
                child.healthy = True

    def kill(self, pid: int) -> None:
        """Kill a child that hangs; SIGKILL reaches a stopped process too."""
        for child in self._children:
            if child.pid == pid and child.process is not None:
                child.process.kill()

    def deaths(self) -> Counter[str]:
        """Return deaths per child."""
        return Counter({child.name: child.deaths for child in self._children})

    def running(self) -> dict[str, int]:
        """Return the pid of each running child."""
        return {child.name: child.pid for child in self._children if child.pid}

    async def stop(self, prefix: str, timeout_s: float) -> list[str]:
        """Terminate children by name prefix and wait for them.

        Returns:
            Names of those that overran the timeout and were killed, or left with
            an error.
        """
        chosen = [child for child in self._children if child.name.startswith(prefix)]
        for child in chosen:
            child.stopping = True
            child.awake.set()
            if child.process is not None and child.process.returncode is None:
                child.process.send_signal(signal.SIGTERM)
        tasks = [child.task for child in chosen if child.task is not None]
        if not tasks:
            return []
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for child in chosen:
            if child.task in late and child.process is not None:
                child.process.kill()
        if late:
            await asyncio.wait(late)
        return [c.name for c in chosen if c.task in late or c.failed]

    async def _keep(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = 0.0
        while not child.stopping:
            started = loop.time()
            code = await self._run_once(child)
            if child.stopping:
                # SIGTERM itself ends only one that had yet to start serving.
                child.failed = code not in (0, -signal.SIGTERM)
                return
            if code:
                child.deaths += 1
            lived_s = loop.time() - started
            backoff_s = next_backoff_s(backoff_s, lived_s, self._first_s, self._most_s)
            _log.warning(
                "child_ended",
                child=child.name,
                status=_status(code),
                again_in=backoff_s,
            )
            stillborn = not child.healthy and child.deaths >= _MAX_STILLBORN
            if stillborn and child.vital:
                self._give_up(f"{child.name} died {child.deaths} times at start")
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.awake.wait(), backoff_s)

    async def _run_once(self, child: Child) -> int:
        process = await asyncio.create_subprocess_exec(
            *child.command(),
            stdin=asyncio.subprocess.DEVNULL,
            env=_ALLOCATOR | os.environ,
        )
        child.process = process
        child.pid = process.pid
        _log.info("child_started", child=child.name, pid=process.pid)
        if child.stopping:  # asked to while it was being started
            process.terminate()
        code = await process.wait()
        child.pid = 0
        return code


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"

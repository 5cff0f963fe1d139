"""The fronts that are connected, and what they have been told.

A front that does not take what it is told within seconds hangs, and is ended: what is
in force must be in force everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.catalogue import (
    CATALOGUE,
    CHANGES,
    Catalogue,
    Changes,
    ModelEntry,
    WorkerEntry,
)
from gateway.channel import Channel
from gateway.errors import GatewayError
from gateway.logs import get_logger
from gateway.supervision.counters import Counters
from gateway.traffic.table import MODEL_TRAFFIC, WEIGHTS, ModelTraffic, Role, Weights

_log = get_logger("fronts")

_REPORT_TIMEOUT_S = 1.0
_FRONT_TIMEOUT_S = 5.0
"""A front that has not taken a catalogue by then hangs, and is killed."""


@dataclass(eq=False)
class FrontPeer:
    """One connected front.

    Attributes:
        busy: Loads it still uses although the catalogue dropped them.
        released: Loads it has let go of since, and that are not freed yet.
    """

    channel: Channel
    index: int
    pid: int
    busy: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)


class Fronts:
    """Talks to every front. Supervisor's loop only.

    Args:
        count: Fronts there are to be, which share the workers.
        on_healthy: Called with the pid of a front that listens.
        on_hung: Called with the pid of a front that was found hanging.

    Attributes:
        counters: What fronts have counted, past ones included.
        listening: Addresses by index of front.
    """

    def __init__(
        self,
        count: int,
        *,
        on_healthy: Callable[[int], None],
        on_hung: Callable[[int], None],
    ) -> None:
        self._on_healthy = on_healthy
        self._on_hung = on_hung
        self._fronts: dict[Channel, FrontPeer] = {}
        self._catalogue = Catalogue(fronts=count)
        self._released = asyncio.Event()
        self._started = asyncio.Event()
        self.counters = Counters()
        self.listening: dict[int, str] = {}

    # -- what is in force -------------------------------------------------------

    def begin_with(self, tables: dict[str, ModelTraffic]) -> None:
        """Put the tables in force that were when the last gateway here ended."""
        self._catalogue = dataclasses.replace(self._catalogue, traffic=tables)

    async def publish(
        self,
        models: dict[str, ModelEntry | None],
        workers: tuple[WorkerEntry, ...],
        *,
        ready: bool,
    ) -> None:
        """Put what is served in force in every front, and wait until it is.

        Args:
            models: Those that changed, by name; ``None``: gone.
            workers: All that serve.
            ready: The models asked for at start are loaded or have failed.
        """
        await self._push(self._catalogue.changes(models, workers, ready=ready))
        if ready:
            self._started.set()

    async def serving(self) -> dict[str, list[int]]:
        """Return the versions that serve by model, once all that start have."""
        await self._started.wait()
        catalogue = self._catalogue
        return {name: [*catalogue.ready_versions(name)] for name in catalogue.models}

    async def place(self, workers: tuple[WorkerEntry, ...]) -> None:
        """Tell every front which workers there are, and wait until they know."""
        ready = self._catalogue.ready
        await self._push(self._catalogue.changes({}, workers, ready=ready))

    async def set_traffic(
        self, model: str, traffic: ModelTraffic, weights: Weights | None
    ) -> int:
        """Put a decision about a model's traffic in force in every front.

        Returns:
            Number of fronts in which it is.
        """
        self._catalogue = self._catalogue.with_traffic(model, traffic, weights)
        message = {
            "op": "traffic",
            "model": model,
            "traffic": MODEL_TRAFFIC.dump_python(traffic, mode="json"),
            "weights": weights and WEIGHTS.dump_python(weights, mode="json"),
        }
        return sum(answer is not None for answer in await self._ask_all(message))

    def set_weights(self, model: str, weights: Weights) -> None:
        """Put new weights of a model's arms in force."""
        those = {**self._catalogue.weights, model: weights}
        self._catalogue = dataclasses.replace(self._catalogue, weights=those)
        value = WEIGHTS.dump_python(weights, mode="json")
        for front in self._fronts.values():
            front.channel.tell({"op": "weights", "model": model, "weights": value})

    async def decisions(self, model: str, count: int) -> list[dict[str, Any]]:
        """Return the last decisions about a model over all fronts, latest first.

        What shadows made of them does not count.
        """
        message = {"op": "decisions", "of": {"model": model, "count": count}}
        told = await self._ask_all(message)
        found = [d for answer in told if answer for d in answer["decisions"]]
        found.sort(key=lambda decision: decision["time"], reverse=True)
        made = [n for n, one in enumerate(found) if one["role"] != Role.SHADOW]
        return found[: made[count - 1] + 1] if len(made) >= count else found

    async def released(self, handle: int) -> None:
        """Wait until no front uses a load that the catalogue no longer has."""
        while any(handle in front.busy for front in self._fronts.values()):
            self._released.clear()
            await self._released.wait()
        for front in self._fronts.values():
            front.released.discard(handle)

    async def refresh_counters(self) -> None:
        """Have every front report; of a silent one, the last report still holds.

        Reports come as those of every second do, before the answers; so one that comes
        too late for this is not lost, and the next need not repeat it.
        """
        asked = [one.channel.ask({"op": "report"}) for one in self._fronts.values()]
        answers = asyncio.gather(*asked, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(answers, _REPORT_TIMEOUT_S)

    async def _push(self, changes: Changes) -> None:
        self._catalogue = self._catalogue.after(changes)
        value = CHANGES.dump_python(changes, mode="json")
        message = {"op": "changes", "changes": value}
        # All are written to at once: changes reach a front in their order.
        asked = [(one, one.channel.ask(message)) for one in self._fronts.values()]
        await asyncio.gather(*(self._taken(*one) for one in asked))

    async def _tell(self, front: FrontPeer) -> None:
        """Tell a front everything."""
        catalogue = CATALOGUE.dump_python(self._catalogue, mode="json")
        message = {"op": "catalogue", "catalogue": catalogue}
        await self._taken(front, front.channel.ask(message))

    async def _taken(
        self, front: FrontPeer, asked: asyncio.Future[dict[str, Any]]
    ) -> None:
        """Wait until a front has what it was told in force, or is ended."""
        answer = await self._answer(front, asked)
        if answer is None:
            return
        if answer.get("missed"):
            await self._tell(front)
            return
        # Releases are handled as they arrive, this only when the task wakes up: one
        # that came in the same read must not be forgotten.
        front.busy = set(answer["busy"]) - front.released
        self._released.set()

    async def _ask_all(self, message: dict[str, Any]) -> list[dict[str, Any] | None]:
        """Ask every front.

        All are written to before anybody else gets a turn: weights that come right
        after a table must not overtake it, as they would mean other arms there.
        """
        asked = [(one, one.channel.ask(message)) for one in self._fronts.values()]
        return await asyncio.gather(*(self._answer(*one) for one in asked))

    async def _answer(
        self, front: FrontPeer, answer: asyncio.Future[dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Return a front's answer; ``None``: it is gone, or hangs and is ended."""
        try:
            return await asyncio.wait_for(answer, _FRONT_TIMEOUT_S)
        except GatewayError:
            return None
        except TimeoutError:  # nor does it answer clients; all others wait for it
            _log.error("front_hangs", front=front.index, pid=front.pid)
            self._on_hung(front.pid)
            return None

    # -- connections ------------------------------------------------------------

    async def hello(self, channel: Channel, index: int, pid: int) -> None:
        """Take a front in and tell it what is in force."""
        front = self._fronts[channel] = FrontPeer(channel, index, pid)
        await self._tell(front)

    def closed(self, channel: Channel) -> None:
        """Forget a front, if it was one."""
        front = self._fronts.pop(channel, None)
        if front is not None:
            self.counters.retire(front.pid)
            self.listening.pop(front.index, None)
            self._released.set()

    def on_counters(self, channel: Channel, snapshot: dict[str, Any]) -> None:
        """Take a front's counters."""
        self.counters.report(self._fronts[channel].pid, snapshot)

    def on_released(self, channel: Channel, handle: int) -> None:
        """Note that a front uses a load no longer."""
        front = self._fronts[channel]
        front.busy.discard(handle)
        front.released.add(handle)
        self._released.set()

    def on_listening(self, channel: Channel, address: str) -> None:
        """Note where a front listens."""
        front = self._fronts[channel]
        self.listening[front.index] = address
        self._on_healthy(front.pid)

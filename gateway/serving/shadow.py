"""Shadows: copies of requests for versions whose answers nobody gets. Loop thread only.

A copy is made once the primary's reply is written, so that nothing about it can reach
the client. It goes to workers of the shadows' own pool, waits within a bound of its
own, and is the first to go when this process or its memory is short.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any

from gateway.catalogue import SHADOW_SUFFIX, Catalogue, VersionEntry
from gateway.errors import GatewayError
from gateway.serving.admission import Admission
from gateway.serving.answers import AnswerLog
from gateway.serving.dispatch import Dispatcher
from gateway.serving.exchange import Exchange
from gateway.serving.mirrors import Mirror, Way, way_to
from gateway.serving.pending import Pending
from gateway.serving.routing import NO_CONTEXT
from gateway.serving.rows import BatchRows
from gateway.serving.sink import Record, Sink
from gateway.traffic.table import ModelTraffic, Shadow

TIMEOUT_NS = 10_000_000_000
"""A shadow's answer that takes longer is not waited for."""
BUSY_SHARE = 0.7
"""Share of a core this process may use before it makes no more copies."""
BYTES_SHARE = 0.5
"""Share of the input bytes it may hold, likewise."""
_PERIOD_S = 0.1


class Copy(Pending):
    """A request on its way to a shadow."""

    way: Way
    owner: Shadows
    name: bytes
    ours: list[bytes]
    primary_ns: int

    def on_result(self, rows: BatchRows, start: int) -> None:
        """Keep the answer beside the primary's."""
        tensors = rows.cut(start, start + self.rows)
        theirs = [bytes(tensors[own].data) for _, own in self.way.outputs]
        owner, mirror = self.owner, self.way.mirror
        owner.answered(self, theirs)
        if owner.log is not None:
            queue, choice = self.way.queue, mirror.choice
            owner.log.shadowed(
                self, rows, start, self.name, mirror.model, queue, choice
            )

    def on_error(self, error: GatewayError) -> None:
        """Count it."""
        mirror = self.way.mirror
        mirror.inflight -= 1
        mirror.counts[f"failed_{error.label}"] += 1


class Shadows:
    """Makes copies, and sees what comes of them.

    Args:
        loop: Of this front.
        dispatcher: Runs them.
        admission: Whose bytes they share.
        sink: Gets their records.
        now_ns: Monotonic clock.
        max_bytes: Input bytes this front may hold.
        seed: Of the samples; ``None`` for the system's.
        log: Gets their answers, for the event log.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dispatcher: Dispatcher,
        admission: Admission,
        sink: Sink,
        *,
        now_ns: Callable[[], int],
        max_bytes: int,
        seed: int | None = None,
        log: AnswerLog | None = None,
    ) -> None:
        self._random = Random(seed).random  # noqa: S311 - a sample, not a secret
        self.log = log
        self._loop = loop
        self._dispatcher = dispatcher
        self._admission = admission
        self._sink = sink
        self._now = now_ns
        self._most_bytes = int(max_bytes * BYTES_SHARE)
        self._mirrors: dict[tuple[str, int], Mirror] = {}
        self._answered: set[Mirror] = set()
        self._wanted = 0
        self._watching = False
        self._busy = False
        self._used = (0.0, 0.0)

    def ways(
        self, catalogue: Catalogue, model: str, primary: VersionEntry
    ) -> tuple[Way, ...]:
        """Return how requests for a version become those for its model's shadows.

        A shadow that does not serve yet, or could not take the same requests, has none.
        """
        traffic = catalogue.traffic.get(model)
        if traffic is None or not traffic.shadows:
            return ()
        ready = catalogue.ready_versions(model)
        found = []
        for shadow in traffic.shadows:
            entry = ready.get(shadow.version)
            if entry is None or not entry.shadows:
                continue
            mirror = self._mirror(model, shadow, traffic)
            name = model + SHADOW_SUFFIX
            queue = self._dispatcher.queue_for(name, entry, shadow=True)
            way = way_to(mirror, queue, primary)
            if way is None:
                mirror.counts["incompatible"] += 1
            else:
                found.append(way)
        return tuple(found)

    def _mirror(self, model: str, shadow: Shadow, traffic: ModelTraffic) -> Mirror:
        key = (model, shadow.version)
        mirror = self._mirrors.get(key)
        if mirror is None:
            mirror = self._mirrors[key] = Mirror(model, shadow.version)
        mirror.decide(shadow, traffic.revision)
        return mirror

    def copy(
        self, exchange: Exchange, rows: BatchRows, start: int, name: bytes
    ) -> None:
        """Copy a request that has just been answered."""
        now = self._now()
        if not self._watching:
            self._watch()
        self._wanted += 1
        for way in exchange.plan.ways:
            mirror = way.mirror
            shadow = mirror.shadow
            if shadow.sample < 1 and self._random() >= shadow.sample:
                continue
            reason = self._objection(mirror, exchange.nbytes)
            if reason:
                mirror.counts[reason] += 1
                continue
            copy = Copy(
                exchange.rows,
                way.inputs_of(exchange.inputs),
                (way.inputs, exchange.shape_key),
                exchange.nbytes,
                way.queue.levels - 1,
                now,
                0,
                now + TIMEOUT_NS,
            )
            tensors = rows.cut(start, start + exchange.rows)
            copy.way, copy.owner, copy.name = way, self, name
            copy.ours = [bytes(tensors[index].data) for index, _ in way.outputs]
            copy.primary_ns = now - exchange.admitted_ns
            # Within its bound, as was just seen; the model's other shadows have theirs.
            self._admission.acquire(way.queue.model, copy.nbytes, sys.maxsize)
            mirror.inflight += 1
            mirror.counts["copied"] += 1
            self._dispatcher.submit(copy, way.queue)

    def _objection(self, mirror: Mirror, nbytes: int) -> str:
        """Return why a copy is not made, as it is counted; empty if it is."""
        if self._busy:
            return "dropped_busy"
        if mirror.inflight >= mirror.shadow.max_queue:
            return "dropped_queue_full"
        if self._admission.inflight_bytes + nbytes > self._most_bytes:
            return "dropped_memory"
        return ""

    def answered(self, copy: Copy, theirs: list[bytes]) -> None:
        """Take a shadow's answer; it is compared once this turn of the loop is over."""
        mirror = copy.way.mirror
        mirror.inflight -= 1
        mirror.counts["answered"] += 1
        mirror.latency_ns[0] += self._now() - copy.admitted_ns
        mirror.latency_ns[1] += copy.primary_ns
        mirror.answers.append((copy.way, copy.ours, theirs, copy.rows))
        self._sink.offer(
            Record(
                copy.name,
                mirror.model,
                copy.admitted_ns,
                copy.rows,
                mirror.choice,
                NO_CONTEXT,
            )
        )
        if not self._answered:
            self._loop.call_soon(self._compare)
        self._answered.add(mirror)

    def _compare(self) -> None:
        answered, self._answered = self._answered, set()
        for mirror in answered:
            mirror.compare()

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return what came of each shadow's copies, by ``<version>/<model>``."""
        return {
            f"{version}/{model}": mirror.snapshot()
            for (model, version), mirror in self._mirrors.items()
        }

    # -- being busy -------------------------------------------------------------

    def _watch(self) -> None:
        """Look at the processor time of this process for as long as it is asked for."""
        self._watching = True
        self._used = time.process_time(), time.monotonic()
        self._loop.call_later(_PERIOD_S, self._look)

    def _look(self) -> None:
        cpu_s, wall_s = time.process_time(), time.monotonic()
        share = (cpu_s - self._used[0]) / max(wall_s - self._used[1], 1e-9)
        self._busy = share > BUSY_SHARE
        if self._wanted:
            self._wanted = 0
            self._used = cpu_s, wall_s
            self._loop.call_later(_PERIOD_S, self._look)
        else:
            self._watching = self._busy = False

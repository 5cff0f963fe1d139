"""What is in force: tables and weights, from the registry to the fronts."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from gateway.controller.cost import cost_notes
from gateway.controller.learning import STATE, Learner, Reward
from gateway.controller.learnt_files import LearntFiles
from gateway.errors import GatewayError, InvalidRequest, UnknownModel
from gateway.logs import get_logger
from gateway.registry.decisions import wanted
from gateway.registry.records import Changed
from gateway.registry.registry import Registry
from gateway.registry.view import RepositoryView
from gateway.traffic.table import MODEL_TRAFFIC, WEIGHTS, ModelTraffic

_log = get_logger("traffic")

_TURN_S = 0.05
"""How often it is looked whether a policy is due."""
_MOMENT_S = 0.5
"""How long the present rate of requests is measured."""
_KEEP_S = 1.0
"""How often what was learnt is written to disk."""
_T = TypeVar("_T")

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Asks the supervisor; see `gateway.supervision.operations`."""


class Disk(Protocol):
    """Runs what blocks on the disk, one at a time, outside of the loop."""

    async def __call__(self, work: Callable[[], _T]) -> _T:
        """Return what `work` returns."""


class TrafficControl:
    """Puts what the registry says in force, and keeps it there.

    Args:
        registry: What was decided.
        view: The models as the supervisor loads them.
        ask: The supervisor.
        disk: Where the first two may block.
        learnt: Keeps what was learnt.
        workers: That serve every model.
        shadow_workers: For shadows alone.
    """

    def __init__(
        self,
        registry: Registry,
        view: RepositoryView,
        ask: Ask,
        disk: Disk,
        learnt: LearntFiles,
        *,
        workers: int,
        shadow_workers: int,
    ) -> None:
        self._shadow_workers = shadow_workers
        self._workers = workers
        self._registry = registry
        self._view = view
        self._ask = ask
        self._disk = disk
        self._learnt = learnt
        self._learners: dict[str, Learner] = {}
        self._before: dict[str, frozenset[int]] = {}
        self._held: defaultdict[str, list[ModelTraffic]] = defaultdict(list)
        self._unfinished: set[str] = set()
        self._failing: set[tuple[str, str]] = set()
        self._recording = asyncio.Lock()
        self._settling: set[asyncio.Task[str]] = set()

    async def start(self) -> None:
        """Put everything in force that was when the last process ended.

        A model that cannot be shown to the loader keeps what it had; the others, and
        the admin plane by which it can be mended, do not wait for it.
        """
        for model in await self._disk(self._registry.names):
            self._before[model] = await self._disk(partial(self._arms_before, model))
            try:
                unfinished = await self._materialise(model)
            except GatewayError as error:
                _log.error("not_shown", model=model, reason=error.message)
                unfinished = True
            if unfinished:
                self._unfinished.add(model)
            known = await self._disk(partial(self._registry.model, model))
            state = await self._disk(partial(self._learnt.read, model))
            self._learners[model] = Learner(known.traffic, state, known.effective)
            await self._publish(model)

    def _arms_before(self, model: str) -> frozenset[int]:
        """Return the arms that a rollback would bring back."""
        try:
            traffic = self._registry.earlier(model)
        except GatewayError:  # there was no decision before this one
            return frozenset()
        return frozenset(arm.version for arm in traffic.arms)

    async def finish(self) -> None:
        """Load what is on record and not served: changes that were cut short.

        After `start`, beside all else: what is in force does not wait for it.
        """
        served = (await self._ask({"op": "serving"}))["models"]
        for model in self.names():
            known = await self._disk(partial(self._registry.model, model))
            answering, shadows = wanted(known)
            missing = (answering | shadows) - {*served.get(model, ())}
            if missing or model in self._unfinished:
                await self.settle(model, load=True)

    # -- changes ----------------------------------------------------------------

    @asynccontextmanager
    async def prepared(self, model: str, traffic: ModelTraffic) -> AsyncIterator[None]:
        """Have everything loaded that a table needs, beside what is in force.

        It stays loaded while the block runs. Where that fails, what was loaded for it
        is let go of.

        Raises:
            LoadFailed: A version cannot be loaded; what served goes on serving.
        """
        arms = {arm.version for arm in traffic.arms}
        shadows = {shadow.version for shadow in traffic.shadows} - arms
        if shadows and not self._shadow_workers:
            raise InvalidRequest(
                "shadows: this gateway has no workers for them; start it with "
                "traffic.shadow_workers of at least 1"
            )
        held = self._held[model]
        held.append(traffic)
        try:
            await self._materialise(model)
            ready = await self._ask({"op": "ready", "model": model})
            if not (arms <= {*ready["arms"]} and shadows <= {*ready["shadows"]}):
                await self._load(model)
            yield
        except BaseException:
            self.settle_soon(model)
            raise
        finally:
            held.remove(traffic)

    async def record(
        self, model: str, work: Callable[[], Changed]
    ) -> tuple[Changed, int]:
        """Record a change and put it in force, in every front; one at a time.

        Args:
            model: Its name.
            work: Writes it into the registry.

        Returns:
            What was recorded, and in how many fronts it is in force.
        """
        async with self._recording:
            done = await self._disk(work)
            if not done.applied:
                return done, 0
            known = await self._disk(partial(self._registry.model, model))
            learner = self._learners.get(model)
            if learner is None:
                self._learners[model] = Learner(known.traffic, None, known.effective)
            else:
                arms = frozenset(arm.version for arm in learner.traffic.arms)
                if arms != frozenset(arm.version for arm in known.traffic.arms):
                    self._before[model] = arms
                learner.adopt(known.traffic, known.effective)
            return done, await self._publish(model)

    async def settle(self, model: str, *, load: bool = False) -> str:
        """Load what is wanted and not loaded, and let go of what no longer is.

        Those that answered until now stay, so that going back takes no loading.

        Args:
            model: Its name.
            load: Look at every version, also where nothing that is wanted changed.

        Returns:
            What went wrong; what is in force is so nevertheless.
        """
        try:
            load = await self._materialise(model) or load
            # One load that is at work is waited for by asking for another.
            if load or (await self._ask({"op": "ready", "model": model}))["loading"]:
                await self._load(model)
        except GatewayError as error:
            _log.error("not_loaded", model=model, reason=error.message)
            return error.message
        return ""

    def settle_soon(self, model: str) -> None:
        """Do the same beside all else."""
        task = asyncio.get_running_loop().create_task(self.settle(model))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _publish(self, model: str) -> int:
        learner = self._learners[model]
        value = MODEL_TRAFFIC.dump_python(learner.traffic, mode="json")
        weights = learner.weights
        message = {
            "op": "traffic",
            "model": model,
            "traffic": value,
            "weights": weights and WEIGHTS.dump_python(weights, mode="json"),
        }
        answer = await self._ask(message)
        return int(answer["fronts"])

    async def _send_weights(self, model: str) -> None:
        weights = self._learners[model].weights
        if weights is not None:
            value = WEIGHTS.dump_python(weights, mode="json")
            await self._ask({"op": "weights", "model": model, "weights": value})

    async def _materialise(self, model: str) -> bool:
        """Lay out what is to be loaded; return whether that changed."""
        held = self._held[model]
        more = {arm.version for traffic in held for arm in traffic.arms}
        more.update(self._before.get(model, ()))
        shadows = {one.version for traffic in held for one in traffic.shadows}

        def work() -> bool:
            before = self._view.config(model)
            known = self._registry.model(model)
            self._view.materialise(known, more=more, shadows=shadows)
            return self._view.config(model) not in {before, None}

        return await self._disk(work)

    async def _load(self, model: str) -> None:
        await self._ask({"op": "load", "model": model, "config": None, "files": {}})

    # -- learning ---------------------------------------------------------------

    def reward(self, model: str, items: Sequence[Reward]) -> tuple[int, int]:
        """Note what came of decisions.

        Returns:
            How many counted, and how many did not; see `Learner.reward`.

        Raises:
            UnknownModel: The model has no traffic.
            InvalidRequest: A value is out of range; none counted.
        """
        taken = self._learner(model).reward(items)
        return taken, len(items) - taken

    def names(self) -> list[str]:
        """Return all models, sorted."""
        return sorted(self._learners)

    async def counted(self) -> dict[str, Any]:
        """Return what fronts counted of arms and shadows."""
        return await self._ask({"op": "arms", "fresh": True})

    async def cost(self, model: str, traffic: ModelTraffic) -> list[str]:
        """Return what a table will do to batches, measured over a moment of now."""
        began = time.monotonic()
        before = (await self._ask({"op": "statistics"}))["versions"]
        await asyncio.sleep(_MOMENT_S)
        after = (await self._ask({"op": "statistics"}))["versions"]
        seconds = time.monotonic() - began
        return cost_notes(
            model, traffic, before, after, seconds=seconds, workers=self._workers
        )

    async def decisions(self, model: str, limit: int) -> list[dict[str, Any]]:
        """Return the last decisions about a model, latest first."""
        answer = await self._ask({"op": "decisions", "model": model, "limit": limit})
        return list(answer["decisions"])

    def describe(self, model: str, counted: dict[str, Any]) -> dict[str, Any]:
        """Return the table in force, what was learnt and counted, as JSON values."""
        learner = self._learner(model)
        table = MODEL_TRAFFIC.dump_python(learner.traffic, mode="json")
        shadows = {
            key.split("/", 1)[0]: sums
            for key, sums in counted["shadows"].items()
            if key.split("/", 1)[1] == model
        }
        return {
            "model": model,
            "table": table,
            **learner.describe(),
            "requests": counted["arms"].get(model, {}),
            "shadows": shadows,
        }

    def estimate(self, model: str, shares: dict[int, float]) -> dict[str, Any]:
        """Return what another split would have earned, by estimator."""
        found = self._learner(model).estimate(shares)
        return {
            kind: {name: getattr(one, name) for name in one.__slots__}
            for kind, one in found.items()
        }

    def _learner(self, model: str) -> Learner:
        learner = self._learners.get(model)
        if learner is None:
            known = ", ".join(sorted(self._learners)[:10]) or "none"
            raise UnknownModel(
                f"'{model}' is not in the registry (there are: {known}); import it with"
                " `baton models import`"
            )
        return learner

    async def refresh_forever(self) -> None:
        """Work out new weights when they are due, and keep what was learnt."""
        kept_s = 0.0
        while True:
            await asyncio.sleep(_TURN_S)
            try:
                await self._refresh(time.monotonic())
                if time.monotonic() - kept_s >= _KEEP_S:
                    kept_s = time.monotonic()
                    await self.keep()
            except Exception as error:  # the edge: what is asked of others
                self._fails("", "refresh", error)

    async def _refresh(self, now_s: float) -> None:
        # Most models learn nothing, and this comes round often.
        those = [
            (name, learner)
            for name, learner in self._learners.items()
            if learner.traffic.policy.learns
        ]
        delayed = [name for name, one in those if one.wants_assigned(now_s)]
        if delayed:
            sums = await self._ask({"op": "arms", "fresh": False})
            for name in delayed:
                # What a rule sent brings no reward that counts.
                ruled = sums["ruled"].get(name, {})
                arms = sums["arms"].get(name, {}).items()
                counts = {int(v): n - ruled.get(v, 0) for v, n in arms}
                self._learners[name].note_assigned(now_s, counts)
        for name, learner in those:
            try:
                if learner.refresh(now_s) is not None:
                    await self._send_weights(name)
                self._failing.discard((name, "refresh"))
            except Exception as error:  # one model must not stop the others
                self._fails(name, "refresh", error)

    async def keep(self) -> None:
        """Write what was learnt since the last time."""
        for model, learner in tuple(self._learners.items()):
            if learner.changed and learner.traffic.policy.learns:
                body = STATE.dump_json(learner.state)
                learner.changed = False
                try:
                    await self._disk(partial(self._learnt.write, model, body))
                except OSError as error:  # a full disk; what was learnt is still here
                    learner.changed = True
                    self._fails(model, "keep", error)
                else:
                    self._failing.discard((model, "keep"))

    def _fails(self, model: str, what: str, error: Exception) -> None:
        """Say that something fails that is tried again and again: once."""
        if (model, what) not in self._failing:
            self._failing.add((model, what))
            _log.error("learning_fails", model=model, what=what, reason=repr(error))

"""The Admin service: what operators and programs may ask of the controller."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from gateway.controller.learning import Reward
from gateway.controller.seam import Handlers
from gateway.controller.traffic import Disk, TrafficControl
from gateway.documents import first_fault, read_object
from gateway.errors import InvalidRequest, UnknownModel
from gateway.protocol import admin_pb2 as pb
from gateway.registry.audit import Entry
from gateway.registry.decisions import CHAMPION, misfit
from gateway.registry.importing import Import, kept
from gateway.registry.records import (
    VERSION,
    Change,
    Changed,
    Metadata,
    Model,
    Version,
    traffic_body,
    with_fields,
)
from gateway.registry.registry import Registry
from gateway.rpc import Methods
from gateway.traffic.table import MODEL_TRAFFIC, Arm, ModelTraffic, Role

SERVICE = "/baton.v1.Admin/"
MAX_PAGE = 1000
MAX_REWARDS = 10_000
"""In a call: noting them takes tens of milliseconds, in which nothing else runs."""
MAX_SOURCE = 4096
"""Characters of what an import names: it goes on record as lineage."""


class AdminService:
    """Answers the Admin service.

    Args:
        registry: What is recorded.
        take_in: Takes the models at a source into the artefact store.
        traffic: What is in force.
        disk: Where the registry may block.
    """

    def __init__(
        self,
        registry: Registry,
        take_in: Callable[[str], Awaitable[tuple[Import, ...]]],
        traffic: TrafficControl,
        disk: Disk,
    ) -> None:
        self._registry = registry
        self._take_in = take_in
        self._traffic = traffic
        self._disk = disk

    def methods(self) -> Methods:
        """Return the table of methods."""
        handlers = Handlers()
        unary = handlers.unary
        return Methods(
            unary={
                SERVICE + "Import": unary(pb.ImportRequest, self._import),
                SERVICE + "Show": unary(pb.ShowRequest, self._show),
                SERVICE + "SetMetadata": unary(
                    pb.SetMetadataRequest, self._set_metadata
                ),
                SERVICE + "SetAlias": unary(pb.SetAliasRequest, self._set_alias),
                SERVICE + "Approve": unary(pb.ApproveRequest, self._approve),
                SERVICE + "RequireApproval": unary(
                    pb.RequireApprovalRequest, self._require_approval
                ),
                SERVICE + "SetTraffic": unary(pb.SetTrafficRequest, self._set_traffic),
                SERVICE + "Freeze": unary(pb.FreezeRequest, self._freeze),
                SERVICE + "Rollback": unary(pb.RollbackRequest, self._rollback),
                SERVICE + "ShowTraffic": unary(pb.ShowRequest, self._show_traffic),
                SERVICE + "Reward": unary(pb.RewardRequest, self._reward),
                SERVICE + "Decisions": unary(pb.DecisionsRequest, self._decisions),
                SERVICE + "Estimate": unary(pb.EstimateRequest, self._estimate),
                SERVICE + "Audit": unary(pb.AuditRequest, self._audit),
            },
            streams={},
        )

    # -- changes ----------------------------------------------------------------

    async def _change(
        self,
        asked: pb.Change,
        peer: str,
        work: Callable[[str, Change], Changed],
        needs: Callable[[str], ModelTraffic] | None = None,
        *,
        patient: bool = True,
    ) -> pb.ChangeResponse:
        """Record a change and put it in force.

        What the change needs loaded is loaded before anything is recorded, so that
        what is recorded can be in force at once. Nothing else waits for that: whoever
        rolls the model back meanwhile has the last word, and this change is refused.

        Args:
            asked: Who, why, from where.
            peer: Who asks, as the kernel knows it.
            work: Records it; of a dry run, says what it would do.
            needs: Returns the traffic that is to be in force; ``None``: as now.
            patient: Answer when all that is on record is loaded, and say what could
                not be.
        """
        if not asked.model:
            raise InvalidRequest("change.model: name the model")
        if not asked.reason.strip():
            raise InvalidRequest("change.reason: say why, for the audit log (--reason)")
        change, model = _change_of(asked, peer), asked.model
        rehearsed = await self._disk(lambda: work(model, replace(change, dry_run=True)))
        wanted, notes = None, list[str]()
        if needs is not None and not rehearsed.refusal:
            now, wanted = await self._disk(
                lambda: (self._registry.model(model), needs(model))
            )
            change = replace(change, seen=(now.revision, now.effective))
            if misfits := misfit(now, wanted):
                notes.append(misfits)
        if change.dry_run:
            if wanted is not None:
                notes += await self._traffic.cost(model, wanted)
            return _response(rehearsed, 0, *notes)
        traffic = self._traffic
        async with AsyncExitStack() as prepared:
            if wanted is not None and rehearsed.change:
                await prepared.enter_async_context(traffic.prepared(model, wanted))
            done, fronts = await traffic.record(model, lambda: work(model, change))
        if not patient:
            traffic.settle_soon(model)
            return _response(done, fronts, *notes)
        if note := await traffic.settle(model):
            notes.append(note)
        return _response(done, fronts, *notes)

    async def _import(self, request: pb.ImportRequest, peer: str) -> pb.ChangeResponse:
        fields = read_object(request.metadata_json or "{}", "metadata")
        with_fields(Metadata(), fields)  # what is wrong is said before a download
        source = request.source
        if not source:
            raise InvalidRequest("source: name a folder, a file or a URL")
        if len(source) > MAX_SOURCE:
            raise InvalidRequest(f"source: has more than {MAX_SOURCE} characters")
        found = await self._take_in(source)
        model = request.change.model
        if len(found) == 1:
            chosen = found[0]
            request.change.model = model or chosen.model
        else:
            chosen = _the_one(found, model)
        before = await self._disk(lambda: self._known(request.change.model))
        answer = await self._change(
            request.change,
            peer,
            lambda model, change: self._registry.import_versions(
                model,
                chosen.candidates,
                change,
                fields=fields,
                require_approval=request.require_approval,
            ),
        )
        answer.notes.extend(kept(before, chosen.candidates, fields))
        return answer

    def _known(self, model: str) -> Mapping[int, Version]:
        """Return the versions of a model, none of one that is not there. Blocks."""
        try:
            return self._registry.model(model).versions
        except UnknownModel:
            return {}

    async def _set_metadata(
        self, request: pb.SetMetadataRequest, peer: str
    ) -> pb.ChangeResponse:
        fields = read_object(request.metadata_json, "metadata")
        return await self._change(
            request.change,
            peer,
            lambda m, c: self._registry.set_metadata(m, request.version, fields, c),
        )

    async def _set_alias(
        self, request: pb.SetAliasRequest, peer: str
    ) -> pb.ChangeResponse:
        registry, alias, version = self._registry, request.alias, request.version
        if not version:
            return await self._change(
                request.change, peer, lambda m, c: registry.remove_alias(m, alias, c)
            )

        def needs(model: str) -> ModelTraffic:
            now = registry.traffic(model)
            if alias == CHAMPION:
                return replace(now, arms=(Arm(version, Role.CHAMPION, 1),))
            return replace(now, arms=(*now.arms, Arm(version, Role.CHALLENGER, 0)))

        return await self._change(
            request.change,
            peer,
            lambda m, c: registry.set_alias(m, alias, version, c),
            needs,
        )

    async def _approve(
        self, request: pb.ApproveRequest, peer: str
    ) -> pb.ChangeResponse:
        return await self._change(
            request.change,
            peer,
            lambda m, c: self._registry.approve(m, request.version, c),
        )

    async def _require_approval(
        self, request: pb.RequireApprovalRequest, peer: str
    ) -> pb.ChangeResponse:
        return await self._change(
            request.change,
            peer,
            lambda m, c: self._registry.require_approval(m, request.required, c),
        )

    async def _set_traffic(
        self, request: pb.SetTrafficRequest, peer: str
    ) -> pb.ChangeResponse:
        read_object(request.traffic_json, "traffic")
        try:  # strictly: neither "2" nor true is a version
            traffic = MODEL_TRAFFIC.validate_json(request.traffic_json, strict=True)
        except ValidationError as error:
            fault = first_fault(error, ModelTraffic)
            raise InvalidRequest(f"traffic: {fault}") from None
        return await self._change(
            request.change,
            peer,
            lambda m, c: self._registry.set_traffic(m, traffic, c),
            lambda _: traffic,
        )

    async def _freeze(self, request: pb.FreezeRequest, peer: str) -> pb.ChangeResponse:
        return await self._change(
            request.change,
            peer,
            lambda m, c: self._registry.freeze(m, request.frozen, c),
        )

    async def _rollback(
        self, request: pb.RollbackRequest, peer: str
    ) -> pb.ChangeResponse:
        registry, revision = self._registry, request.to_revision or None
        return await self._change(
            request.change,
            peer,
            lambda m, c: registry.rollback(m, c, to_revision=revision),
            lambda m: registry.earlier(m, revision),
            patient=False,
        )

    # -- looking ----------------------------------------------------------------

    async def _show(self, request: pb.ShowRequest, _peer: str) -> pb.ShowResponse:
        registry = self._registry

        def work() -> list[dict[str, Any]]:
            names = (request.model,) if request.model else registry.names()
            return [_model_body(registry.model(name)) for name in names]

        return pb.ShowResponse(json=json.dumps(await self._disk(work)))

    async def _show_traffic(
        self, request: pb.ShowRequest, _peer: str
    ) -> pb.ShowResponse:
        names = [request.model] if request.model else self._traffic.names()
        sums = await self._traffic.counted()
        shown = [self._traffic.describe(name, sums) for name in names]
        return pb.ShowResponse(json=json.dumps(shown))

    async def _reward(self, request: pb.RewardRequest, _peer: str) -> pb.RewardResponse:
        if len(request.items) > MAX_REWARDS:
            raise InvalidRequest(
                f"items: {len(request.items)} in a call, and at most {MAX_REWARDS} are "
                "taken; send the rest in calls of their own"
            )
        items = [
            Reward(
                item.version,
                item.reward,
                item.propensity,
                item.time or time.time_ns() / 1e9,
                tuple(item.segments),
                item.policy,
            )
            for item in request.items
        ]
        taken, ignored = self._traffic.reward(request.model, items)
        return pb.RewardResponse(taken=taken, ignored=ignored)

    async def _decisions(
        self, request: pb.DecisionsRequest, _peer: str
    ) -> pb.ShowResponse:
        if not request.model:
            raise InvalidRequest("model: name the model")
        limit = min(request.limit or 100, MAX_PAGE)
        found = await self._traffic.decisions(request.model, limit)
        return pb.ShowResponse(json=json.dumps(found))

    async def _estimate(
        self, request: pb.EstimateRequest, _peer: str
    ) -> pb.ShowResponse:
        shares = read_object(request.shares_json, "shares")
        try:
            wanted = {int(version): float(share) for version, share in shares.items()}
        except (OverflowError, TypeError, ValueError):
            raise InvalidRequest('shares: as in {"1": 0.2, "2": 0.8}') from None
        found = self._traffic.estimate(request.model, wanted)
        return pb.ShowResponse(json=json.dumps(found))

    async def _audit(self, request: pb.AuditRequest, _peer: str) -> pb.AuditResponse:
        def work() -> Sequence[Entry]:
            if request.operation_id:
                found = self._registry.operation(request.operation_id)
                if found is None or request.model not in ("", found.model):
                    return ()
                return (found,)
            return self._registry.history(
                request.model or None,
                before=request.before or None,
                limit=min(request.limit or 100, MAX_PAGE),
            )

        entries = await self._disk(work)
        bodies = [entry.body.decode() for entry in entries]
        return pb.AuditResponse(entries_json=bodies)


def _the_one(found: Sequence[Import], model: str) -> Import:
    """Return the model of a repository that was asked for."""
    names = ", ".join(one.model for one in found)
    for one in found:
        if one.model == model:
            return one
    raise InvalidRequest(
        f"the source holds {names}; name one of them with --model, and import the "
        "others likewise"
    )


def _change_of(asked: pb.Change, peer: str) -> Change:
    expected = asked.expected_revision if asked.HasField("expected_revision") else None
    return Change(
        actor=asked.actor.strip() or peer or "unknown",
        reason=asked.reason.strip(),
        expected_revision=expected,
        operation_id=asked.operation_id,
        evidence=read_object(asked.evidence_json or "{}", "change.evidence"),
        dry_run=asked.dry_run,
        peer=peer,
    )


def _response(done: Changed, fronts: int = 0, *notes: str) -> pb.ChangeResponse:
    return pb.ChangeResponse(
        model=done.model,
        revision=done.revision,
        diff=done.change,
        applied=done.applied,
        fronts=fronts,
        audit_seq=done.seq,
        audit_hash=done.hash,
        refusal=done.refusal,
        versions=done.versions,
        notes=notes,
    )


def _model_body(model: Model) -> dict[str, Any]:
    return {
        "model": model.name,
        "revision": model.revision,
        "require_approval": model.require_approval,
        "aliases": dict(model.traffic.aliases),
        "versions": [
            VERSION.dump_python(version, mode="json")
            for version in model.versions.values()
        ],
        "traffic": traffic_body(model.traffic),
    }

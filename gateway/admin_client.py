"""A small blocking client of the Admin service, for the command line and programs."""

from __future__ import annotations

import getpass
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from gateway.client_rpc import ClientError, ControllerClient
from gateway.errors import Code
from gateway.logs import escape
from gateway.protocol import admin_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "/baton.v1.Admin/"
_NO_SERVER = ("failed to connect", "dns resolution failed")
_LOST = ("stream removed", "socket closed", "recvmsg", "sendmsg", "goaway",
         "rst_stream", "keepalive", "ping timeout")  # fmt: skip
"""What gRPC says, in any case, when it never reached a server, and when it lost one
that had been asked: whether that was before or after the change, nobody knows."""
_Reply = TypeVar("_Reply", bound="Message")


class AdminClient(ControllerClient):
    """One channel to one gateway's admin plane. Use as a context manager.

    Every method raises `ClientError` when the call fails. Where a change may have been
    made all the same, the message names its operation id: the same change with the same
    id is made once, so ask again until there is an answer.
    """

    def __init__(self, address: str, *, timeout_s: float = 300.0) -> None:
        """Prepare the channel; it connects with the first call.

        Args:
            address: ``unix:PATH`` or ``host:port``.
            timeout_s: Deadline of each call.

        Raises:
            ClientError: `address` is neither.
        """
        super().__init__(address, "admin.sock")
        self._timeout_s = timeout_s

    def change(
        self,
        model: str,
        reason: str,
        *,
        expected_revision: int | None = None,
        operation_id: str = "",
        dry_run: bool = False,
        evidence: Mapping[str, Any] | None = None,
    ) -> pb.Change:
        """Return what every change says about itself; its actor is this user."""
        change = pb.Change(
            model=model,
            reason=reason,
            actor=getpass.getuser(),
            operation_id=operation_id or uuid.uuid4().hex,
            dry_run=dry_run,
            evidence_json=json.dumps(evidence) if evidence else "",
        )
        if expected_revision is not None:
            change.expected_revision = expected_revision
        return change

    def import_(
        self,
        change: pb.Change,
        source: str,
        metadata: dict[str, Any],
        *,
        require_approval: bool = False,
    ) -> pb.ChangeResponse:
        """Take versions in."""
        request = pb.ImportRequest(
            change=change,
            source=source,
            metadata_json=json.dumps(metadata),
            require_approval=require_approval,
        )
        return self._call("Import", request, pb.ChangeResponse)

    def set_metadata(
        self, change: pb.Change, version: int, fields: dict[str, Any]
    ) -> pb.ChangeResponse:
        """Replace fields of a version's metadata; those not named stay."""
        text = json.dumps(fields)
        request = pb.SetMetadataRequest(
            change=change, version=version, metadata_json=text
        )
        return self._call("SetMetadata", request, pb.ChangeResponse)

    def show(self, model: str = "") -> list[dict[str, Any]]:
        """Return what the registry knows of a model, or of all."""
        return self._shown("Show", pb.ShowRequest(model=model))

    def set_alias(
        self, change: pb.Change, alias: str, version: int
    ) -> pb.ChangeResponse:
        """Point an alias to a version; 0 takes it away."""
        request = pb.SetAliasRequest(change=change, alias=alias, version=version)
        return self._call("SetAlias", request, pb.ChangeResponse)

    def approve(self, change: pb.Change, version: int) -> pb.ChangeResponse:
        """Let a version answer, where the model requires approval."""
        request = pb.ApproveRequest(change=change, version=version)
        return self._call("Approve", request, pb.ChangeResponse)

    def require_approval(
        self, change: pb.Change, *, required: bool
    ) -> pb.ChangeResponse:
        """Say whether versions need approval before they answer; they may shadow."""
        request = pb.RequireApprovalRequest(change=change, required=required)
        return self._call("RequireApproval", request, pb.ChangeResponse)

    def traffic(self, model: str = "") -> list[dict[str, Any]]:
        """Return tables in force, with what was learnt and counted."""
        return self._shown("ShowTraffic", pb.ShowRequest(model=model))

    def set_traffic(
        self, change: pb.Change, table: dict[str, Any]
    ) -> pb.ChangeResponse:
        """Put a table in force."""
        request = pb.SetTrafficRequest(change=change, traffic_json=json.dumps(table))
        return self._call("SetTraffic", request, pb.ChangeResponse)

    def freeze(self, change: pb.Change, *, frozen: bool) -> pb.ChangeResponse:
        """Have a policy keep its weights, or let it go on."""
        request = pb.FreezeRequest(change=change, frozen=frozen)
        return self._call("Freeze", request, pb.ChangeResponse)

    def rollback(self, change: pb.Change, to_revision: int = 0) -> pb.ChangeResponse:
        """Let those answer who did before."""
        request = pb.RollbackRequest(change=change, to_revision=to_revision)
        return self._call("Rollback", request, pb.ChangeResponse)

    def reward(
        self, model: str, items: list[pb.RewardRequest.Item]
    ) -> pb.RewardResponse:
        """Tell a policy what came of decisions."""
        request = pb.RewardRequest(model=model, items=items)
        return self._call("Reward", request, pb.RewardResponse)

    def decisions(self, model: str, limit: int = 100) -> list[dict[str, Any]]:
        """Return the last decisions about a model, latest first."""
        request = pb.DecisionsRequest(model=model, limit=limit)
        found = self._shown("Decisions", request)
        if not found:
            self.show(model)  # raises where there is no such model
        return found

    def estimate(self, model: str, shares: dict[str, float]) -> dict[str, Any]:
        """Return what another split would have earned, by estimator."""
        text = json.dumps(shares)
        request = pb.EstimateRequest(model=model, shares_json=text)
        shown = self._call("Estimate", request, pb.ShowResponse)
        found: dict[str, Any] = json.loads(shown.json)
        return found

    def audit(
        self, model: str = "", *, before: int = 0, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Return audit entries, newest first; of one model, or of all."""
        request = pb.AuditRequest(model=model, before=before, limit=limit)
        answer = self._call("Audit", request, pb.AuditResponse)
        if model and not answer.entries_json:
            self.show(model)  # raises where there is no such model
        return [json.loads(entry) for entry in answer.entries_json]

    def done(self, change: pb.Change, action: str) -> pb.ChangeResponse | None:
        """Return what the change of this id did, where it was made already.

        For changes whose arguments are worked out of what is in force, and would be
        others by now.

        Args:
            change: With the id.
            action: What the change is called in the audit log, such as ``set_traffic``.

        Returns:
            ``None`` where there is none yet, and where it was another action, or by
            somebody else, for another reason or with other evidence: asked for, such a
            change is refused.
        """
        given = json.loads(change.evidence_json or "{}")
        said = action, change.actor, change.reason.strip(), given
        request = pb.AuditRequest(operation_id=change.operation_id, model=change.model)
        for text in self._call("Audit", request, pb.AuditResponse).entries_json:
            entry = json.loads(text)
            was = entry["action"], entry["actor"], entry["reason"]
            if said != (*was, entry["evidence"]["given"]):
                continue
            return pb.ChangeResponse(
                model=entry["model"],
                revision=entry["to_revision"],
                diff=entry["evidence"]["change"],
                applied=entry["to_revision"] > entry["from_revision"],
                versions=entry["evidence"]["versions"],
                audit_seq=entry["seq"],
                audit_hash=hashlib.sha256(text.encode()).hexdigest(),
                notes=[
                    f"operation {change.operation_id} was done already: this is what "
                    "it did, and nothing was asked for again"
                ],
            )
        return None

    def _shown(self, rpc: str, request: Message) -> list[dict[str, Any]]:
        found: list[dict[str, Any]]
        found = json.loads(self._call(rpc, request, pb.ShowResponse).json)
        return found

    def _call(self, rpc: str, request: Message, reply: type[_Reply]) -> _Reply:
        method = self._channel.unary_unary(
            SERVICE + rpc,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            answer: _Reply = method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code = Code(error.code().value[0])
            raise self._explained(rpc, request, code, error.details() or "") from None
        return answer

    def _explained(
        self, rpc: str, request: Message, code: Code, details: str
    ) -> ClientError:
        """Return the error: what happened, and what to do where that is known."""
        where, said = escape(self._address), escape(details or "no reason given")
        name_it = "name the gateway's admin.sock with --admin or BATON_ADMIN_ADDRESS"
        if code is Code.UNIMPLEMENTED:
            return ClientError(
                f"what answers at {where} has no {rpc} of the admin plane, as a "
                f"gateway's data port has none: {name_it}",
                code,
            )
        if code is Code.UNAVAILABLE and any(s in details.lower() for s in _NO_SERVER):
            return ClientError(
                f"no gateway answers at {where}: start one with `baton serve`, or "
                f"{name_it} (while one restarts its controller, ask again)",
                code,
            )
        if code is Code.DEADLINE_EXCEEDED:
            said = f"no answer from {where} within {self._timeout_s:g} s"
        elif any(sign in details.lower() for sign in _LOST):
            said, code = f"{where} went away before it answered", Code.UNAVAILABLE
        elif code is not Code.INTERNAL:
            return ClientError(said, code)
        return ClientError(f"{said}. {_way_on(request)}", code)


def _way_on(request: Message) -> str:
    """Return what to do where nobody knows whether a request was carried out."""
    if isinstance(request, pb.RewardRequest):
        return "The rewards may or may not count: `baton traffic show` has the number"
    change = getattr(request, "change", None)
    if change is None or change.dry_run:
        return "Nothing was to be changed: ask again"
    return (
        "The change may or may not have been made: ask again for the same with "
        f"--operation-id {escape(change.operation_id)}, and it is made once"
    )

"""Wrong requests to the admin plane: each gets a sentence, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.admin_client import AdminClient
from gateway.client_rpc import ClientError
from gateway.controller.service import MAX_REWARDS, MAX_SOURCE
from gateway.errors import Code
from gateway.protocol import admin_pb2 as pb
from tests.traffic.served import MODEL, Served, serving
from tests.versions import says

DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
ARM = '{"role": "champion", "share": 1, "version": %s}'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("models"), versions=(1, 2)) as found:
        yield found


def refused(served: Served, rpc: str, request: Any) -> str:
    """Ask for what cannot be, and return what is said to that."""
    before = served.admin.show()
    reply = getattr(pb, f"{rpc}Response", pb.ChangeResponse)
    with AdminClient(served.address) as client, pytest.raises(ClientError) as caught:
        client._call(rpc, request, reply)
    assert caught.value.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
    assert served.admin.show() == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "traffic: is nested more than 100 deep"),
        (DEEP[: 5 * 200] + "1" + "}" * 200, "traffic: is nested more than 100 deep"),
        ("[" * 50_000, "traffic: is "),
        ("[]", "traffic: must be a JSON object"),
        ('{"arms": [], "salt": "a", "arms": []}', "traffic: arms is there twice"),
        ('{"arms": [%s]}' % (ARM % '"2"'), "arms.0.version must be a whole number"),
        ('{"arms": [%s]}' % (ARM % "true"), "arms.0.version must be a whole number"),
        ('{"arms": [%s]}' % (ARM % ("1" + "0" * 99)), "no version 1000"),
        ('{"arms": [%s]}' % (ARM % ("1" + "0" * 5000)), "traffic: is not JSON"),
        ('{"salt": "\\ud800"}', "traffic: "),
    ],
)
def test_a_table_that_is_none_is_refused(
    served: Served, text: str, message: str
) -> None:
    request = pb.SetTrafficRequest(change=served.change(), traffic_json=text)
    if "no version" in message:
        with pytest.raises(ClientError, match=message):
            served.admin._call("SetTraffic", request, pb.ChangeResponse)
    else:
        assert message in refused(served, "SetTraffic", request)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x" * (MAX_SOURCE + 1), f"source: has more than {MAX_SOURCE} characters"),
        ("/" + "x" * 300, "cannot be read: File name too long"),
        ("https://[", "the source is no URL: Invalid IPv6 URL"),
        ("/a\0b", "there is nothing"),
    ],
)
def test_a_source_that_is_none_is_refused(
    served: Served, source: str, message: str
) -> None:
    request = pb.ImportRequest(change=served.change(), source=source)
    assert message in refused(served, "Import", request)


@pytest.mark.parametrize("field", ["metadata", "evidence"])
def test_documents_beside_the_table_are_held_to_the_same(
    served: Served, field: str
) -> None:
    for text, message in ((DEEP, "is nested more"), ("3", "must be a JSON object")):
        change = served.change()
        request = pb.SetMetadataRequest(change=change, version=1, metadata_json="{}")
        if field == "metadata":
            request.metadata_json = text
        else:
            request.change.evidence_json = text
        said = refused(served, "SetMetadata", request)
        assert f"{field}: {message}" in said


def test_a_share_beyond_all_numbers_is_refused(served: Served) -> None:
    request = pb.EstimateRequest(model=MODEL, shares_json=f'{{"1": 1{"0" * 400}}}')
    assert "shares: as in" in refused(served, "Estimate", request)


def test_rewards_come_in_calls_that_end_soon(served: Served) -> None:
    served.set({1: 0.5, 2: 0.5}, "thompson")
    items = [pb.RewardRequest.Item(version=2, reward=1, propensity=0.5)] * MAX_REWARDS
    many = pb.RewardRequest(model=MODEL, items=[*items, items[0]])
    assert f"at most {MAX_REWARDS} are taken" in refused(served, "Reward", many)
    assert served.shown()["arms"][1]["rewards"] == 0
    assert served.admin.reward(MODEL, items).taken == MAX_REWARDS


def test_white_space_makes_nobody_somebody_else(served: Served) -> None:
    (version,) = served.take_in("by-ann", says(7), actor="ann").versions
    request = pb.ApproveRequest(change=served.change(actor="ann \t"), version=version)
    assert "somebody else must approve" in refused(served, "Approve", request)
    assert served.admin.audit(MODEL, limit=1)[0]["actor"] == "ann"

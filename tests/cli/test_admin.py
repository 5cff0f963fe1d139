"""The admin plane's commands, against a gateway that runs."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.admin_client import AdminClient
from gateway.client_rpc import ClientError
from gateway.commands.shared import error_text
from gateway.errors import Code
from gateway.protocol import admin_pb2 as pb
from tests.gateway_process import wait_for
from tests.traffic.served import MODEL, Served, serving, table
from tests.versions import says

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("models")) as found:
        found.take_in("by-ann", says(4), actor="ann")
        yield found


@pytest.fixture
def admin(baton: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in this process; 1 answers alone, as every test begins."""
    wait_for(served.admin_is_up)
    served.set({1: 1.0})
    monkeypatch.setenv("BATON_ADMIN_ADDRESS", served.address)
    return baton


def changed(result: Any) -> dict[str, Any]:
    """Return what a change that was made printed."""
    assert (result.exit_code, result.stderr) == (0, "")
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def refused(result: Any, code: Code) -> str:
    """Return the error of a command that failed, as JSON has it."""
    assert (result.exit_code, result.stdout) == (1, "")
    value = json.loads(result.stderr)
    assert value == {"error": value["error"], "code": code.name}
    assert len(result.stderr.splitlines()) == 1
    return str(value["error"])


def words(*more: str) -> tuple[str, ...]:
    return (*more, "--reason", "test", "--json")


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
    )


def mutations(served: Served) -> dict[str, tuple[str, ...]]:
    """Return every command that changes something, with arguments it can be run with.

    They can be run one after another, each of them once more.
    """
    file = served.state.parent / "table.yaml"
    file.write_text(json.dumps(table({2: 0.5, 3: 0.5})))
    model = served.state.parent / "1.onnx"
    said = served.state.parent / "said.yaml"
    said.write_text("{owner: ann, lineage: {code_commit: abc}}")
    described = ("describe", MODEL, "4", "--metadata", str(said))
    return {
        "describe": words("models", *described),
        "import": words("models", "import", str(model), "--model", MODEL),
        "alias": words("models", "alias", MODEL, "mine", "2"),
        "approve": words("models", "approve", MODEL, "4"),
        "require-approval": words("models", "require-approval", MODEL, "--on"),
        "set": words("traffic", "set", MODEL, str(file)),
        "split": words("traffic", "split", MODEL, "2=40%", "1=60%"),
        "shadow": words("traffic", "shadow", MODEL, "3"),
        "freeze": words("traffic", "freeze", MODEL),
        "rollback": words("traffic", "rollback", MODEL),
    }


def test_every_change_can_be_rehearsed_bound_and_repeated(
    admin: Any, served: Served
) -> None:
    for version in (1, 2, 3):  # for when approval is required
        served.admin.approve(served.change(actor="carl"), version)
    for name, command in mutations(served).items():
        revision = served.admin.show(MODEL)[0]["revision"]
        dry = changed(admin(*command, "--dry-run"))
        assert not dry["applied"], name
        stale = admin(*command, "--if-revision", str(revision - 1))
        assert f"at revision {revision}" in refused(stale, Code.ABORTED), name
        assert served.admin.show(MODEL)[0]["revision"] == revision, name
        speaks = served.state.parent / "evidence.yaml"
        speaks.write_text(f"{{auc: 0.91, of: [{name}]}}")
        once = (*command, "--operation-id", f"once-{name}", "--evidence", str(speaks))
        made = changed(admin(*once, "--if-revision", str(revision)))
        assert (made["applied"], made["revision"]) == (True, revision + 1), name
        again = changed(admin(*once, "--if-revision", str(revision)))
        assert again["audit"] == made["audit"], name
        assert served.admin.show(MODEL)[0]["revision"] == revision + 1, name
        shown = admin("audit", "show", MODEL, "--limit", "1", "--json").stdout
        given = json.loads(shown)[0]["evidence"]["given"]
        assert given == {"auc": 0.91, "of": [name]}
    served.admin.require_approval(served.change(), required=False)


@pytest.mark.parametrize("name", ["split", "shadow"])
def test_a_change_of_the_present_table_is_the_same_when_repeated(
    admin: Any, served: Served, name: str
) -> None:
    """It says for which revision it holds, and means the one it first held for."""
    command = (*mutations(served)[name], "--operation-id", f"bare-{name}")
    made, again = changed(admin(*command)), changed(admin(*command))
    assert "was done already" in again["notes"][0]
    # What they would make of the table now is another one.
    later = served.set({1: 0.5, 2: 0.5}, shadows=[{"version": 3, "sample": 0.5}])
    at = ("--if-revision", str(later.revision))
    told = [changed(admin(*command)), changed(admin(*command, *at))]
    silent = {"notes": [], "fronts": 0}
    for answer in (again, *told):
        assert {**answer, **silent} == {**made, **silent}
    assert served.shown()["table"]["revision"] == later.revision
    assert "in force" not in admin(*command[:-3], *command[-2:]).stdout
    entries = served.admin.audit(MODEL, limit=2)
    assert [one["to_revision"] for one in entries] == (
        [later.revision, made["revision"]]
    )


@pytest.mark.parametrize("other", [("--reason", "another"), ()])
def test_an_operation_that_was_another_change_is_refused(
    admin: Any, served: Served, other: tuple[str, ...]
) -> None:
    identity = ("--operation-id", f"other-{len(other)}")
    first = words("traffic", "split", MODEL, "2=40%", "1=60%")
    if not other:
        first = words("traffic", "freeze", MODEL)
    assert changed(admin(*first, *identity))["applied"]
    again = words("traffic", "split", MODEL, "2=40%", "1=60%")
    error = refused(admin(*again, *other, *identity), Code.INVALID_ARGUMENT)
    assert "with other arguments" in error


def test_what_is_said_of_a_version_can_be_replaced(
    admin: Any, served: Served, tmp_path: Path
) -> None:
    """Field by field, by itself or with an import of what is there already."""
    for part, text in {"1/model.onnx": says(1), "baton.yaml": b"owner: bea"}.items():
        file = tmp_path / "lots" / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    source, said = tmp_path / "lots", tmp_path / "said.json"
    changed(admin(*words("models", "import", str(source))))

    def metadata() -> dict[str, Any]:
        (version,) = json.loads(admin("models", "show", "lots", "--json").stdout)[0][
            "versions"
        ]
        found: dict[str, Any] = version["metadata"]
        return found

    lineage = metadata()["lineage"]
    said.write_text('{"stage": "live", "lineage": {"run_id": "7"}}')
    command = words("models", "describe", "lots", "1", "--metadata", str(said))
    assert "version 1 stage: '' -> 'live'" in changed(admin(*command))["change"]
    assert metadata()["lineage"] == {**lineage, "run_id": "7"}
    again = changed(admin(*words("models", "import", str(source))))
    assert (again["applied"], again["notes"]) == (False, [])
    (source / "baton.yaml").write_text("{owner: cat, description: of old}")
    (source / "config.pbtxt").write_text("max_batch_size: 8")
    said.write_text('{"description": "new"}')
    command = words("models", "import", str(source), "--metadata", str(said))
    made = changed(admin(*command))
    assert made["change"] == ["version 1 description: '' -> 'new'"]
    assert (
        "source has other owner, config.pbtxt (`baton models desc" in made["notes"][0]
    )
    found = metadata()
    assert (found["owner"], found["stage"], found["description"]) == (
        ("bea", "live", "new")
    )
    said.write_text('{"stag": 1}')
    command = words("models", "describe", "lots", "1", "--metadata", str(said))
    assert "stag is no field" in refused(admin(*command), Code.INVALID_ARGUMENT)
    command = words("models", "describe", "lots", "7", "--metadata", str(said))
    assert "no version 7" in refused(admin(*command), Code.NOT_FOUND)


def test_of_a_model_that_begins_closed_nothing_answers_unapproved(
    admin: Any, served: Served
) -> None:
    file = str(served.state.parent / "1.onnx")
    command = words("models", "import", file, "--require-approval")
    assert changed(admin(*command, "--model", "closed"))["applied"]
    for version in ("", "1", "latest"):
        with pytest.raises(grpc.RpcError):
            served.said(version, model="closed")
    mine = words("models", "approve", "closed", "1")
    error = refused(admin(*mine), Code.FAILED_PRECONDITION)
    assert "somebody else must approve" in error
    served.admin.approve(served.change(actor="carl", model="closed"), 1)
    assert served.said(model="closed") == served.said("1", model="closed") == 1
    second = words("models", "import", str(served.state.parent / "2.onnx"))
    changed(admin(*second, "--model", "closed"))
    served.admin.approve(served.change(actor="carl", model="closed"), 2)
    assert served.said(model="closed") == 1
    # It may be said again, of what it holds for already, and of nothing else.
    changed(admin(*command, "--model", "closed"))
    error = refused(admin(*command, "--model", MODEL), Code.FAILED_PRECONDITION)
    assert f"`baton models require-approval {MODEL}`" in error


@contextmanager
def slow_files(folder: Path) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Serve a folder over HTTP: the URL, set when asked for, to set to go on."""
    asked, go_on = threading.Event(), threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *more: Any) -> None:
            super().__init__(*more, directory=str(folder))

        def do_HEAD(self) -> None:
            asked.set()
            go_on.wait(30)
            super().do_HEAD()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked, go_on
        go_on.set()
        server.shutdown()


def test_a_controller_that_dies_leaves_a_way_to_ask_again(
    admin: Any, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "new.onnx").write_bytes(says(5))
    with slow_files(tmp_path) as (url, asked, go_on):
        command = words("models", "import", f"{url}/new.onnx", "--model", MODEL)

        def kill() -> None:
            asked.wait(30)
            os.kill(served.running.pids("controller")[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        error = refused(admin(*command), Code.UNAVAILABLE)
        killer.join()
        assert f"{served.address} went away before it answered" in error
        assert "may or may not have been made" in error
        go_on.set()
        wait_for(served.admin_is_up)
        identity = error.split("--operation-id ")[1].split(",")[0]
        command = (*command, "--operation-id", identity)
        made, again = changed(admin(*command)), changed(admin(*command))
    assert (made["applied"], made["audit"]) == (True, again["audit"])
    ids = [one["evidence"]["operation"] for one in served.admin.audit(MODEL)]
    assert ids.count(identity) == 1


def test_a_call_that_changes_nothing_is_only_to_be_asked_again(
    admin: Any, served: Served
) -> None:
    pid = served.running.pids("controller")[0]
    with AdminClient(served.address) as client:
        client.show(MODEL)  # connects
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(ClientError, match="went away") as caught:
            client.audit(MODEL)
        killer.join()
    assert "Nothing was to be changed" in str(caught.value)


def test_a_change_without_an_answer_in_time_can_be_asked_for_again(
    admin: Any, served: Served
) -> None:
    pid = served.running.pids("controller")[0]
    with AdminClient(served.address, timeout_s=0.3) as client:
        client.show(MODEL)  # connects
        change = client.change(MODEL, "test")
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ClientError, match=r"within 0\.3 s") as caught:
                client.set_traffic(change, table({2: 1.0}))
        finally:
            os.kill(pid, signal.SIGCONT)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert f"--operation-id {change.operation_id}" in str(caught.value)
    made = served.admin.set_traffic(change, table({2: 1.0}))
    again = served.admin.set_traffic(change, table({2: 1.0}))
    assert (made.applied, made.audit_seq) == (True, again.audit_seq)


def test_a_table_from_a_file_holds_for_the_revision_in_it(
    admin: Any, served: Served, tmp_path: Path
) -> None:
    served.admin.set_alias(served.change(), "mine", 2)
    shown = json.loads(admin("traffic", "show", MODEL, "--json").stdout)[0]["table"]
    shown["arms"][0]["version"] = 2
    file = tmp_path / "table.json"
    file.write_text(json.dumps(shown))
    command = words("traffic", "set", MODEL, str(file))
    assert changed(admin(*command, "--dry-run"))["refusal"] == ""
    once = (*command, "--operation-id", "from-file")
    made, again = changed(admin(*once)), changed(admin(*once))
    assert made["audit"] == again["audit"]
    assert f"not {shown['revision']}" in refused(admin(*command), Code.ABORTED)
    at_last = (*command, "--if-revision", str(made["revision"]))
    # The champion's alias in the file is that of the old champion by now.
    assert "aliases.champion" in refused(admin(*at_last), Code.FAILED_PRECONDITION)
    shown["aliases"] = {}
    shown["arms"][0]["version"] = 3
    file.write_text(json.dumps(shown))
    assert changed(admin(*at_last))["applied"]


@pytest.mark.parametrize(
    "aliases", [{"mine": 3}, {"mine": 2, "other": 1}, {"latest": 1}]
)
def test_a_table_from_a_file_moves_no_alias(
    admin: Any, served: Served, tmp_path: Path, aliases: dict[str, int]
) -> None:
    served.admin.set_alias(served.change(), "mine", 2)
    file = tmp_path / "table.json"
    now = served.admin.show(MODEL)[0]["aliases"]
    file.write_text(json.dumps({**table({1: 1.0}), "aliases": {**now, **aliases}}))
    error = refused(
        admin(*words("traffic", "set", MODEL, str(file))), Code.FAILED_PRECONDITION
    )
    assert "use `baton models alias`" in error
    assert f"aliases.{[*aliases][-1]}" in error


def roles(served: Served) -> dict[int, str]:
    arms = served.shown()["table"]["arms"]
    return {arm["version"]: arm["role"] for arm in arms}


def test_a_split_leaves_the_champion_where_it_is(admin: Any, served: Served) -> None:
    changed(admin(*words("traffic", "split", MODEL, "2=30%", "1=70%")))
    assert roles(served) == {2: "challenger", 1: "champion"}
    changed(admin(*words("traffic", "split", MODEL, "3=30%", "2=70%")))
    assert roles(served) == {3: "champion", 2: "challenger"}
    command = words("traffic", "split", MODEL, "3=30%", "2=70%", "--champion", "2")
    changed(admin(*command))
    assert roles(served) == {3: "challenger", 2: "champion"}


def test_a_table_is_shown_with_all_that_it_decides(admin: Any, served: Served) -> None:
    served.set(
        {1: 0.5, 2: 0.5},
        "sticky",
        unit={"kind": "metadata", "key": "x-user"},
        segments=[{"kind": "parameter", "key": "country"}],
        rules=[
            {"version": 2, "key": "x-region", "value": "eu"},
            {"version": 1, "units": ["ann", "bob"]},
        ],
        frozen=True,
    )
    revision = served.shown()["table"]["revision"]
    about = admin("traffic", "show", MODEL).stdout.splitlines()[-1]
    assert about.startswith(f"{MODEL}: revision {revision}; frozen; ")
    for part in (
        "unit metadata:x-user",
        "segments parameter:country",
        "x-region=eu to version 2",
        "2 units to version 1",
        "champion = 1",
    ):
        assert f"; {part}" in about


def test_what_is_known_of_an_arm_is_shown(admin: Any, served: Served) -> None:
    served.set({1: 0.5, 2: 0.5}, "thompson")
    item = pb.RewardRequest.Item(version=2, reward=1.0, propensity=0.5)
    served.admin.reward(MODEL, [item] * 50)
    arms = json.loads(admin("traffic", "show", MODEL, "--json").stdout)[0]["arms"]
    assert (arms[0]["effective"], arms[0]["mean_reward"]) == (0, None)
    assert 45 < arms[1]["effective"] < arms[1]["rewards"] == 50
    assert 0.9 < arms[1]["best"] < 1
    header, _, row, _ = admin("traffic", "show", MODEL).stdout.splitlines()
    assert header.split()[6:] == (
        ["REQUESTS", "REWARDS", "EFFECTIVE", "MEAN", "REWARD", "P(BEST)", "AGREES"]
    )
    assert row.split()[7:] == (
        ["50", f"{arms[1]['effective']:.0f}", "1.000", f"{arms[1]['best']:.3f}"]
    )


def test_percentages_are_the_decimals_they_look_like(
    admin: Any, served: Served
) -> None:
    command = words("traffic", "split", MODEL, "1=33.34%", "2=.3333", "3=33.33%")
    lines = changed(admin(*command, "--dry-run"))["change"]
    assert "arm 1: champion, share 1.0 -> champion, share 0.3334" in lines
    assert "+ arm 3: challenger, share 0.3333" in lines


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("split", MODEL, "1=50%", "1=100%"), "version 1 is named twice"),
        (("split", MODEL, "1=90", "2=10"), "1=90: a share is at most 100%: write 90%"),
        (("split", MODEL, "1=90", "2=10"), "or 0.9"),
        (("split", MODEL, "1=nan", "2=10%"), "1=nan is not VERSION=SHARE"),
        (("split", MODEL, "1=inf"), "1=inf is not VERSION=SHARE"),
        (("split", MODEL, "1=150%"), "at most 100%"),
        (("split", MODEL, "-1=50%", "2=50%"), "versions are numbers from 1 on"),
        (("split", MODEL, "1=100%", "--champion", "2"), "--champion 2 has no share"),
        (
            ("split", MODEL, "1=100%", "--unit", "x-user"),
            "write metadata:x-user (of the call) or parameter:x-user",
        ),
        (("split", MODEL, "1=100%", "--unit", "header:x"), "write metadata:x (of"),
    ],
)
def test_wrong_arguments_say_what_to_write(
    command: tuple[str, ...], message: str
) -> None:
    result = python("-m", "gateway", "traffic", *words(*command))
    assert (result.returncode, result.stdout) == (2, "")
    error = json.loads(result.stderr)
    assert message in error["error"]
    assert "(see `baton traffic split --help`)" in error["error"]
    assert error["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "command",
    [
        ("traffic", "rollback", MODEL, "--to", "1" + "0" * 23),
        ("traffic", "freeze", MODEL, "--if-revision", str(1 << 63)),
        ("models", "alias", MODEL, "mine", "1" + "0" * 20),
        ("models", "approve", MODEL, "1" + "0" * 5000),
        ("traffic", "split", MODEL, "1" + "0" * 5000 + "=100%"),
    ],
)
def test_a_number_that_no_message_has_room_for_is_wrong_usage(
    admin: Any, command: tuple[str, ...]
) -> None:
    result = admin(*words(*command))
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("revision", ["1" + "0" * 30, "true", "'3'", "-1"])
def test_a_revision_that_is_none_does_not_unbind_a_table(
    admin: Any, served: Served, revision: str
) -> None:
    file = served.state.parent / "bound.yaml"
    file.write_text(f"{json.dumps(table({2: 1.0}))[:-1]}, 'revision': {revision}}}")
    result = admin(*words("traffic", "set", MODEL, str(file)))
    assert (result.exit_code, result.stdout) == (2, "")
    assert served.shown()["table"]["arms"][0]["version"] == 1


def test_an_empty_source_is_not_this_folder(admin: Any) -> None:
    result = admin(*words("models", "import", " ", "--model", MODEL))
    assert result.exit_code == 2
    assert "SOURCE is empty" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: 3", "traffic: arms must be a list"),
        (
            "arms: [{version: 1, role: champion, share: .nan}]",
            "traffic: arms.0.share must be a finite number",
        ),
        ("arms: [{version: 1, role: champion, share: 90}]", "such as 0.9 for 90 %"),
        ("arms: [{version: -1, role: champion, share: 1}]", "from 1 on"),
        ("shadows: [{version: 3, sample: .nan}]", "shadows.0.sample must be a finite"),
        (
            '{"arms": [{"version": "1", "role": "champion", "share": 1}]}',
            "arms.0.version",
        ),
        ("policy: {flor: 1}", "traffic: policy.flor is no field; there are kind"),
        ("policy: {shrinkage: .nan}", "policy.shrinkage must be a finite number"),
    ],
)
def test_a_table_that_cannot_be_says_why(
    admin: Any, served: Served, text: str, message: str
) -> None:
    file = served.state.parent / "table.yaml"
    file.write_text(text)
    result = admin(*words("traffic", "set", MODEL, str(file)))
    assert message in refused(result, Code.INVALID_ARGUMENT)


def test_a_rollback_to_nowhere_names_what_lists_revisions(admin: Any) -> None:
    result = admin(*words("traffic", "rollback", MODEL, "--to", "999"))
    assert f"`baton audit show {MODEL}` lists" in refused(result, Code.NOT_FOUND)


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("ownr: ann", 1, "metadata: ownr is no field; there are description, owner"),
        ("metrics: {auc: .inf}", 1, "metadata: metrics.auc must be a finite number"),
        ("description: 2026-01-02", 2, "put dates and the like into quotes"),
        ("[" * 5000, 2, "nested too deeply"),
        ("{owner: ann, stage: x, owner: bea}", 2, "owner is there twice"),
        ("lineage: {run_id: a, 'run_id': b}", 2, "run_id is there twice"),
    ],
)
def test_metadata_that_cannot_be_kept_says_why(
    admin: Any, served: Served, text: str, status: int, message: str
) -> None:
    file = served.state.parent / "metadata.yaml"
    file.write_text(text)
    source = str(served.state.parent / "1.onnx")
    command = words("models", "import", source, "--metadata", str(file))
    result = admin(*command, "--model", MODEL)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize(
    "command",
    [
        ("models", "show", "nobody"),
        ("traffic", "show", "nobody"),
        ("traffic", "decisions", "nobody"),
        ("traffic", "estimate", "nobody", "1=100%"),
        ("audit", "show", "nobody"),
    ],
)
def test_a_model_that_is_not_there_is_an_error(
    admin: Any, command: tuple[str, ...]
) -> None:
    assert "nobody" in refused(admin(*command, "--json"), Code.NOT_FOUND)
    assert admin(*command).stderr.startswith("baton: ")


def test_stubs_made_as_is_documented_reach_the_admin_plane(
    served: Served, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "traffic.md").read_text()
    (command,) = re.findall(r"`python -m (grpc_tools\.protoc [^`]*)`", page)
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    assert python("-m", *command.split(), cwd=tmp_path).returncode == 0
    client = (
        "import sys, grpc, admin_pb2, admin_pb2_grpc\n"
        "stub = admin_pb2_grpc.AdminStub(grpc.insecure_channel(sys.argv[1]))\n"
        "print(stub.Show(admin_pb2.ShowRequest(), timeout=30).json)"
    )
    done = python("-c", client, served.address, cwd=tmp_path)
    assert json.loads(done.stdout) == served.admin.show()


def test_the_data_port_is_named_as_what_it_is(admin: Any, served: Served) -> None:
    command = ("audit", "show", "--json", "--admin", served.running.address)
    error = refused(admin(*command), Code.UNIMPLEMENTED)
    assert f"{served.running.address} has no Audit of the admin plane" in error
    assert "name the gateway's admin.sock" in error


def test_nobody_at_the_address_is_named_as_that(admin: Any, tmp_path: Path) -> None:
    where = f"unix:{tmp_path}/admin.sock"
    error = refused(
        admin("audit", "show", "--json", "--admin", where), Code.UNAVAILABLE
    )
    assert error.startswith(f"no gateway answers at {where}: start one")


def test_the_entry_that_was_spoilt_is_named(
    admin: Any, served: Served, tmp_path: Path
) -> None:
    shutil.copytree(served.state / "registry", tmp_path / "registry")
    with sqlite3.connect(tmp_path / "registry" / "registry.sqlite") as database:
        (triggers,) = (
            [name for (name,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            )],
        )  # fmt: skip
        for name in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE audit SET hash = '0' WHERE seq = 3")
    verify = ("audit", "verify", "--state-dir", str(tmp_path))
    result = admin(*verify)
    assert result.exit_code == 1
    assert "Entry 3: its hash is not that of its body; the 2 before" in result.stderr
    assert json.loads(admin(*verify, "--json").stdout)["entry"] == 3
    gone = admin("audit", "verify", "--state-dir", "/nowhere", "--json")
    assert (gone.exit_code, gone.stdout) == (3, "")
    assert json.loads(gone.stderr)["code"] == "NOT_FOUND"


def test_errors_are_a_line_or_an_object() -> None:
    assert error_text("no", Code.ABORTED, as_json=False) == "baton: no"
    assert json.loads(error_text("no", Code.ABORTED, as_json=True)) == {
        "error": "no",
        "code": "ABORTED",
    }

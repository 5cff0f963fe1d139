"""What the demo does to a model under load: shadow, bandit, promotion, rollback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from gateway.admin_client import AdminClient
from gateway.client_rpc import ClientError
from gateway.errors import Code
from gateway.protocol import admin_pb2 as pb
from loadtest.labels import Labels
from loadtest.processes import ROOT
from loadtest.traffic import Reference, Tally

CHAMPION, SHADOW, CHALLENGER = 1, 2, 3
SHARES = {CHAMPION: 0.8, CHALLENGER: 0.2}
"""Where the bandit begins."""
FLOOR, MAX_STEP = 0.05, 0.1
REFRESHES = 20
"""Of the weights, while the bandit runs."""
LEAST_REFRESH_S = 0.05
PARTS = {"alone": 0.1, "shadow": 0.2, "bandit": 0.45, "promoted": 0.12, "back": 0.13}
"""Steps, and their parts of the time under load."""
LOOK_S = 0.1
"""Between looks at decisions and weights: at 5,000 req/s, a look sees all decisions."""
MOST_DECISIONS = 1000
ADMIN_S = 20.0
"""Longest wait for an answer of the admin plane, and for the plane itself."""

Json = dict[str, Any]
_T = TypeVar("_T")


@dataclass(slots=True)
class Findings:
    """What the experiment came to.

    Attributes:
        answers: By step: answers by version.
        shadow: Agreement, latencies in ms, and copies not made.
        arms: At the end of the bandit: what ``traffic show`` says of each arm (its
            mean reward fades), and the plain mean of what it earned.
        rewards: That the bandit was told.
        earned: Mean of them.
        fixed: What the shares it began with would have earned on these records.
        estimates: The same as estimated from the log, by estimator.
        refused: Why there is no estimate; empty if there is.
        winner: The version that was promoted; 0 for none.
        promoted_ms: Until it alone answered in every front.
        back_ms: Until those before answered again.
        audit: What ``baton audit verify`` said.
        trail: The audit log, oldest first.
    """

    answers: dict[str, dict[int, int]] = field(default_factory=dict)
    shadow: Json = field(default_factory=dict)
    arms: list[Json] = field(default_factory=list)
    rewards: int = 0
    earned: float = 0.0
    fixed: float = 0.0
    estimates: Json = field(default_factory=dict)
    refused: str = ""
    winner: int = 0
    promoted_ms: float = 0.0
    back_ms: float = 0.0
    audit: Json = field(default_factory=dict)
    trail: list[Json] = field(default_factory=list)

    def as_json(self) -> Json:
        """Return everything as JSON values."""
        return asdict(self)


def wait_for_admin(admin: AdminClient) -> None:
    """Wait until a gateway's admin plane answers, which comes up beside the fronts.

    Raises:
        ClientError: It does not come up in time.
    """
    end = time.monotonic() + ADMIN_S
    while True:
        try:
            admin.show()
        except ClientError as error:
            if error.code is not Code.UNAVAILABLE or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


class Experiment:
    """Changes who answers for one model while it is under load. Loop thread only.

    Args:
        admin: The gateway's admin plane.
        state_dir: The gateway's state, whose audit log is verified.
        sources: The model's versions, as they are to be numbered.
        files: Their ONNX files.
        tally: Of the answers; is made to note what predictions were worth.
        console: Gets a line for each change.

    Attributes:
        answers: Counts answers by version; whoever gets them does.
        findings: So far.
        shown: What ``traffic show`` says of the model.
    """

    def __init__(
        self,
        admin: AdminClient,
        state_dir: Path,
        sources: Mapping[int, Reference],
        files: Mapping[int, Path],
        *,
        tally: Tally,
        console: Console,
    ) -> None:
        self.name = sources[CHAMPION].model.name
        self.findings = Findings()
        self.shown: Json = {}
        self._admin = admin
        self._state_dir = state_dir
        self._sources = sources
        self._files = files
        self.answers = tally.versions
        self._labels = tally.labels = Labels()
        self._console = console
        self._end = 0.0
        self._counted: Counter[int] = Counter()

    def import_version(self, version: int, commit: str) -> None:
        """Take a version in; a model's first becomes the champion, others wait.

        Args:
            version: The number it is to get.
            commit: Of the code that trained it.

        Raises:
            ClientError: The admin plane does not come up, or refuses.
        """
        wait_for_admin(self._admin)
        source = self._sources[version]
        model = source.model
        metadata = {
            "description": f"{model.kind}, trained by the demo",
            "owner": "demo",
            "metrics": {"held_out_accuracy": source.accuracy},
            "lineage": {
                "source": f"scikit-learn's {model.name}",
                "code_commit": commit,
                "data_digest": model.data_digest,
                "parameters": dict(model.parameters),
            },
        }
        change = self._reason(f"the {model.kind} is trained")
        done = self._admin.import_(change, str(self._files[version]), metadata)
        if list(done.versions) != [version]:
            raise ClientError(
                f"version {version} became {list(done.versions)}",
                Code.FAILED_PRECONDITION,
            )

    def kind(self, version: int) -> str:
        """Return what a version is, in two words."""
        return self._sources[version].model.kind

    async def conduct(self, seconds: float, commit: str) -> None:
        """Go through all steps in a given time, from where the champion is served.

        Args:
            seconds: For all of them.
            commit: Of the code that trained the versions.

        Raises:
            ClientError: The admin plane refused something, or did not answer.
        """
        self._end = time.monotonic() + seconds
        kind = self.kind(CHAMPION)
        self._say(f"1. version {CHAMPION}, the {kind}, answers alone: the champion")
        for version in (SHADOW, CHALLENGER):
            await self._ask(partial(self.import_version, version, commit))
        await self._stay("alone")
        await self._change(
            f"2. version {SHADOW}, the {self.kind(SHADOW)}, gets copies of all"
            " requests; clients never see its answers",
            "see it at work before it answers",
            shadows=[{"version": SHADOW}],
        )
        await self._stay("shadow", until=self._note_shadow)
        await self._bandit()
        await self._promote()
        await self._stay("promoted")
        back = await self._ask(
            lambda: self._admin.rollback(self._reason("rehearse the way back"))
        )
        self.findings.back_ms = back[1]
        self._say(f"5. rolled back in {back[1]:.0f} ms: both arms answer as before")
        await asyncio.gather(self._stay("back"), self._verify())

    async def _bandit(self) -> None:
        length = self._length("bandit")
        policy = {
            "kind": "thompson",
            "floor": FLOOR,
            "max_step": MAX_STEP,
            "refresh_s": max(LEAST_REFRESH_S, length / REFRESHES),
        }
        roles = {CHAMPION: "champion", CHALLENGER: "challenger"}
        arms = [{"version": v, "role": roles[v], "share": s} for v, s in SHARES.items()]
        await self._change(
            f"3. version {CHALLENGER}, the {self.kind(CHALLENGER)}, challenges it:"
            f" {SHARES[CHALLENGER]:.0%} of the requests to begin with, then what the"
            " labels make of it (Thompson sampling)",
            "let the labels decide between the two",
            arms=arms,
            policy=policy,
        )
        self._labels.forget()
        await self._stay("bandit", learning=True)
        found = self.findings
        told, earned = self._labels.told, self._labels.earned
        means = {version: earned[version] / told[version] for version in told}
        found.arms = [
            {**arm, "earned": means.get(arm["version"], 0.0)}
            for arm in self.shown["arms"]
        ]
        found.rewards = sum(told.values())
        found.earned = sum(earned.values()) / max(found.rewards, 1)
        found.fixed = sum(s * self._sources[v].accuracy for v, s in SHARES.items())
        wanted = {str(version): share for version, share in SHARES.items()}
        try:
            found.estimates, _ = await self._ask(
                lambda: self._admin.estimate(self.name, wanted)
            )
        except ClientError as error:
            if error.code is not Code.FAILED_PRECONDITION:
                raise
            found.refused = str(error)

    async def _promote(self) -> None:
        best = max(self.findings.arms, key=lambda arm: float(arm["weight"]))
        version, reason = int(best["version"]), f"it earned {best['earned']:.3f} each"
        self.findings.winner = version
        self.findings.promoted_ms = await self._change(
            f"4. version {version} is promoted and answers alone: {reason}",
            reason,
            arms=[{"version": version, "role": "champion", "share": 1.0}],
            policy={"kind": "fixed"},
        )

    def _note_shadow(self) -> bool:
        """Note what came of the shadow; return whether anything was compared.

        Its workers start when the first shadow does, which takes a second or two.
        """
        sums = self.shown["shadows"].get(str(SHADOW), {})
        counts = sums.get("counts", {})
        agreement = sums.get("agreement", {})
        rows, answered = agreement.get("rows", 0), counts.get("answered", 0)
        own_ns, primary_ns = sums.get("latency_ns", (0, 0))
        self.findings.shadow = {
            "version": SHADOW,
            "rows": rows,
            "agreed": agreement.get("agreed", 0) / rows if rows else None,
            "latency_ms": own_ns / answered / 1e6 if answered else None,
            "primary_latency_ms": primary_ns / answered / 1e6 if answered else None,
            "copied": counts.get("copied", 0),
            "dropped": sum(n for k, n in counts.items() if k.startswith("dropped")),
            "failed": sum(n for k, n in counts.items() if k.startswith("failed")),
        }
        return bool(rows)

    async def _verify(self) -> None:
        """Verify the audit log as an auditor would: with the command, from outside."""
        command = [sys.executable, "-m", "gateway", "audit", "verify", "--json"]
        command += ["--state-dir", str(self._state_dir.absolute())]
        done, _ = await self._ask(
            lambda: subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False
            )
        )
        try:
            self.findings.audit = json.loads(done.stdout)
        except ValueError:
            self.findings.audit = {"ok": False, "fault": done.stderr.strip()}
        trail, _ = await self._ask(lambda: self._admin.audit(self.name))
        self.findings.trail = trail[::-1]

    def _length(self, step: str) -> float:
        """Return the seconds of a step that begins now: its part of those left."""
        steps = list(PARTS)
        left = sum(PARTS[name] for name in steps[steps.index(step) :])
        return max(0.0, self._end - time.monotonic()) * PARTS[step] / left

    async def _stay(
        self,
        step: str,
        *,
        learning: bool = False,
        until: Callable[[], bool] = lambda: True,
    ) -> None:
        """Look at the traffic for a step.

        Args:
            step: One of `PARTS`.
            learning: Tell the policy what decisions were worth.
            until: Looks at what is shown; the step is as much longer as that takes to
                be true, while there is load.
        """
        end = time.monotonic() + self._length(step)
        while True:
            if learning:
                await self._tell_rewards()
            shown, _ = await self._ask(lambda: self._admin.traffic(self.name))
            self.shown = shown[0]
            now = time.monotonic()
            if now >= end and (until() or now >= self._end):
                break
            await asyncio.sleep(min(LOOK_S, max(end - now, LEAST_REFRESH_S)))
        counted, self._counted = self.answers - self._counted, self.answers.copy()
        self.findings.answers[step] = dict(sorted(counted.items()))

    async def _tell_rewards(self) -> None:
        decisions, _ = await self._ask(
            lambda: self._admin.decisions(self.name, MOST_DECISIONS)
        )
        items = self._labels.join(decisions)
        if items:
            await self._ask(lambda: self._admin.reward(self.name, items))

    async def _change(self, says: str, reason: str, **fields: object) -> float:
        """Change fields of the table; return the milliseconds until it is in force."""
        known, _ = await self._ask(lambda: self._admin.show(self.name))
        table = {**known[0]["traffic"], **fields}
        change = self._reason(reason)
        change.expected_revision = known[0]["revision"]
        done, took_ms = await self._ask(lambda: self._admin.set_traffic(change, table))
        self._say(f"{says} (revision {done.revision}, in force after {took_ms:.0f} ms)")
        return took_ms

    def _reason(self, text: str) -> pb.Change:
        return self._admin.change(self.name, text)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    async def _ask(self, call: Callable[[], _T]) -> tuple[_T, float]:
        """Call the admin plane in a thread; return the answer and its milliseconds."""
        begun = time.monotonic()
        answer = await asyncio.to_thread(call)
        return answer, (time.monotonic() - begun) * 1000

"""What the demo says at its end, for somebody who sees all this for the first time."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from loadtest.experiment import CHALLENGER, CHAMPION, SHADOW, SHARES
from loadtest.traffic import Versions

Json = dict[str, Any]


def tell(console: Console, figures: Json, digits: Versions) -> None:
    """Print what happened, and what it means.

    Args:
        console: Where to.
        figures: The whole run, as ``--json`` has it.
        digits: The model whose versions took turns.
    """
    lines = [
        f"{figures['requests']:,} requests in {figures['seconds']} s:"
        f" {figures['requests_per_s']:,} req/s, p50 {figures['p50_ms']} ms, p99"
        f" {figures['p99_ms']} ms (this client used {figures['client_cpu_share']:.0%}"
        " of a core)"
    ]
    for name, one in figures["models"].items():
        lines.append(
            f"{name}: {one['agreed']:,} of {one['requests']:,} answers agree with ONNX"
            f" Runtime and scikit-learn, {one['failures']} failed, mean batch"
            f" {one['mean_batch_rows']:.1f} rows"
        )
    found = figures["traffic"]
    if found["trail"]:
        lines += [*_learnt(found, digits), *_audited(found)]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _learnt(found: Json, digits: Versions) -> list[str]:
    shadow, weights = found["shadow"], {a["version"]: a for a in found["arms"]}
    kinds = {v: one.model.kind for v, one in digits.by_number.items()}
    lines = ["", "What happened to digits:"]
    if shadow["rows"]:
        lines.append(
            f"- Shadow: the {kinds[SHADOW]} decided as the champion did in"
            f" {shadow['agreed']:.1%} of {shadow['rows']:,} rows. No client waited for"
            f" it: it takes what the others leave, {shadow['latency_ms']:.1f} ms a copy"
            f" beside the champion's {shadow['primary_latency_ms']:.1f} ms, and"
            f" {shadow['dropped']:,} copies were not made while Baton was busy."
        )
    moved = "; ".join(
        f"the {kinds[version]} went from {share:.0%} to"
        f" {weights[version]['weight']:.0%} of the requests: it was right in"
        f" {weights[version]['earned']:.1%}"
        for version, share in SHARES.items()
    )
    lines.append(f"- Bandit: {moved}.")
    lines.append(
        f"- Worth: {found['rewards']:,} labelled requests earned {found['earned']:.3f}"
        f" each; with {SHARES[CHAMPION]:.0%} to {SHARES[CHALLENGER]:.0%} throughout it"
        f" would have been {found['fixed']:.3f}, which is known here as every version"
        f" was scored on all records{_estimated(found)}."
    )
    lines.append(
        f"- Decision: the {kinds[found['winner']]} was promoted in"
        f" {found['promoted_ms']:.0f} ms, and rolled back in"
        f" {found['back_ms']:.0f} ms; {_steps(found)}"
    )
    return lines


def _estimated(found: Json) -> str:
    """Return what the log alone says of the split; empty where it says nothing."""
    one = found["estimates"].get("snips")
    if one is None:
        return f"; the log alone cannot say: {found['refused']}"
    return f"; the log alone says {one['low']:.3f} to {one['high']:.3f} (SNIPS, 95 %)"


def _steps(found: Json) -> str:
    parts = []
    for step in ("bandit", "promoted", "back"):
        answers = found["answers"].get(step, {})
        total = sum(answers.values())
        shares = ", ".join(f"v{v} {n / total:.0%}" for v, n in answers.items())
        parts.append(f"{step}: {shares or 'no answers'}")
    return "answers by version: " + "; ".join(parts) + "."


def _audited(found: Json) -> list[str]:
    verdict = found["audit"]
    lines = ["", "Who changed what, and why (baton audit show):"]
    lines += [
        f"{entry['seq']:>3} {entry['action']:<12} revision"
        f" {entry['from_revision']} -> {entry['to_revision']}: {entry['reason']}"
        for entry in found["trail"]
    ]
    if verdict.get("ok"):
        lines.append(
            f"baton audit verify: {verdict['entries']} entries, the chain of hashes is"
            f" whole, head {verdict['head'][:12]}"
        )
    return lines

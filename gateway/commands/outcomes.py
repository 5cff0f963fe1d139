"""``baton traffic``: what comes of a table, and what another would have earned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from gateway.commands.shared import (
    ADMIN,
    Admin,
    AnyModel,
    AsJson,
    Model,
    Shares,
    Version,
    columns,
    connect,
    console,
    print_json,
    shares_of,
)
from gateway.logs import escape


def add_outcome_commands(traffic: typer.Typer) -> None:
    """Add the commands that look, and the one that tells, to ``baton traffic``."""
    traffic.command("show")(show_traffic)
    traffic.command("decisions")(show_decisions)
    traffic.command("reward")(reward_traffic)
    traffic.command("estimate")(estimate_traffic)


def show_traffic(
    model: AnyModel = "", admin: Admin = ADMIN, as_json: AsJson = False
) -> None:
    """Show who answers, with which weights, and what came of it.

    EFFECTIVE is what the rewards count for by now, discounted; P(BEST) how probable it
    is that the version's mean reward is the largest; AGREES how often a shadow decides
    as who answered did: the same class, or a single score on the same side of 0.5.
    """
    with connect(admin, as_json=as_json) as client:
        found = client.traffic(model)
    if as_json:
        print_json(found)
        return
    table = columns(
        "MODEL", "VERSION", "ROLE", "POLICY", "SHARE", "WEIGHT", "REQUESTS", "REWARDS",
        "EFFECTIVE", "MEAN REWARD", "P(BEST)", "AGREES",
    )  # fmt: skip
    for one in found:
        requests = one["requests"]
        kind = one["table"]["policy"]["kind"]
        for arm in one["arms"]:
            table.add_row(
                escape(one["model"]),
                str(arm["version"]),
                arm["role"],
                kind,
                f"{arm['share']:.1%}",
                f"{arm['weight']:.1%}",
                str(requests.get(str(arm["version"]), 0)),
                str(arm["rewards"]),
                f"{arm['effective']:.0f}",
                _known(arm["mean_reward"]),
                _known(arm["best"]),
                "",
            )
        for shadow in one["table"]["shadows"]:
            sums = one["shadows"].get(str(shadow["version"]), {})
            agreement = sums.get("agreement", {})
            rows, counts = agreement.get("rows", 0), sums.get("counts", {})
            agrees = f"{agreement['agreed'] / rows:.1%} of {rows}" if rows else ""
            if counts.get("incompatible") and not counts.get("copied"):
                agrees = "takes no such requests"  # other inputs, or smaller batches
            table.add_row(
                escape(one["model"]),
                str(shadow["version"]),
                "shadow",
                f"{shadow['sample']:.0%} of requests",
                "",
                "",
                str(counts.get("answered", 0)),
                "",
                "",
                "",
                "",
                agrees,
            )
    console().print(table)
    for one in found:
        for line in _about(one):
            typer.echo(escape(line))


def _about(one: dict[str, Any]) -> Iterator[str]:
    """Yield what of a model's table is in no column, and what became of its copies."""
    table = one["table"]
    parts = [f"revision {table['revision']}"]
    parts += ["frozen"] if table["frozen"] else []
    if unit := table["unit"]:
        parts.append(f"unit {unit['kind']}:{unit['key']}")
    if segments := table["segments"]:
        parts.append(
            "segments " + ", ".join(f"{s['kind']}:{s['key']}" for s in segments)
        )
    for rule in table["rules"]:
        who = [f"{rule['key']}={rule['value']}"] if rule["key"] else []
        who += [f"{len(rule['units'])} units"] if rule["units"] else []
        parts.append(f"{' or '.join(who)} to version {rule['version']}")
    for alias, version in sorted(table["aliases"].items()):
        parts.append(f"{alias} = {version}")
    yield f"{one['model']}: {'; '.join(parts)}"
    for version, sums in sorted(one["shadows"].items(), key=lambda pair: int(pair[0])):
        dropped = {k: n for k, n in sums["counts"].items() if k.startswith("dropped")}
        if dropped:
            why = ", ".join(
                f"{n} {k.removeprefix('dropped_')}" for k, n in dropped.items()
            )
            yield f"{one['model']}: copies for shadow {version} dropped: {why}"
    for segment in one["segments"]:
        shares = ", ".join(
            f"{arm['version']} {weight:.1%}"
            for arm, weight in zip(one["arms"], segment["weights"], strict=True)
        )
        yield f"{one['model']}: segment {' '.join(segment['values']) or '-'}: {shares}"


def show_decisions(
    model: Model,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Show the last decisions about a model, latest first."""
    with connect(admin, as_json=as_json) as client:
        found = client.decisions(model, limit)
    if as_json:
        print_json(found)
        return
    table = columns("PREDICTION", "VERSION", "ROLE", "PROPENSITY", "POLICY", "UNIT")
    for one in found:
        table.add_row(
            one["prediction_id"],
            str(one["version"]),
            one["role"],
            f"{one['propensity']:.3f}",
            one["policy"],
            escape(one["unit"]),
        )
    console().print(table)


def reward_traffic(
    model: Model,
    version: Version,
    reward: Annotated[float, typer.Argument(metavar="REWARD", min=0, max=1)],
    *,
    propensity: Annotated[
        float, typer.Option(help="Of the decision, as recorded.", min=0, max=1)
    ],
    policy: Annotated[
        str, typer.Option(help="Likewise: nothing is learnt from what a rule chose.")
    ] = "",
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Tell a policy what came of a decision."""
    from gateway.protocol import admin_pb2 as pb

    item = pb.RewardRequest.Item(
        version=version, reward=reward, propensity=propensity, policy=policy
    )
    with connect(admin, as_json=as_json) as client:
        answer = client.reward(model, [item])
    if as_json:
        print_json({"taken": answer.taken, "ignored": answer.ignored})
    else:
        why = f"ignored: version {version} is no arm, or a rule chose it"
        text = "taken" if answer.taken else why
        typer.echo(f"{escape(model)}: {text}")


def estimate_traffic(
    model: Model, shares: Shares, admin: Admin = ADMIN, as_json: AsJson = False
) -> None:
    """Estimate what another split would have earned, by the rewards so far."""
    wanted = {str(version): share for version, share in shares_of(shares).items()}
    with connect(admin, as_json=as_json) as client:
        found = client.estimate(model, wanted)
    if as_json:
        print_json(found)
        return
    table = columns("ESTIMATOR", "REWARD", "95 % INTERVAL", "DECISIONS", "EFFECTIVE")
    for kind, one in found.items():
        table.add_row(
            kind,
            f"{one['value']:.4f}",
            f"{one['low']:.4f} to {one['high']:.4f}",
            str(one["decisions"]),
            f"{one['effective']:.0f}",
        )
    console().print(table)


def _known(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

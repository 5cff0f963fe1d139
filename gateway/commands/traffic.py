"""``baton traffic``: which version answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.commands.shared import (
    ADMIN,
    Admin,
    AnyModel,
    AsJson,
    DryRun,
    Expected,
    Model,
    Reason,
    Version,
    columns,
    connect,
    console,
    print_json,
    read,
    report,
)
from gateway.logs import escape

if TYPE_CHECKING:
    from gateway.admin_client import AdminClient
    from gateway.protocol import admin_pb2 as pb

traffic_app = typer.Typer(
    help="Decide which version answers; every change is audited and can be undone."
)
Shares = Annotated[
    list[str],
    typer.Argument(
        metavar="VERSION=SHARE...", help="As in 1=90% 2=10%, or 1=0.9 2=0.1."
    ),
]

PolicyName = Literal["fixed", "sticky", "epsilon_greedy", "thompson"]


@traffic_app.command("show")
def show_traffic(
    model: AnyModel = "", admin: Admin = ADMIN, as_json: AsJson = False
) -> None:
    """Show who answers, with which weights, and what came of it."""
    with connect(admin) as client:
        found = client.traffic(model)
    if as_json:
        print_json(found)
        return
    table = columns(
        "MODEL", "VERSION", "ROLE", "POLICY", "SHARE", "WEIGHT", "REQUESTS", "REWARDS",
        "MEAN REWARD", "AGREES",
    )  # fmt: skip
    for one in found:
        requests = one["requests"]
        kind = one["table"]["policy"]["kind"]
        for arm in one["arms"]:
            mean = arm["mean_reward"]
            table.add_row(
                escape(one["model"]),
                str(arm["version"]),
                arm["role"],
                kind,
                f"{arm['share']:.1%}",
                f"{arm['weight']:.1%}",
                str(requests.get(str(arm["version"]), 0)),
                str(arm["rewards"]),
                "" if mean is None else f"{mean:.3f}",
                "",
            )
        for shadow in one["table"]["shadows"]:
            sums = one["shadows"].get(str(shadow["version"]), {})
            agreement = sums.get("agreement", {})
            rows = agreement.get("rows", 0)
            table.add_row(
                escape(one["model"]),
                str(shadow["version"]),
                "shadow",
                f"{shadow['sample']:.0%} of requests",
                "",
                "",
                str(sums.get("counts", {}).get("answered", 0)),
                "",
                "",
                f"{agreement['agreed'] / rows:.1%} of {rows}" if rows else "",
            )
    console().print(table)


@traffic_app.command("set")
def set_traffic(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON table.")],
    *,
    reason: Reason,
    if_revision: Expected = None,
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Put a whole table in force (`traffic show --json` has it as `table`)."""
    table = read(file)
    with connect(admin) as client:
        change = client.change(
            model, reason, expected_revision=if_revision, dry_run=dry_run
        )
        report(client.set_traffic(change, table), as_json)


@traffic_app.command("split")
def split_traffic(
    model: Model,
    shares: Shares,
    *,
    reason: Reason,
    policy: Annotated[
        PolicyName | None, typer.Option(help="How an arm is chosen; as now without.")
    ] = None,
    unit: Annotated[
        str,
        typer.Option(help="What sticks: metadata:KEY or parameter:KEY.", metavar="SRC"),
    ] = "",
    salt: Annotated[str, typer.Option(help="Of the layer of experiments.")] = "",
    champion: Annotated[
        int, typer.Option(help="The champion; the first one without.", min=0)
    ] = 0,
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Split a model's requests between versions."""
    wanted = _shares(shares)
    with connect(admin) as client:
        table, change = _present(client, model, reason, dry_run)
        first = champion or next(iter(wanted))
        table["arms"] = [
            {
                "version": version,
                "role": "champion" if version == first else "challenger",
                "share": share,
            }
            for version, share in wanted.items()
        ]
        kept = set(wanted)
        table["rules"] = [rule for rule in table["rules"] if rule["version"] in kept]
        table["shadows"] = [s for s in table["shadows"] if s["version"] not in kept]
        if policy is not None:
            table["policy"]["kind"] = policy
        if unit:
            table["unit"] = _source(unit)
        if salt:
            table["salt"] = salt
        report(client.set_traffic(change, table), as_json)


@traffic_app.command("shadow")
def shadow_traffic(
    model: Model,
    version: Version,
    *,
    reason: Reason,
    sample: Annotated[
        float, typer.Option(help="Fraction of requests that is copied.", min=0, max=1)
    ] = 1.0,
    max_queue: Annotated[
        int, typer.Option(help="Copies in flight per front.", min=1)
    ] = 256,
    remove: Annotated[
        bool, typer.Option("--remove", help="Make no more copies.")
    ] = False,
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Copy requests to a version whose answers nobody gets."""
    with connect(admin) as client:
        table, change = _present(client, model, reason, dry_run)
        table["shadows"] = [s for s in table["shadows"] if s["version"] != version]
        if not remove:
            shadow = {"version": version, "sample": sample, "max_queue": max_queue}
            table["shadows"].append(shadow)
        report(client.set_traffic(change, table), as_json)


@traffic_app.command("freeze")
def freeze_traffic(
    model: Model,
    *,
    reason: Reason,
    off: Annotated[bool, typer.Option("--off", help="Let it go on learning.")] = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Have a policy that learns keep its weights as they are."""
    with connect(admin) as client:
        change = client.change(model, reason)
        report(client.freeze(change, frozen=not off), as_json)


@traffic_app.command("rollback")
def rollback_traffic(
    model: Model,
    *,
    reason: Reason,
    to: Annotated[
        int, typer.Option(help="Revision to return to; the one before without.", min=0)
    ] = 0,
    dry_run: DryRun = False,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Let those answer who did before."""
    with connect(admin) as client:
        change = client.change(model, reason, dry_run=dry_run)
        report(client.rollback(change, to), as_json)


@traffic_app.command("reward")
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
    with connect(admin) as client:
        answer = client.reward(model, [item])
    if as_json:
        print_json({"taken": answer.taken, "ignored": answer.ignored})
    else:
        why = f"ignored: version {version} is no arm, or a rule chose it"
        text = "taken" if answer.taken else why
        typer.echo(f"{escape(model)}: {text}")


@traffic_app.command("decisions")
def show_decisions(
    model: Model,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    admin: Admin = ADMIN,
    as_json: AsJson = False,
) -> None:
    """Show the last decisions about a model, latest first."""
    with connect(admin) as client:
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


@traffic_app.command("estimate")
def estimate_traffic(
    model: Model, shares: Shares, admin: Admin = ADMIN, as_json: AsJson = False
) -> None:
    """Estimate what another split would have earned, by the rewards so far."""
    wanted = {str(version): share for version, share in _shares(shares).items()}
    with connect(admin) as client:
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


def _present(
    client: AdminClient, model: str, reason: str, dry_run: bool
) -> tuple[dict[str, Any], pb.Change]:
    """Return a model's table, and a change that holds only while it is in force."""
    shown = client.show(model)[0]
    change = client.change(
        model, reason, expected_revision=shown["revision"], dry_run=dry_run
    )
    table: dict[str, Any] = shown["traffic"]
    return table, change


def _shares(texts: list[str]) -> dict[int, float]:
    found: dict[int, float] = {}
    for text in texts:
        version, _, share = text.partition("=")
        try:
            percent = share.endswith("%")
            value = float(share.removesuffix("%")) / (100 if percent else 1)
            found[int(version)] = value
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is not VERSION=SHARE, as in 1=90%"
            ) from None
    return found


def _source(text: str) -> dict[str, str]:
    kind, _, key = text.partition(":")
    return {"kind": kind, "key": key}

"""What a whole history comes to, from its definition, without any state on the way."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

from gateway.feedback.names import Name
from gateway.feedback.types import Alias, Label, Prediction, Stored
from gateway.feedback_config import FeedbackConfig
from tests.feedback.histories import Input

Net = dict[tuple[bytes, int, str, int], tuple[float | None, str, float]]
"""Value, status and weight by id, version, role and row."""
Said = tuple[Stored, Label]
VALUES = ("value", "retracted")


def expected(config: FeedbackConfig, inputs: Sequence[Input]) -> tuple[Net, set[str]]:
    """Return the rows there are in the end, and the dead letters, as offset:reason."""
    s = config.default
    window, horizon = s.window_s * 1000, (s.window_s + s.lateness_s) * 1000
    predictions = [
        (event.arrived_ms, p)
        for event, p in inputs
        if isinstance(p, Prediction) and event.arrived_ms <= p.time_ms + horizon
    ]
    labels = [(event, one) for event, one in inputs if isinstance(one, Label)]
    net: Net = {}
    dead = set()
    for key in {one.prediction_id for _, one in labels} | {
        p.id for _, p in predictions
    }:
        mine = [(at, p) for at, p in predictions if p.id == key]
        theirs = [(e, one) for e, one in labels if one.prediction_id == key]
        good = []
        for event, one in theirs:
            first = min((at for at, _ in mine), default=math.inf)
            born = int.from_bytes(key[:6])
            late = event.arrived_ms > born + horizon
            if first > event.arrived_ms + s.dangling_ttl_s * 1000:
                unknown = not mine and late
                dead.add(f"{event.offset}:{'late' if unknown else 'orphan'}")
            elif late:
                dead.add(f"{event.offset}:late")
            elif one.kind in VALUES and one.row >= mine[0][1].rows:
                dead.add(f"{event.offset}:no_such_row")
            else:
                good.append((event, one))
        active = any(one.kind == "activation" for _, one in good)
        for row in range(mine[0][1].rows if mine else 0):
            value = None
            for stretch in _between_tombstones(good):
                of_row = [
                    (e, one)
                    for e, one in stretch
                    if one.kind in VALUES and one.row == row
                ]
                value, refused = _value(of_row, s.conflict)
                dead |= {f"{offset}:conflict" for offset in refused}
            if s.needs_activation and not active:
                continue
            for p in {p for _, p in mine}:
                sampled = p.role == "champion" and p.propensity >= 0.5
                if sampled and zlib.crc32(key) / 2**32 >= s.sample:
                    continue
                weight = 1 / s.sample if sampled else 1.0
                status = "labelled"
                shown = value
                if value is None:
                    shown = s.default  # type: ignore[assignment]
                    status = "missing" if s.default is None else "default"
                net[key, p.version, p.role, row] = (shown, status, weight)
    assert window <= horizon
    return net, dead


def owners(
    config: FeedbackConfig, names: Sequence[tuple[int, Name]], labels: Sequence[Said]
) -> dict[int, bytes | None]:
    """Return which prediction labels by request ids mean, by their offset.

    Args:
        config: Of all models.
        names: With when the log took each in.
        labels: Each with an alias.
    """
    s = config.default
    horizon = (s.window_s + s.lateness_s) * 1000
    had: dict[Alias, list[tuple[int, int, bytes]]] = {}
    for arrived, name in names:
        theirs = had.setdefault(name.alias, [])
        until = int.from_bytes(name.id[:6]) + horizon
        if arrived <= until and not any(other >= arrived for _, other, _ in theirs):
            theirs.append((arrived, until, name.id))
    found: dict[int, bytes | None] = {}
    for event, one in labels:
        assert one.alias is not None
        at = event.arrived_ms
        theirs = [each for each in had.get(one.alias, ()) if each[1] >= at][:1]
        known = [key for arrived, _, key in theirs if arrived <= at + 120_000]
        found[event.offset] = known[0] if known else None
    return found


def _between_tombstones(labels: list[Said]) -> list[list[Said]]:
    """Return the labels before the first tombstone, and those that follow each.

    A copy of what came before a tombstone is none of what follows it.
    """
    stretches: list[list[Said]] = [[]]
    noted = (0, 0)
    for event, one in labels:
        if one.forwarded is not None and one.forwarded <= noted:
            continue
        if one.kind == "withdrawn":
            noted = max(noted, one.forwarded or (event.arrived_ms, 1 << 62))
            stretches.append([])
        else:
            stretches[-1].append((event, one))
    return stretches


def _value(labels: list[Said], conflict: str) -> tuple[float | None, set[int]]:
    refused: set[int] = set()
    if conflict == "reject":
        for at, (event, one) in enumerate(labels):
            before = [o for _, o in labels[:at] if o.seq >= one.seq]
            same = [o for o in before if o.seq == one.seq]
            if one.kind == "value" and before == same and same:
                gone = any(o.kind == "retracted" for o in same)
                if not gone and same[0].value != one.value:
                    refused.add(event.offset)
    top = [o for _, o in labels if o.seq == max(o.seq for _, o in labels)]
    if not top or any(o.kind == "retracted" for o in top):
        return None, refused
    match conflict:
        case "first" | "reject":
            return top[0].value, refused  # type: ignore[return-value]
        case "last":
            winner = max(top, key=lambda o: (o.time_ms, repr(o.value)))
            return winner.value, refused  # type: ignore[return-value]
        case "sum":
            parts = {o.event_id: o.value for o in top}
            return math.fsum(parts.values()), refused  # type: ignore[arg-type]
        case _:
            values = [o.value for o in top if isinstance(o.value, float)]
            return max(values), refused

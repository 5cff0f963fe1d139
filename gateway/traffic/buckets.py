"""Which arm a unit sticks to: 10,000 buckets of units, and who owns each. Pure.

A unit's bucket is a hash and never changes. Who owns a bucket cannot follow from the
shares alone: with three arms, no rule that looks only at them moves as few units as
necessary for every change. So the owners are part of the traffic table, and a change
of shares makes new owners from those before it: an arm that grows keeps every bucket
it has, one that shrinks gains none, and nothing else moves. The table is what
restarts, fronts and releases share, so all of them agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from xxhash import xxh3_64_intdigest

from gateway.traffic.table import BUCKETS, ModelTraffic, PolicyKind, Span


def bucket_of(salt: str, unit: str) -> int:
    """Return the bucket of a unit, from 0 to 9999; see `bucketing`."""
    return bucketing(salt)(unit)


def bucketing(salt: str) -> Callable[[str], int]:
    """Return what gives a unit of a layer its bucket, from 0 to 9999.

    Args:
        salt: Of the layer. Layers with different salts are independent.

    Returns:
        XXH3 (64 bits, seed 0; specification 0.2.0 at github.com/Cyan4973/xxHash) modulo
        10,000 of ``<characters of the salt>:<salt><unit>`` as UTF-8, the same for ever.
        The length says where the salt ends, so no other salt and unit make the same
        text.
    """
    prefix = f"{len(salt)}:{salt}".encode()

    def bucket(unit: str) -> int:
        return xxh3_64_intdigest(prefix + unit.encode()) % BUCKETS

    return bucket


def settle(previous: ModelTraffic | None, wanted: ModelTraffic) -> ModelTraffic:
    """Return a table with owners for its buckets, as few units as possible moved.

    Args:
        previous: The table in force; ``None`` if there is none.
        wanted: The one to come; the owners in it are ignored.

    Returns:
        `wanted`, with owners if its policy is sticky. With another salt or unit every
        unit is drawn anew, so the owners start anew as well.
    """
    if wanted.policy.kind is not PolicyKind.STICKY or not wanted.arms:
        return replace(wanted, buckets=())
    spans: tuple[Span, ...] = ()
    unchanged: set[int] = set()
    if previous is not None and (previous.salt, previous.unit) == (
        wanted.salt,
        wanted.unit,
    ):
        spans = previous.buckets
        before = {arm.version: arm.share for arm in previous.arms}
        unchanged = {a.version for a in wanted.arms if before.get(a.version) == a.share}
    shares = {arm.version: arm.share for arm in wanted.arms}
    return replace(wanted, buckets=assign(spans, shares, unchanged))


def bucket_table(traffic: ModelTraffic) -> bytes:
    """Return the place of the arm (in `ModelTraffic.arms`) that owns each bucket."""
    places = {arm.version: place for place, arm in enumerate(traffic.arms)}
    spans = traffic.buckets or assign(
        (), {arm.version: arm.share for arm in traffic.arms}
    )
    return b"".join(bytes([places[span.version]]) * span.buckets for span in spans)


def assign(
    previous: Sequence[Span],
    shares: Mapping[int, float],
    unchanged: Collection[int] = (),
) -> tuple[Span, ...]:
    """Give every bucket an owner, moving as few as the shares allow.

    A bucket moves only from an arm that shrinks to one that grows. To a higher
    version it comes off the giver's top, to a lower one off its bottom, so that two
    arms stay two spans however often shares go up and down, and those who came last
    leave first.

    Args:
        previous: Owners so far, covering all buckets; empty for none.
        shares: By version; they sum to 1.
        unchanged: Versions whose share is what it was: the last to be rounded
            differently, where shares are no whole buckets.

    Returns:
        Owners of the buckets from 0 on.
    """
    owners = [span.version for span in previous for _ in range(span.buckets)]
    held: dict[int, list[int]] = {}
    for bucket, version in enumerate(owners):
        held.setdefault(version, []).append(bucket)
    had = {version: len(buckets) for version, buckets in held.items()}
    counts = _counts(had, shares, unchanged)
    if not owners:
        return tuple(Span(v, counts[v]) for v in sorted(counts) if counts[v])
    surplus = {v: had[v] - counts.get(v, 0) for v in sorted(had)}
    for taker in sorted(counts):
        need = counts[taker] - had.get(taker, 0)
        for giver, spare in surplus.items():
            moving = min(need, spare)
            if moving <= 0:
                continue
            need -= moving
            surplus[giver] = spare - moving
            buckets = held[giver]
            moved = buckets[-moving:] if giver < taker else buckets[:moving]
            held[giver] = buckets[:-moving] if giver < taker else buckets[moving:]
            for bucket in moved:
                owners[bucket] = taker
    return _spans(owners)


def _counts(
    had: Mapping[int, int], shares: Mapping[int, float], unchanged: Collection[int]
) -> dict[int, int]:
    """Round shares to buckets that sum to all of them.

    Every arm gets its share rounded up or down, and keeps what it has where that is
    one of the two. What is then left over or missing goes to those furthest from
    their share.
    """
    exact = {version: round(share * BUCKETS, 6) for version, share in shares.items()}
    low = {version: math.floor(quota) for version, quota in exact.items()}
    high = {version: math.ceil(quota) for version, quota in exact.items()}
    counts = {
        version: min(max(had.get(version, 0), low[version]), high[version])
        for version in exact
    }
    left = BUCKETS - sum(counts.values())
    step = 1 if left > 0 else -1
    limit = high if left > 0 else low

    def last(version: int) -> tuple[bool, float, int]:
        off = counts[version] - exact[version]
        return version in unchanged, step * off, version

    movable = [version for version in counts if counts[version] != limit[version]]
    for version in sorted(movable, key=last)[: abs(left)]:
        counts[version] += step
    return counts


def _spans(owners: Iterable[int]) -> tuple[Span, ...]:
    return tuple(Span(version, len(list(run))) for version, run in groupby(owners))

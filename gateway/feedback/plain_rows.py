"""The rows that plain requests come to, column by column. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

from gateway.feedback.columns import Block
from gateway.feedback.emitted import Columns, Emitted
from gateway.feedback.label_state import Known
from gateway.feedback.pending import Labels, labels_of
from gateway.feedback.sample import in_share, share_of
from gateway.feedback.slots import Said
from gateway.feedback.thinning import Thinning
from gateway.feedback.types import Status
from gateway.feedback_config import JoinConfig

_LABELLED = Status.LABELLED.value


def emit(
    block: Block,
    rows: Sequence[int],
    labels: Sequence[Said | None],
    settings: JoinConfig,
    thinning: Thinning,
) -> Emitted:
    """Return what `gateway.feedback.pending.rows_of` would, of many requests.

    Args:
        block: Has requests of one row.
        rows: Which of them.
        labels: Of each of these, if it has one.
        settings: Of their model.
        thinning: Says which requests were let in.
    """
    if settings.needs_activation:  # and those that are activated are not plain
        return Emitted.of([])
    shares = [share_of(origin[2], origin[4], settings) for origin in block.origins]
    if min(shares, default=1.0) < 1:
        kept = [in_share(block.id(row), shares[block.origin[row]]) for row in rows]
        rows, labels = [*compress(rows, kept)], [*compress(labels, kept)]
    if not rows:
        return Emitted.of([])
    count = len(rows)
    values, label_ms, weights, statuses = _said(labels, settings)
    if min(shares) < 1:
        of_row = [shares[block.origin[row]] for row in rows]
        weights = [
            weight / share for weight, share in zip(weights, of_row, strict=True)
        ]
    if thinning:
        let_in = map(thinning.share_of, block.ids_at(rows))
        weights = [
            weight / share for weight, share in zip(weights, let_in, strict=True)
        ]
    times = block.times[rows]
    columns: Columns = [
        block.ids_at(rows),
        [0] * count,
        *_origins(block, rows),
        [block.units[row] for row in rows],
        [block.buckets[row] for row in rows],
        [block.segments[row] for row in rows],
        times.tolist(),
        (times - times % (settings.cohort_s * 1000)).tolist(),
        _outputs(block, rows),
        values,
        label_ms,
        statuses,
        weights,
        [1] * count,
        [0] * count,
        [False] * count,
    ]
    return Emitted(columns)


def _origins(block: Block, rows: Sequence[int]) -> Sequence[Sequence[Any]]:
    if len(block.origins) == 1:
        return [[value] * len(rows) for value in block.origins[0]]
    origins = [block.origins[block.origin[row]] for row in rows]
    return list(zip(*origins, strict=True))


def _said(labels: Sequence[Said | None], settings: JoinConfig) -> list[list[Any]]:
    """Return values, times, weights and statuses."""
    values, times, weights, status = _plain(labels_of({}, 0, settings))
    if len(settings.labels) == 1:
        (only,) = settings.labels  # else it was configured when the label came
        labels = [said if said and said[1] == only else None for said in labels]
        return [
            [values if said is None else ((only, said[3]),) for said in labels],
            [times if said is None else said[4] for said in labels],
            [weights if said is None else said[5] for said in labels],
            [status if said is None else _LABELLED for said in labels],
        ]
    found = []
    for said in labels:
        known = {} if said is None else {(0, said[1]): Known(*said[2:])}
        found.append(_plain(labels_of(known, 0, settings)))
    return [list(column) for column in zip(*found, strict=True)]


def _plain(labels: Labels) -> tuple[Any, ...]:
    return (*labels[:3], labels[3].value)


def _outputs(block: Block, rows: Sequence[int]) -> list[object]:
    """Return the outputs of requests that have one row each."""
    forms = [[tensor[:3] for tensor in layout] for layout in block.layouts]
    if len(forms) == 1 and len(forms[0]) == 1:  # mostly
        (form,) = forms[0]
        return [((*form, data),) for data in block.only_pieces(rows)]
    return [
        tuple(
            [
                (*form, data)
                for form, data in zip(
                    forms[block.layout[row]], block.pieces(row), strict=True
                )
            ]
        )
        for row in rows
    ]

"""Goes on with what comes: ``--follow``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from gateway.errors import Code
from gateway.feedback.log import Extent

if TYPE_CHECKING:
    from gateway.outcomes_client import OutcomesClient

_POLL_S = 0.3
_PASSING = (Code.UNAVAILABLE, Code.FAILED_PRECONDITION)
"""Nobody answers, or a partition has just gone to another controller."""


def follow_on(
    client: OutcomesClient,
    topic: str,
    ends: dict[int, int],
    show: Callable[[int, Extent], None],
) -> None:
    """Have shown what partitions come to hold, until interrupted.

    Args:
        client: Asked again and again; what does not answer is waited for.
        topic: Of the log, or ``rows``.
        ends: What comes next, by partition; others are left out.
        show: Prints a part of a partition.
    """
    from gateway.client_rpc import ClientError

    lost = False
    while True:
        time.sleep(_POLL_S)
        try:
            for n, extent in enumerate(client.extents(topic)):
                if n not in ends or extent.elsewhere:
                    continue
                if extent.end < ends[n]:
                    ends[n] = extent.start  # it was made anew
                if ends[n] < extent.end:
                    show(n, Extent(ends[n], extent.end))
                    ends[n] = extent.end
            lost = False
        except ClientError as error:
            if error.code not in _PASSING:
                raise
            if not lost:
                typer.echo(f"baton: {error}; going on when it answers", err=True)
            lost = True

"""Where loads go, and the processes that take them, as the lifecycle sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.catalogue import ModelEntry
from workers.spec import LoadOrder, LoadReport


@dataclass(frozen=True, slots=True)
class Placement:
    """A load, and where it belongs.

    Attributes:
        order: What to load.
        share: Workers of each device that are to have it; 0 for all.
        answers: Belongs into the workers that answer clients.
        shadows: Belongs into those of the shadows' pool.
    """

    order: LoadOrder
    share: int
    answers: bool = True
    shadows: bool = False


class Fleet(Protocol):
    """The processes, as the lifecycle needs them."""

    async def load(self, placement: Placement, *, one_by_one: bool) -> LoadReport:
        """Load in every worker that should have it, or in none (LoadFailed)."""

    async def unload(self, handle: int) -> None:
        """Free a load everywhere."""

    async def publish(
        self, models: dict[str, ModelEntry | None], *, ready: bool
    ) -> None:
        """Put models that changed in force in every front (``None``: gone there)."""

    async def released(self, handle: int) -> None:
        """Wait until no front uses a load that is no longer published."""

"""What all handlers of a front share: the catalogue in force, and whether it drains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from gateway.catalogue import Catalogue, State
from gateway.traffic.table import Weights


class FrontState:
    """The front's view of the world. Loop thread only.

    Attributes:
        catalogue: The snapshot in force.
        stale: Models of which what was worked out from the catalogue no longer holds;
            whoever works it out empties this.
        draining: This process is going away: new work should go elsewhere.
        closing: It is about to: streams that never end by themselves must.
    """

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.stale: set[str] = set()
        self.draining = False
        self.closing = False
        self._watchers: dict[Callable[[], None], None] = {}

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change of the state."""
        self._watchers[changed] = None

    def unwatch(self, changed: Callable[[], None]) -> None:
        """Stop calling `changed`, if it ever was."""
        self._watchers.pop(changed, None)

    def swap(self, catalogue: Catalogue, changed: Iterable[str] | None = None) -> None:
        """Put a catalogue in force, in one step.

        Args:
            catalogue: All of it.
            changed: Models of which it says something else than the one before;
                ``None``: perhaps of all.
        """
        if changed is None:
            both = self.catalogue, catalogue
            changed = [name for one in both for name in (*one.models, *one.traffic)]
        self.stale.update(changed)
        self.catalogue = catalogue
        self._tell()

    def reweigh(self, model: str, weights: Weights) -> None:
        """Put new weights of a model's arms in force; nothing else changes."""
        weighed = {**self.catalogue.weights, model: weights}
        self.catalogue = replace(self.catalogue, weights=weighed)

    def drain(self) -> None:
        """Say to everyone who asks that this process is going away."""
        self.draining = True
        self._tell()

    def close(self) -> None:
        """Tell streams that would outlast the drain to end."""
        self.closing = True
        self._tell()

    def server_ready(self) -> bool:
        """Return whether the models asked for at start are loaded (or have failed)."""
        return self.catalogue.ready and not self.draining

    def model_ready(self, model: str) -> bool | None:
        """Return whether any version serves; ``None`` for an unknown model."""
        entry = self.catalogue.models.get(model)
        if entry is None:
            return None
        if self.draining:
            return False
        return any(v.state == State.READY for v in entry.versions.values())

    def _tell(self) -> None:
        for changed in tuple(self._watchers):
            changed()

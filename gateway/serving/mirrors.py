"""What came of a shadow's copies, and how requests become requests for it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizer.datatypes import DATATYPES
from gateway.catalogue import VersionEntry
from gateway.serving.exchange import Inputs
from gateway.serving.queues import VersionQueue
from gateway.serving.routing import Choice, Tally
from gateway.traffic.agreement import Agreement, compare
from gateway.traffic.table import Role, Shadow
from workers.spec import ModelSpec

_OPAQUE = frozenset({"BYTES", "BF16"})
"""Datatypes whose answers are compared as bytes."""


class Mirror:
    """A shadow of a model, and what came of its copies so far.

    Args:
        model: Name of the model.
        version: The shadow.

    Attributes:
        shadow: What was decided about it last.
        choice: What its records say.
        inflight: Copies under way.
        counts: ``copied``, ``answered``, ``dropped_*`` and ``failed_*`` by reason.
        agreement: Of its answers with the primaries'.
        latency_ns: Sum over its answers, and of the same requests' primaries.
    """

    def __init__(self, model: str, version: int) -> None:
        self.model = model
        self.version = version
        self.shadow = Shadow(version)
        self.choice = Choice(version, Role.SHADOW, 1.0, "shadow", 0, 0, Tally())
        self.inflight = 0
        self.counts: Counter[str] = Counter()
        self.agreement = Agreement()
        self.latency_ns = [0, 0]
        self.answers: list[tuple[Way, list[bytes], list[bytes], int]] = []

    def decide(self, shadow: Shadow, revision: int) -> None:
        """Take what was decided about it."""
        self.shadow = shadow
        self.choice = self.choice._replace(propensity=shadow.sample, revision=revision)

    def compare(self) -> None:
        """Compare the answers that are there, in bulk."""
        answers, self.answers = self.answers, []
        alike: dict[Any, list[tuple[list[bytes], list[bytes], int]]] = {}
        for way, ours, theirs, rows in answers:
            sizes = tuple([len(data) // rows for data in (*ours, *theirs)])
            alike.setdefault((way.datatypes, sizes), []).append((ours, theirs, rows))
        for (datatypes, _), group in alike.items():
            counts = [rows for _, _, rows in group]
            ours_all, theirs_all = [], []
            for place, datatype in enumerate(datatypes):
                mine = [ours[place] for ours, _, _ in group]
                others = [theirs[place] for _, theirs, _ in group]
                ours_all.append(_array(datatype, mine, counts))
                theirs_all.append(_array(datatype, others, counts))
            self.agreement = self.agreement.plus(compare(ours_all, theirs_all))

    def snapshot(self) -> dict[str, Any]:
        """Return all sums as JSON values; those of several fronts add up."""
        return {
            "counts": dict(self.counts),
            "agreement": self.agreement._asdict(),
            "latency_ns": list(self.latency_ns),
        }


@dataclass(frozen=True, slots=True)
class Way:
    """How requests for one version become requests for a shadow.

    Attributes:
        mirror: The shadow.
        queue: Of its version.
        inputs: Its spec index of each of the primary's inputs.
        outputs: Spec indices of outputs both have: the primary's, its own.
        datatypes: Of those outputs.
    """

    mirror: Mirror
    queue: VersionQueue
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    datatypes: tuple[str, ...]

    def inputs_of(self, inputs: Inputs) -> Inputs:
        """Return a request's inputs in the shadow's order."""
        return sorted([(self.inputs[i], dims, data) for i, dims, data in inputs])


def way_to(mirror: Mirror, queue: VersionQueue, primary: VersionEntry) -> Way | None:
    """Return how requests for `primary` become those for a shadow, if they can."""
    ours, theirs = primary.spec, queue.spec
    assert ours is not None
    inputs = _matched(ours, theirs, "inputs")
    outputs = _matched(ours, theirs, "outputs")
    batching = bool(ours.max_batch_rows), bool(theirs.max_batch_rows)
    needed = {i for i, tensor in enumerate(theirs.inputs) if not tensor.optional}
    if (
        len(inputs) != len(ours.inputs)
        or not needed <= {index for _, index in inputs}
        or batching[0] != batching[1]
        or ours.max_batch_rows > theirs.max_batch_rows
    ):
        return None
    places = tuple(index for _, index in inputs)
    datatypes = tuple(theirs.outputs[index].datatype for _, index in outputs)
    return Way(mirror, queue, places, outputs, datatypes)


def _matched(
    ours: ModelSpec, theirs: ModelSpec, side: str
) -> tuple[tuple[int, int], ...]:
    """Return the indices of tensors both have, by name, type and shape."""
    known = {tensor.name: (i, tensor) for i, tensor in enumerate(getattr(theirs, side))}
    found = []
    for index, tensor in enumerate(getattr(ours, side)):
        other = known.get(tensor.name)
        if (
            other is not None
            and other[1].datatype == tensor.datatype
            and other[1].dims == tensor.dims
        ):
            found.append((index, other[0]))
    return tuple(found)


def _array(
    datatype: str, pieces: Sequence[bytes], counts: Sequence[int]
) -> NDArray[np.generic]:
    """Lay an output of several answers out as one array, rows first."""
    if datatype in _OPAQUE:  # rows of a request agree if all of them do
        opaque = np.empty((len(pieces), 1), object)
        opaque[:, 0] = pieces
        return np.repeat(opaque, counts, axis=0)
    found = np.frombuffer(b"".join(pieces), DATATYPES[datatype].numpy)
    return found.reshape(sum(counts), -1)

"""What operators read about batches before a split starts."""

from __future__ import annotations

from typing import Any

from gateway.controller.cost import cost_notes
from gateway.traffic.table import Arm, ModelTraffic, Role

TRAFFIC = ModelTraffic(
    arms=(Arm(1, Role.CHAMPION, 0.75), Arm(2, Role.CHALLENGER, 0.25))
)


def counted(rows: int) -> list[tuple[str, int, dict[str, Any]]]:
    """Runs of one row take 100 us, of 64 rows 730: 10 us a row and 90 for the run."""
    runs = {"1": [2, 0, 200_000, 0], "64": [1, 30_000, 600_000, 100_000]}
    return [
        ("m", 1, {"rows": rows, "runs": runs}),
        ("other", 1, {"rows": 9, "runs": {}}),
    ]


def test_a_split_makes_batches_smaller_and_rows_dearer() -> None:
    notes = cost_notes("m", TRAFFIC, counted(0), counted(20_000), seconds=1, workers=1)
    assert notes[0].startswith("at 20000 rows/s, unsplit: ")
    assert [note.split(":")[0] for note in notes[1:]] == ["arm 1", "arm 2", "split"]
    alone = float(notes[0].split(": ")[1].split(" rows")[0])
    first, second = (float(n.split(": ")[1].split(" rows")[0]) for n in notes[1:3])
    assert first > second
    assert alone > second


def test_without_requests_it_says_so() -> None:
    notes = cost_notes("m", TRAFFIC, counted(7), counted(7), seconds=1, workers=1)
    assert notes == ["no requests now: what the split costs cannot be estimated"]
    assert not cost_notes(
        "m", ModelTraffic(), counted(0), counted(7), seconds=1, workers=1
    )

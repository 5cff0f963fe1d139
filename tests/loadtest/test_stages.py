"""The table of microseconds per stage, and that it says what is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtest.stages import STAGES, measure, on_page, write_page

SLACK = 4.0
"""How far a figure may be from the page's: machines differ, and this one is shared."""


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return asyncio.run(measure(400))


def test_the_page_says_what_is_measured(found: dict[str, float]) -> None:
    """A request that got much dearer (or cheaper) needs a new page, and a reason."""
    page = on_page()
    assert set(page) == {*STAGES, "total"}
    assert 1 / SLACK < found["total"] / page["total"] < SLACK
    for stage in ("receive", "answer"):
        assert 1 / SLACK < found[stage] / page[stage] < SLACK, stage


def test_the_stages_add_up(found: dict[str, float]) -> None:
    assert all(us > 0 for us in found.values())
    total = sum(us for stage, us in found.items() if stage != "total")
    assert total == pytest.approx(found["total"])


def test_a_page_is_written_in_its_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- stages -->\nold\n<!-- end of stages -->\nafter\n")
    figures = {stage: index + 0.25 for index, stage in enumerate((*STAGES, "total"))}
    write_page(figures, page)
    assert on_page(page) == figures
    text = page.read_text()
    assert text.startswith("before\n<!-- stages -->")
    assert text.endswith("<!-- end of stages -->\nafter\n")
    assert "old" not in text

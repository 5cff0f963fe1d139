"""What the tests of several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.feedback.services import Gateway


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Serve both services, with an empty log."""
    made = Gateway(tmp_path)
    yield made
    made.stop()

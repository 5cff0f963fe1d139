"""The measurement of labels from a real broker measures what it says."""

from __future__ import annotations

import json

import pytest

from deploy.kafka.broker import Cluster
from loadtest.ingest import FORMS, run


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_every_form_are_joined_and_timed(
    real_kafka: Cluster, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap = real_kafka.bootstrap
    run(labels=1500, form=form, rounds=1, bootstrap=bootstrap, as_json=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    # The reader asserts that all labels were read; these, that it took time.
    assert found["labels"] == 1500
    assert 0 < found["read_us"] < found["read_us"] + found["join_us"]
    assert found["labels_per_s"] > 0

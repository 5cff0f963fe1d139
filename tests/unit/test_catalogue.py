"""Which version a request means, and whether it serves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue import (
    CATALOGUE,
    UNLOADED,
    Catalogue,
    ModelEntry,
    State,
    WorkerEntry,
)
from gateway.errors import Code, InvalidRequest, NotReady, UnknownModel
from tests.unit.fakes import make_entry

states = st.dictionaries(st.integers(1, 30), st.sampled_from(State), max_size=5)


def catalogue_of(versions: dict[int, State]) -> Catalogue:
    entries = {
        number: replace(
            make_entry(number + 100, version=number, state=state),
            reason=f"why {number}",
        )
        for number, state in versions.items()
    }
    return Catalogue(models={"m": ModelEntry("m", entries)})


class TestFind:
    @given(states)
    def test_without_a_version_the_highest_ready_one_is_meant(
        self, versions: dict[int, State]
    ) -> None:
        catalogue = catalogue_of(versions)
        ready = [number for number, state in versions.items() if state == State.READY]
        if ready:
            assert catalogue.find("m", "").version == max(ready)
            assert catalogue.serving("m", "").version == max(ready)
        elif versions:
            with pytest.raises(NotReady, match=f"why {max(versions)}"):
                catalogue.find("m", "")
        else:
            with pytest.raises(UnknownModel, match="no available versions"):
                catalogue.find("m", "")

    @given(states, st.integers(0, 31))
    def test_a_named_version_is_found_in_any_state_and_serves_when_ready(
        self, versions: dict[int, State], number: int
    ) -> None:
        catalogue = catalogue_of(versions)
        if number not in versions:
            with pytest.raises(UnknownModel, match=f"version {number} "):
                catalogue.find("m", str(number))
            return
        assert catalogue.find("m", f"00{number}").version == number
        if versions[number] == State.READY:
            assert catalogue.serving("m", str(number)).version == number
        else:
            with pytest.raises(NotReady, match=f"why {number}"):
                catalogue.serving("m", str(number))

    @given(st.text(min_size=1))
    def test_any_other_text_is_the_clients_mistake(self, version: str) -> None:
        catalogue = catalogue_of({1: State.READY})
        decimal = version.isascii() and version.isdigit() and len(version) <= 18
        expected = UnknownModel if decimal else InvalidRequest
        if decimal and int(version) == 1:
            return
        with pytest.raises(expected):
            catalogue.find("m", version)

    @pytest.mark.parametrize("version", ["-1", "+1", "1.0", "1 ", "²", "१", "1" * 19])
    def test_only_plain_decimal_digits_are_a_version(self, version: str) -> None:
        with pytest.raises(InvalidRequest):
            catalogue_of({1: State.READY}).find("m", version)

    @pytest.mark.parametrize(
        ("other", "code"), [(UNLOADED, Code.NOT_FOUND), ("broken", Code.UNAVAILABLE)]
    )
    def test_an_unloaded_model_has_no_versions_unless_one_failed(
        self, other: str, code: Code
    ) -> None:
        versions = {
            number: replace(
                make_entry(version=number, state=State.UNAVAILABLE), reason=reason
            )
            for number, reason in ((1, other), (2, UNLOADED))
        }
        catalogue = Catalogue(models={"m": ModelEntry("m", versions)})
        with pytest.raises(NotReady) as failure:
            catalogue.find("m", "")
        assert failure.value.code == code
        with pytest.raises(NotReady, match="'m' version 2 is not at ready state"):
            catalogue.serving("m", "2")

    def test_an_unknown_model_is_named(self) -> None:
        with pytest.raises(UnknownModel, match="'other' is not found"):
            Catalogue().find("other", "")


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("m/config.pbtxt:2: no", "'m' has no available versions: m/config.pbtxt:2: no"),
        ("'m' has no available versions; x", "'m' has no available versions: x"),
        ("", "'m' has no available versions"),
    ],
)
def test_a_model_that_has_no_version_says_why(reason: str, text: str) -> None:
    catalogue = Catalogue(models={"m": ModelEntry("m", {}, reason)})
    for find in (catalogue.find, catalogue.serving):
        with pytest.raises(UnknownModel) as caught:
            find("m", "")
        assert caught.value.message == text


@given(states)
def test_handles_are_those_of_ready_versions(versions: dict[int, State]) -> None:
    ready = {n + 100 for n, state in versions.items() if state == State.READY}
    catalogue = catalogue_of(versions)
    assert catalogue.handles([*catalogue.models, "unknown"]) == ready
    assert catalogue.handles([]) == set()


@given(states, st.sets(st.integers(1, 99)))
def test_a_catalogue_survives_its_way_to_the_fronts(
    versions: dict[int, State], handles: set[int]
) -> None:
    worker = WorkerEntry(1, 2, "/x", frozenset(handles))
    catalogue = replace(catalogue_of(versions), workers=(worker,), revision=4)
    assert CATALOGUE.validate_json(CATALOGUE.dump_json(catalogue)) == catalogue
    message = CATALOGUE.dump_python(catalogue, mode="json")
    assert CATALOGUE.validate_python(message) == catalogue

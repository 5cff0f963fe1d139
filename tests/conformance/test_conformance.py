"""The suites of others pass against every transport; ``make conformance`` runs all.

They need Go to be built (``make tools`` beforehand keeps builds out of the tests),
or what their line says; without that they skip. `tests.triton` and the large load
runs have tests of their own.
"""

from __future__ import annotations

import pytest

from tests.conformance.suites import (
    Result,
    ghz,
    grpcio_aio,
    grpcio_sync,
    h2load,
    h2spec,
    interop,
    interop_tls,
)
from tests.conformance.tools import ALL, BUILD_TIMEOUT_S, Unavailable
from tests.transports import DEFAULT, LISTENERS

H2SPEC_CASES = 146
"""At least so many cases of h2spec must have run, so that none goes missing."""


@pytest.fixture(scope="session")
def _tools() -> None:
    """Build what can be built, outside the time limits of the tests."""
    for tool in ALL:
        try:
            tool.path()
        except Unavailable:
            continue  # the suite that wants it says so


def passed(suite: Result) -> Result:
    assert suite.failures == []
    assert suite.passed == suite.total > 0
    return suite


def attempt(suite: object, transport: str) -> Result:
    """Run a suite, or skip where its tool cannot be had."""
    assert callable(suite)
    try:
        result = suite(transport)
    except Unavailable as reason:
        pytest.skip(f"{suite.__name__}: {reason}")
    assert isinstance(result, Result)
    return passed(result)


@pytest.mark.slow
@pytest.mark.timeout(BUILD_TIMEOUT_S * len(ALL) + 120)
@pytest.mark.usefixtures("_tools")
@pytest.mark.parametrize("transport", sorted(LISTENERS))
@pytest.mark.parametrize("suite", [interop, h2load, ghz])
def test_every_case_passes(suite: object, transport: str) -> None:
    attempt(suite, transport)


@pytest.mark.slow
@pytest.mark.timeout(BUILD_TIMEOUT_S * len(ALL) + 120)
@pytest.mark.usefixtures("_tools")
@pytest.mark.parametrize("suite", [interop_tls, grpcio_sync, grpcio_aio])
def test_every_case_passes_over_tls(suite: object) -> None:
    attempt(suite, DEFAULT)


@pytest.mark.slow
@pytest.mark.timeout(BUILD_TIMEOUT_S * len(ALL) + 240)
@pytest.mark.usefixtures("_tools")
@pytest.mark.skipif(DEFAULT != "own", reason="grpc.aio's HTTP/2 is not ours to mend")
def test_every_case_of_h2spec_passes() -> None:
    assert attempt(h2spec, "own").total >= H2SPEC_CASES

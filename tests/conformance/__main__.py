"""Runs every suite against one transport and writes the table of the README.

Usage: ``python -m tests.conformance [--transport own|grpcio] [suite ...]``. Prints a
line per suite; exit code 1 if a case failed. The table is written only where the
gateway's own transport ran every suite.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.conformance.suites import SUITES, Result
from tests.conformance.tools import Unavailable
from tests.transports import DEFAULT, LISTENERS

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def table(results: list[Result]) -> str:
    """Return the results as Markdown."""
    lines = ["| suite | version | passed | note |", "|---|---|---|---|"]
    for result in results:
        passed = f"{result.passed} of {result.total}"
        lines.append(
            f"| {result.suite} | {result.version} | {passed} | {result.note} |"
        )
    return "\n".join(lines) + "\n"


def write_table(results: list[Result]) -> None:
    """Put the table into the page, between its marks."""
    page = README.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + table(results) + END + after, encoding="utf-8")


def main() -> int:
    """Run the suites asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--transport", choices=sorted(LISTENERS), default=DEFAULT)
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES], default=[])
    arguments = parser.parse_args()
    results, failed = [], False
    for name in arguments.suites or SUITES:
        try:
            result = SUITES[name](arguments.transport)
        except Unavailable as reason:
            print(f"{name}: skipped: {reason}", flush=True)  # noqa: T201
            continue
        results.append(result)
        print(result.line(), flush=True)  # noqa: T201
        for failure in result.failures:
            failed = True
            print(f"  {failure}", flush=True)  # noqa: T201
    if arguments.transport == "own" and len(results) == len(SUITES):
        write_table(results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

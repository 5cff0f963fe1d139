"""The style of the code that a linter does not see."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gateway.config import schema
from gateway.supervision.counters import Counters
from gateway.supervision.exposition import GatewayCollector

ROOT = Path(__file__).parents[2]
SHIPPED = ("gateway", "workers", "featurizer")
FOLDERS = (*SHIPPED, "loadtest", "deploy", "tests")
GENERATED = re.compile(r"_pb2\.pyi?$")
MAX_LINE, MAX_FUNCTION_LINES, MAX_MODULE_LINES = 88, 70, 400
MAX_PAGE_LINES = 150
# Tables of test cases are long lists, not long thoughts.
MAX_TEST_MODULE_LINES = 1200


@dataclass(frozen=True)
class Module:
    """One hand-written module, read and parsed once."""

    name: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def is_test(self) -> bool:
        return self.name.startswith("tests/")

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[Any]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


@cache
def modules(*folders: str) -> list[Module]:
    found = []
    for folder in folders or FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not GENERATED.search(path.name):
                text = path.read_text(encoding="utf-8")
                name = str(path.relative_to(ROOT))
                found.append(Module(name, text, ast.parse(text)))
    return found


def test_lines_fit_on_a_screen() -> None:
    long = [
        f"{module.name}:{number}"
        for module in modules()
        for number, line in enumerate(module.lines, 1)
        if len(line) > MAX_LINE
    ]
    assert long == []


def test_modules_fit_in_a_head() -> None:
    long = [
        f"{module.name}: {len(module.lines)}"
        for module in modules()
        if len(module.lines)
        > (MAX_TEST_MODULE_LINES if module.is_test else MAX_MODULE_LINES)
    ]
    assert long == []


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{module.name}:{node.lineno} {node.name}"
        for module in modules()
        for node in module.nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_module_says_what_it_is() -> None:
    silent = [m.name for m in modules() if m.text and not ast.get_docstring(m.tree)]
    assert silent == []


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + ")")
    left = [module.name for module in modules() if marks.search(module.text)]
    assert left == []


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "helpers", "common", "misc"}
    assert [m.name for m in modules() if Path(m.name).stem in drawers] == []


def test_durations_are_never_wall_clock_times() -> None:
    banned = {"time.time", "datetime.now", "datetime.utcnow"}
    used = [
        f"{module.name}:{call.lineno}"
        for module in modules(*SHIPPED)
        for call in module.nodes(ast.Call)
        if ast.unparse(call.func) in banned
    ]
    assert used == []


def test_nothing_is_printed_past_the_log() -> None:
    printed = [
        f"{module.name}:{call.lineno}"
        for module in modules(*SHIPPED)
        for call in module.nodes(ast.Call)
        if ast.unparse(call.func) in ("print", "breakpoint")
    ]
    assert printed == []


def test_log_events_are_constant() -> None:
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    loggers = {f"{name}.{level}" for name in ("_log", "log") for level in levels}
    varying = []
    for module in modules(*SHIPPED):
        for call in module.nodes(ast.Call):
            if ast.unparse(call.func) not in loggers:
                continue
            event = call.args[0] if call.args else None
            constant = isinstance(event, ast.Constant)
            if not (constant and re.fullmatch(r"[a-z0-9_]+", str(event.value))):
                varying.append(f"{module.name}:{call.lineno}")
    assert varying == []


def test_every_exception_is_caught_at_the_edges_alone() -> None:
    wrong = []
    for module in modules(*SHIPPED):
        for node in module.nodes(ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            reason = "#" in module.lines[node.lineno - 1]
            raises = isinstance(node.body[-1], ast.Raise)
            if (
                not caught
                or (caught == "BaseException" and not raises)
                or (caught == "Exception" and not reason)
            ):
                wrong.append(f"{module.name}:{node.lineno}")
    assert wrong == []


def fields(definition: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for name, field in definition.get("properties", {}).items():
        yield f"{where}{name}", field.get("description", "")


def config_fields() -> list[tuple[str, str]]:
    whole = schema()
    sections = whole["$defs"]
    found = []
    for name, field in whole["properties"].items():
        reference = field.get("$ref", "").rpartition("/")[2]
        if reference:
            assert sections[reference].get("description"), f"{name} is not described"
            found += fields(sections[reference], f"{name}.")
        else:
            found.append((name, field.get("description", "")))
    return found


@pytest.mark.parametrize(("name", "description"), config_fields())
def test_every_configuration_field_says_what_it_does(
    name: str, description: str
) -> None:
    assert len(description) > 15, name
    assert description.strip().endswith("."), name


class NoProcesses:
    """A gateway without children."""

    def deaths(self) -> dict[str, int]:
        return {}

    def running(self) -> dict[str, int]:
        return {}


def metric_names() -> list[str]:
    families = GatewayCollector(Counters(), NoProcesses()).collect()
    return [
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
    ]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_what_is_read_first_is_short() -> None:
    for name in ("README.md", "ARCHITECTURE.md"):
        assert page(name).count("\n") <= MAX_PAGE_LINES, name


def anchors(text: str) -> set[str]:
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^a-z0-9 -]", "", t.lower()).replace(" ", "-") for t in titles}


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert {f"docs/{one.name}" for one in (ROOT / "docs").iterdir()} <= set(
        re.findall(r"\]\((docs/[^)#]+)", page("README.md"))
    )
    dead = []
    for one in pages:
        text = one.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", text):
            path, _, anchor = link.partition("#")
            target = one.parent / path if path else one
            there = target.exists() and (
                not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
            )
            dead += [] if there else [f"{one.name}: {link}"]
    assert dead == []


def test_the_readme_s_figures_are_those_of_the_page() -> None:
    rows = [line for line in page("README.md").splitlines() if line.startswith("| M")]
    known = page("docs/measured.md")
    assert rows
    assert [row for row in rows if row.removesuffix(" |") not in known] == []


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", page("docs/operations.md"))


@pytest.mark.parametrize("name", metric_names())
def test_metrics_are_in_base_units(name: str) -> None:
    assert name.startswith("baton_")
    assert not re.search(r"(_ms|_ns|_us|_milliseconds|_kb|_mb)(_|$)", name)

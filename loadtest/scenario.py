"""Scenarios: what load to send to what server, from a TOML file.

An unknown key is an error that names the key. ``python -m loadtest fields`` prints
every field with what it does.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

_STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Model = Literal["M1", "M2", "M4", "M5", "image"]


class BadScenario(Exception):
    """A scenario that cannot be run; the text names file, key and reason."""


class Target(BaseModel):
    """The server under load."""

    model_config = _STRICT

    address: Annotated[str, Field(pattern=r"^(baton|[^:]+:\d+)$")] = "baton"
    """``baton`` starts ``baton serve`` over generated models for the length of the
    run; HOST:PORT is a server that runs already and serves the models by name."""
    fronts: Count = 1
    """Front processes of a started Baton."""
    workers: Count = 1
    """Worker processes of a started Baton."""
    pinned: bool = True
    """Keep a started Baton to one core and the client to another, if there are two.
    Rates are then per core."""
    grpc: dict[str, int | str] = {}
    """More fields of the section `grpc` of a started Baton's configuration."""


class Step(BaseModel):
    """A stretch of an open loop's schedule."""

    model_config = _STRICT

    seconds: Positive
    """Length."""
    rate: NotNegative
    """Calls per second at the beginning, or their share (`share_of`)."""
    to: NotNegative | None = None
    """The same at the end: a ramp. Without it the rate stays."""


class Traffic(BaseModel):
    """One kind of calls."""

    model_config = _STRICT

    model: Model = "M1"
    """Model that is asked."""
    rows: Count = 1
    """Rows of a message."""
    loop: Literal["closed", "open", "streams"] = "closed"
    """``closed``: each connection keeps `calls` calls open. ``open``: calls start
    when they are due by `rate` or `steps`, and times count from then. ``streams``:
    each connection keeps `calls` streams with `outstanding` messages each."""
    connections: Count = 4
    """Connections that make calls."""
    calls: Count = 16
    """Calls or streams open at a time on each connection, but for open loops."""
    outstanding: Count = 16
    """Messages of one stream without an answer."""
    rate: NotNegative | None = None
    """Open loop: calls per second, or their share (`share_of`)."""
    steps: list[Step] = []
    """Open loop: a schedule in place of `rate`; it may be shorter than the phase."""
    share_of: str = ""
    """Name of an earlier phase: rates are multiples of what it reached."""
    arrivals: Literal["constant", "poisson"] = "poisson"
    """Open loop: even or random distances between calls."""
    max_inflight: Count = 10_000
    """Open loop: calls open at a time; those due beyond count as OVERFLOW."""
    deadline_ms: NotNegative = 0
    """Time limit of a call, sent as ``grpc-timeout`` and enforced by the client; 0
    for none. Not for streams."""
    vary_timeout: bool = False
    """Send a slightly different limit with each call, as stock clients do."""
    check_every: Annotated[int, Field(ge=0)] = 0
    """Compare each so many answers with the right one; 0 for lengths only."""
    cancel_share: Share = 0
    """Part of the calls (or streams) that is cancelled at a random time."""
    drop_share: Share = 0
    """Part of the calls whose connection is dropped at a random time."""
    cancel_within_ms: NotNegative = 10
    """Latest time for that after the start of a call."""
    seed: int = 0
    """Of random arrivals and cancellations."""

    @model_validator(mode="after")
    def _rates(self) -> Self:
        rated = self.rate is not None or bool(self.steps)
        if (self.loop == "open") != rated or (self.rate is not None and self.steps):
            raise ValueError("an open loop, and no other, needs one of rate and steps")
        if self.share_of and not rated:
            raise ValueError("share_of needs rate or steps")
        if self.loop == "streams" and self.deadline_ms:
            raise ValueError("streams go on and on: they have no deadline_ms")
        if self.cancel_share + self.drop_share > 1:
            raise ValueError("cancel_share and drop_share make more than 1")
        return self


class Phase(Traffic):
    """A stretch of a scenario."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    """What it is called in the results: small letters, digits and dashes."""
    seconds: Positive = 10
    """Length."""
    warm: bool = False
    """Only warms the server up: no results."""
    idle: Annotated[int, Field(ge=0)] = 0
    """Further connections that make no calls."""
    background: Traffic | None = None
    """Other calls at the same time."""


class Scenario(BaseModel):
    """A scenario: a server and phases of load, one after the other."""

    model_config = _STRICT

    title: str
    """What it shows, in one line."""
    target: Target = Target()
    """The server."""
    phases: Annotated[list[Phase], Field(min_length=1, max_length=100)]
    """In their order."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        seen: set[str] = set()
        for phase in self.phases:
            for traffic in (phase, phase.background):
                if traffic and traffic.share_of and traffic.share_of not in seen:
                    raise ValueError(
                        f"share_of in phase {phase.name!r}: no earlier phase is"
                        f" called {traffic.share_of!r}"
                    )
            if phase.name in seen:
                raise ValueError(f"two phases are called {phase.name!r}")
            seen.add(phase.name)
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Models that are asked."""
        all_traffic = [t for p in self.phases for t in (p, p.background) if t]
        return tuple(dict.fromkeys(each.model for each in all_traffic))


SHIPPED = Path(__file__).with_name("scenarios")


def find(path: Path) -> Path:
    """Return a scenario's file; a bare name is one of those that come along.

    Raises:
        BadScenario: If there is no such file.
    """
    shipped = SHIPPED / f"{path}.toml"
    if path.exists():
        return path
    if shipped.exists():
        return shipped
    names = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.toml")))
    raise BadScenario(f"{path}: no such file, and none of {names}")


def read(path: Path) -> Scenario:
    """Read a scenario.

    Raises:
        BadScenario: If it cannot be read or does not fit; all problems are named.
    """
    try:
        return Scenario.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadScenario(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadScenario(f"{path}: {error}") from error
    except ValidationError as error:
        problems = [
            f"{path}: {_place(each['loc'])}: {_reason(each['type'], each['msg'])}"
            for each in error.errors()
        ]
        raise BadScenario("\n".join(problems)) from error


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "scenario"


def _reason(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown key (python -m loadtest fields lists those there are)"
    return message.removeprefix("Value error, ")


def fields() -> str:
    """Return every field with its default and what it does, as text."""
    lines: list[str] = []
    for section in (Scenario, Target, Phase, Traffic, Step):
        lines += [f"{section.__name__}: {section.__doc__}"]
        inherited = Traffic.model_fields if section is Phase else {}
        for name, field in section.model_fields.items():
            if name in inherited:
                continue
            about = " ".join((field.description or "").split())
            default = "" if field.is_required() else f" [{field.default!r}]"
            lines.append(f"  {name}{default}: {about}")
        lines += ["  (and all of Traffic)"] if inherited else []
    return "\n".join(lines)

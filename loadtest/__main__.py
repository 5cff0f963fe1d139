"""``python -m loadtest``: the demo, the benchmark and the servers they need."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Demonstrate and measure Baton with real processes and real calls.",
)

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line.")
]


@app.command()
def demo(
    *,
    seconds: Annotated[
        float, typer.Option(min=1, envvar="DEMO_SECONDS", help="Time under load.")
    ] = 20,
    json: Json = False,
) -> None:
    """Train two models, serve them with Baton and check every answer."""
    from loadtest.demo import run

    raise typer.Exit(run(seconds=seconds, as_json=json))


@app.command()
def hop(*, json: Json = False) -> None:
    """Measure the hop to a worker: socket against shared memory."""
    from loadtest.hop import measure, report

    report(measure(), as_json=json)


@app.command()
def headers(*, json: Json = False) -> None:
    """Measure the decoding of headers, on blocks that stock clients sent."""
    from loadtest.headers import measure, report

    report(measure(), as_json=json)


@app.command()
def bench(
    *,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Length of one measurement.")
    ] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Rounds over all servers.")] = 3,
    full: Annotated[
        bool, typer.Option("--full", help="Add M5 unary and M1 streams.")
    ] = False,
    servers: Annotated[
        str, typer.Option(help="Comma-separated names of the servers to measure.")
    ] = "baton,naive-uvloop,naive-asyncio",
    builtin: Annotated[
        bool, typer.Option("--builtin", help="Use the Python load client.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure Baton against a hand-written server, core for core."""
    from loadtest.bench import SERVERS, run

    names = tuple(servers.split(","))
    if unknown := set(names) - set(SERVERS):
        raise typer.BadParameter(f"no such server: {', '.join(sorted(unknown))}")

    raise typer.Exit(
        run(
            seconds=seconds,
            runs=runs,
            full=full,
            names=names,
            builtin_client=builtin,
            as_json=json,
        )
    )


@app.command("run")
def run_scenario(
    scenario: Annotated[Path, typer.Argument(help="TOML file, or a shipped name.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; else a new one.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.5, help="Length of the whole run; phases scale."),
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Write the page too.")] = False,
    json: Json = False,
) -> None:
    """Run a scenario: phases of load on a server."""
    from loadtest.page import render
    from loadtest.runner import run
    from loadtest.scenario import BadScenario, find, read

    try:
        file = find(scenario)
        read_scenario = read(file)
    except BadScenario as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    code, folder = run(file, read_scenario, out=out, seconds=seconds, as_json=json)
    if page:
        print(render(folder), file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def profile(
    *,
    model: Annotated[str, typer.Option(help="M1, M2, M4, M5 or image.")] = "M1",
    streams: Annotated[bool, typer.Option("--streams", help="Streams.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a message.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=1, help="Length of each of four recordings.")
    ] = 10,
    native: Annotated[
        bool, typer.Option("--native", help="Frames of extension modules too.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "load-results/profile"
    ),
) -> None:
    """Show where a front and a worker spend their time under load (py-spy)."""
    from pydantic import ValidationError

    from loadtest.flames import run
    from loadtest.scenario import Phase

    try:
        phase = Phase.model_validate(
            {
                "name": "profile",
                "model": model,
                "rows": rows,
                "loop": "streams" if streams else "closed",
            }
        )
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"]) from None
    raise typer.Exit(run(phase, seconds=seconds, native=native, out=out))


@app.command()
def fields() -> None:
    """List what may stand in a scenario."""
    from loadtest.scenario import fields as text

    print(text())


@app.command()
def page(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page; else the same.")
    ] = None,
) -> None:
    """Write the results page of a run: Markdown and plots."""
    from loadtest.page import NoResults, render

    try:
        print(render(folder, out))
    except NoResults as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


@app.command()
def naive(
    repository: Annotated[Path, typer.Argument(help="Folder in Triton's layout.")],
    *,
    port: Annotated[int, typer.Option(help="TCP port.")] = 8001,
    uvloop: Annotated[bool, typer.Option(help="Run on uvloop.")] = True,
) -> None:
    """Serve a repository with the hand-written server."""
    from loadtest.naive_server import serve

    serve(repository, port=port, use_uvloop=uvloop)


@app.command()
def client(
    job: Annotated[Path, typer.Argument(help="JSON file written by the benchmark.")],
) -> None:
    """Send the load of one measurement and print what came of it as JSON."""
    from loadtest.client import run
    from loadtest.load import LoadFailed

    try:
        print(run(job))
    except LoadFailed as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def cost(
    *,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Length of one measurement.")
    ] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Rounds over all loads.")] = 3,
    json: Json = False,
) -> None:
    """Measure what the load client itself costs, beside h2load."""
    from loadtest.cost import run

    run(seconds=seconds, runs=runs, as_json=json)


@app.command()
def canned(*, port: Annotated[int, typer.Option(help="TCP port.")] = 8001) -> None:
    """Answer every call with the same bytes: the load client's own yardstick."""
    from loadtest.canned import serve

    serve(port)


def main() -> None:
    """Run the command line; SIGTERM cleans up like Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under "&"
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    app()


if __name__ == "__main__":
    main()

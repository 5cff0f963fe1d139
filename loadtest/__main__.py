"""``python -m loadtest``: the demo, the benchmark and the servers they need."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Commands(TyperGroup):
    """Names what there is to whoever asks for what there is not."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        found = super().get_command(ctx, cmd_name)
        if found is None:
            names = ", ".join(sorted(self.commands))
            ctx.fail(f"No such command '{cmd_name}' (of {names}).")
        return found


app = typer.Typer(
    cls=_Commands,
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
        float,
        typer.Option(min=5, envvar="DEMO_SECONDS", help="Time under load, in 5 steps."),
    ] = 20,
    json: Json = False,
) -> None:
    """Train models, serve them, let a bandit choose, and check every answer."""
    from loadtest.demo import run

    raise typer.Exit(run(seconds=seconds, as_json=json))


@app.command()
def example(
    repository: Annotated[
        Path, typer.Argument(help="Folder for models, made where there is none.")
    ],
) -> None:
    """Write the demo's two models, to have something to serve."""
    from loadtest.training import write_examples

    try:
        for file in write_examples(repository):
            print(file)
    except OSError as error:
        print(f"{error.filename}: {error.strerror} (choose another)", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def hop(*, json: Json = False) -> None:
    """Measure the hop to a worker: socket against shared memory."""
    from loadtest.hop import measure, report

    report(measure(), as_json=json)


@app.command()
def stages(
    *,
    write: Annotated[
        bool, typer.Option("--write", help="Put the table into ARCHITECTURE.md.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure microseconds per request, stage by stage, without sockets."""
    from loadtest.stages import run

    raise typer.Exit(run(as_json=json, write=write))


@app.command()
def routing(
    *,
    changes: Annotated[bool, typer.Option("--changes", help="The latter.")] = False,
    rounds: Annotated[int, typer.Option(help="Of the former.", min=1)] = 60,
    json: Json = False,
) -> None:
    """Measure what choosing an arm adds to a request, or a change's costs."""
    from loadtest import changes as loading
    from loadtest import routing as choosing

    raise typer.Exit(loading.run(json) if changes else choosing.run(rounds, json))


@app.command()
def headers(*, json: Json = False) -> None:
    """Measure the decoding of headers, on blocks that stock clients sent."""
    from loadtest.headers import measure, report

    report(measure(), as_json=json)


@app.command()
def compare(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Names of cases; none for all.")
    ] = None,
    *,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Length of one measurement.")
    ] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all servers.")] = 3,
    servers: Annotated[str, typer.Option(help="Comma-separated; none for all.")] = "",
    transport: Annotated[str, typer.Option(help="Of Baton: own or grpcio.")] = "",
    short: Annotated[
        bool, typer.Option("--short", help="Few cases, no peers to install.")
    ] = False,
    floors: Annotated[
        bool, typer.Option("--floors", help="Short, and exit 1 if worse than a floor.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure Baton beside other servers, core for core, and judge by its targets."""
    from loadtest.compare.cases import chosen
    from loadtest.compare.run import run

    try:
        found = chosen(
            tuple(cases or ()),
            tuple(filter(None, servers.split(","))),
            short=short or (floors and not cases),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(
        run(
            found,
            seconds=seconds,
            rounds=rounds,
            transport=transport,
            floors=floors,
            as_json=json,
        )
    )


@app.command()
def gpu(
    *,
    cpu_smoke: Annotated[
        bool, typer.Option("--cpu-smoke", help="Tiny graphs on the CPU.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.2, help="Length of one measurement.")
    ] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="In turns.")] = 3,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Capture CUDA graphs.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure the gateway on a GPU beside bare ONNX Runtime (ResNet-50, BERT-base)."""
    from loadtest.gpu.run import run

    raise typer.Exit(
        run(
            cpu_smoke=cpu_smoke,
            seconds=seconds,
            rounds=rounds,
            cuda_graphs=cuda_graphs,
            as_json=json,
        )
    )


@app.command()
def peers(
    action: Annotated[str, typer.Argument(help="list or install.")],
    names: Annotated[
        list[str] | None, typer.Argument(help="Peers; none for all.")
    ] = None,
) -> None:
    """List the peers of the comparison, or install them into ``.peers``."""
    from loadtest.peers.catalogue import PEERS
    from loadtest.peers.install import install_all

    if unknown := set(names or ()) - set(PEERS):
        listed = ", ".join(PEERS)
        raise typer.BadParameter(f"no such peer: {min(unknown)} (of {listed})")
    wanted = [PEERS[name] for name in names or PEERS]
    if action == "list":
        for each in wanted:
            state = "installed" if each.installed else "not installed"
            print(f"{each.name:<10} {each.version:<8} {state}")
    elif action == "install":
        raise typer.Exit(1 if install_all(wanted) else 0)
    else:
        raise typer.BadParameter("list or install")


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
def stock(
    job: Annotated[Path, typer.Argument(help="JSON file written by the comparison.")],
    *,
    sync: Annotated[
        bool, typer.Option("--sync/--aio", help="Threads or tasks.")
    ] = True,
) -> None:
    """Send a load as clients of grpcio do and print what came of it as JSON."""
    from loadtest.stock import run

    print(run(job, synchronous=sync))


@app.command()
def ort(
    model: Annotated[Path, typer.Argument(help="File of the model.")],
    *,
    seconds: Annotated[float, typer.Option(help="For all batch sizes.")] = 2,
) -> None:
    """Print the rows per second of bare ONNX Runtime by batch size, as JSON."""
    from json import dumps

    from loadtest.bare import rates

    print(dumps(rates(model, seconds=seconds)))


@app.command()
def echo(*, port: Annotated[int, typer.Option(help="TCP port.")] = 8001) -> None:
    """Take the bytes of requests and answer them unread: a ceiling."""
    from loadtest.echo import serve

    serve(port)


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

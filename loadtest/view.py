"""What the demo shows: a live table, or a line a second where nobody looks."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence

import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from loadtest.experiment import Experiment
from loadtest.traffic import Tally, Versions, mean_batches

REFRESH_S = 0.25
LINE_S = 1.0
WINDOW_S = 1.0

Work = Sequence[tuple[Versions, Tally]]


class View:
    """Shows the tallies while load runs."""

    def __init__(self, console: Console, work: Work, experiment: Experiment) -> None:
        self._console = console
        self._work = work
        self._experiment = experiment
        self._batches: Mapping[str, float] = {}
        self._seen = deque([(time.monotonic(), [0] * len(work))])

    async def show(
        self, connection: grpc.aio.Channel, load: asyncio.Task[None]
    ) -> None:
        """Show the numbers until the load is done."""
        if not self._console.is_terminal:
            while not load.done():
                await self._tick(connection, load, LINE_S)
                lines = f"{self._line()}\n{self._arms_line()}".rstrip()
                self._console.print(lines, soft_wrap=True, highlight=False)
            return
        with Live(console=self._console, auto_refresh=False) as live:
            while not load.done():
                await self._tick(connection, load, REFRESH_S)
                both = Group(self._table(), self._arms_table())
                live.update(both, refresh=True)

    async def _tick(
        self, connection: grpc.aio.Channel, load: asyncio.Task[None], pause_s: float
    ) -> None:
        await asyncio.wait((load,), timeout=pause_s)
        try:
            self._batches = await mean_batches(connection)
        except grpc.aio.AioRpcError:
            self._batches = {}  # the demo asks again at the end and says why
        now = time.monotonic()
        self._seen.append((now, [tally.requests for _, tally in self._work]))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()

    def _rates(self) -> list[float]:
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        if end <= start:
            return [0.0] * len(after)
        return [(b - a) / (end - start) for a, b in zip(before, after, strict=True)]

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                source.model.name,
                f"{rate:,.0f}",
                f"{tally.latency.percentile_ms(50):.2f}",
                f"{tally.latency.percentile_ms(99):.2f}",
                f"{self._batches.get(source.model.name, 0):.1f}",
                f"{tally.accuracy:.2%}",
                str(tally.disagreements),
                str(tally.failures),
            )
            for (source, tally), rate in zip(self._work, self._rates(), strict=True)
        ]

    def _table(self) -> Table:
        table = Table(title="Held-out records through Baton, every answer checked")
        table.add_column("model")
        for title in (
            "req/s",
            "p50 ms",
            "p99 ms",
            "batch",
            "accuracy",
            "wrong",
            "failed",
        ):
            table.add_column(title, justify="right")
        for cells in self._cells():
            table.add_row(*cells)
        return table

    def _line(self) -> str:
        return " | ".join(
            f"{name} {rate} req/s p50 {p50} p99 {p99} ms batch {batch}"
            f" accuracy {accuracy} wrong {wrong} failed {failures}"
            for name, rate, p50, p99, batch, accuracy, wrong, failures in self._cells()
        )

    def _arm_cells(self) -> list[tuple[str, ...]]:
        """Return a row for each version that gets requests or copies of them."""
        shown, kind = self._experiment.shown, self._experiment.kind
        rows: list[tuple[str, ...]] = []
        for arm in shown.get("arms", ()):
            version, mean = arm["version"], arm["mean_reward"]
            rows.append(
                (
                    f"{arm['role']} v{version} {kind(version)}",
                    f"{arm['weight']:.1%}",
                    f"{self._experiment.answers[version]:,}",
                    "-" if mean is None else f"{mean:.3f}",
                    f"{arm['rewards']:,}",
                    "-",
                )
            )
        for shadow in shown.get("table", {}).get("shadows", ()):
            version = shadow["version"]
            sums = shown["shadows"].get(str(version), {})
            agreement = sums.get("agreement", {})
            compared = agreement.get("rows", 0)
            share = agreement["agreed"] / compared if compared else 0.0
            agrees = f"{share:.1%} of {compared:,} rows"
            name = f"shadow v{version} {kind(version)}"
            rows.append((name, "copies", "0", "-", "-", agrees))
        return rows

    def _arms_table(self) -> Table:
        table = Table(title=f"Who answers for {self._experiment.name}")
        table.add_column("version")
        for title in ("weight", "answers", "mean reward", "rewards", "agreement"):
            table.add_column(title, justify="right")
        for cells in self._arm_cells():
            table.add_row(*cells)
        return table

    def _arms_line(self) -> str:
        parts = []
        for name, weight, answers, mean, rewards, agreement in self._arm_cells():
            if agreement != "-":
                parts.append(f"{name}: agrees in {agreement}")
            else:
                earned = "" if mean == "-" else f", reward {mean} (of {rewards})"
                parts.append(f"{name}: weight {weight}, {answers} answers{earned}")
        return "   " + " | ".join(parts) if parts else ""

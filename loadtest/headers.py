"""Decoding the headers of a call: our decoder against the `hpack` package.

``python -m loadtest headers``. Replays the blocks that stock clients sent on one
connection (`tests/transport/capture_headers.py`); the first call of a connection, which
fills the table, is not timed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import hpack
from rich.console import Console
from rich.table import Table

from gateway.transport.hpack import Decoder

BLOCKS = Path(__file__).parents[1] / "tests" / "transport" / "header_blocks.json"
ROUNDS = 101


@dataclass(frozen=True)
class Decoding:
    """Microseconds per block of one client: medians of the rounds."""

    client: str
    block_bytes: float
    fields: float
    baton_us: float
    hpack_us: float


def measure() -> list[Decoding]:
    """Measure the blocks of every client, both decoders alternating."""
    captured = json.loads(BLOCKS.read_text(encoding="utf-8"))
    return [
        _measure_client(client, [bytes.fromhex(block) for block in blocks])
        for client, blocks in captured.items()
    ]


def _measure_client(client: str, blocks: list[bytes]) -> Decoding:
    decoder = Decoder()
    fields = [len(decoder.decode(block) or ()) for block in blocks]
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(_time_us(Decoder().decode, blocks))
        theirs.append(_time_us(partial(hpack.Decoder().decode, raw=True), blocks))
    return Decoding(
        client,
        statistics.mean(map(len, blocks[1:])),
        statistics.mean(fields[1:]),
        statistics.median(ours),
        statistics.median(theirs),
    )


def _time_us(decode: Callable[[bytes], object], blocks: list[bytes]) -> float:
    decode(blocks[0])
    started = time.perf_counter_ns()
    for block in blocks[1:]:
        decode(block)
    return (time.perf_counter_ns() - started) / 1e3 / (len(blocks) - 1)


def report(decodings: list[Decoding], *, as_json: bool) -> None:
    """Print the measurements."""
    if as_json:
        print(json.dumps([asdict(decoding) for decoding in decodings]))
        return
    table = Table(title="Decoding the headers of one call, microseconds")
    table.add_column("client")
    for name in ("bytes", "fields", "baton", "hpack", "hpack / baton"):
        table.add_column(name, justify="right")
    for decoding in decodings:
        table.add_row(
            decoding.client,
            f"{decoding.block_bytes:.1f}",
            f"{decoding.fields:.1f}",
            f"{decoding.baton_us:.2f}",
            f"{decoding.hpack_us:.2f}",
            f"{decoding.hpack_us / decoding.baton_us:.1f}",
        )
    Console().print(table)

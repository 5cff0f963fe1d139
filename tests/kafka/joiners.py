"""Joiners in processes of their own, and what fronts and producers give them."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from deploy.kafka.broker import Cluster
from gateway.clock import PredictionIds
from gateway.feedback import cloudevents
from gateway.feedback.kafka import KafkaLog
from gateway.feedback.log import LABELS, PREDICTIONS, LogUnavailable
from gateway.feedback.partition import partitions_of
from gateway.feedback.shard import Shard
from gateway.feedback.types import Event, Label, LabelKind
from gateway.feedback_config import FeedbackConfig
from tests.feedback.logged import block, looked_at
from tests.gateway_process import wait_for

ROOT = Path(__file__).parents[2]
PARTITIONS = 4
MEMBERS = 3


class Members:
    """Joiner processes of one group, each with a folder of its own."""

    def __init__(self, config: FeedbackConfig, folder: Path) -> None:
        self._config = config.model_dump_json()
        self._folder = folder
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        for member in range(MEMBERS):
            self.start(member)

    def folder(self, member: int) -> Path:
        return self._folder / str(member)

    def start(self, member: int) -> None:
        """Start one, unless it runs."""
        running = self._running.get(member)
        if running is not None and running.poll() is None:
            return
        command = [sys.executable, "-m", "tests.kafka.joiner_process"]
        log = (self._folder / f"{member}.log").open("ab")
        self._running[member] = subprocess.Popen(
            [*command, self._config, str(self.folder(member))],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        log.close()

    def end(self, member: int, how: signal.Signals) -> None:
        """Stop or kill one."""
        self._running[member].send_signal(how)
        self._running[member].wait(30)

    def stop(self) -> None:
        for member in self._running:
            with suppress(ProcessLookupError):
                self.end(member, signal.SIGTERM)

    def signal(self, member: int, what: signal.Signals) -> None:
        """Pause one, or have it go on."""
        self._running[member].send_signal(what)

    def said(self, *words: str) -> dict[str, int]:
        """Return how often any of them has logged these words."""
        logs = [path.read_text() for path in self._folder.glob("*.log")]
        counts = {word: sum(log.count(word) for log in logs) for word in words}
        return {word: count for word, count in counts.items() if count}

    def joined(self, done: Mapping[int, Sequence[int]]) -> dict[bytes, object]:
        """Return what the rows come to of those who have joined all, once stopped."""
        joined: dict[bytes, object] = {}
        for partition, members in done.items():
            for member in members:
                found = self.outcomes(member, partition)
                assert found is not None
                joined |= found
        return joined

    def outcomes(self, member: int, partition: int) -> dict[bytes, object] | None:
        """Return the labels that one's rows of a partition add up to, once stopped."""
        path = self.folder(member) / f"{partition}.sqlite"
        if not path.exists():
            return None
        shard = Shard(path, partition, FeedbackConfig.model_validate_json(self._config))
        net: Counter[tuple[bytes, object]] = Counter()
        for _, row in shard.outcomes(most=1_000_000):
            # None where a label came after the window, and was a correction.
            net[row.id, dict(row.labels).get("label")] += row.sign
        shard.close()
        assert set(net.values()) <= {0, 1}
        return {key: value for (key, value), sign in net.items() if sign}


class Load:
    """Predictions and labels as fronts and producers append them."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._ids = PredictionIds()
        self._order = random.Random(3)
        self._waiting: list[tuple[int, Label]] = []
        self._step = 0
        self.truth: dict[bytes, float] = {}

    async def step(self) -> None:
        """Append some predictions, and some labels of earlier ones."""
        self._step += 1
        now_ms = time.time_ns() // 1_000_000
        names = self._ids.mint_all(40)
        for name in names:
            self._say(UUID(name.decode()).bytes, now_ms)
        places = partitions_of(names, PARTITIONS)
        await self._append(
            PREDICTIONS,
            [
                (partition, Event(b"", block([name], now_ms)))
                for partition, name in zip(places, names, strict=True)
            ],
        )
        due = [label for step, label in self._waiting if step <= self._step]
        self._waiting = [each for each in self._waiting if each[0] > self._step]
        self._order.shuffle(due)
        await self.send(due)

    def _say(self, key: bytes, now_ms: int) -> None:
        """Label a prediction soon: once, twice, or otherwise first."""
        value = float(self._order.randrange(1000))
        self.truth[key] = value
        right = self._label(key, value, 1, now_ms)
        self._waiting.append((self._step + self._order.randrange(20), right))
        luck = self._order.random()
        if luck < 0.2:
            self._waiting.append((self._step + self._order.randrange(40), right))
        elif luck > 0.8:
            wrong = self._label(key, -1.0, 0, now_ms)
            self._waiting.append((self._step + self._order.randrange(40), wrong))

    @staticmethod
    def _label(key: bytes, value: float, seq: int, now_ms: int) -> Label:
        kind = LabelKind.VALUE
        return Label(
            uuid4().hex, "test", key, None, 0, "label", kind, value, seq, now_ms, 1.0
        )

    async def rest(self) -> None:
        """Append all labels that are left."""
        await self.send([label for _, label in self._waiting])
        self._waiting = []

    async def send(self, labels: list[Label]) -> None:
        events = [cloudevents.encode(label) for label in labels]
        places = partitions_of([event.key for event in events], PARTITIONS)
        await self._append(LABELS, list(zip(places, events, strict=True)))

    async def _append(self, topic: str, events: list[tuple[int, Event]]) -> None:
        """Append events, again where the log may not have them."""
        for partition in range(PARTITIONS):
            share = [event for where, event in events if where == partition]
            while share:
                try:
                    await self._log.append(topic, partition, share)
                except LogUnavailable:
                    await asyncio.sleep(0.2)
                else:
                    break


def config_of(cluster: Cluster, copies: int = 1) -> FeedbackConfig:
    kafka = {
        "bootstrap_servers": cluster.bootstrap.split(","),
        "session_timeout_ms": 2000,
        "replication": copies,
    }
    return FeedbackConfig.model_validate(
        {
            "enabled": True,
            "partitions": PARTITIONS,
            "kafka": {**kafka, "stuck_after_s": 5},
            "default": {
                "labels": {"label": {"type": "number"}},
                "window_s": 8,
                "lateness_s": 3600,
            },
        }
    )


async def all_read(members: Members, load: Load, log: KafkaLog) -> dict[int, list[int]]:
    """Append what is left, and wait; return who has joined all of each partition."""
    await load.rest()
    ends = {
        f"{topic}/{partition}": (await log.extent(topic, partition)).end
        for topic in (PREDICTIONS, LABELS)
        for partition in range(PARTITIONS)
    }
    done: dict[int, list[int]] = await asyncio.to_thread(
        wait_for, lambda: finished(members, ends), 90
    )
    return done


def finished(members: Members, ends: dict[str, int]) -> dict[int, list[int]] | None:
    """Return who has joined all of each partition; ``None`` if one is not there yet."""
    done: dict[int, list[int]] = {p: [] for p in range(PARTITIONS)}
    for member in range(MEMBERS):
        for partition in range(PARTITIONS):
            path = members.folder(member) / f"{partition}.sqlite"
            state = looked_at(path)
            if state is None:
                continue
            offsets, open_ = state
            read = all(
                offsets.get(topic, 0) >= ends[f"{topic}/{partition}"]
                for topic in (PREDICTIONS, LABELS)
            )
            if read and not open_:
                done[partition].append(member)
    return done if all(done.values()) else None

"""Counters of all fronts, past and present, as one sum that only grows. Pure."""

from __future__ import annotations

from typing import Any

from gateway.serving.statistics import add_up


class Counters:
    """The last counters of each front, and the sum of those that are gone.

    One thread writes, any may read: what is read is replaced in one step, so that
    no scrape sees a front in neither place, or in both.

    Attributes:
        joined: What the controller last said of the join; see `Health`. Empty where
            there is none.
    """

    def __init__(self) -> None:
        gone: dict[str, Any] = {"versions": {}, "rejected": {}, "transport": {}}
        last: dict[int, dict[str, Any]] = {}
        self._counts = gone, last
        self._gauges: dict[int, dict[str, Any]] = {}
        self.joined: dict[str, Any] = {}

    def report(self, front: int, snapshot: dict[str, Any]) -> None:
        """Take the counters of one front process, by its pid.

        Of versions that it does not name, the last ones still hold.
        """
        gone, last = self._counts
        versions = dict(last[front]["versions"]) if front in last else {}
        versions |= {
            f"{version}\0{model}": counts
            for model, version, counts in snapshot["versions"]
        }
        counts = {
            "versions": versions,
            "rejected": snapshot["rejected"],
            "transport": snapshot["transport"],
            "arms": snapshot["arms"],
            "ruled": snapshot["ruled"],
            "shadows": snapshot["shadows"],
            "records": snapshot["records"],
            "log": snapshot["log"],
        }
        self._counts = gone, {**last, front: counts}
        self._gauges = {**self._gauges, front: snapshot["gauges"]}

    def retire(self, front: int) -> None:
        """Keep the counts of a front that is gone."""
        gone, last = self._counts
        if front in last:
            others = {pid: counts for pid, counts in last.items() if pid != front}
            self._counts = add_up(gone, last[front]), others
            self._gauges = {p: g for p, g in self._gauges.items() if p != front}

    def versions(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Return model, version and summed counts of everything ever served."""
        totals = self._totals()["versions"]
        out = []
        for key in sorted(totals):
            version, model = key.split("\0", 1)
            out.append((model, int(version), totals[key]))
        return out

    def rejected(self) -> dict[str, int]:
        """Return requests refused before a version was known, by outcome."""
        rejected: dict[str, int] = self._totals()["rejected"]
        return rejected

    def transport(self) -> dict[str, Any]:
        """Return what all connections counted; see `TransportStatistics`."""
        transport: dict[str, Any] = self._totals()["transport"]
        return {"accepted": 0, "calls": 0, "limits": {}, **transport}

    def arms(self) -> dict[str, dict[str, int]]:
        """Return the requests that each version got as an arm, by model."""
        arms: dict[str, dict[str, int]] = self._totals().get("arms", {})
        return arms

    def ruled(self) -> dict[str, dict[str, int]]:
        """Return those of them that a rule of the table sent."""
        ruled: dict[str, dict[str, int]] = self._totals().get("ruled", {})
        return ruled

    def shadows(self) -> dict[str, Any]:
        """Return what came of copies, by ``<version>/<model>``; see `Mirror`."""
        shadows: dict[str, Any] = self._totals().get("shadows", {})
        return shadows

    def records(self) -> dict[str, int]:
        """Return prediction records: offered, and forgotten for later ones."""
        records: dict[str, int] = self._totals().get("records", {})
        return {"offered": 0, "forgotten": 0, **records}

    def log(self) -> dict[str, int]:
        """Return what rings counted on the way to the event log; see `Ring`."""
        log: dict[str, int] = self._totals().get("log", {})
        return log

    def gauges(self) -> dict[str, Any]:
        """Return the sums of what the living fronts hold now."""
        total: dict[str, Any] = {
            "inflight_requests": {},
            "inflight_bytes": 0,
            "connections": 0,
            "buffered_bytes": 0,
            "unlogged": 0,
        }
        for gauges in self._gauges.values():
            total = add_up(total, gauges)
        return total

    def _totals(self) -> dict[str, Any]:
        total, last = self._counts
        for counts in last.values():
            total = add_up(total, counts)
        return total

"""Admission: how much work one front takes on. Pure."""

from __future__ import annotations

from gateway.errors import QueueFull, TooLarge


class Admission:
    """Permits for requests in flight, per model, and for input bytes over all.

    Args:
        max_inflight_bytes: Input bytes held over all models.
        pushback_ms: Wait asked of whoever is refused.
    """

    def __init__(self, max_inflight_bytes: int, pushback_ms: int) -> None:
        self._max_bytes = max_inflight_bytes
        self._pushback_ms = pushback_ms
        self._requests: dict[str, int] = {}
        self._bytes = 0

    @property
    def inflight_bytes(self) -> int:
        """Input bytes of all requests in flight."""
        return self._bytes

    @property
    def inflight_requests(self) -> int:
        """Requests in flight over all models."""
        return sum(self._requests.values())

    def by_model(self) -> dict[str, int]:
        """Return requests in flight per model."""
        return {model: count for model, count in self._requests.items() if count}

    def acquire(self, model: str, nbytes: int, max_requests: int) -> None:
        """Take a permit for one request of `nbytes` input bytes.

        Raises:
            QueueFull: The model has `max_requests` in flight.
            TooLarge: The bytes would exceed the process's limit.
        """
        requests = self._requests.get(model, 0)
        if requests >= max_requests:
            raise QueueFull(
                f"Exceeds maximum queue size: '{model}' has {max_requests} requests "
                "in flight in this front; retry later",
                pushback_ms=self._pushback_ms,
            )
        if nbytes > self._max_bytes:
            raise TooLarge(
                f"{nbytes} bytes of input are more than the {self._max_bytes} this "
                "front ever holds; send smaller requests"
            )
        if self._bytes + nbytes > self._max_bytes:
            raise TooLarge(
                f"{nbytes} bytes of input would exceed the {self._max_bytes} this "
                "front holds in flight; retry later",
                pushback_ms=self._pushback_ms,
            )
        self._requests[model] = requests + 1
        self._bytes += nbytes

    def release(self, model: str, nbytes: int, requests: int = 1) -> None:
        """Give the permits of requests back; `nbytes` are those of all of them."""
        self._requests[model] -= requests
        self._bytes -= nbytes

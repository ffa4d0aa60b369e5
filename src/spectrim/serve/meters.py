"""What /metrics tells, in Prometheus's form: requests, tokens, times, and what runs now."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Meters:
    """Counters of one server; active and waiting say how many answers have a slot, or none yet."""

    def __init__(self, active: Callable[[], float], waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "spectrim_requests", "Requests by path and status", ["path", "status"],
            registry=self._registry,
        )  # fmt: skip
        self.tokens = Counter(
            "spectrim_tokens", "Tokens read and written", ["kind"], registry=self._registry
        )
        self.cancelled = Counter(
            "spectrim_cancelled", "Answers whose client left", registry=self._registry
        )
        self.first_token = Histogram(
            "spectrim_first_token_seconds", "From a request to the first token of its answer",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.answer = Histogram(
            "spectrim_answer_seconds", "From a request to the end of its answer",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        for name, told, what in (
            ("active", active, "Answers that have a slot"),
            ("waiting", waiting, "Answers that wait for a slot"),
        ):
            Gauge(f"spectrim_{name}", what, registry=self._registry).set_function(told)

    def text(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)

"""What a server counts, as text for Prometheus; labels are names of routes, models and codes, never of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

if TYPE_CHECKING:
    from serving.batching import Work

disable_created_metrics()  # of each counter another line that nobody reads
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def seconds(name: str, of: str) -> Histogram:
            return Histogram(f"divan_{name}_seconds", of, buckets=_SECONDS, registry=registry)

        self.requests = Counter("divan_requests", "requests", ["route", "code"], registry=registry)
        self.rejected = Counter("divan_rejected", "requests without an answer", ["reason"], registry=registry)
        self.request_seconds = seconds("request", "from the first byte of a request to the last of its answer")
        self.queue_seconds = seconds("queue", "that a row waited for the compute thread")
        self.tokenize_seconds = seconds("tokenize", "that a request's texts took to become tokens")
        self.compute_seconds = seconds("compute", "of a batch")
        powers = [1 << n for n in range(16)]
        self.batch_rows = Histogram("divan_batch_rows", "rows of a batch", buckets=powers[:7], registry=registry)
        self.batch_tokens = Histogram("divan_batch_tokens", "tokens of a batch", buckets=powers[4:], registry=registry)
        self.tokens = Counter("divan_tokens", "tokens computed, padding counted", ["model"], registry=registry)
        self.truncated = Counter("divan_truncated", "texts that were cut", ["model"], registry=registry)
        self.failed = Counter("divan_failed", "batches that failed", registry=registry)
        self.reloads = Counter("divan_reloads", "models loaded anew", ["model", "result"], registry=registry)
        self.models = Gauge(
            "divan_model_info", "1 for what is served", ["model", "version", "format", "precision"], registry=registry
        )
        self.in_flight = Gauge("divan_in_flight", "requests that are read or answered", registry=registry)
        self._queue = Gauge("divan_queue_length", "rows that wait", registry=registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Let the gauge of the queue ask a function."""
        self._queue.set_function(length)

    def computed(self, batch: Sequence[Work]) -> None:
        """Count a batch."""
        tokens = max(work.tokens for work in batch) * len(batch)
        self.batch_rows.observe(len(batch))
        self.batch_tokens.observe(tokens)
        self.compute_seconds.observe(batch[0].ended - batch[0].begun)
        for work in batch:
            self.queue_seconds.observe(work.begun - work.submitted)

    def text(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)

"""Prometheus metrics of a pipeline: what it is told becomes numbers to watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ebjr.errors import MissingExtra
from ebjr.serving.pipeline import Observer

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
    )
except ImportError as error:
    raise MissingExtra("serve", "serving") from error

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics(Observer):
    """Counts, sizes and times of one served model, in a registry of its own.

    Parameters
    ----------
    model
        Its name, a label of every metric.
    score_edges
        Where the buckets of the score's histogram end, rising: deciles of the calibration show a
        drift best.
    """

    def __init__(self, model: str, score_edges: Sequence[float] = ()) -> None:
        self._registry = CollectorRegistry()
        known: dict[str, Any] = {"registry": self._registry, "namespace": "ebjr"}
        label = ["model"]
        self._model = model
        self._requests = Counter("requests", "Requests by status.", [*label, "status"], **known)
        self._rows = Counter("rows", "Rows scored.", label, **known).labels(model)
        self._deferred = Counter("deferred_rows", "Rows deferred.", label, **known).labels(model)
        self._degraded = Counter(
            "degraded_rows", "Rows that the student answered for a teacher away.", label, **known
        ).labels(model)
        self._failures = Counter("failures", "Batches that failed.", [*label, "stage"], **known)
        self._batch = Histogram(
            "batch_rows", "Rows of a batch.", [*label, "stage"], buckets=BATCHES, **known
        )
        self._seconds = Histogram(
            "batch_seconds", "A batch's time.", [*label, "stage"], buckets=SECONDS, **known
        )
        self._latency = Histogram(
            "request_seconds", "A request's time.", label, buckets=SECONDS, **known
        ).labels(model)
        self._score = Histogram(
            "score",
            "Scores of the student's answers.",
            label,
            buckets=tuple(score_edges) or TENTHS,
            **known,
        ).labels(model)
        self._waiting = Gauge("waiting_rows", "Rows in a queue.", [*label, "stage"], **known)
        self._threshold = Gauge("threshold", "The knob.", label, **known).labels(model)

    def watch(
        self, waiting: Callable[[], Mapping[str, int]], threshold: Callable[[], float]
    ) -> None:
        """Read the queues and the knob whenever somebody asks."""
        for stage in ("student", "teacher"):
            gauge = self._waiting.labels(self._model, stage)
            gauge.set_function(_reading(waiting, stage))
        self._threshold.set_function(threshold)

    def batch(self, stage: str, rows: int, seconds: float) -> None:
        """Count a batch."""
        self._batch.labels(self._model, stage).observe(rows)
        self._seconds.labels(self._model, stage).observe(seconds)

    def rows(self, score: np.ndarray, deferred: np.ndarray) -> None:
        """Count rows, and where their scores lie."""
        self._rows.inc(len(score))
        self._deferred.inc(int(deferred.sum()))
        for value in score.tolist():
            self._score.observe(value)

    def degraded(self, rows: int) -> None:
        """Count degraded rows."""
        self._degraded.inc(rows)

    def failed(self, stage: str, error: Exception) -> None:
        """Count a failure."""
        self._failures.labels(self._model, stage).inc()

    def refused(self, status: int) -> None:
        """A request was answered with an error."""
        self._requests.labels(self._model, str(status)).inc()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Time a request; one that ends without an error is a 200."""
        began = time.perf_counter()
        yield
        self._latency.observe(time.perf_counter() - began)
        self._requests.labels(self._model, "200").inc()

    def text(self) -> tuple[bytes, str]:
        """All of it as Prometheus reads it, and the type of that text."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def _reading(waiting: Callable[[], Mapping[str, int]], stage: str) -> Callable[[], float]:
    return lambda: float(waiting()[stage])

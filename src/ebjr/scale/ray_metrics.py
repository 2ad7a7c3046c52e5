"""The server's metrics in Ray's Prometheus endpoint, under the same names after Ray's ``ray_``."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from ray.serve import metrics as ray_metrics

from ebjr.serving.periodic import Periodic

EVERY_SECONDS = 2.0

Labels = tuple[tuple[str, str], ...]


class Mirror:
    """Copies metrics of `ebjr.serving.metrics` to Ray's.

    Ray adds application, deployment and replica. Batches of `without_stage` are left out, because
    another deployment counts them.
    """

    def __init__(self, families: Callable[[], Iterable[Any]], without_stage: str = "") -> None:
        self._families, self._without = families, without_stage
        self._known: dict[str, Any] = {}  # Ray's metrics by name
        self._before: dict[tuple[str, Labels], Any] = {}  # values of counters at the last copy

    def start(self) -> None:
        """Copy every `EVERY_SECONDS`, in a thread."""
        Periodic(EVERY_SECONDS, self.copy).start()

    def copy(self) -> None:
        """Copy once."""
        for family in self._families():
            if family.type == "histogram":
                self._copy_histogram(family)
            else:
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        self._copy_value(family, sample)

    def _copy_value(self, family: Any, sample: Any) -> None:
        tags = tuple(sorted(sample.labels.items()))
        if family.type == "gauge":
            gauge = self._metric(ray_metrics.Gauge, sample.name, family, tags)
            gauge.set(sample.value, tags=sample.labels)
            return
        risen = sample.value - self._before.get((sample.name, tags), 0.0)
        counter = self._metric(ray_metrics.Counter, sample.name, family, tags)
        if risen > 0:
            counter.inc(risen, tags=sample.labels)
            self._before[sample.name, tags] = sample.value

    def _copy_histogram(self, family: Any) -> None:
        for labels, edges, counts, total in _histograms(family):
            tags = dict(labels)
            if self._without and tags.get("stage") == self._without:
                continue
            old_counts, old_total = self._before.get((family.name, labels), (0, 0.0))
            self._before[family.name, labels] = (counts, total)
            shown = edges[edges > 0].tolist() or [1.0]  # Ray accepts only positive boundaries
            histogram = self._metric(
                ray_metrics.Histogram, family.name, family, labels, boundaries=shown
            )
            new = counts - old_counts
            for value in np.repeat(spread(edges, new, total - old_total), new).tolist():
                histogram.observe(value, tags=tags)

    def _metric(self, kind: Any, name: str, family: Any, tags: Labels, **options: Any) -> Any:
        if name not in self._known:
            keys = tuple(key for key, _ in tags)
            self._known[name] = kind(
                name, description=family.documentation, tag_keys=keys, **options
            )
        return self._known[name]


def _histograms(family: Any) -> Iterator[tuple[Labels, np.ndarray, np.ndarray, float]]:
    """Yield labels, edges (k,), counts of the k + 1 buckets, and the sum."""
    found: dict[Labels, list[Any]] = {}
    for sample in family.samples:
        labels = sorted(label for label in sample.labels.items() if label[0] != "le")
        found.setdefault(tuple(labels), []).append(sample)
    for known, samples in found.items():
        buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
        edges = np.array([float(bucket.labels["le"]) for bucket in buckets[:-1]])
        counts = np.diff([0, *(int(bucket.value) for bucket in buckets)])
        total = sum(sample.value for sample in samples if sample.name.endswith("_sum"))
        yield known, edges, counts, total


def spread(edges: np.ndarray, counts: np.ndarray, total: float) -> list[float]:
    """Return a value for each of k + 1 buckets that keeps a histogram's counts and sum.

    Ray's histograms take single values, which our histogram no longer has. `edges` (k,) rise; the
    last bucket is open.
    """
    highest = np.append(edges, np.nextafter(edges[-1], np.inf))
    values = highest.copy()
    over = float(counts @ values) - total
    if over <= 0:  # the rest of the sum lies beyond the last edge
        values[-1] -= over / counts[-1] if counts[-1] else 0.0
        return values.tolist()
    room = np.concatenate([[0.0], np.diff(edges), [0.0]]) * counts
    if room.sum():
        share = min(over / room.sum(), 0.999)
        values[1:-1] -= share * np.diff(edges)
        over -= share * float(room.sum())
    if counts[0]:
        values[0] -= over / counts[0]
    return values.tolist()

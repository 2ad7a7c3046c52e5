"""Prometheus metrics of a server; docs/operations.md explains each one.

Frequent values (scores, waits) are counted in bulk. Values known elsewhere (queues, the knob, the
monitor) are read at each scrape.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ebjr.errors import needs
from ebjr.link.far import FarTeacher
from ebjr.serving.autopilot import Autopilot
from ebjr.serving.engine import Engine
from ebjr.serving.events import Answered, Batched, Degraded, Failed, Observer, Scored
from ebjr.serving.knob_control import KnobControl
from ebjr.serving.live_monitor import LiveMonitor
from ebjr.serving.spending import Spending

with needs("serve", "serving"):
    from prometheus_client import CollectorRegistry, Counter
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
MOST_WAITING = 1024  # values queued before they are counted together
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics(Observer):
    """Counts, sizes and times of one served model, in its own registry.

    The score's buckets end at `score_edges`, which rise: calibration deciles show a drift best.
    They stay for good, because readers of a Prometheus histogram cannot follow buckets that change.
    """

    def __init__(self, model: str, score_edges: Sequence[float], stages: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        known: dict[str, Any] = {"registry": self._registry, "namespace": "ebjr"}
        label = ["model"]
        self._model = model
        self._requests = Counter("requests", "Requests by status.", [*label, "status"], **known)
        self._rows = Counter("rows", "Rows scored.", label, **known).labels(model)
        self._deferred = Counter("deferred_rows", "Rows deferred.", label, **known).labels(model)
        self._degraded = Counter(
            "degraded_rows", "Rows answered by the student with the teacher away.", label, **known
        ).labels(model)
        failures = Counter("failures", "Failed batches.", [*label, "stage"], **known)
        self._failures = {stage: failures.labels(model, stage) for stage in (*stages, "audit")}
        by_model = Counter("answered_rows", "Rows answered.", [*label, "stage"], **known)
        self._by_model = {stage: by_model.labels(model, stage) for stage in stages}
        self._answered = self._requests.labels(model, "200")
        edges = tuple(score_edges) or TENTHS
        self._latency = _Counts("request_seconds", "Seconds of a request.", SECONDS)
        self._batch = _Counts("batch_rows", "Rows in a batch.", BATCHES, stages)
        self._seconds = _Counts("batch_seconds", "Seconds of a batch.", SECONDS, stages)
        self._wait = _Counts("wait_seconds", "Seconds in a queue.", SECONDS, stages)
        text = "Scores; buckets end at deciles of the calibration that the model was loaded with."
        self._score = _Counts("score", text, edges)
        histograms = (self._latency, self._batch, self._seconds, self._wait, self._score)
        self._read: list[Callable[[], Any]] = [partial(each.family, model) for each in histograms]
        self._registry.register(self)
        self.handlers = {
            Batched: self._batched,
            Scored: self._scored,
            Answered: self._answered_all,
            Degraded: lambda event: self._degraded.inc(event.rows),
            Failed: lambda event: self._failures[event.stage].inc(),
        }

    def read(
        self,
        name: str,
        text: str,
        values: Callable[[], float | Mapping[Any, float | None] | None],
        *labels: str,
        counter: bool = False,
    ) -> None:
        """Add a metric ``ebjr_NAME`` whose values are read at each scrape.

        `values` returns a number, or None for no sample; or a mapping from label values, one or a
        tuple in the order of `labels`, to those.
        """
        kind = CounterMetricFamily if counter else GaugeMetricFamily

        def family() -> Any:
            found = kind(f"ebjr_{name}", text, labels=["model", *labels])
            known = values()
            for key, value in (known if isinstance(known, Mapping) else {(): known}).items():
                if value is not None:
                    found.add_metric(
                        [self._model, *([key] if isinstance(key, str) else key)], value
                    )
            return found

        self._read.append(family)

    def collect(self) -> Iterator[Any]:
        """Yield the families counted in bulk or read elsewhere, for the registry."""
        for family in self._read:
            yield family()

    def _batched(self, batch: Batched) -> None:
        self._batch.add([batch.rows], batch.stage)
        self._seconds.add([batch.seconds], batch.stage)
        self._wait.add(batch.waited, batch.stage)

    def _scored(self, event: Scored) -> None:
        self._rows.inc(len(event.score))
        self._deferred.inc(int(np.count_nonzero(event.deferred)))
        self._score.add(event.score.tolist())

    def refused(self, status: int) -> None:
        """Count a request that was answered with an error."""
        self._requests.labels(self._model, str(status)).inc()

    def _answered_all(self, event: Answered) -> None:
        self._latency.add(event.seconds.tolist())
        self._answered.inc(len(event.seconds))
        for stage, rows in zip(self._by_model, event.rows_by([*self._by_model]), strict=True):
            self._by_model[stage].inc(rows)

    def families(self) -> Iterable[Any]:
        """Return all metrics as prometheus-client's families."""
        return self._registry.collect()


class _Counts:
    """A histogram that takes many values at once, for each stage or for all."""

    def __init__(
        self, name: str, text: str, edges: Sequence[float], stages: Sequence[str] = ()
    ) -> None:
        self._about = (f"ebjr_{name}", text)
        self._labels = ["model", "stage"] if stages else ["model"]
        self._edges = np.asarray(edges, np.float64)
        self._names = [*map(str, self._edges.tolist()), "+Inf"]
        self._counts = {s: np.zeros(len(self._names), np.int64) for s in stages or ("",)}
        self._sums = dict.fromkeys(self._counts, 0.0)
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[float]] = {stage: deque() for stage in self._counts}

    def add(self, values: Iterable[float], stage: str = "") -> None:
        """Queue values to be counted together: a NumPy call costs the same for few as for many."""
        waiting = self._waiting[stage]
        waiting.extend(values)
        if len(waiting) >= MOST_WAITING:
            with self._lock:
                self._count(stage)

    def _count(self, stage: str) -> None:
        waiting = self._waiting[stage]
        given = np.array([waiting.popleft() for _ in range(len(waiting))], np.float64)
        places = np.searchsorted(self._edges, given)  # NaN falls into the last bucket
        self._counts[stage] += np.bincount(places, minlength=len(self._names))
        self._sums[stage] += float(given[np.isfinite(given)].sum())

    def family(self, model: str) -> HistogramMetricFamily:
        """Return the histogram of all values so far."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        with self._lock:
            for stage, counts in self._counts.items():
                self._count(stage)
                buckets = list(zip(self._names, np.cumsum(counts).tolist(), strict=True))
                labels = [model, stage][: len(self._labels)]
                family.add_metric(labels, buckets, self._sums[stage])
        return family


MONITORED = {
    "risk": "Observed mean of the promised quantity.",
    "lower": "Lower confidence bound of that mean.",
    "upper": "Upper confidence bound of that mean.",
    "tolerance": "Promised upper limit of that mean.",
    "rows": "Rows that a monitor has seen.",
    "alarm": "1 once a monitor's alarm has gone off.",
    "shift": "Largest shift in a share of scores since calibration.",
}


def add_sources(
    metrics: Metrics,
    engine: Engine,
    control: KnobControl,
    monitor: LiveMonitor,
    spending: Spending,
) -> None:
    """Add the metrics of queues, knob, promise, spending and monitors."""
    metrics.read("waiting_rows", "Rows in a queue.", engine.waiting, "stage")
    _add_spending(metrics, spending)
    _add_knob(metrics, control)
    late, teacher = engine.levels[-1].late, engine.levels[-1].teacher
    if late is not None:
        metrics.read("late_rows", "Rows kept for later.", lambda: len(late))
    if isinstance(teacher, FarTeacher):
        text = "1 while the circuit to a far teacher is open, else 0."
        metrics.read("teacher_away", text, lambda: float(teacher.state != "closed"))
    for name, text in MONITORED.items():
        read = partial(lambda figure: monitor.readings()[figure], name)
        metrics.read(f"monitor_{name}", text, read, "monitor")
    pays = "1 while recalibrating would pay, else 0."
    metrics.read("recalibration_pays", pays, lambda: float(bool(monitor.why_recalibrate())))
    asked = "Kept rows whose answer the teacher has audited"
    differs = "Audited rows that the teacher answered otherwise."
    metrics.read("audited_rows", f"{asked}.", lambda: monitor.audits, counter=True)
    metrics.read("contradicted_rows", differs, lambda: monitor.contradicted, counter=True)


def _add_spending(metrics: Metrics, spending: Spending) -> None:
    dollars, no_use = partial(spending.of, "dollars"), "usable answer from a model."
    metrics.read("tokens", "Tokens of models.", spending.tokens, "stage", "direction", counter=True)
    metrics.read("dollars", "Dollars for tokens.", dollars, "stage", counter=True)
    text = "Rows whose price is unknown."
    metrics.read("unpriced_rows", text, spending.unpriced, "stage", counter=True)
    text = f"Rows without a {no_use}"
    metrics.read("unanswered_rows", text, spending.unanswered, "stage", counter=True)
    text = f"1 while too many rows have no {no_use}"
    metrics.read("unanswered_alarm", text, spending.alarms, "stage")


def _add_knob(metrics: Metrics, control: KnobControl) -> None:
    knob = control.knob

    def promised() -> float | None:
        state = knob.promise(knob.threshold)
        return None if state is None else float(state == "in force")

    def pilot(figure: Callable[[Autopilot], float | None]) -> dict[str, float | None]:
        flies = control.pilot
        return {} if flies is None else {flies.hold.quantity: figure(flies)}

    target = partial(pilot, lambda one: one.hold.target)
    measured = partial(pilot, lambda one: one.measured)
    metrics.read("threshold", "The knob's threshold.", lambda: knob.threshold)
    metrics.read("knob_moves", "Moves of the knob.", lambda: dict(knob.moves), "who", counter=True)
    metrics.read("promise_in_force", "1 while the certificate covers the threshold.", promised)
    metrics.read("autopilot_target", "The autopilot's target.", target, "quantity")
    metrics.read("autopilot_measured", "The autopilot's last measurement.", measured, "quantity")

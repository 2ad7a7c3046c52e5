"""Statistics of a model as Triton's clients read them: requests, rows, batches, and times."""

import time
from collections import defaultdict
from typing import Any

from ebjr.serving.events import Answered, Batched, Observer, Scored


class Statistics(Observer):
    """Counts and times since a model was loaded, in the protocol's terms.

    An execution is a batch of any model of the pair; `compute_infer` is the time of these batches,
    `queue` the wait before them. The time of failed requests is not measured.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._rows = 0
        self._last = 0.0
        self._answered, self._waited = _Span(), _Span()
        self._batches: dict[int, _Span] = defaultdict(_Span)  # by rows
        self.handlers = {Batched: self._batched, Answered: self._answers, Scored: self._scored}

    def _batched(self, event: Batched) -> None:
        self._batches[event.rows].add(1, event.seconds)
        self._waited.add(len(event.waited), sum(event.waited))

    def _answers(self, event: Answered) -> None:
        self._answered.add(len(event.seconds), float(event.seconds.sum()))
        self._last = time.time()

    def _scored(self, event: Scored) -> None:
        self._rows += len(event.score)

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as in the protocol's JSON, without the model's name."""
        batches = [(rows, span) for rows, span in sorted(self._batches.items())]
        infer = _Span()
        for _, span in batches:
            infer.add(span.count, span.seconds)
        none, failed = _Span().as_dict(), {"count": self.failed, "ns": 0}
        beside = {"compute_input": none, "compute_infer": infer.as_dict(), "compute_output": none}
        return {
            "last_inference": int(1000 * self._last),
            "inference_count": self._rows,
            "execution_count": infer.count,
            "inference_stats": {
                "success": self._answered.as_dict(),
                "fail": failed,
                "queue": self._waited.as_dict(),
                **beside,
            },
            "batch_stats": [
                {"batch_size": rows, **beside, "compute_infer": span.as_dict()}
                for rows, span in batches
            ],
        }


class _Span:
    """A count of events, and their total time."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": int(1e9 * self.seconds)}

"""What is wanted of the answers to a batch, what is promised about them, and the answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ebjr.calibration.budget import PROMISES
from ebjr.errors import check_at_least, check_choice

LABELS = ("precision", "recall")
"""The promises about one class."""


@dataclass(frozen=True)
class Wanted:
    """The promise about each batch, and the budget.

    Parameters
    ----------
    promise
        One of `PROMISES`, or a mapping of promises to the share that each is to reach.
    at_least
        The share that `promise` is to reach, in (0, 1]; None: as much as `teacher_calls` allow.
    delta
        The probability that a promise is broken, in (0, 1).
    teacher_calls
        The most rows of a batch to ask the teacher about, with the sample.
    positive
        The class for precision and recall, by number, or by name if a model names its classes. For
        detection None is all classes.
    """

    promise: str | Mapping[str, float | None] = "agreement"
    at_least: float | None = None
    delta: float | None = None
    teacher_calls: int | None = None
    positive: int | str | None = None
    promised: dict[str, float | None] = field(init=False)

    def __post_init__(self) -> None:
        given = self.promise
        if self.at_least is not None and not isinstance(given, str):
            raise ValueError("at_least goes with one promise: remove it, or name one promise")
        promised = {given: self.at_least} if isinstance(given, str) else {**given}
        object.__setattr__(self, "promised", promised)
        for name, share in promised.items():
            check_choice("promise", name, PROMISES)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be promised above 0 and up to 1, not {share:g}")
        if self.delta is None or not 0 < self.delta < 1:
            raise ValueError(
                "a promise needs delta, the probability that it is broken, between 0 and 1 "
                f"(--delta 0.1), not {self.delta}"
            )
        check_at_least(1, teacher_calls=self.teacher_calls)
        self._check_together()

    def _check_together(self) -> None:
        promised = self.promised
        if None in promised.values() and (len(promised) > 1 or self.teacher_calls is None):
            raise ValueError(
                f"say how much {next(name for name, one in promised.items() if one is None)} to "
                "promise (--promise agreement=0.97), or give one promise and a budget, "
                "teacher_calls (--teacher-calls)"
            )
        if len(promised) > 1 and not promised.keys() <= {*LABELS}:
            raise ValueError(
                "precision and recall can be promised together, every other promise alone, not "
                f"{', '.join(promised)}"
            )
        if "accuracy" in promised and promised["accuracy"] is None:
            raise ValueError("say how much accuracy to promise: --promise accuracy=0.9")

    @property
    def turns(self) -> bool:
        """Whether answers may be turned: one promise about one class, with a budget."""
        alone = len(self.promised) == 1 and self.promised.keys() <= {*LABELS}
        return alone and self.teacher_calls is not None

    def as_dict(self) -> dict[str, Any]:
        """Return everything that was asked, for JSON."""
        asked = {"delta": self.delta, "teacher_calls": self.teacher_calls}
        return {"of": self.promised, **asked, "positive": self.positive}

    @property
    def share_of_delta(self) -> float:
        """The probability that each promise is broken."""
        assert self.delta is not None
        return self.delta / len(self.promised)


@dataclass(frozen=True)
class BatchCertificate:
    """The promise about the answers to one batch.

    Attributes
    ----------
    promise, at_least, delta
        With probability at least ``1 - delta``, the share `promise` is at least `at_least`.
    rows, sampled
        The number of rows, and how many of them were drawn.
    threshold
        Of the score; for precision and recall of the log-odds of `positive`, signed by the
        student's answer. Rows below it are deferred; ``inf`` defers all.
    observed
        The share in the sample, with that threshold.
    positive
        The class for precision and recall.
    most_boxes
        For detection: the most boxes that an image counts for.
    tried, tried_delta
        How many other promises about these rows were tried before, and the sum of their `delta`.
        Each could have been issued and broken, so the statement adds them.

    Examples
    --------
    >>> BatchCertificate("agreement", 0.97, 0.1, 10_000, 503, 0.62, 0.981).statement
    'With probability at least 0.9 over the draw of 503 rows, at least 97 % of the answers to these
    10,000 rows are as the teacher would answer.'
    """

    promise: str
    at_least: float
    delta: float
    rows: int
    sampled: int
    threshold: float
    observed: float
    positive: str | None = None
    most_boxes: int | None = None
    tried: int = 0
    tried_delta: float = 0.0

    @property
    def statement(self) -> str:
        """The promise in one sentence."""
        boxes = self.most_boxes is not None
        thing, called = ("boxes", "") if boxes else ("rows", f" {self.positive}")
        of_class = f" of {self.positive}" if boxes and self.positive else ""
        words = {
            "agreement": "of the answers to these {:,} rows are as the teacher would answer",
            "accuracy": "of the answers to these {:,} rows are right",
            "precision": f"of the {thing}{of_class} answered{called}, among these {{:,}}, the "
            f"teacher would {'find' if boxes else 'answer'} so, too",
            "recall": f"of the {thing}{of_class} that the teacher would "
            f"{'find' if boxes else 'answer'}{called}, among these {{:,}}, are "
            f"{'found' if boxes else 'answered so'}",
        }[self.promise]
        drawn = "labeled rows, if these are a uniform sample" if self.labeled else "rows"
        cut = f", an image counting for at most {self.most_boxes} boxes" if boxes else ""
        images = words.format(self.rows) if not boxes else words.format(self.rows) + " images"
        if self.sampled:
            left = 1 - self.delta - self.tried_delta
            sure = (
                f"With probability at least {left:.15g} over the draw of {self.sampled:,} {drawn}"
            )
            sure += f" and of those of {self.tried} promises tried before," if self.tried else ","
        else:
            sure = "Because the student alone gives none of these answers,"
        percent = math.floor(1e6 * self.at_least + 1e-6) / 1e4  # rounded down
        return f"{sure} at least {percent:.6g} % {images}{cut}."

    @property
    def labeled(self) -> bool:
        """Whether the sample is of labeled rows."""
        return self.promise == "accuracy"

    def as_dict(self) -> dict[str, Any]:
        """Return every figure, with the statement, for JSON."""
        figures = {**asdict(self), "statement": self.statement}
        return {name: value for name, value in figures.items() if value is not None}


@dataclass(frozen=True, eq=False)
class PromisedAnswers:
    """The answers to a batch of n rows, and the promises about them.

    Attributes
    ----------
    prediction
        As in `JointAnswer`: (n,) labels, (n, labels) bool, or a list of n `Detections`.
    score
        (n,): the student's score, or the log-odds, by which rows were deferred.
    deferred
        (n,) bool: the teacher answered, also sampled rows; for accuracy the student answers the
        sampled rows that are kept.
    sampled
        (n,) bool: the row was drawn.
    turned
        (n,) bool: the answer is neither model's. The budget did not reach the row, and the
        student's answer was not sure enough for the promise, so it became the next best class, or
        the positive class.
    certificates
        One per promise; they share delta.
    degraded, stage, spent
        As in `JointAnswer`.
    names
        (n,): the data's names of the rows, or the numbers of an array's rows.
    """

    prediction: Any
    score: np.ndarray
    deferred: np.ndarray
    degraded: np.ndarray
    stage: np.ndarray
    sampled: np.ndarray
    turned: np.ndarray
    certificates: tuple[BatchCertificate, ...]
    names: Sequence[str]
    spent: np.ndarray | None = None

    @property
    def teacher_calls(self) -> int:
        """How many rows the teacher was asked about."""
        return int((self.deferred | self.sampled).sum())

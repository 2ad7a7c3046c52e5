"""What is wanted of the answers to a batch, what is promised, and these answers."""

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
    """What is promised of each batch, and the budget.

    Parameters
    ----------
    promise
        One of `PROMISES`, or a mapping of some to what they are to be at least.
    at_least
        What `promise` is to be at least, in (0, 1]; None: as much as `teacher_calls` allow.
    delta
        The chance that a promise is broken, in (0, 1).
    teacher_calls
        The most rows of a batch that the teacher may be asked about, sampled ones included.
    positive
        The class of precision and recall: its number, or its name where a model names classes. Of
        detectors None is all classes.
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
            raise ValueError("a promise that says what each is to be takes no at_least beside it")
        promised = {given: self.at_least} if isinstance(given, str) else {**given}
        object.__setattr__(self, "promised", promised)
        for name, share in promised.items():
            check_choice("promise", name, PROMISES)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be promised above 0 and up to 1, not {share:g}")
        if self.delta is None or not 0 < self.delta < 1:
            raise ValueError(
                "a promise needs delta, the chance that it is broken, between 0 and 1 (--delta 0.1)"
                f", not {self.delta}"
            )
        check_at_least(1, teacher_calls=self.teacher_calls)
        self._check_together()

    def _check_together(self) -> None:
        promised = self.promised
        if None in promised.values() and (len(promised) > 1 or self.teacher_calls is None):
            raise ValueError(
                f"say what {next(name for name, one in promised.items() if one is None)} is to be "
                "at least (--promise agreement=0.97), or give one promise and a budget, "
                "teacher_calls (--teacher-calls)"
            )
        if len(promised) > 1 and not promised.keys() <= {*LABELS}:
            raise ValueError(
                "precision and recall may be promised together, any other promise alone, not "
                f"{', '.join(promised)}"
            )
        if "accuracy" in promised and promised["accuracy"] is None:
            raise ValueError("say what accuracy is to be at least: --promise accuracy=0.9")

    @property
    def turns(self) -> bool:
        """Whether answers may be turned: the promise is of one class, alone, and has a budget."""
        alone = len(self.promised) == 1 and self.promised.keys() <= {*LABELS}
        return alone and self.teacher_calls is not None

    def as_dict(self) -> dict[str, Any]:
        """All that was asked, for JSON."""
        asked = {"delta": self.delta, "teacher_calls": self.teacher_calls}
        return {"of": self.promised, **asked, "positive": self.positive}

    @property
    def share_of_delta(self) -> float:
        """The chance of each promise to be broken."""
        assert self.delta is not None
        return self.delta / len(self.promised)


@dataclass(frozen=True)
class BatchCertificate:
    """What is promised of the answers to one batch.

    Attributes
    ----------
    promise, at_least, delta
        The share `promise` is `at_least` this with probability at least ``1 - delta``.
    rows, sampled
        How many rows there are, and how many of them were drawn.
    threshold
        Of the score; for precision and recall of the log-odds of `positive`, the sign as the
        student answers. Rows below it are deferred; ``inf`` defers all.
    observed
        The share in the sample, with that threshold.
    positive
        The class of precision and recall.
    most_boxes
        Of detectors: no image counts for more boxes.
    tried, tried_delta
        How many other promises about these rows were tried before, and the sum of their `delta`:
        each had its chance to be issued and broken, which the statement adds.

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
            sure = "As the student alone gives none of the answers in question,"
        percent = math.floor(1e6 * self.at_least + 1e-6) / 1e4  # no more than is promised
        return f"{sure} at least {percent:.6g} % {images}{cut}."

    @property
    def labeled(self) -> bool:
        """Whether the sample is of labeled rows."""
        return self.promise == "accuracy"

    def as_dict(self) -> dict[str, Any]:
        """Every figure, with the statement, for JSON."""
        figures = {**asdict(self), "statement": self.statement}
        return {name: value for name, value in figures.items() if value is not None}


@dataclass(frozen=True, eq=False)
class PromisedAnswers:
    """The answers to a batch of n rows, and what is promised of them.

    Attributes
    ----------
    prediction
        As of `JointAnswer`: (n,) labels, (n, labels) bool, or a list of n `Detections`.
    score
        (n,): the student's score, or the log-odds, by which rows were deferred.
    deferred
        (n,) bool: the teacher answered, of the sampled rows as well; of accuracy the student
        answers those of them that are kept.
    sampled
        (n,) bool: the row was drawn.
    turned
        (n,) bool: neither model answers so: a budget did not reach for the row, and the student's
        answer was not sure enough for the promise. It is the next best, or the class itself.
    certificates
        One for each promise; delta is shared out among them.
    degraded, stage, spent
        As of `JointAnswer`.
    names
        (n,): what data call the rows; of arrays their numbers.
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

"""`ebjr.answer_within` on the arrays of a pair: the same rows, scores and answers as the rival's.

A model is a function of row numbers. Agreement is about two answers, "as the student says" and any
other, so that a batch of 50,000 rows needs no 1,000 columns; precision and recall are about yes and
no. Where `answer_within` refuses, what it has asked is counted, and the answers are those that need
no certificate: everything from the teacher for agreement, only known positives for precision, and
all rows but known negatives for recall.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.promises.pairs import Pair
from ebjr import CalibrationError


def ours(
    pair: Pair, promise: str, at_least: float, delta: float, seed: int, calls: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows asked (n,) and final answers (n,), as `rival` gives them."""
    from ebjr import answer_within

    n, asked = len(pair), np.zeros(len(pair), bool)
    student, yes = _student(pair, promise)

    def teacher(rows: np.ndarray) -> np.ndarray:
        asked[rows[:, 0]] = True
        return _logits(yes[rows[:, 0]])

    options: dict[str, Any] = {"positive": 1, "promise": promise, "at_least": at_least}
    if promise == "agreement":
        options |= {"positive": None, "score": _first}
    if promise in ("agreement", "both"):  # as the rival: all rows, if it comes to that
        calls = n
    if promise == "both":
        options |= {"promise": {"precision": at_least, "recall": at_least}, "at_least": None}
    try:
        found = answer_within(
            lambda rows: student[rows[:, 0]],
            teacher,
            np.arange(n)[:, None],
            delta=delta,
            seed=seed,
            teacher_calls=calls,
            batch_size=n,
            **options,
        )
    except CalibrationError:
        return _refused(pair, promise, asked)
    if promise == "agreement":
        return asked, np.where(asked, pair.teacher, pair.prediction)
    return asked, np.asarray(found.prediction) == 1


def _student(pair: Pair, promise: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2): the student's raw output; (n,): whether the teacher says the second class."""
    if promise == "agreement":
        score = pair.score.astype(np.float64)
        return np.stack([score, score - 1], axis=1), pair.prediction != pair.teacher
    chance = np.clip(pair.positive.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.log(np.stack([1 - chance, chance], axis=1)), pair.wanted


def _logits(yes: np.ndarray) -> np.ndarray:
    return np.stack([~yes, yes], axis=1).astype(np.float64)


def _first(output: np.ndarray) -> np.ndarray:
    """The pair's score."""
    return output[:, 0]


def _refused(pair: Pair, promise: str, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if promise in ("agreement", "both"):
        asked = np.ones(len(pair), bool)
        return asked, pair.teacher if promise == "agreement" else pair.wanted
    return asked, pair.wanted & asked if promise == "precision" else pair.wanted | ~asked

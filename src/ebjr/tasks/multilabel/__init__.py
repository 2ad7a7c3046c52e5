"""Multilabel classification: any number of labels per input, each with its own logit."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.arrays import Array, Batch, as_float, logaddexp, namespace, to_numpy, unless_nan
from ebjr.blend import Blend
from ebjr.joint import JointModel
from ebjr.metric import Metric, declare_metrics
from ebjr.task import Task, Tensor, finite_rows, named, refuse_missing, same_columns
from ebjr.tasks.classification import Classification
from ebjr.tasks.multilabel.scores import LABEL_LOGITS

_SHARE: dict[str, Any] = {"lower": False, "percent": True}


def _all_right(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (predictions == targets).all(axis=1).astype(np.float64)


class JointF1:
    """``2 TP / (2 TP + FP + FN)`` over all labels of all rows, from bool predictions and targets.

    All are (n, labels); predictions are the student's, and those of deferred rows.
    """

    def __init__(self, student: np.ndarray, deferred: np.ndarray, targets: np.ndarray) -> None:
        both = np.stack([student, deferred])
        self.hits = 2.0 * (both & targets).sum(axis=2)  # twice the true positives
        self.sizes = 1.0 * both.sum(axis=2) + targets.sum(axis=1)  # predicted plus right labels

    def __call__(self, deferred: np.ndarray, *, times: np.ndarray | None = None) -> float:
        """Return micro F1 if `deferred`, (n,) bool, are deferred and rows count `times`."""
        counts = np.ones(deferred.shape, np.float64) if times is None else times
        both = (np.where(deferred, after, before) for before, after in (self.hits, self.sizes))
        return _ratio(*(float(values @ counts) for values in both))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each row's part, (n,), if kept and if deferred: to first order, at both ends."""
        (before, after), n = self.hits, self.hits.shape[1]
        totals = self.sizes.sum(axis=1)
        ends = [_ratio(hits.sum(), total) for hits, total in zip(self.hits, totals, strict=True)]
        growth = self.sizes[1] - self.sizes[0]
        # with the other end's total, the rows' changes sum to the whole change
        change = sum(
            (after - before - end * growth) / max(total, 1.0) / 2
            for end, total in zip(ends, totals[::-1], strict=True)
        )
        kept = before * n / max(totals[0], 1.0)
        kept += ends[0] - kept.mean()  # nonzero only if there is nothing to find and nothing found
        change += (ends[1] - ends[0] - change.sum()) / n  # usually only rounding
        return kept, kept + n * change


def _ratio(hits: float, sizes: float) -> float:
    return hits / sizes if sizes else 1.0  # nothing to find, and nothing found


class Multilabel(Task):
    """A set of labels per input: those whose logit is above 0."""

    name = "multilabel"
    raw = LABEL_LOGITS
    metrics = declare_metrics(
        Metric("subset_accuracy", _all_right, "subset accuracy", binary=True, **_SHARE),
        Metric("micro_f1", None, "micro F1", certifiable=False, whole=JointF1, **_SHARE),
    )
    auto = (
        *("smallest_margin", "set_probability", "label_entropy", "label_energy"),
        *("set_probability(temperature=2.0)", "set_probability(temperature=0.5)"),
        *("label_entropy(temperature=2.0)", "label_entropy(temperature=0.5)"),
    )
    blends = Classification.blends
    columns = "labels"
    output_kinds = ("label_probabilities",)
    targets_are = "label sets"
    takes_temperatures = True

    def check_output(self, role: str, output: Any) -> np.ndarray:
        array = to_numpy(output)
        if array.ndim != 2 or not array.shape[1]:
            raise ValueError(
                f"{role} logits must have shape (n, labels), one per label, not {array.shape}"
            )
        return finite_rows(f"{role} logits", array)

    def check_targets(self, targets: Any) -> np.ndarray:
        array = to_numpy(targets)
        if array.ndim != 2:
            raise ValueError(
                f"targets must have shape (n, labels), 1 where a label is right, not {array.shape}"
            )
        refuse_missing(array)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"targets must be 0 or 1 per label, not {array.dtype}")
        other = array[(array != 0) & (array != 1)]
        if len(other):
            raise ValueError(f"targets must be 0 or 1 per label, but one is {other[0]}")
        return array.astype(bool)

    def common_classes(self, student: np.ndarray, teacher: np.ndarray) -> int:
        return same_columns(self, student, teacher)

    def check_range(self, targets: np.ndarray, classes: int | None, where: str = "") -> None:
        if targets.shape[1] != classes:
            raise ValueError(
                f"targets must have {classes} columns{where}, one per label of the models, "
                f"not {targets.shape[1]}"
            )

    def predict(self, output: Array) -> Array:
        return output > 0

    def mix(self, student: Array, teacher: Array, blend: float | Blend) -> Array:
        whole = blend if isinstance(blend, Blend) else Blend(blend)
        if whole.weight == 0:
            return teacher
        student, teacher = as_float(student), as_float(teacher)
        theirs = teacher / whole.teacher_temperature
        xp = namespace(student)
        with np.errstate(invalid="ignore"):
            known = student + 0 * xp.maximum(student, xp.zeros_like(student))  # NaN for +inf
        mine = unless_nan(known, teacher) / whole.student_temperature
        return _log_sum(theirs, mine, whole.weight) - _log_sum(-theirs, -mine, whole.weight)

    def plain(self, answers: Batch, labels: Sequence[str] | None) -> list[dict[str, Any]]:
        chosen = [np.flatnonzero(row).tolist() for row in to_numpy(answers)]
        if labels is None:
            return [{"prediction": row} for row in chosen]
        return [{"prediction": row, "label": [labels[k] for k in row]} for row in chosen]

    def tensors(
        self, classes: int | None = None, labels: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the label names of all rows one after the other, and each row's number of them."""

        def predicted(answer: Any) -> np.ndarray:
            return to_numpy(answer.prediction)

        found = super().tensors(classes) | {
            "prediction": Tensor(np.bool_, (None, classes), predicted)
        }
        if labels is not None:
            found["label_names"] = named(labels, lambda answer: np.nonzero(predicted(answer))[1])
            found["count"] = Tensor(
                np.int64, (None,), lambda answer: predicted(answer).sum(axis=1, dtype=np.int64)
            )
        return found


def _log_sum(theirs: Array, mine: Array, weight: float) -> Array:
    """Return the logarithm of ``sigmoid(theirs) + weight * sigmoid(mine)``."""
    zero = namespace(theirs).zeros_like(theirs)
    return logaddexp(-logaddexp(zero, -theirs), -logaddexp(zero, -mine) + math.log(weight))


TASK = Multilabel()


class MultilabelJointClassifier(JointModel):
    """Two multilabel classifiers of the same labels as one (eq. 7).

    Both models' raw output is a logit per label, (n, labels). With a `blend`, a label's probability
    in a deferred answer is ``(teacher + blend * student) / (1 + blend)``. Everything else is as in
    `ebjr.JointClassifier`.

    Examples
    --------
    >>> from ebjr import Router
    >>> student = lambda x: np.stack([x, -x], axis=1)
    >>> teacher = lambda x: np.stack([x, x], axis=1)
    >>> joint = MultilabelJointClassifier(student, teacher, Router("smallest_margin", 2.0))
    >>> answer = joint(np.array([3.0, 1.0]))
    >>> answer.prediction.tolist(), answer.deferred
    ([[True, False], [True, True]], array([False,  True]))
    """

    kind = TASK


Multilabel.final = MultilabelJointClassifier

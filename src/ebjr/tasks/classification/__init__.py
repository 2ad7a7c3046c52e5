"""Classification: logits of classes that exclude each other, and one label per input."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.arrays import Array, Batch, argmax, to_numpy
from ebjr.blend import Blend, blend_logits
from ebjr.joint import JointModel
from ebjr.metric import Metric, declare_metrics
from ebjr.scores import LOGITS
from ebjr.task import Task, finite_rows, refuse_missing, same_columns, target_column
from ebjr.tasks.classification.learned import Logistic


def _right(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (predictions == targets).astype(np.float64)


ACCURACY = Metric("accuracy", _right, "accuracy", lower=False, binary=True, percent=True)


class Classification(Task):
    """One label per input, of classes that exclude each other."""

    name = "classification"
    raw = LOGITS
    metrics = declare_metrics(ACCURACY)
    auto: tuple[str, ...] = (
        *("softmax", "margin", "entropy", "energy", "max_logit", "softmax_energy"),
        *("softmax(temperature=2.0)", "softmax(temperature=0.5)", "margin(temperature=2.0)"),
        *("entropy(temperature=2.0)", "entropy(temperature=0.5)", "energy(temperature=2.0)"),
        *("normalized_logit(p=2.0)", "normalized_logit(p=4.0)"),
    )
    learner = Logistic()
    blends = (
        *Task.blends,
        *(
            Blend(weight, student, teacher)
            for weight in (0.2, 0.5, 1.0)
            for student in (0.5, 1.0, 2.0)
            for teacher in (0.5, 1.0, 2.0)
            if (student, teacher) != (1.0, 1.0)
        ),
    )
    columns = "classes"
    output_kinds = ("logits", "probabilities")
    has_logits = True
    takes_temperatures = True

    def check_output(self, role: str, output: Any) -> np.ndarray:
        array = to_numpy(output)
        if array.ndim != 2 or array.shape[1] < 2:
            raise ValueError(
                f"{role} logits must have shape (n, classes) with at least 2 classes, not "
                f"{array.shape}"
            )
        return finite_rows(f"{role} logits", array)

    def check_targets(self, targets: Any) -> np.ndarray:
        array = target_column(targets)
        if len(array) and not np.issubdtype(array.dtype, np.integer):
            refuse_missing(array)
            raise ValueError(f"targets must be integer labels, not {array.dtype}")
        return array.astype(np.int64)

    def common_classes(self, student: np.ndarray, teacher: np.ndarray) -> int:
        return same_columns(self, student, teacher)

    def check_range(self, targets: np.ndarray, classes: int | None, where: str = "") -> None:
        assert classes is not None
        outside = (targets < 0) | (targets >= classes)
        if outside.any():
            raise ValueError(
                f"targets must lie in 0..{classes - 1}, but {int(outside.sum())} of "
                f"{len(targets)}{where} do not, the first is {targets[outside][0]}: remove "
                "examples without a label, and count labels from 0"
            )

    def predict(self, output: Array) -> Array:
        return argmax(output)

    def mix(self, student: Array, teacher: Array, blend: float | Blend) -> Array:
        return blend_logits(student, teacher, blend)

    def plain(self, answers: Batch, labels: Sequence[str] | None) -> list[dict[str, Any]]:
        rows = super().plain(answers, labels)
        if labels is not None and rows and max(r["prediction"] for r in rows) >= len(labels):
            raise ValueError(f"a model answers more classes than the {len(labels)} labels name")
        return rows if labels is None else [{**r, "label": labels[r["prediction"]]} for r in rows]

    def pack_targets(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        return {"targets": targets.astype(np.min_scalar_type(int(targets.max())))}


TASK = Classification()


class JointClassifier(JointModel):
    """Two classifiers of the same classes as one (eq. 7).

    Parameters
    ----------
    student, teacher
        Models whose raw output is logits, (n, classes).
    router
        The score and the threshold: ``joint.router.threshold`` is the knob.
    blend
        The student's weight in a deferred answer; 0 is the paper's. By default that of the
        operating point that the router comes from, else 0.
    when_unavailable
        What to do if the teacher cannot be reached: ``"student"`` answers with the student's output
        and marks the rows as degraded, ``"error"`` raises, ``"queue"`` answers like ``"student"``
        and keeps the rows for a later answer of the teacher.
    late
        With ``"queue"``: the `ebjr.LateAnswers` that keeps them.

    Raises
    ------
    TypeError
        `router` is not a `Router`, or `student` or `teacher` is not callable.
    ValueError
        `blend` is negative, `when_unavailable` is unknown, or only one of `late` and ``"queue"`` is
        given.

    Examples
    --------
    >>> from ebjr import Router
    >>> student = lambda x: np.stack([x, -x], axis=1)
    >>> teacher = lambda x: np.stack([-x, x], axis=1)
    >>> joint = JointClassifier(student, teacher, Router("max_logit", threshold=2.0))
    >>> answer = joint(np.array([3.0, 1.0]))
    >>> answer.prediction, answer.deferred
    (array([0, 1]), array([False,  True]))
    """

    kind = TASK


Classification.final = JointClassifier

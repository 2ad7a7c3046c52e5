"""The loops that people write around two models, each as a batch in, predictions out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ebjr import Model
from ebjr.scores import softmax

Loop = Callable[[np.ndarray], np.ndarray]


def whole_batch(student: Model, teacher: Model, threshold: float) -> Loop:
    """The whole batch goes to the teacher if any row of it is hard."""

    def loop(batch: np.ndarray) -> np.ndarray:
        output = student(batch)
        if (softmax(output) < threshold).any():
            output = teacher(batch)
        return output.argmax(axis=1)

    return loop


def row_by_row(student: Model, teacher: Model, threshold: float) -> Loop:
    """Answer one row at a time, with the student and, if it is hard, the teacher."""

    def loop(batch: np.ndarray) -> np.ndarray:
        answers = []
        for row in range(len(batch)):
            one = batch[row : row + 1]
            output = student(one)
            if softmax(output)[0] < threshold:
                output = teacher(one)
            answers.append(output.argmax())
        return np.array(answers)

    return loop


def masked(student: Model, teacher: Model, threshold: float) -> Loop:
    """Both models on every row, and a mask that picks: no gather, no saving."""

    def loop(batch: np.ndarray) -> np.ndarray:
        output = student(batch)
        hard = softmax(output) < threshold
        return np.where(hard[:, None], teacher(batch), output).argmax(axis=1)

    return loop


LOOPS = {
    "whole batch to the teacher if any row is hard": whole_batch,
    "row by row": row_by_row,
    "both models on all rows, masked": masked,
}

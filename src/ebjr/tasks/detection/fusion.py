"""Box fusion: mix the student's boxes, already paid for, into the teacher's.

Two overlapping boxes of one class are one object seen twice, so their corners and scores are
averaged. A box that only one model saw keeps its share of the score.
"""

import math

import numpy as np

from ebjr.tasks.detection.boxes import Detections, box_iou

OVERLAP = 0.55  # two boxes are one object from this intersection over union


def fuse_detections(student: Detections, teacher: Detections, weight: float) -> Detections:
    """Return both models' boxes, best first, with weight 1 for the teacher and `weight` else.

    From its best box down, each of the teacher's boxes takes the free student's box of its class
    with the largest overlap, of at least `OVERLAP`. The pair's corners are averaged with weights
    ``s_t`` and ``weight s_s``, and its score is ``(s_t + weight s_s) / (1 + weight)``, with 0 for a
    model that did not see the box. Logits are the teacher's, without bins.

    Source: Solovyev, Wang & Gabruseva, "Weighted boxes fusion", Image and Vision Computing 2021.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be a finite number of at least 0, not {weight}")
    if student.size != teacher.size or student.classes != teacher.classes:
        raise ValueError(
            "student and teacher must see the same image and know the same classes, not "
            f"{student} and {teacher}"
        )
    if weight == 0 or not len(student):
        whole = teacher if weight == 0 else teacher.with_scores(teacher.scores / (1 + weight))
        best = whole.top(len(whole))
        return Detections(best.boxes, best.logits, best.size, best.labels, best.scores)
    first, second = teacher.top(len(teacher)), student.top(len(student))
    partner = _partners(first, second)
    own, both = np.asarray(first.scores, np.float64), partner >= 0
    others = np.where(both, np.asarray(second.scores, np.float64)[partner], 0.0) * weight
    total = own + others
    share = np.divide(others, total, out=np.zeros_like(total), where=total > 0)[:, None]
    boxes = first.boxes * (1 - share) + np.where(both[:, None], second.boxes[partner], 0) * share
    alone = np.setdiff1d(np.arange(len(second)), partner)
    left = second.take(alone)
    fused = Detections(
        boxes=np.concatenate([boxes, left.boxes]),
        logits=np.concatenate([first.logits, left.logits]),
        size=teacher.size,
        labels=np.concatenate([first.labels, left.labels]),
        scores=np.concatenate([total, left.scores * weight]) / (1 + weight),
    )
    return fused.top(len(fused))


def _partners(first: Detections, second: Detections) -> np.ndarray:
    """Return, (b,), each first box's row among the second, or -1."""
    overlap = box_iou(first.boxes, second.boxes)
    overlap[first.labels[:, None] != second.labels[None]] = 0
    partner = np.full(len(first), -1)
    for row in np.flatnonzero(overlap.max(axis=1, initial=0) >= OVERLAP):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= OVERLAP:
            partner[row] = best
            overlap[:, best] = 0
    return partner

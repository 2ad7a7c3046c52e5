"""Box fusion: once the teacher has been called, the student's boxes are already paid for.

Two boxes of one class that overlap are one object seen twice, so their corners and scores are
averaged. What one model alone has seen keeps its share of the score.
"""

import math

import numpy as np

from ebjr.tasks.detection.boxes import Detections, box_iou

OVERLAP = 0.55  # the least intersection over union at which two boxes are one object


def fuse_detections(student: Detections, teacher: Detections, weight: float) -> Detections:
    """Both models' boxes, best first, the teacher's counting 1 and the student's `weight`.

    From the teacher's best box down, each takes the free box of its class among the student's that
    it overlaps most, by `OVERLAP` or more. The pair's corners are averaged with the weights ``s_t``
    and ``weight s_s``, and its score is ``(s_t + weight s_s) / (1 + weight)``, where a box that
    only one model has seen counts 0 for the other. Logits are the teacher's, and bins left out.

    Source: Solovyev, Wang & Gabruseva, "Weighted boxes fusion", Image and Vision Computing 2021.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be a finite number of at least 0, not {weight}")
    if student.size != teacher.size or student.classes != teacher.classes:
        raise ValueError(
            "student and teacher must have seen the same image and know the same classes, but "
            f"there are {student} and {teacher}"
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
    """For each of the first its row among the second, or -1: (b,)."""
    overlap = box_iou(first.boxes, second.boxes)
    overlap[first.labels[:, None] != second.labels[None]] = 0
    partner = np.full(len(first), -1)
    for row in np.flatnonzero(overlap.max(axis=1, initial=0) >= OVERLAP):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= OVERLAP:
            partner[row] = best
            overlap[:, best] = 0
    return partner

"""Detections to and from `supervision.Detections`, which draws, tracks, counts and slices boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.errors import needs
from ebjr.joint import JointAnswer
from ebjr.tasks.detection.boxes import Detections

HOW = ("deferred", "degraded")  # facts of an image, repeated for each of its boxes


def to_supervision(answer: JointAnswer, labels: Sequence[str] | None = None) -> list[Any]:
    """Return a `JointDetector`'s answer about n images as n `supervision.Detections`.

    `labels` are the class names, for ``data["class_name"]``, which supervision's annotators show.
    ``data`` also has the image's ``deferred`` and ``degraded`` for each box, where filters keep
    them.

    Raises
    ------
    TypeError
        `answer` is not a `JointDetector`'s.
    ValueError
        `labels` name fewer classes than a box has.
    MissingExtra
        supervision is not installed.
    """
    with needs("supervision", "detections for supervision"):
        import supervision
    if not isinstance(answer.prediction, list):
        raise TypeError("only the answers of a JointDetector have boxes")
    named = None if labels is None else np.array(labels, dtype=str)
    images = []
    for found, *how in zip(answer.prediction, *(getattr(answer, key) for key in HOW), strict=True):
        data = {key: np.full(len(found), value) for key, value in zip(HOW, how, strict=True)}
        if named is not None:
            if len(found) and found.labels.max() >= len(named):
                raise ValueError(
                    f"a box has class {found.labels.max()}, but there are only {len(named)} labels"
                )
            data["class_name"] = named[found.labels]
        boxes, scores = found.boxes.astype(np.float32), found.scores.astype(np.float32)
        about = {"confidence": scores, "class_id": found.labels.astype(int), "data": data}
        images.append(supervision.Detections(boxes, **about))
    return images


def from_supervision(found: Any, size: tuple[int, int], classes: int) -> Detections:
    """Return one image's `supervision.Detections` as `Detections`.

    This makes every detector that supervision reads a student or a teacher:
    ``lambda images: [from_supervision(read(image), image.shape[:2], 80) for image in images]``.
    `size` is the image's (height, width), and `classes` the number of the detector's classes.
    Masks, tracks and other data are dropped.

    Raises
    ------
    ValueError
        `found` has no ``confidence`` or no ``class_id``, or an id outside the `classes`.
    """
    if found.confidence is None or found.class_id is None:
        if len(found):
            raise ValueError(
                "a detector's boxes need confidence and class_id, which these lack; for labeled "
                "boxes use ebjr.GroundTruth(found.xyxy, found.class_id)"
            )
        return Detections.none(classes, size)
    scores, labels = np.asarray(found.confidence, np.float64), np.asarray(found.class_id)
    return Detections.of_scores(found.xyxy, scores, size, labels=labels, classes=classes)

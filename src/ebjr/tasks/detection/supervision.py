"""Detections to and from `supervision.Detections`, which draws, tracks, counts and slices boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.errors import needs
from ebjr.joint import JointAnswer
from ebjr.tasks.detection.boxes import Detections

HOW = ("deferred", "degraded")  # of an image, told of each of its boxes


def to_supervision(answer: JointAnswer, labels: Sequence[str] | None = None) -> list[Any]:
    """The answer of a `JointDetector` about n images as n `supervision.Detections`.

    `labels` are the classes' names, for ``data["class_name"]``, which supervision's annotators
    show. ``data`` also says whether the image was ``deferred`` and is ``degraded``, repeated for
    each box, as filters keep it then.

    Raises
    ------
    TypeError
        `answer` is of another task.
    ValueError
        `labels` are fewer than the classes of a box.
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
                    f"{len(named)} labels are too few: a box has class {found.labels.max()}"
                )
            data["class_name"] = named[found.labels]
        boxes, scores = found.boxes.astype(np.float32), found.scores.astype(np.float32)
        about = {"confidence": scores, "class_id": found.labels.astype(int), "data": data}
        images.append(supervision.Detections(boxes, **about))
    return images


def from_supervision(found: Any, size: tuple[int, int], classes: int) -> Detections:
    """The boxes of one image, from `supervision.Detections`, as a model of ours answers.

    So every detector that supervision reads is a student or a teacher:
    ``lambda images: [from_supervision(read(image), image.shape[:2], 80) for image in images]``.
    `size` is (height, width) of the image, and `classes` how many the detector knows. Masks, tracks
    and other data are left out.

    Raises
    ------
    ValueError
        `found` has no ``confidence`` or no ``class_id``, or one that is none of the `classes`.
    """
    if found.confidence is None or found.class_id is None:
        if len(found):
            raise ValueError(
                "a detector's boxes have confidence and class_id, and these have not; labeled "
                "boxes are ebjr.GroundTruth(found.xyxy, found.class_id)"
            )
        return Detections.none(classes, size)
    scores, labels = np.asarray(found.confidence, np.float64), np.asarray(found.class_id)
    return Detections.of_scores(found.xyxy, scores, size, labels=labels, classes=classes)

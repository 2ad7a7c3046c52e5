"""JointDetector: two detectors as one (eq. 14). The joint loop on lists of detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ebjr.blend import Blend
from ebjr.detections import Detections
from ebjr.errors import ModelError, TeacherUnavailable
from ebjr.fusion import fuse_detections
from ebjr.joint import JointAnswer, check_policy
from ebjr.model import model_name
from ebjr.router import check_threshold

Rescale = Callable[[np.ndarray], np.ndarray]


class JointDetector:
    """Two detectors of the same classes as one: the teacher looks where the score is low (eq. 14).

    Parameters
    ----------
    student, teacher
        n images in, a list of n `Detections` out. A joint detector is one, too.
    score
        A score of detections: a list of n in, (n,) out, higher = keep; see `detection_scores`.
        It sees what the student said, before `rescale`.
    threshold
        In the score's unit, above ``-inf``. ``joint.threshold`` is the knob.
    blend
        The student's weight in a deferred answer, whose boxes are then both models', fused; 0 is
        the paper: the teacher alone.
    rescale
        Rising maps of the student's and of the teacher's scores to one scale, as mAP ranks the
        boxes of all images: two `ConfidenceMap`, None leaves them.
    when_unavailable
        What to do when the teacher cannot be reached: ``"student"`` answers with the student's
        boxes and marks the images as degraded, ``"error"`` raises.

    Raises
    ------
    TypeError
        A model or the score is not callable.
    ValueError
        A threshold, blend or policy that is not possible.

    Examples
    --------
    >>> from ebjr.detection_scores import max_confidence
    >>> def detector(sure):
    ...     return lambda images: [
    ...         Detections.of_scores([[0, 0, 4, 4]], [sure], (8, 8), labels=[0], classes=1)
    ...         for _ in images]
    >>> joint = JointDetector(detector(0.4), detector(0.9), max_confidence, threshold=0.5)
    >>> answer = joint(["an image"])
    >>> answer.deferred, answer.prediction[0].scores
    (array([ True]), array([0.9]))
    """

    task: ClassVar[str] = "detection"

    def __init__(
        self,
        student: Callable[[Any], Any],
        teacher: Callable[[Any], Any],
        score: Callable[[Sequence[Detections]], np.ndarray],
        threshold: float,
        *,
        blend: float = 0.0,
        rescale: tuple[Rescale, Rescale] | None = None,
        when_unavailable: str = "student",
    ) -> None:
        for role, part in (("student", student), ("teacher", teacher), ("score", score)):
            if not callable(part):
                raise TypeError(f"the {role} must be callable, not {type(part).__name__}")
        self.student, self.teacher, self.score = student, teacher, score
        self.threshold = threshold
        self.blend = float(Blend(blend))
        self.rescale = rescale
        self.when_unavailable = check_policy(when_unavailable)

    @property
    def threshold(self) -> float:
        """The knob. A new value takes effect at the next batch."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = check_threshold(value)

    def __call__(self, images: Sequence[Any]) -> JointAnswer:
        """Answer n images.

        Returns
        -------
        JointAnswer
            `prediction` and `output` are the list of n `Detections`; `score`, `deferred` and
            `degraded` are (n,).

        Raises
        ------
        ModelError
            A model did not return one `Detections` for each image, or the score not one number.
        TeacherUnavailable
            The teacher could not be reached, and the policy is ``"error"``.
        """
        found, degraded = _ask(self.student, images)
        score = np.asarray(self.score(found), np.float64)
        if score.shape != (len(found),):
            raise ModelError(
                f"the score must give one number for each of {len(found)} images, "
                f"but gave {score.shape}"
            )
        deferred = ~(score >= self._threshold)
        degraded &= ~deferred
        merged = self._rescaled(found, 0)
        rows = np.flatnonzero(deferred)
        if len(rows):
            try:
                taught, marked = _ask(self.teacher, [images[row] for row in rows.tolist()])
            except TeacherUnavailable:
                if self.when_unavailable == "error":
                    raise
                degraded, deferred = degraded | deferred, np.zeros_like(deferred)
            else:
                degraded[rows] = marked
                for row, answer in zip(rows, self._rescaled(taught, 1), strict=True):
                    merged[row] = self._blended(merged[row], answer)
        return JointAnswer(merged, merged, score, deferred, degraded)

    def _blended(self, student: Detections, teacher: Detections) -> Detections:
        return fuse_detections(student, teacher, self.blend) if self.blend else teacher

    def _rescaled(self, found: list[Detections], which: int) -> list[Detections]:
        if self.rescale is None:
            return list(found)
        return [one.with_scores(self.rescale[which](one.scores)) for one in found]


def _ask(model: Callable[[Any], Any], images: Sequence[Any]) -> tuple[list[Detections], np.ndarray]:
    """A detector's answer, checked, and which images are degraded."""
    whole = model(images)
    found = getattr(whole, "output", whole)  # a joint detector's answer carries its detections
    fits = isinstance(found, list | tuple) and len(found) == len(images)
    if not fits or not all(isinstance(one, Detections) for one in found):
        count = f"{len(found)} of them" if isinstance(found, list | tuple) else ""
        raise ModelError(
            f"{model_name(model)} was given {len(images)} images and must return a list of as many "
            f"Detections, but returned {type(found).__name__} {count}".rstrip()
        )
    marked = getattr(whole, "degraded", None)
    return list(found), np.zeros(len(found), bool) if marked is None else np.array(marked)

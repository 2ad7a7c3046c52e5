"""Detection: boxes on images, each with a class and a confidence (eq. 12-14)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ebjr.arrays import Batch
from ebjr.blend import Blend
from ebjr.errors import ModelError
from ebjr.joint import JointModel
from ebjr.metric import Metric, declare_metrics
from ebjr.task import Task, Tensor, named
from ebjr.tasks.detection.boxes import (
    Detections,
    GroundTruth,
    check_detections,
    check_labels,
    check_listed,
    pack_detections,
    pack_truth,
    unpack_detections,
    unpack_truth,
)
from ebjr.tasks.detection.first import check_boxes, numbered
from ebjr.tasks.detection.fusion import fuse_detections
from ebjr.tasks.detection.gain import Gain
from ebjr.tasks.detection.precision import (
    SHOWN,
    JointPrecision,
    Matches,
    count_boxes,
    match_detections,
)
from ebjr.tasks.detection.scale import CommonScale
from ebjr.tasks.detection.scores import DETECTIONS, PARTS, detection_energy

_SHARE: dict[str, Any] = {"lower": False, "percent": True}


def _precision(student: Matches, deferred: Matches, targets: Any, **how: Any) -> JointPrecision:
    return JointPrecision(student, deferred, **how)


_precision_at_half = partial(_precision, overlaps=1)


class Detection(Task):
    """Boxes on images, each with a class and a confidence."""

    name = "detection"
    raw = DETECTIONS
    metrics = declare_metrics(
        Metric("ap", None, "AP", whole=_precision, certifiable=False, **_SHARE),
        Metric("ap50", None, "AP50", whole=_precision_at_half, certifiable=False, **_SHARE),
        Metric("f1", lambda matches, targets: matches.f1(), "F1", **_SHARE),
    )
    auto = (
        *("box_count", "max_confidence", "mean_confidence", "expected_errors"),
        *("box_count(above=0.2)", "box_count(above=0.4)"),
        *("expected_errors(above=0.2)", "expected_errors(above=0.1)"),
        *(f"detection_energy(part={part!r})" for part in ("classes", "boxes", "both")),
    )
    learner = Gain()
    blends = (0.0, 0.1, 0.25, 0.5)  # few: each is fused and matched with the labels
    columns = "classes"
    targets_are = "boxes"
    scale = CommonScale
    takes_images = True
    travels = False
    rows = "a list of {} Detections, one for each"
    check_first = staticmethod(check_boxes)
    numbered = staticmethod(numbered)
    count_boxes = staticmethod(count_boxes)

    def count_rows(self, output: Any) -> int | None:
        listed = isinstance(output, list | tuple)
        return len(output) if listed and all(isinstance(o, Detections) for o in output) else None

    def sound(self, name: str, output: Any) -> None:
        """Return None: `Detections` are always finite."""

    def form(self, output: Sequence[Detections]) -> tuple[int, ...]:
        return tuple(sorted({found.classes for found in output}))

    def check_output(self, role: str, output: Any) -> list[Detections]:
        try:
            check_detections(output)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{role}: {error}") from error
        return list(output)

    def check_targets(self, targets: Any) -> list[GroundTruth]:
        check_listed(GroundTruth, targets=targets)
        return list(targets)

    def common_classes(
        self, student: Sequence[Detections], teacher: Sequence[Detections]
    ) -> int | None:
        if not len(student) or not len(teacher):
            return None
        one, other = student[0].classes, teacher[0].classes
        if one != other:
            raise ValueError(
                f"student and teacher must detect the same classes, but the student has {one} and "
                f"the teacher {other}"
            )
        return one

    def check_range(
        self, targets: Sequence[GroundTruth], classes: int | None, where: str = ""
    ) -> None:
        assert classes is not None
        check_labels(targets, classes, where)

    def predict(self, output: Sequence[Detections]) -> Sequence[Detections]:
        return output

    def judged(self, output: Sequence[Detections], targets: Sequence[GroundTruth]) -> Matches:
        return match_detections(output, targets)

    def rescored(self, judged: Matches, change: Callable[..., Any]) -> Matches:
        return judged.rescored(change)

    def take(self, judged: Matches, rows: np.ndarray) -> Matches:
        return judged.take(rows)

    def as_targets(self, output: Sequence[Detections]) -> list[GroundTruth]:
        shown = [found.above(SHOWN) for found in output]
        return [GroundTruth(found.boxes, found.labels) for found in shown]

    def collect(self, role: str, output: Any, expected: int) -> list[Detections]:
        if self.count_rows(output) != expected:
            raise ModelError(
                f"the {role} was given {expected} inputs and must return "
                f"{self.rows.format(expected)}, but returned {type(output).__name__}"
            )
        return list(output)

    def pack(self, name: str, output: Any, half: bool) -> dict[str, np.ndarray]:
        return _prefixed(name, pack_detections(output, half))

    def unpack(self, name: str, arrays: Mapping[str, np.ndarray]) -> list[Detections]:
        return unpack_detections(_unprefixed(name, arrays))

    def pack_targets(self, targets: Sequence[GroundTruth]) -> dict[str, np.ndarray]:
        return _prefixed("targets", pack_truth(targets))

    def unpack_targets(self, arrays: Mapping[str, np.ndarray]) -> list[GroundTruth]:
        return unpack_truth(_unprefixed("targets", arrays))

    def numbers(self, rows: Any) -> list[np.ndarray]:
        pack = pack_detections if isinstance(rows[0], Detections) else pack_truth
        return [value for _, value in sorted(pack(rows).items())]

    def shared(self, output: Batch, change: Callable[..., Any] | None = None) -> Batch:
        if change is None:
            return output
        return [found.with_scores(change(found.scores)) for found in output]

    def mix(
        self, student: Sequence[Detections], teacher: Sequence[Detections], blend: float | Blend
    ) -> list[Detections]:
        self.check_blend(blend)
        return [
            fuse_detections(one, other, float(blend))
            for one, other in zip(student, teacher, strict=True)
        ]

    def plain(
        self, answers: Sequence[Detections], labels: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        def box(found: Detections, row: int) -> dict[str, Any]:
            label = int(found.labels[row])
            name = {} if labels is None else {"label": labels[label]}
            corners = [round(float(side), 2) for side in found.boxes[row]]
            return {"box": corners, "class": label, **name, "score": float(found.scores[row])}

        return [{"prediction": [box(f, row) for row in range(len(f))]} for f in answers]

    def tensors(
        self, classes: int | None = None, labels: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the boxes of all images one after the other, and each image's number of boxes."""

        def of_all(name: str, dtype: Any, *sides: int) -> Tensor:
            none = np.zeros((0, *sides), dtype)

            def joined(answer: Any) -> np.ndarray:
                parts = [getattr(found, name) for found in answer.prediction]
                return np.concatenate([none, *parts], dtype=dtype)

            return Tensor(dtype, (None, *sides), joined)

        def counts(answer: Any) -> np.ndarray:
            return np.array([len(found) for found in answer.prediction], np.int64)

        classes_of = of_all("labels", np.int64)
        return {
            "boxes": of_all("boxes", np.float32, 4),
            "labels": classes_of,
            **({} if labels is None else {"label_names": named(labels, classes_of.of)}),
            "scores": of_all("scores", np.float32),
            "count": Tensor(np.int64, (None,), counts),
        }

    def candidates(self, student: Sequence[Detections]) -> list[str]:
        """Return the usual candidates, without the energy of boxes if there are no bins."""
        energies = {f"detection_energy(part={part!r})" for part in PARTS}
        missing = energies - set(self.scores(student))
        return [name for name in super().candidates(student) if name not in missing]

    def scores(self, student: Sequence[Detections]) -> list[str]:
        bins = all(found.bins is not None for found in student if len(found))
        energies = ("both", "boxes", "classes") if bins else ("classes",)
        return [
            *(name for name in super().scores(student) if name != detection_energy.__name__),
            *(f"detection_energy(part={part!r})" for part in energies),
        ]


def _prefixed(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}_{key}": value for key, value in arrays.items()}


def _unprefixed(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays that `_prefixed` named; KeyError with the full name of a missing one."""
    found = {key: value for key, value in arrays.items() if key.startswith(f"{name}_")}
    if f"{name}_count" not in found:
        raise KeyError(f"{name}_count")
    return {key.removeprefix(f"{name}_"): value for key, value in found.items()}


TASK = Detection()


class JointDetector(JointModel):
    """Two detectors of the same classes as one: images with a low score go to the teacher (eq. 14).

    Parameters
    ----------
    student, teacher
        Models: n images in, a list of n `Detections` out.
    router
        A score of detections and the threshold. It reads the student's output before `rescale`.
    blend
        The student's weight in a deferred answer, which then has both models' boxes, fused; 0 is
        the paper's, the teacher alone. By default as in `JointClassifier`.
    rescale
        A `CommonScale`: increasing maps of both models' scores to one scale, because mAP ranks the
        boxes of all images together. None is that of the router's operating point; a router that
        comes from none leaves scores as they are.
    when_unavailable, late
        As in `JointClassifier`.

    Examples
    --------
    >>> from ebjr import Detections, Router
    >>> def detector(sure):
    ...     return lambda images: [
    ...         Detections.of_scores([[0, 0, 4, 4]], [sure], (8, 8), labels=[0], classes=1)
    ...         for _ in images]
    >>> joint = JointDetector(detector(0.4), detector(0.9), Router("max_confidence", 0.5))
    >>> answer = joint(["an image"])
    >>> answer.deferred, answer.prediction[0].scores
    (array([ True]), array([0.9]))
    """

    kind = TASK


Detection.final = JointDetector

"""Tasks: what raw output and targets are, what they mean, and how two answers are mixed.

Everything that differs between classification, specialized students, regression and detection is
here: outcomes, curves, calibration and the joint loop ask the task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ebjr.arrays import Array, Batch, argmax, to_numpy
from ebjr.blend import Blend, blend_logits, blend_predictions
from ebjr.detection_scores import detection_energy
from ebjr.detections import (
    Detections,
    GroundTruth,
    check_detections,
    pack_detections,
    pack_truth,
    unpack_detections,
    unpack_truth,
)
from ebjr.errors import ModelError
from ebjr.fusion import fuse_detections
from ebjr.known_classes import check_known_classes, refine, to_teacher
from ebjr.precision import SHOWN, Matches, match_detections
from ebjr.regression_scores import as_regression
from ebjr.scores import DETECTION_SCORES, REGRESSION_SCORES, SCORES, SPECIALIZED_SCORES


class Tensor(NamedTuple):
    """What a protocol carries of answers, as an array.

    Attributes
    ----------
    dtype
        Of its elements.
    shape
        With None for what is open: the first dimension, n answers or all that they list.
    of
        Makes it of an answer, whatever has a `prediction` and an `output`.
    """

    dtype: Any
    shape: tuple[int | None, ...]
    of: Callable[[Any], np.ndarray]


class Task:
    """One task. The only instances are those of `TASKS`, and what `knowing` makes of them.

    Attributes
    ----------
    name
        As in ``task=``.
    columns
        What the columns of raw output are, for messages.
    takes_temperatures
        Whether a blend may carry temperatures.
    takes_scale
        Whether answers have scores that a `CommonScale` can map.
    rows
        What raw output is, for messages.
    raw
        What raw output is, as `ebjr.scores.READS` says what a score reads.
    has_labels
        Whether answers are labels, which agree or do not.
    takes_images
        Whether inputs are always decoded images, which each model prepares for itself.
    known_classes
        The teacher's labels that the student knows, in its order; None where it knows all.
    """

    name: str
    columns: str
    raw: str
    takes_temperatures = False
    takes_scale = False
    rows = "{} rows of raw output"
    has_labels = False
    takes_images = False
    known_classes: tuple[int, ...] | None = None

    @property
    def has_logits(self) -> bool:
        """Whether the student's raw output is logits of classes, as a learned score reads them."""
        return self.raw == "logits"

    def knowing(self, known_classes: Any) -> Task:
        """The task for a student that knows some of the teacher's classes; None changes nothing.

        Raises
        ------
        ValueError
            It is not a task of specialized students, or these are no labels.
        """
        if known_classes is not None:
            raise ValueError(f"known_classes go with task 'specialized', not with {self.name!r}")
        return self

    def count_rows(self, output: Any) -> int | None:
        """How many rows raw output has; None where it is none."""
        shape = getattr(output, "shape", None)
        return int(shape[0]) if shape else None

    def form(self, output: Any) -> tuple[int, ...]:
        """What each row of raw output looks like: alike of two models that answer alike."""
        return tuple(output.shape[1:])

    def check_output(self, role: str, output: Any) -> Any:
        """One model's raw output as NumPy floats, or as a list of `Detections`.

        Raises
        ------
        ValueError
            Another rank, or something else than finite real numbers.
        """
        raise NotImplementedError

    def check_targets(self, targets: Any) -> Any:
        """(n,) targets as NumPy, or a list of `GroundTruth`.

        Raises
        ------
        ValueError
            Another rank or type.
        """
        raise NotImplementedError

    def common_classes(self, student: Any, teacher: Any) -> int | None:
        """How many classes both answer; None where there are none.

        Raises
        ------
        ValueError
            They do not answer alike.
        """
        return None

    def check_range(self, targets: Any, classes: int | None, where: str = "") -> None:
        """Check that targets are among the classes.

        Raises
        ------
        ValueError
            Some are not.
        """

    def predict(self, output: Batch) -> Batch:
        """(n,): the answers that raw output means."""
        raise NotImplementedError

    def judged(self, output: Batch, targets: Any) -> Any:
        """What a metric reads, with the targets: the answers; of detectors their `Matches`."""
        return self.predict(output)

    def rescored(self, judged: Any, change: Callable[..., Any]) -> Any:
        """What `judged` gives once the scores are on the common scale."""
        return judged

    def take(self, judged: Any, rows: np.ndarray) -> Any:
        """What `judged` gives for some rows."""
        return judged[rows]

    def as_targets(self, output: Batch) -> Any:
        """The targets that raw output would be, where nobody labeled the examples."""
        return self.predict(output)

    def translate(self, student: Batch, classes: int | None = None) -> Batch:
        """The student's raw output in the teacher's terms: what it is judged and mixed by.

        Parameters
        ----------
        student
            Raw output.
        classes
            How many the teacher answers.
        """
        return student

    def shared(self, output: Batch, change: Callable[..., Any] | None = None) -> Batch:
        """What of raw output student and teacher have in common: the joint model's own.

        The student's is translated. `change` is what puts this model's scores on the common scale,
        where there is one.
        """
        return output

    def mix(self, student: Batch, teacher: Batch, blend: float) -> Batch:
        """Raw output of deferred rows with the student's answer, translated, blended in."""
        raise NotImplementedError

    def check_blend(self, blend: float) -> None:
        """Check that answers can be mixed like that.

        Raises
        ------
        ValueError
            It carries temperatures, and there are no logits that they could divide.
        """
        if isinstance(blend, Blend) and not self.takes_temperatures:
            raise ValueError(
                f"a blend of predictions is a weight without temperatures, not {blend}"
            )

    def check_scale(self, rescale: Any) -> None:
        """Check that answers can be put on a common scale.

        Raises
        ------
        ValueError
            They have no scores that it could map.
        """
        if rescale is not None and not self.takes_scale:
            raise ValueError(f"rescale is for detection, not for {self.name}")

    def weights(self, student: Any, teacher: Any, targets: Any) -> tuple[float, ...]:
        """Weights of a blend that the examples suggest, beside the usual candidates."""
        return ()

    def scores(self, student: Any) -> list[str]:
        """The named scores that can read a student's raw output."""
        raise NotImplementedError

    def collect(self, role: str, output: Any, expected: int) -> Any:
        """A model's answer to a batch of `expected` inputs, as rows on the CPU.

        Raises
        ------
        ModelError
            It has no row for each input, or there are no numbers in them.
        """
        rows = to_numpy(output)
        if rows.ndim == 0 or len(rows) != expected:
            raise ModelError(
                f"the {role} was given {expected} inputs and must return {expected} rows, "
                f"but returned shape {rows.shape}"
            )
        if rows.dtype.kind not in "fiub":
            raise ModelError(f"the {role} returned {rows.dtype} instead of numbers")
        if not np.isfinite(rows).all():
            raise ModelError(
                f"the {role} returned NaN or infinite outputs; check its preprocessing"
            )
        return rows

    def pack(self, name: str, output: Any, half: bool) -> dict[str, np.ndarray]:
        """A model's raw output as arrays of a file, by name.

        Raises
        ------
        ValueError
            It does not fit half precision.
        """
        if half and np.abs(output).max() > 65504:
            raise ValueError("the raw outputs exceed 65504 and do not fit half precision")
        return {name: np.asarray(output, np.float16 if half else None)}

    def unpack(self, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
        """What `pack` packed."""
        return arrays[name]

    def pack_targets(self, targets: Any) -> dict[str, np.ndarray]:
        """The targets as arrays of a file, in the smallest type that keeps them."""
        return {"targets": targets}

    def unpack_targets(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """What `pack_targets` packed."""
        return arrays["targets"]

    def numbers(self, rows: Any) -> list[np.ndarray]:
        """Every number in raw output or targets, for a fingerprint."""
        return [rows]

    def equal(self, rows: Any, others: Any) -> bool:
        """Whether two raw outputs, or the targets of two, are the same in every number."""
        one, other = self.numbers(rows), self.numbers(others)
        return len(one) == len(other) and all(map(np.array_equal, one, other))

    def plain(self, answers: Batch, labels: Sequence[str] | None) -> list[dict[str, Any]]:
        """Answers (n,) for JSON, with the classes' names where they are known."""
        return [{"prediction": value} for value in to_numpy(answers).tolist()]

    def tensors(self, classes: int | None = None) -> dict[str, Tensor]:
        """Answers as a protocol carries them, by name.

        Parameters
        ----------
        classes
            How many there are, where that is known.
        """
        return {
            "prediction": Tensor(
                np.int64 if self.has_labels else np.float64,
                (None,),
                lambda answer: to_numpy(answer.prediction),
            ),
            "output": Tensor(
                np.float32,
                (None, classes),
                lambda answer: to_numpy(answer.output).astype(np.float32, copy=False),
            ),
        }


class _Classification(Task):
    name = "classification"
    columns = "classes"
    raw = "logits"
    takes_temperatures = True
    has_labels = True

    def check_output(self, role: str, output: Any) -> np.ndarray:
        array = to_numpy(output)
        if array.ndim != 2 or array.shape[1] < 2:
            raise ValueError(
                f"{role} logits must have shape (n, classes) with at least 2 classes, not "
                f"{array.shape}"
            )
        return _finite(f"{role} logits", array)

    def check_targets(self, targets: Any) -> np.ndarray:
        array = _column(targets)
        if len(array) and not np.issubdtype(array.dtype, np.integer):
            _refuse_missing(array)
            raise ValueError(f"targets must be integer labels, not {array.dtype}")
        return array.astype(np.int64)

    def common_classes(self, student: np.ndarray, teacher: np.ndarray) -> int:
        classes = student.shape[1]
        if teacher.shape[1] != classes:
            raise ValueError(
                f"student and teacher must answer the same classes, but the student has {classes} "
                f"and the teacher {teacher.shape[1]}"
            )
        return int(classes)

    def check_range(self, targets: np.ndarray, classes: int | None, where: str = "") -> None:
        assert classes is not None
        outside = (targets < 0) | (targets >= classes)
        if outside.any():
            raise ValueError(
                f"targets must lie in 0..{classes - 1}, but {int(outside.sum())} of "
                f"{len(targets)}{where} do not, the first is {targets[outside][0]}; leave examples "
                "without a label out"
            )

    def predict(self, output: Array) -> Array:
        return argmax(output)

    def mix(self, student: Array, teacher: Array, blend: float) -> Array:
        return blend_logits(student, teacher, blend)

    def scores(self, student: np.ndarray) -> list[str]:
        return list(SCORES)

    def plain(self, answers: Batch, labels: Sequence[str] | None) -> list[dict[str, Any]]:
        rows = super().plain(answers, labels)
        return rows if labels is None else [{**r, "label": labels[r["prediction"]]} for r in rows]

    def pack_targets(self, targets: np.ndarray) -> dict[str, np.ndarray]:
        return {"targets": targets.astype(np.min_scalar_type(int(targets.max())))}


class _Specialized(_Classification):
    """A student of some classes and "other", (n, C + 1), beside a teacher of all (section 2.4)."""

    name = "specialized"

    def __init__(self, known_classes: tuple[int, ...] | None = None) -> None:
        self.known_classes = known_classes

    def knowing(self, known_classes: Any) -> Task:
        return self if known_classes is None else _Specialized(check_known_classes(known_classes))

    @property
    def _known(self) -> tuple[int, ...]:
        if self.known_classes is None:
            raise ValueError(
                "task 'specialized' needs known_classes: for each class that the student knows the "
                "teacher's label, in the student's order"
            )
        return self.known_classes

    def common_classes(self, student: np.ndarray, teacher: np.ndarray) -> int:
        known, classes = self._known, int(teacher.shape[1])
        check_known_classes(known, classes)
        self._check_width(student, ValueError)
        return classes

    def _check_width(self, student: Array, error: type[Exception]) -> None:
        known = len(self._known)
        if student.ndim != 2 or student.shape[1] != known + 1:
            raise error(
                f"a student of {known} known classes must answer (n, {known + 1}), 'other' in the "
                f"last column, not {tuple(student.shape)}"
            )

    def translate(self, student: Array, classes: int | None = None) -> Array:
        self._check_width(student, ModelError)
        assert classes is not None
        return to_teacher(student, self._known, classes)

    def mix(self, student: Array, teacher: Array, blend: float) -> Array:
        if blend == 0:
            return teacher
        return blend_logits(refine(student, teacher, self._known), teacher, blend)

    def scores(self, student: np.ndarray) -> list[str]:
        """Those of specialized students, which may mark "other", and then the plain ones."""
        few = student.shape[1] < 3
        own = ("known_softmax", "specialized_energy") if few else SPECIALIZED_SCORES
        return [*own, *PLAIN_SCORES]


class _Regression(Task):
    name = "regression"
    columns = "columns"
    raw = "predictions"

    def check_output(self, role: str, output: Any) -> np.ndarray:
        array = to_numpy(output)
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] < 1):
            raise ValueError(
                f"{role} output must have shape (n,) or (n, 1 + k), the prediction first, not "
                f"{array.shape}"
            )
        return _finite(f"{role} output", array[:, None] if array.ndim == 1 else array)

    def check_targets(self, targets: Any) -> np.ndarray:
        array = _column(targets)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"targets must be numbers, not {array.dtype}")
        _refuse_missing(array)
        if not np.isfinite(array).all():
            raise ValueError("targets must be finite, but some are infinite")
        return array.astype(np.float64)

    def predict(self, output: Array) -> Array:
        return as_regression(output)[:, 0]

    def shared(self, output: Batch, change: Callable[..., Any] | None = None) -> Batch:
        return as_regression(output)[:, :1]

    def mix(self, student: Array, teacher: Array, blend: float) -> Array:
        self.check_blend(blend)
        return blend_predictions(self.shared(student), self.shared(teacher), blend)

    def scores(self, student: np.ndarray) -> list[str]:
        return [name for name in REGRESSION_SCORES if _reads(name, student)]

    def weights(
        self, student: np.ndarray, teacher: np.ndarray, targets: np.ndarray
    ) -> tuple[float, ...]:
        """Inverse variances, as if the errors were independent, and with their covariance."""
        one, other = student[:, 0] - targets, teacher[:, 0] - targets
        mine, theirs, both = (float(np.mean(v)) for v in (one**2, other**2, one * other))
        found = [theirs / mine if mine else np.inf]
        if mine > both:
            found.append((theirs - both) / (mine - both))
        return tuple(float(f"{w:.3g}") for w in found if 0 < w <= 10)


class _Detection(Task):
    name = "detection"
    columns = "classes"
    raw = "detections"
    takes_scale = True
    takes_images = True
    rows = "a list of {} Detections, one for each"

    def count_rows(self, output: Any) -> int | None:
        listed = isinstance(output, list | tuple)
        return len(output) if listed and all(isinstance(o, Detections) for o in output) else None

    def form(self, output: Sequence[Detections]) -> tuple[int, ...]:
        return tuple(sorted({found.classes for found in output}))

    def check_output(self, role: str, output: Any) -> list[Detections]:
        try:
            check_detections(output)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{role}: {error}") from error
        return list(output)

    def check_targets(self, targets: Any) -> list[GroundTruth]:
        listed = isinstance(targets, list | tuple)
        wrong = [real for real in targets if not isinstance(real, GroundTruth)] if listed else []
        if wrong or not listed:
            came = type(wrong[0] if wrong else targets).__name__
            raise ValueError(
                f"targets must be a list of GroundTruth, one for each image, not {came}"
            )
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
        outside = [n for n, real in enumerate(targets) if (real.labels >= classes).any()]
        if outside:
            raise ValueError(
                f"labels must lie in 0..{classes - 1}, the detectors' classes, but {len(outside)} "
                f"of {len(targets)} images{where} have others, the first is "
                f"{targets[outside[0]].labels.max()}; map them to the detectors' classes first"
            )

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
        self, student: Sequence[Detections], teacher: Sequence[Detections], blend: float
    ) -> list[Detections]:
        self.check_blend(blend)
        return [
            fuse_detections(one, other, float(Blend(blend)))
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

    def tensors(self, classes: int | None = None) -> dict[str, Tensor]:
        """The boxes of all images one below the other, and how many of them are each image's."""

        def of_all(name: str, dtype: Any, *sides: int) -> Tensor:
            none = np.zeros((0, *sides), dtype)
            return Tensor(
                dtype,
                (None, *sides),
                lambda answer: np.concatenate(
                    [none, *(getattr(found, name) for found in answer.prediction)], dtype=dtype
                ),
            )

        return {
            "boxes": of_all("boxes", np.float32, 4),
            "labels": of_all("labels", np.int64),
            "scores": of_all("scores", np.float32),
            "count": Tensor(
                np.int64,
                (None,),
                lambda answer: np.array([len(found) for found in answer.prediction], np.int64),
            ),
        }

    def scores(self, student: Sequence[Detections]) -> list[str]:
        bins = all(found.bins is not None for found in student if len(found))
        energies = ("both", "boxes", "classes") if bins else ("classes",)
        return [
            *(name for name in DETECTION_SCORES if name != detection_energy.__name__),
            *(f"detection_energy(part={part!r})" for part in energies),
        ]


PLAIN_SCORES = ("softmax", "margin", "entropy", "energy")
"""The scores of classifiers that are tried on a specialized student, "other" being a class."""

TASKS: Mapping[str, Task] = {
    task.name: task for task in (_Classification(), _Specialized(), _Regression(), _Detection())
}
"""By name: everything a task decides."""


def as_task(name: str, known_classes: Any = None) -> Task:
    """The task of that name, for a student of these classes.

    Raises
    ------
    ValueError
        There is none, or it knows of no known classes.

    Examples
    --------
    >>> as_task("regression").predict(np.array([[5.0, 0.1]]))
    array([5.])
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {name!r}")
    return TASKS[name].knowing(known_classes)


def _prefixed(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}_{key}": value for key, value in arrays.items()}


def _unprefixed(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that `_prefixed` named; a missing one is a KeyError under its whole name."""
    found = {key: value for key, value in arrays.items() if key.startswith(f"{name}_")}
    if f"{name}_count" not in found:
        raise KeyError(f"{name}_count")
    return {key.removeprefix(f"{name}_"): value for key, value in found.items()}


def _reads(name: str, output: np.ndarray) -> bool:
    """Whether a score can read raw output of this width, and what it reads means something.

    Rows with NaN are always deferred, which costs a curve nothing: many of them would win.
    """
    try:
        return bool(np.isfinite(REGRESSION_SCORES[name](output)).mean() >= 0.99)
    except ValueError:
        return False


def _finite(what: str, array: np.ndarray) -> np.ndarray:
    """Real, finite floats (n, k)."""
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{what} must be real numbers, not {array.dtype}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{what} must be finite, but {len(bad)} of {len(array)} rows hold NaN or "
            f"infinity, the first in row {bad[0]}"
        )
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def _column(targets: Any) -> np.ndarray:
    array = to_numpy(targets)
    if array.ndim != 1:
        raise ValueError(f"targets must have shape (n,), not {array.shape}")
    return array


def _refuse_missing(array: np.ndarray) -> None:
    if array.dtype.kind == "O":
        missing, what = sum(target is None for target in array.flat), "None"
    else:
        missing, what = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0, "NaN"
    if missing:
        raise ValueError(
            f"{missing} of {len(array)} targets are {what}: leave examples without a label out, "
            "or give no targets at all, to compare with the teacher's own answers"
        )

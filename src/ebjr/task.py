"""Task: what differs between classification, regression, detection and the like.

Outcomes, curves, calibration, the joint loop, reports, files, servers and exports ask the task and
know none by name. A task is a folder under `ebjr.tasks` that declares its facts as a `Task`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ebjr.arrays import Batch, take_rows, to_numpy
from ebjr.blend import Blend
from ebjr.errors import ModelError, check_choice, one_line
from ebjr.labels import check_same_names
from ebjr.metric import Metric, own_metrics
from ebjr.scores import OWN_SCORES, RawOutput, Score, as_score, load_declared, raw_output_of

SUM_ROUNDING = 1e-3
"""How far the sum of probabilities may be from 1, in half precision and with many classes."""

_MANY, _SUM_ROUNDING_OF_MANY = 8, 0.03
"""Of as many rows, which are not all near 1 by chance: bfloat16, and two decimals, are further."""


OUTPUT_SEEN = {
    "probabilities": "the {}'s raw output is probabilities, which are not negative and sum to 1; "
    "their logarithm is raw output, whose softmax is what the model says, and whose energy is 0 "
    "for every input",
    "label_probabilities": "the {}'s raw output lies in 0..1 throughout, as probabilities of each "
    "label do; their log-odds are raw output",
    "logits": "the {}'s raw output has one column, the logit of a sigmoid; two columns, -d/2 and "
    "d/2, are raw output",
}
"""What is said of raw output that is not logits, by its kind."""


class Tensor(NamedTuple):
    """What a protocol carries of answers, as an array.

    `shape` has None for what is open: the first dimension, n answers or all that they list. `of`
    makes the array of an answer, which is whatever has a `prediction` and an `output`. What is not
    `usual` comes only where it is asked for by name.
    """

    dtype: Any
    shape: tuple[int | None, ...]
    of: Callable[[Any], np.ndarray]
    usual: bool = True


def named(labels: Sequence[str], classes: Callable[[Any], np.ndarray]) -> Tensor:
    """The names, as bytes, of the classes (k,) that `classes` finds in an answer."""
    known = np.fromiter((label.encode() for label in labels), object)

    def names(answer: Any) -> np.ndarray:
        try:
            found: np.ndarray = known[classes(answer)]
        except IndexError:
            words = f"{len(known)} labels are too few: a model answers more classes"
            raise ModelError(words) from None
        return found

    return Tensor(np.object_, (None,), names)


class Learner:
    """How the weights of a task's fitted score, `name`, are found."""

    name: str
    most_examples: int | None = None  # more rows are left out of a fit, at random

    def signal(self, student: Any, deferred: Any, change: np.ndarray) -> np.ndarray:
        """(n,): what the score learns of each row.

        `student` and `deferred` are what the metric reads of the student's and of deferred answers
        (`Task.judged`); `change`, (n,), is how much quality a row gains if it is deferred.
        """
        raise NotImplementedError

    def check(self, signal: np.ndarray) -> None:
        """Raise `CalibrationError` where there is not enough to learn from."""

    def fit(self, output: Any, signal: np.ndarray) -> Score:
        """The score fitted to raw output and its signal."""
        raise NotImplementedError


class Task:
    """The facts of one task, which its folder declares as `TASK`."""

    name: str  # as in ``task=``: that of the folder
    raw: RawOutput
    metrics: tuple[Metric, ...]  # the first is the task's own
    final: type[Any]  # the class of the joint model, a `JointModel`
    reads: tuple[RawOutput, ...] = ()  # what scores may read, too, beside `raw`
    auto: tuple[str, ...] = ()  # compete in score="auto", simplest first; empty takes `scores`
    shown: tuple[str, ...] = ()  # what a report compares; empty takes `scores`, and `random`
    learner: Learner | None = None
    blends: tuple[float | Blend, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # of blend="auto"
    columns = "columns"  # of raw output, for messages
    rows = "{} rows of raw output"
    output_kinds: tuple[str, ...] = ()  # that its models may answer in place of logits
    targets_are = "labels"  # or "label sets", "numbers", "boxes": what data must hold
    has_logits = False  # of classes that exclude each other
    takes_temperatures = False  # in a blend
    scale: type[Any] | None = None  # of a common scale for both models' scores, where there is one
    takes_images = False  # decoded ones, which each model prepares for itself
    travels = True  # raw output goes over the wire, so that a teacher may be far
    known_classes: tuple[int, ...] | None = None  # the teacher's labels that the student knows

    @property
    def has_labels(self) -> bool:
        """Whether answers are labels, which agree or do not."""
        return self.targets_are == "labels"

    def knowing(self, known_classes: Any) -> "Task":
        """The task for a student that knows some of the teacher's classes; None changes nothing."""
        if known_classes is not None:
            raise ValueError(f"known_classes go with task 'specialized', not with {self.name!r}")
        return self

    def check_classes(self, classes: int | None) -> None:
        """Check `known_classes` against the number of the teacher's classes."""

    def metric(self, name: str | None = None) -> Metric:
        """The metric of that name, or the task's own."""
        own = own_metrics() if self.targets_are == "numbers" else ()
        known = {metric.name: metric for metric in (*self.metrics, *own)}
        if name is None:
            return self.metrics[0]
        check_choice(f"metric of {self.name}", name, known)
        return known[name]

    def check_score(self, score: Score) -> None:
        """Check that a score is for this raw output; one without a name, or of a user, may be."""
        raw = raw_output_of(score.name) if score.named else None
        of_anything = score.name == "random" or score.name in OWN_SCORES
        if raw is None or of_anything or raw in (self.raw, *self.reads):
            return
        known = dict.fromkeys((*self.raw.names(own=False), "random"))
        raise ValueError(
            f"score {score.title} is not for {self.name}: it reads {raw.name}, and the student "
            f"gives {self.raw.name}; there are: {', '.join(known)}"
        )

    @property
    def learned(self) -> str | None:
        """The name of the score that is fitted to outcomes."""
        return None if self.learner is None else self.learner.name

    def candidates(self, student: Any) -> list[str]:
        """The scores that compete in ``score="auto"`` for a student's raw output.

        The simplest come first: the task's, a user's own, and last the learned one.
        """
        found = self.auto or self.scores(student)
        return [*found, *self.own_scores(student), *([self.learned] if self.learned else [])]

    def compared(self, student: Any) -> list[str]:
        """The scores that a report compares with the chosen one."""
        found = [*(self.shown or self.scores(student)), *self.own_scores(student)]
        return list(dict.fromkeys([*(name for name in found if name != "random"), "random"]))

    def own_scores(self, student: Any) -> list[str]:
        """The registered scores that can score this raw output; a warning names the others."""
        load_declared()
        rows = take_rows(student, np.arange(min(2, len(student))))
        names = [name for raw in (self.raw, *self.reads) for name in raw.names(own=True)]
        return [name for name in names if _can_score(name, rows)]

    def output_kind_of(self, output: Any, hard: bool = True) -> str | None:
        """What raw output (n, k), or (n,), looks like where it is not logits; None where it may be.

        Rows of one 1 and zeros are probabilities that leave no doubt, unless `hard` is False: toys,
        and the first rows of a tree, answer so as well.
        """
        array = to_numpy(output) if self.output_kinds else np.zeros(0)
        if array.ndim not in (1, 2) or not len(array) or array.dtype.kind != "f":
            return None
        rows = array.reshape(len(array), -1).astype(np.float64)
        single = rows.shape[1] == 1
        within = bool(((rows >= 0) & (rows <= 1)).all())
        within = within and (hard or single or not np.isin(rows, (0, 1)).all())
        if "label_probabilities" in self.output_kinds:
            return "label_probabilities" if within else None
        off = SUM_ROUNDING if len(rows) < _MANY else _SUM_ROUNDING_OF_MANY
        if within and (single or bool((np.abs(rows.sum(axis=1) - 1) <= off).all())):
            return "probabilities"
        return "logits" if single else None

    def named_goals(self, metric: Metric, teacher_quality: float) -> dict[str, dict[str, Any]]:
        """The operating points that ``joint.toml`` names beside the chosen one, as goals."""
        half, one = ("within-half-a-point", 0.005), ("within-one-point", 0.01)
        if not metric.percent:
            figure = abs(teacher_quality)
            half = "within-one-percent", 0.01 * figure
            one = "within-five-percent", 0.05 * figure
        return {
            "match-teacher": {"goal": "match-teacher"},
            **{name: {"goal": "match-teacher", "tolerance": value} for name, value in (half, one)},
            **({"crossing": {"goal": "crossing"}} if metric.binary else {}),
            f"best-{metric.name}": {"goal": "budget", "deferral_rate": 1.0},  # of all thresholds
        }

    def grid_gap(self, score: Score, student: Any, targets: Any) -> str | None:
        """What of the examples a score's y grid does not cover, in words; None if nothing."""
        return None

    def count_rows(self, output: Any) -> int | None:
        """How many rows raw output has; None where it is none."""
        shape = getattr(output, "shape", None)
        return int(shape[0]) if shape else None

    def form(self, output: Any) -> tuple[int, ...]:
        """What each row of raw output looks like: alike of two models that answer alike."""
        return tuple(output.shape[1:])

    def sound(self, name: str, output: Any) -> np.ndarray | None:
        """(n,): which rows of a model's raw output are finite; None is all of them.

        ModelError: it is no numbers.
        """
        rows = to_numpy(output)
        if rows.dtype.kind not in "fiu":
            raise ModelError(f"{name} returned {rows.dtype} instead of numbers")
        finite = np.isfinite(rows)
        return None if finite.all() else finite.all(axis=tuple(range(1, rows.ndim)))

    def check_output(self, role: str, output: Any) -> Any:
        """One model's raw output as finite NumPy floats, or as a list of `Detections`."""
        raise NotImplementedError

    def check_first(self, role: str, output: Any) -> None:
        """Check what a model said of the first batch, beyond its form."""

    def count_boxes(self, found: Any, real: Any, label: int | None) -> tuple[np.ndarray, ...]:
        """(n,) each: boxes that two detectors show, and how many of them match."""
        raise NotImplementedError

    def numbered(self, role: str, model: Any, inputs: Any, targets: Any, data: Any) -> Any:
        """A model that numbers its classes as the data do, as far as the first batch tells."""
        return model

    def check_targets(self, targets: Any) -> Any:
        """(n,) targets as NumPy, or a list of `GroundTruth`."""
        raise NotImplementedError

    def common_classes(self, student: Any, teacher: Any) -> int | None:
        """How many classes both answer, if they answer alike; None where there are none."""
        return None

    def check_names(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        """Check that both models name the same classes in the same order."""
        check_same_names(student, teacher)

    def check_range(self, targets: Any, classes: int | None, where: str = "") -> None:
        """Check that targets are among the classes."""

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

        `classes` is how many the teacher answers.
        """
        return student

    def shared(self, output: Batch, change: Callable[..., Any] | None = None) -> Batch:
        """What of raw output student and teacher have in common: the joint model's own.

        The student's is translated. `change` is what puts this model's scores on the common scale,
        where there is one.
        """
        return output

    def mix(self, student: Batch, teacher: Batch, blend: float | Blend) -> Batch:
        """Raw output of deferred rows with the student's answer, translated, blended in."""
        raise NotImplementedError

    def check_blend(self, blend: float | Blend) -> None:
        """Check that there are logits for the temperatures of a blend, where it carries some."""
        if isinstance(blend, Blend) and not self.takes_temperatures:
            raise ValueError(
                f"a blend of predictions is a weight without temperatures, not {blend}"
            )

    def read_scale(self, table: Mapping[str, Any] | None) -> Any:
        """The common scale that a table holds; None where there is no table."""
        self.check_scale(table)
        return None if table is None or self.scale is None else self.scale.from_dict(table)

    def check_scale(self, rescale: Any) -> None:
        """Check that answers have scores that a common scale can map."""
        if rescale is not None and self.scale is None:
            raise ValueError(f"rescale is for detection, not for {self.name}")

    def weights(self, student: Any, teacher: Any, targets: Any) -> tuple[float, ...]:
        """Weights of a blend that the examples suggest, beside the usual candidates."""
        return ()

    def scores(self, student: Any) -> list[str]:
        """The named scores that can read a student's raw output."""
        return self.raw.names(own=False)

    def collect(self, role: str, output: Any, expected: int) -> Any:
        """A model's answer to a batch of `expected` inputs, as finite rows on the CPU."""
        rows = to_numpy(output)
        if rows.ndim == 0 or len(rows) != expected:
            raise ModelError(
                f"the {role} was given {expected} inputs and must return {expected} rows, "
                f"but returned shape {rows.shape}"
            )
        if self.sound(f"the {role}", rows) is not None:
            raise ModelError(
                f"the {role} returned NaN or infinite outputs; check its preprocessing"
            )
        return rows

    def pack(self, name: str, output: Any, half: bool) -> dict[str, np.ndarray]:
        """A model's raw output as arrays of a file, by name; `half` keeps half precision."""
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

    def tensors(
        self, classes: int | None = None, labels: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Answers as a protocol carries them, by name.

        Of `classes`, where their number is known, and with their names, where `labels` are given.
        """

        def predicted(answer: Any) -> np.ndarray:
            return to_numpy(answer.prediction)

        found = {
            "prediction": Tensor(np.int64 if self.has_labels else np.float64, (None,), predicted)
        }
        if self.has_labels and labels is not None:
            found["label"] = named(labels, predicted)
        found["output"] = Tensor(
            np.float32,
            (None, classes),
            lambda answer: to_numpy(answer.output).astype(np.float32, copy=False),
            usual=False,
        )
        return found


def _can_score(name: str, rows: Batch) -> bool:
    """Whether a registered score works on raw output that its author may never have met."""
    try:
        as_score(name)(rows)
    except Exception as error:
        warnings.warn(
            f"score {name} does not compete, as it fails on this raw output: {one_line(error)}",
            stacklevel=2,
        )
        return False
    return True


def finite_rows(what: str, array: np.ndarray) -> np.ndarray:
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


def target_column(targets: Any) -> np.ndarray:
    """Targets as NumPy, if they are (n,)."""
    array = to_numpy(targets)
    if array.ndim != 1:
        raise ValueError(f"targets must have shape (n,), not {array.shape}")
    return array


def refuse_missing(array: np.ndarray) -> None:
    """Refuse targets of which some are None or NaN."""
    if array.dtype.kind == "O":
        missing, what = sum(target is None for target in array.flat), "None"
    else:
        missing, what = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0, "NaN"
    if missing:
        raise ValueError(
            f"{missing} of {len(array)} targets are {what}: leave examples without a label out, "
            "or give no targets at all, to compare with the teacher's own answers"
        )


def same_columns(task: Task, student: np.ndarray, teacher: np.ndarray) -> int:
    """How many columns both models' raw output has, if it is the same number."""
    one, other = student.shape[1], teacher.shape[1]
    if one != other:
        raise ValueError(
            f"student and teacher must answer the same {task.columns}, but the student has {one} "
            f"and the teacher {other}"
        )
    return int(one)

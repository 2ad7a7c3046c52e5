"""Task: the differences between classification, regression, detection and others.

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
"""How far the sum of probabilities may be from 1 in half precision with many classes."""

_MANY, _SUM_ROUNDING_OF_MANY = 8, 0.03
"""The looser bound for at least 8 rows: bfloat16 and rounded decimals are further from 1."""


OUTPUT_SEEN = {
    "probabilities": "the {}'s raw output is probabilities, which are not negative and sum to 1; "
    "scores read their logarithms, whose energy is 0 for every input",
    "label_probabilities": "the {}'s raw output lies in 0..1 throughout, as probabilities of each "
    "label do; scores read their log-odds",
    "logits": "the {}'s raw output has one column, the logit of a sigmoid; scores read two, "
    "-d/2 and d/2 for a logit d",
}
"""By kind: the complaint about raw output that is not logits."""


class Tensor(NamedTuple):
    """An array that a protocol carries for an answer.

    `shape` has None for open sizes; the first is n answers, or everything they list. `of` makes the
    array from an answer, anything with a `prediction` and an `output`. Tensors that are not `usual`
    are sent only if a client names them.
    """

    dtype: Any
    shape: tuple[int | None, ...]
    of: Callable[[Any], np.ndarray]
    usual: bool = True


def named(labels: Sequence[str], classes: Callable[[Any], np.ndarray]) -> Tensor:
    """Make the tensor of class names, as bytes, of the classes (k,) that `classes` finds."""
    known = np.fromiter((label.encode() for label in labels), object)

    def names(answer: Any) -> np.ndarray:
        try:
            found: np.ndarray = known[classes(answer)]
        except IndexError:
            words = f"a model answers more classes than the {len(known)} labels name"
            raise ModelError(words) from None
        return found

    return Tensor(np.object_, (None,), names)


class Learner:
    """Finds the weights of a task's fitted score, `name`."""

    name: str
    most_examples: int | None = None  # a fit draws at most this many rows

    def signal(self, student: Any, deferred: Any, change: np.ndarray) -> np.ndarray:
        """Return what the score learns of each row, (n,).

        `student` and `deferred` are what the metric reads of the student's and of deferred answers
        (`Task.judged`); `change`, (n,), is the quality that a row gains by being deferred.
        """
        raise NotImplementedError

    def check(self, signal: np.ndarray) -> None:
        """Raise `CalibrationError` if there is not enough to learn from."""

    def fit(self, output: Any, signal: np.ndarray) -> Score:
        """Return the score fitted to raw output and its signal."""
        raise NotImplementedError


class Task:
    """A task's facts, which its folder declares as `TASK`."""

    name: str  # as in ``task=``, and the folder's name
    raw: RawOutput
    metrics: tuple[Metric, ...]  # the first is the default
    final: type[Any]  # the class of the joint model, a `JointModel`
    reads: tuple[RawOutput, ...] = ()  # further raw outputs that scores may read
    auto: tuple[str, ...] = ()  # competitors of score="auto", simplest first; empty: `scores`
    learner: Learner | None = None
    blends: tuple[float | Blend, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # of blend="auto"
    columns = "columns"  # a word for raw output's columns, in messages
    rows = "{} rows of raw output"
    output_kinds: tuple[str, ...] = ()  # what models may return instead of logits
    targets_are = "labels"  # or "label sets", "numbers", "boxes": what data must have
    has_logits = False  # one logit per class, and classes exclude each other
    takes_temperatures = False  # whether a blend may have temperatures
    scale: type[Any] | None = None  # the class of both models' common scale, if there is one
    takes_images = False  # decoded images, which each model prepares for itself
    travels = True  # a protocol carries the raw output, so the teacher may be remote
    known_classes: tuple[int, ...] | None = None  # a specialized student's, as teacher's labels

    @property
    def has_labels(self) -> bool:
        """Whether answers are labels, which are the same or not."""
        return self.targets_are == "labels"

    def knowing(self, known_classes: Any) -> "Task":
        """Return the task for a student of some of the teacher's classes; None changes nothing."""
        if known_classes is not None:
            raise ValueError(f"known_classes go with task 'specialized', not with {self.name!r}")
        return self

    def check_classes(self, classes: int | None) -> None:
        """Check `known_classes` against the teacher's number of classes, None without them."""
        if classes is not None:
            raise ValueError(f"classes go with task 'specialized', not with {self.name!r}")

    def metric(self, name: str | None = None) -> Metric:
        """Return the metric of that name, or the default."""
        own = own_metrics() if self.targets_are == "numbers" else ()
        known = {metric.name: metric for metric in (*self.metrics, *own)}
        if name is None:
            return self.metrics[0]
        check_choice(f"metric of {self.name}", name, known)
        return known[name]

    def check_score(self, score: Score) -> None:
        """Raise ValueError if a score reads other raw output; unnamed and own scores pass."""
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
        """The name of the score that is fitted to outcomes, or None."""
        return None if self.learner is None else self.learner.name

    def candidates(self, student: Any) -> list[str]:
        """Return the scores that compete in ``score="auto"`` for a student's raw output.

        Simplest first: the task's, the user's own, and the learned one last.
        """
        found = self.auto or self.scores(student)
        return [*found, *self.own_scores(student), *([self.learned] if self.learned else [])]

    def compared(self, student: Any) -> list[str]:
        """Return the scores that a report compares with the chosen one: one variant of each."""
        known = self.scores(student)
        found = [name for name in self.auto if name in known] or known
        found = [*found, *self.own_scores(student)]
        return list(dict.fromkeys([*(name for name in found if name != "random"), "random"]))

    def own_scores(self, student: Any) -> list[str]:
        """Return the registered scores that can score this raw output; warn about the others."""
        load_declared()
        rows = take_rows(student, np.arange(min(2, len(student))))
        names = [name for raw in (self.raw, *self.reads) for name in raw.names(own=True)]
        return [name for name in names if _can_score(name, rows)]

    def output_kind_of(self, output: Any, hard: bool = True) -> str | None:
        """Return the kind of raw output (n, k), or (n,), that is not logits; None if it may be.

        Rows of a 1 and zeros count as probabilities unless `hard` is False: toy models and the
        first rows of a tree return such logits too.
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
        """Return the goals of the operating points that ``joint.toml`` names, by name."""
        half, one = ("within-half-a-point", 0.005), ("within-one-point", 0.01)
        if not metric.percent:
            figure = abs(teacher_quality)
            half = "within-one-percent", 0.01 * figure
            one = "within-five-percent", 0.05 * figure
        return {
            "match-teacher": {"goal": "match-teacher"},
            **{name: {"goal": "match-teacher", "tolerance": value} for name, value in (half, one)},
            **({"crossing": {"goal": "crossing"}} if metric.binary else {}),
            f"best-{metric.name}": {
                "goal": "budget",
                "deferral_rate": 1.0,
            },  # the best of all thresholds
        }

    def grid_gap(self, score: Score, student: Any, targets: Any) -> str | None:
        """Say which of the examples a score's y grid does not cover; None if it covers all."""
        return None

    def count_rows(self, output: Any) -> int | None:
        """Return the number of rows of raw output; None if it is something else."""
        shape = getattr(output, "shape", None)
        return int(shape[0]) if shape else None

    def form(self, output: Any) -> tuple[int, ...]:
        """Return the form of a row of raw output, the same for two models that answer alike."""
        return tuple(output.shape[1:])

    def sound(self, name: str, output: Any) -> np.ndarray | None:
        """Return which rows, (n,), of a model's raw output are finite; None if all are.

        Raises
        ------
        ModelError
            `output` is not numbers.
        """
        rows = to_numpy(output)
        if rows.dtype.kind not in "fiu":
            raise ModelError(f"{name} returned {rows.dtype} instead of numbers")
        finite = np.isfinite(rows)
        return None if finite.all() else finite.all(axis=tuple(range(1, rows.ndim)))

    def check_output(self, role: str, output: Any) -> Any:
        """Return raw output as finite NumPy floats, or as a list of `Detections`."""
        raise NotImplementedError

    def check_first(self, role: str, output: Any) -> None:
        """Check a model's answers to the first batch, beyond their form."""

    def check_meant(self, role: str, output: Any, targets: Any) -> None:
        """Raise ValueError if targets show that raw output is another task's."""

    def count_boxes(self, found: Any, real: Any, label: int | None) -> tuple[np.ndarray, ...]:
        """Return the boxes, (n,), that each of two detectors shows, and how many match."""
        raise NotImplementedError

    def numbered(self, role: str, model: Any, inputs: Any, targets: Any, data: Any) -> Any:
        """Return a model that numbers its classes as the data do, judging by the first batch."""
        return model

    def check_targets(self, targets: Any) -> Any:
        """Return targets as NumPy, (n,), or as a list of `GroundTruth`."""
        raise NotImplementedError

    def common_classes(self, student: Any, teacher: Any) -> int | None:
        """Return how many classes both answer; None without classes; ValueError if they differ."""
        return None

    def check_names(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        """Raise ValueError unless both models name the same classes in the same order."""
        check_same_names(student, teacher)

    def check_range(self, targets: Any, classes: int | None, where: str = "") -> None:
        """Raise ValueError if a target is not one of the classes."""

    def predict(self, output: Batch) -> Batch:
        """Return the answers, (n,), of raw output."""
        raise NotImplementedError

    def judged(self, output: Batch, targets: Any) -> Any:
        """Return what a metric reads besides targets: the answers, or detectors' `Matches`."""
        return self.predict(output)

    def rescored(self, judged: Any, change: Callable[..., Any]) -> Any:
        """Return `judged` with its scores changed to the common scale."""
        return judged

    def take(self, judged: Any, rows: np.ndarray) -> Any:
        """Return some rows of `judged`."""
        return judged[rows]

    def as_targets(self, output: Batch) -> Any:
        """Return the targets that raw output stands for, if the examples have no labels."""
        return self.predict(output)

    def translate(self, student: Batch, classes: int | None = None) -> Batch:
        """Return the student's raw output in the teacher's terms, for metrics and blends.

        `classes` is the number of the teacher's classes.
        """
        return student

    def shared(self, output: Batch, change: Callable[..., Any] | None = None) -> Batch:
        """Return the part of raw output that both models have: the joint model's own output.

        A student's output is translated before. `change` puts a model's scores on the common scale,
        if there is one.
        """
        return output

    def mix(self, student: Batch, teacher: Batch, blend: float | Blend) -> Batch:
        """Return raw output of deferred rows with the student's translated answer blended in."""
        raise NotImplementedError

    def check_blend(self, blend: float | Blend) -> None:
        """Raise ValueError if a blend has temperatures but raw output no logits."""
        if isinstance(blend, Blend) and not self.takes_temperatures:
            raise ValueError(
                f"a blend of predictions must be a weight without temperatures, not {blend}"
            )

    def read_scale(self, table: Mapping[str, Any] | None) -> Any:
        """Read the common scale from a table; None without a table."""
        self.check_scale(table)
        return None if table is None or self.scale is None else self.scale.from_dict(table)

    def check_scale(self, rescale: Any) -> None:
        """Raise ValueError if a common scale is given for a task without one."""
        if rescale is not None and self.scale is None:
            raise ValueError(f"rescale is for detection, not for {self.name}")

    def weights(self, student: Any, teacher: Any, targets: Any) -> tuple[float, ...]:
        """Return weights of a blend that the examples suggest, besides `blends`."""
        return ()

    def scores(self, student: Any) -> list[str]:
        """Return the named scores that can read a student's raw output."""
        return self.raw.names(own=False)

    def collect(self, role: str, output: Any, expected: int) -> Any:
        """Return a model's answer to a batch of `expected` inputs as finite rows on the CPU."""
        rows = to_numpy(output)
        if rows.ndim == 0 or len(rows) != expected:
            raise ModelError(
                f"the {role} was given {expected} inputs and must return {expected} rows, "
                f"but returned shape {rows.shape}"
            )
        if self.sound(f"the {role}", rows) is not None:
            raise ModelError(
                f"the {role} returned NaN or infinite outputs: check its preprocessing"
            )
        return rows

    def pack(self, name: str, output: Any, half: bool) -> dict[str, np.ndarray]:
        """Return raw output as arrays of a file, by name; `half` stores half precision."""
        if not half:
            return {name: np.asarray(output)}
        if np.abs(output).max() > 65504:
            raise ValueError("raw outputs over 65504 do not fit half precision: save without half")
        packed = np.asarray(output, np.float16)
        if self.targets_are in ("labels", "label sets"):
            said = np.asarray(self.predict(output))
            changed = np.asarray(self.predict(packed)) != said
            if self.targets_are == "labels":  # rounding ties some winners with another class
                rows = np.flatnonzero(changed)
                best = packed[rows].max(axis=1)
                packed[rows, said[rows]] = np.nextafter(best, np.float16(np.inf))
                changed = np.asarray(self.predict(packed)) != said
            if count := int(changed.reshape(len(packed), -1).any(axis=1).sum()):
                raise ValueError(
                    f"in half precision {count} of {len(packed)} answers of the {name} would be "
                    "others: save without half"
                )
        return {name: packed}

    def unpack(self, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
        """Read what `pack` returned."""
        return arrays[name]

    def pack_targets(self, targets: Any) -> dict[str, np.ndarray]:
        """Return the targets as arrays of a file, in the smallest type that holds them."""
        return {"targets": targets}

    def unpack_targets(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Read what `pack_targets` returned."""
        return arrays["targets"]

    def numbers(self, rows: Any) -> list[np.ndarray]:
        """Return every number of raw output or targets, for a fingerprint."""
        return [rows]

    def equal(self, rows: Any, others: Any) -> bool:
        """Whether two raw outputs, or two sets of targets, are equal in every number."""
        one, other = self.numbers(rows), self.numbers(others)
        return len(one) == len(other) and all(map(np.array_equal, one, other))

    def plain(self, answers: Batch, labels: Sequence[str] | None) -> list[dict[str, Any]]:
        """Return answers, (n,), for JSON, with class names if known."""
        return [{"prediction": value} for value in to_numpy(answers).tolist()]

    def tensors(
        self, classes: int | None = None, labels: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the arrays that a protocol carries, by name.

        `classes` is the number of classes and `labels` their names, if known.
        """
        kind = np.int64 if self.has_labels else np.float64

        def predicted(answer: Any) -> np.ndarray:
            return to_numpy(answer.prediction).astype(kind, copy=False)

        found = {"prediction": Tensor(kind, (None,), predicted)}
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
    """Whether a registered score works on raw output that its author may not have expected."""
    try:
        as_score(name)(rows)
    except Exception as error:
        warnings.warn(
            f"score {name} does not compete: it fails on this raw output: {one_line(error)}",
            stacklevel=2,
        )
        return False
    return True


def finite_rows(what: str, array: np.ndarray) -> np.ndarray:
    """Return real, finite floats, (n, k); ValueError for others."""
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
    """Return targets as NumPy; ValueError if they are not (n,)."""
    array = to_numpy(targets)
    if array.ndim != 1:
        raise ValueError(f"targets must have shape (n,), not {array.shape}")
    return array


def refuse_missing(array: np.ndarray) -> None:
    """Raise ValueError if a target is None or NaN."""
    if array.dtype.kind == "O":
        missing, what = sum(target is None for target in array.flat), "None"
    else:
        missing, what = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0, "NaN"
    if missing:
        raise ValueError(
            f"{missing} of {len(array)} targets are {what}: remove examples without a label, "
            "or give no targets, to compare with the teacher's own answers"
        )


def same_columns(task: Task, student: np.ndarray, teacher: np.ndarray) -> int:
    """Return the number of columns of both models' raw output; ValueError if they differ."""
    one, other = student.shape[1], teacher.shape[1]
    if one != other:
        raise ValueError(
            f"student and teacher must answer the same {task.columns}, but the student has {one} "
            f"and the teacher {other}"
        )
    return int(one)

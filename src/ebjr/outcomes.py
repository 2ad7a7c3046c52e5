"""Outcomes: the models' answers to labeled examples. Models answer once.

Calibration and evaluation read this table, saved in one file, and never run a model.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ebjr.arrays import Batch, open_npz, take_rows, to_numpy
from ebjr.blend import Blend
from ebjr.costs import Cost
from ebjr.errors import counted
from ebjr.files import write_whole
from ebjr.labels import Places, as_names, label_text, some
from ebjr.metric import Metric, Whole
from ebjr.task import Task
from ebjr.tasks import as_task

if TYPE_CHECKING:
    from ebjr.tasks.detection.scale import CommonScale

FORMAT = "ebjr-outcomes-1"

_ROLES = frozenset({"student", "teacher"})


def roles_of(count: int) -> tuple[str, ...]:
    """Return the roles of `count` models, the cheapest first."""
    return ("student", *(f"model-{number}" for number in range(2, count)), "teacher")


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Both models' answers to n labeled examples.

    Parameters
    ----------
    student, teacher
        Raw outputs, finite. Classification: logits, (n, classes), of the same classes in the same
        order. Regression: predictions (n,), or (n, 1 + k) with the prediction first and then what a
        score reads; k may differ. Detection: a list of n `Detections`. A specialized student:
        (n, C + 1), the logits of its C known classes, then of "other". Multilabel: a logit per
        label, (n, labels).
    targets
        (n,): integer labels in ``[0, classes)``, the teacher's, or their names, which are looked up
        in `labels`. Regression: numbers. Multilabel: (n, labels), 1 where a label is right, else 0.
        Detection: a list of n `GroundTruth`.
    task
        One of `ebjr.tasks`: ``"classification"``, ``"regression"``, ``"detection"``,
        ``"specialized"`` or ``"multilabel"``.
    student_cost, teacher_cost
        Each model's cost per example, if known.
    labels
        The class names, if known.
    models
        Where the answers came from, for ``joint.toml``: for ``"student"`` and ``"teacher"`` a
        mapping with `path`, `sha256` and `preprocess`.
    labeled
        False if `targets` are the teacher's own answers: every accuracy is then agreement with the
        teacher.
    metric
        How answers are judged: ``"accuracy"``; regression: ``"rmse"`` (default), ``"mse"``,
        ``"mae"``, ``"r2"`` or a name given to `register_metric`; detection: ``"ap"`` (default),
        ``"ap50"`` or ``"f1"``; multilabel: ``"subset_accuracy"`` (default) or ``"micro_f1"``. To
        change it: ``dataclasses.replace(outcomes, metric="mae")``.
    rescale
        Detection: the common scale of both detectors' scores when answers are judged, usually
        fitted by `calibrate`. Scores that route read the student's raw output.
    known_classes
        A specialized student (required): the teacher's label of each class that it knows, in the
        student's order.
    columns
        Inputs from a table: the columns' names, in the models' order.
    between, between_costs
        With more than two models: the raw outputs of those between student and teacher, cheapest
        first, and their costs. `calibrate_stages` reads them.
    asked
        (n, models) bool, if the student is a joint model: which rows each of its models was asked
        about. `asked_costs` are these models' costs, and `student_cost` is then their mean.

    Raises
    ------
    ValueError
        `student`, `teacher` and `targets` differ in length, rank or classes, are empty or not
        finite; or `metric` is of another task.

    Examples
    --------
    >>> outcomes = Outcomes(student=[[2.0, 1.0], [0.2, 0.1]], teacher=[[9.0, 1.0], [1.0, 9.0]],
    ...                     targets=[0, 1], task="classification")
    >>> len(outcomes), outcomes.student_quality, outcomes.teacher_quality
    (2, array([1., 0.]), array([1., 1.]))
    """

    student: Any
    teacher: Any
    targets: Any
    task: str = "classification"
    student_cost: Cost = field(default_factory=Cost)
    teacher_cost: Cost = field(default_factory=Cost)
    labels: tuple[str, ...] | None = None
    models: Mapping[str, Any] = field(default_factory=dict)
    labeled: bool = True
    metric: str = None  # type: ignore[assignment]  # None: the task's default; a name after init
    rescale: "CommonScale | None" = None
    known_classes: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    between: tuple[Any, ...] = ()
    between_costs: tuple[Cost, ...] = ()
    asked: np.ndarray | None = None
    asked_costs: tuple[Cost, ...] = ()

    def __post_init__(self) -> None:
        kind = as_task(self.task, self.known_classes)
        student = kind.check_output("student", self.student)
        teacher = kind.check_output("teacher", self.teacher)
        targets = kind.check_targets(_numbered(self.targets, self.labels, kind))
        _check_lengths(student, teacher, targets)
        classes = kind.common_classes(student, teacher)
        vars(self).update(between=tuple(self._checked_between(kind, teacher)))
        if self.asked is not None:
            shares = self.asked.mean(axis=0).tolist()
            costs = [share * cost for share, cost in zip(shares, self.asked_costs, strict=True)]
            vars(self).update(student_cost=sum(costs[1:], costs[0]))
        kind.check_range(targets, classes)
        for role, output in (("student", student), ("teacher", teacher)):
            kind.check_meant(role, output, targets)
        kind.check_scale(self.rescale)
        if self.labels is not None and len(self.labels) != (classes or 0):
            raise ValueError(f"labels must name {classes or 0} classes, not {len(self.labels)}")
        labels = None if self.labels is None else tuple(map(label_text, self.labels))
        vars(self).update(student=student, teacher=teacher, targets=targets, labels=labels)
        vars(self).update(metric=kind.metric(self.metric).name, known_classes=kind.known_classes)
        vars(self).update(columns=None if self.columns is None else tuple(self.columns))

    def _checked_between(self, kind: Task, teacher: Any) -> Iterator[Any]:
        if len(self.between) != len(self.between_costs):
            raise ValueError(
                f"between_costs must have one cost for each of {len(self.between)} models between, "
                f"not {len(self.between_costs)}"
            )
        for role, output in zip(roles_of(2 + len(self.between))[1:-1], self.between, strict=True):
            checked = kind.check_output(role, output)
            if len(checked) != len(teacher):
                raise ValueError(
                    f"{role} answered {len(checked)} examples, but the teacher {len(teacher)}"
                )
            try:
                kind.common_classes(checked, teacher)
            except ValueError as error:
                raise ValueError(str(error).replace("the student", role)) from error
            yield checked

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def roles(self) -> tuple[str, ...]:
        """The models' names: student, those between, teacher."""
        return roles_of(2 + len(self.between))

    def said_by(self, role: str) -> Batch:
        """Return the raw output of one of `roles`."""
        return dict(zip(self.roles, (self.student, *self.between, self.teacher), strict=True))[role]

    def cost_of(self, role: str) -> Cost:
        """Return the cost per example of one of `roles`."""
        costs = (self.student_cost, *self.between_costs, self.teacher_cost)
        return dict(zip(self.roles, costs, strict=True))[role]

    def pair(self, student: str, teacher: str) -> Self:
        """Return the outcomes of two of `roles` alone."""
        if (student, teacher) == self.roles:
            return self
        models = {"student": self.models.get(student), "teacher": self.models.get(teacher)}
        return replace(
            self,
            student=self.said_by(student),
            teacher=self.said_by(teacher),
            student_cost=self.cost_of(student),
            teacher_cost=self.cost_of(teacher),
            models={role: about for role, about in models.items() if about is not None},
            between=(),
            between_costs=(),
        )

    @cached_property
    def kind(self) -> Task:
        """The task."""
        return as_task(self.task, self.known_classes)

    @property
    def classes(self) -> int | None:
        """The number of the teacher's classes if the student's differ, else None."""
        return None if self.known_classes is None else int(self.teacher.shape[1])

    @cached_property
    def largest_output(self) -> float:
        """The largest absolute number of the student's raw output."""
        return float(max(self.student.max(), -self.student.min()))

    @property
    def measure(self) -> Metric:
        """The metric: it turns row qualities into one quality, and formats it."""
        return self.kind.metric(self.metric)

    @cached_property
    def student_quality(self) -> np.ndarray:
        """Row qualities, (n,), if the student answers: 1 if right, else 0; or minus a loss.

        ``measure.quality`` turns their mean into a quality.
        """
        return self._rows(None)

    @cached_property
    def teacher_quality(self) -> np.ndarray:
        """Row qualities, (n,), if the teacher answers."""
        return self._rows(0.0)

    def deferred_quality(self, blend: float | Blend = 0.0) -> np.ndarray:
        """Return the row qualities, (n,), of deferred answers with the student blended in."""
        return self.teacher_quality if blend == 0 else self._rows(blend)

    def judged(self, blend: float | Blend | None = None) -> Any:
        """Return what the metric reads: the student's answers, or deferred answers at a blend.

        These are predictions, or for detectors `Matches` on the common scale, which are cached.
        """
        kind = self.kind
        if blend and kind.scale is None:
            return kind.judged(self.deferred(blend), self.targets)
        if blend:
            return self._once(blend, lambda: kind.judged(self.deferred(blend), self.targets))
        role = "student" if blend is None else "teacher"
        judged = self._once(role, lambda: kind.judged(self._translated(role), self.targets))
        return judged if self.rescale is None else kind.rescored(judged, self.rescale.of(role))

    def _once(self, what: Any, make: Callable[[], Any]) -> Any:
        if what not in self._found:
            self._found[what] = make()
        return self._found[what]

    @cached_property
    def _found(self) -> dict[Any, Any]:
        """The cache of slow results: by role (before rescaling), blend, and part of a whole."""
        return {}

    def kept(self) -> Batch:
        """Return the joint model's raw output of rows that the student keeps."""
        return self._shared("student")

    def deferred(self, blend: float | Blend = 0.0) -> Batch:
        """Return the joint model's raw output of deferred rows."""
        teacher = self._shared("teacher")
        return self.kind.mix(self.kept(), teacher, blend) if blend else teacher

    def predictions(self, role: str) -> Batch:
        """Return the answers, (n,), of ``"student"`` or ``"teacher"``, in the teacher's labels."""
        return self.kind.predict(self._shared(role))

    def _shared(self, role: str) -> Batch:
        change = None if self.rescale is None else self.rescale.of(role)
        return self.kind.shared(self._translated(role), change)

    def _translated(self, role: str) -> Batch:
        if role == "teacher":
            return self.teacher
        return self._once("translated", lambda: self.kind.translate(self.student, self.classes))

    def whole(self, blend: float | Blend = 0.0) -> Whole | None:
        """Return the quality as a function of the deferred rows, if it is not a mean of rows."""
        if (make := self.measure.whole) is None:
            return None
        found: Whole = self._once(
            ("whole", blend), lambda: make(self.judged(), self.judged(blend), self.targets)
        )
        return found

    def with_scale(self, rescale: "CommonScale | None") -> Self:
        """Return the outcomes with both detectors' scores on a common scale, or with None raw."""
        if rescale == self.rescale:
            return self
        whole = replace(self, rescale=rescale)
        whole._found.update({role: self._found[role] for role in self._found.keys() & _ROLES})
        return whole

    def fit_scale(self) -> "CommonScale | None":
        """Fit one scale for both detectors to these examples.

        None for other tasks, or if all or none of a detector's boxes are right: then nothing can be
        fitted and scores stay as they are.
        """
        if self.kind.scale is None:
            return None
        plain = self.with_scale(None)
        try:
            return self.kind.scale.fit(plain.judged(), plain.judged(0.0))
        except ValueError:
            return None

    def quality(self, role: str) -> float:
        """Return the quality of one of `roles` alone; higher is better.

        Examples
        --------
        >>> table = Outcomes([3.0, 3.0], [2.0, 4.0], [0.0, 4.0], task="regression")
        >>> table.quality("teacher") == -(2**0.5)
        True
        """
        if role in self.roles[1:-1]:
            return self.pair(role, "teacher").quality("student")
        return float(self.measure.quality(getattr(self, f"{role}_quality").mean()))

    def _rows(self, blend: float | Blend | None) -> np.ndarray:
        whole = self.whole(blend or 0.0)
        if whole is not None:
            student, deferred = self._once(("rows", blend or 0.0), whole.rows)
            rows = student if blend is None else deferred
        else:
            assert self.measure.rows is not None
            rows = self.measure.rows(self.judged(blend), self.targets)
        rows.flags.writeable = False  # cached and shared
        return rows

    def take(self, rows: np.ndarray) -> Self:
        """Return the outcomes of some rows, in their order."""
        rows = np.arange(len(self))[rows]
        if self.kind.scale is not None:  # match boxes with labels once, not in every part
            self.judged(), self.judged(0.0)
        some = replace(
            self,
            student=take_rows(self.student, rows),
            teacher=take_rows(self.teacher, rows),
            targets=take_rows(self.targets, rows),
            between=tuple(take_rows(output, rows) for output in self.between),
            asked=None if self.asked is None else self.asked[rows],
        )
        for role in self._found.keys() & _ROLES:
            some._found[role] = self.kind.take(self._found[role], rows)
        return some

    def split_rows(self, fraction: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of both parts of `split`, ascending."""
        first = round(len(self) * fraction) if 0 < fraction < 1 else 0
        if not 0 < first < len(self):
            raise ValueError(
                f"fraction {fraction} leaves a part of {counted(len(self), 'example')} empty: it "
                "must be above 0 and below 1, like 0.5"
            )
        if seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, not {seed}")
        order = np.random.default_rng(seed).permutation(len(self))
        return np.sort(order[:first]), np.sort(order[first:])

    def split(self, fraction: float = 0.5, seed: int = 0) -> tuple[Self, Self]:
        """Split at random into two parts: calibrate on the first, report on the second.

        Parameters
        ----------
        fraction
            The first part's share, between 0 and 1.
        seed
            The same seed gives the same parts.

        Raises
        ------
        ValueError
            `fraction` leaves a part empty, or `seed` is negative.

        Examples
        --------
        >>> table = Outcomes(np.eye(4), np.eye(4), np.arange(4))
        >>> [len(part) for part in table.split(0.5, seed=0)]
        [2, 2]
        """
        first, second = self.split_rows(fraction, seed)
        return self.take(first), self.take(second)

    @property
    def fingerprint(self) -> str:
        """A short hash of every number in the table."""
        digest = hashlib.sha256()
        for rows in (self.student, *self.between, self.teacher, self.targets):
            for array in self.kind.numbers(rows):
                digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
        if self.known_classes is not None:
            digest.update(np.array(self.known_classes, np.int64).tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write the table to an ``.npz`` file, whole or not at all.

        Parameters
        ----------
        path
            The file. It holds numbers and a JSON text, and needs no unpickling.
        half
            Store raw outputs in half precision, at half the size.

        Raises
        ------
        OSError
            `path` cannot be written.
        ValueError
            In half precision sets of labels would be others, or numbers do not fit.
        """
        arrays = self.kind.pack_targets(self.targets)
        for role in self.roles:
            arrays |= self.kind.pack(role, self.said_by(role), half)
        about = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("task", *_KEPT)},
            "student_cost": self.student_cost.as_dict(),
            "teacher_cost": self.teacher_cost.as_dict(),
            "between_costs": [cost.as_dict() for cost in self.between_costs],
            "rescale": None if self.rescale is None else self.rescale.as_dict(),
        }
        arrays["about"] = np.array(json.dumps(about, default=dict))
        with write_whole(path, "wb") as file:  # compressing floats is slow and saves a tenth
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, task: str | None = None) -> Self:
        """Read a table that `save` wrote, or an ``.npz`` of your own raw outputs.

        Your file needs the arrays `student`, `teacher` and `targets`, and may have `task`, `labels`
        and `known_classes`, all as in `Outcomes`.

        Parameters
        ----------
        path
            The file.
        task
            The task, if the file names none; None is ``"classification"``.

        Raises
        ------
        FileNotFoundError
            `path` does not exist.
        ValueError
            `path` is truncated, corrupt, not an outcomes file, or of another task.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "outcomes.npz"
        >>> Outcomes(np.eye(4), np.eye(4), np.arange(4)).save(file)
        >>> len(Outcomes.load(file))
        4
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"there is no outcomes file {path}: make it with `ebjr record`")
        try:
            with Path(path).open("rb") as file:
                if file.peek(2)[:2] not in (b"", b"PK"):
                    raise ValueError("it is not an outcomes file")
                with open_npz(file) as archive:
                    arrays = dict(archive)
            about = _about(arrays)
            own = about.get("task", task or "classification")
            if task not in (None, own):
                raise ValueError(f"its task is {own}, not {task}: remove --task (task=)")
            kind, between = as_task(own), about.get("between_costs", ())
            if (count := sum(name.startswith("model-") for name in arrays)) != len(between):
                raise ValueError(f"it has {count} models between, but costs of {len(between)}")
            said = [kind.unpack(role, arrays) for role in roles_of(2 + len(between))]
            return cls(
                student=said[0],
                teacher=said[-1],
                targets=kind.unpack_targets(arrays),
                task=own,
                student_cost=Cost(**about.get("student_cost", {})),
                teacher_cost=Cost(**about.get("teacher_cost", {})),
                between=tuple(said[1:-1]),
                between_costs=tuple(Cost(**cost) for cost in between),
                rescale=kind.read_scale(about.get("rescale")),
                **{name: about[name] for name in _KEPT if about.get(name) is not None},
            )
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"cannot read outcomes from {path}: {_reason(error)}") from error
        except Exception as error:  # a damaged archive may raise anything, like zlib.error
            raise ValueError(f"cannot read outcomes from {path}: it is damaged") from error


def _about(archive: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what a file says of its arrays; a file of your own says less."""
    if "about" in archive:
        about: dict[str, Any] = json.loads(str(archive["about"]))
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
        return about
    if missing := [name for name in ("student", "teacher", "targets") if name not in archive]:
        raise ValueError(
            "`ebjr record` did not write it, and your own raw outputs need the arrays student, "
            f"teacher and targets (optional: {', '.join(_OPTIONAL)}), but {missing[0]} is missing; "
            f"it has {some([*archive]) or 'none'}"
        )
    return {name: archive[name].tolist() for name in _OPTIONAL if name in archive}


_OPTIONAL = ("task", "labels", "known_classes")
_KEPT = ("labels", "models", "labeled", "metric", "known_classes", "columns")


def _numbered(targets: Any, labels: tuple[str, ...] | None, kind: Task) -> Any:
    names = as_names(to_numpy(targets)) if kind.has_labels else None
    if names is None or names.dtype.kind != "U":
        return targets
    return Places(labels).of(names, len(labels or ()))


def _check_lengths(student: Any, teacher: Any, targets: Any) -> None:
    if not len(student) == len(teacher) == len(targets):
        raise ValueError(
            "student, teacher and targets must have the same length, not "
            f"{len(student)}, {len(teacher)} and {len(targets)}"
        )
    if not len(targets):
        raise ValueError("there are no examples")


def _reason(error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, zipfile.BadZipFile | EOFError | OSError):
        return "the file is truncated or damaged"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    text = str(error)
    if "allow_pickle" in text:
        return "it holds Python objects, which are not loaded: save names as text with .astype(str)"
    return text

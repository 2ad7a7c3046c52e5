"""Outcomes: what student and teacher said on labeled examples. Models answer once.

Calibration and evaluation read this one table, saved to one file, and never run a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.arrays import Array, Batch, row_count, take_rows, to_numpy
from ebjr.costs import Cost
from ebjr.errors import ModelError, TeacherUnavailable
from ebjr.files import write_whole
from ebjr.metrics import Metric, as_metric
from ebjr.tasks import Task, as_task

FORMAT = "ebjr-outcomes-1"


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What both models said on n labeled examples.

    Parameters
    ----------
    student, teacher
        Raw outputs, finite. For classification logits, (n, classes), of the same classes in the
        same order. For regression (n,) predictions or (n, 1 + k), the prediction first and then
        what a score reads; k may differ between the two.
    targets
        (n,): integer labels in ``[0, classes)``; for regression numbers.
    task
        ``"classification"`` or ``"regression"``.
    student_cost, teacher_cost
        What one example costs on each, where it is known.
    labels
        The classes' names, where they are known.
    models
        Where the answers came from, for ``joint.toml``: for ``"student"`` and ``"teacher"`` a
        mapping with `path`, `sha256` and `preprocess`.
    labeled
        False where nobody labeled the examples and `targets` are the teacher's own answers: every
        accuracy is then agreement with the teacher.
    metric
        What the answers are judged by: ``"accuracy"``; for regression ``"rmse"`` (its default),
        ``"mse"``, ``"mae"``, ``"r2"`` or one that `register_metric` named. Another one:
        ``dataclasses.replace(outcomes, metric="mae")``.

    Raises
    ------
    ValueError
        Lengths, ranks or classes that do not match, no examples, labels out of range, raw outputs
        that are not finite, or a metric of another task.

    Examples
    --------
    >>> outcomes = Outcomes(student=[[2.0, 1.0], [0.2, 0.1]], teacher=[[9.0, 1.0], [1.0, 9.0]],
    ...                     targets=[0, 1], task="classification")
    >>> len(outcomes), outcomes.student_quality, outcomes.teacher_quality
    (2, array([1., 0.]), array([1., 1.]))
    """

    student: np.ndarray
    teacher: np.ndarray
    targets: np.ndarray
    task: str = "classification"
    student_cost: Cost = field(default_factory=Cost)
    teacher_cost: Cost = field(default_factory=Cost)
    labels: tuple[str, ...] | None = None
    models: Mapping[str, Any] = field(default_factory=dict)
    labeled: bool = True
    metric: str = None  # type: ignore[assignment]  # the task's own; a name from here on

    def __post_init__(self) -> None:
        kind = as_task(self.task)
        student = kind.check_output("student", self.student)
        teacher = kind.check_output("teacher", self.teacher)
        targets = kind.check_targets(self.targets)
        _check_lengths(student, teacher, targets)
        classes = kind.common_classes(student, teacher)
        kind.check_range(targets, classes)
        if self.labels is not None and len(self.labels) != (classes or 0):
            raise ValueError(
                f"{classes or 0} classes need {classes or 0} labels, not {len(self.labels)}"
            )
        changed: dict[str, Any] = {"student": student, "teacher": teacher, "targets": targets}
        changed["metric"] = as_metric(self.metric, self.task).name
        if self.labels is not None:
            changed["labels"] = tuple(self.labels)
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def kind(self) -> Task:
        """What the task decides."""
        return as_task(self.task)

    @property
    def measure(self) -> Metric:
        """The metric: how row qualities become a quality, and how it is shown."""
        return as_metric(self.metric, self.task)

    @cached_property
    def student_quality(self) -> np.ndarray:
        """(n,): each row's quality if the student answers: 1 where right, else 0; or minus a loss.

        A mean of rows becomes a quality by ``measure.quality``.
        """
        return self._rows(self.student)

    @cached_property
    def teacher_quality(self) -> np.ndarray:
        """(n,): each row's quality if the teacher answers."""
        return self._rows(self.teacher)

    def deferred_quality(self, blend: float = 0.0) -> np.ndarray:
        """(n,): the quality of the answer of a deferred row, with the student blended in."""
        if blend == 0:
            return self.teacher_quality
        return self._rows(self.kind.mix(self.student, self.teacher, blend))

    def quality(self, role: str) -> float:
        """The quality of ``"student"`` or ``"teacher"`` alone, as of a curve: higher is better.

        Examples
        --------
        >>> table = Outcomes([3.0, 3.0], [2.0, 4.0], [0.0, 4.0], task="regression")
        >>> table.quality("teacher") == -(2**0.5)
        True
        """
        return float(self.measure.quality(getattr(self, f"{role}_quality").mean()))

    def _rows(self, output: np.ndarray) -> np.ndarray:
        rows = self.measure.rows(self.kind.predict(output), self.targets)
        rows.flags.writeable = False  # kept and handed out again
        return rows

    def take(self, rows: np.ndarray) -> Outcomes:
        """The outcomes of some rows, in their order."""
        return replace(
            self,
            student=self.student[rows],
            teacher=self.teacher[rows],
            targets=self.targets[rows],
        )

    def split_rows(self, fraction: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The rows of both parts of `split`, ascending."""
        first = round(len(self) * fraction) if 0 < fraction < 1 else 0
        if not 0 < first < len(self):
            raise ValueError(
                f"a fraction of {fraction} does not cut {len(self)} examples into two parts"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        return np.sort(order[:first]), np.sort(order[first:])

    def split(self, fraction: float = 0.5, seed: int = 0) -> tuple[Outcomes, Outcomes]:
        """Cut at random into two: calibrate on the first, report on the second.

        Parameters
        ----------
        fraction
            The first part's share, between 0 and 1.
        seed
            Same seed, same parts.

        Raises
        ------
        ValueError
            One of the parts would be empty.

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
        """A short hash of every number in the table: the same data, the same fingerprint."""
        digest = hashlib.sha256()
        for array in (self.student, self.teacher, self.targets):
            digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write the table to one ``.npz`` file, whole or not at all.

        Parameters
        ----------
        path
            The file; numbers and one JSON text, nothing that needs unpickling.
        half
            Keep the raw outputs in half precision, at half the size.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        precision = np.float16 if half else None
        if half and max(np.abs(self.student).max(), np.abs(self.teacher).max()) > 65504:
            raise ValueError("the raw outputs exceed 65504 and do not fit half precision")
        about = {
            "format": FORMAT,
            "task": self.task,
            "student_cost": self.student_cost.as_dict(),
            "teacher_cost": self.teacher_cost.as_dict(),
            "labels": self.labels,
            "models": dict(self.models),
            "labeled": self.labeled,
            "metric": self.metric,
        }
        with write_whole(path, "wb") as file:
            np.savez_compressed(
                file,
                student=np.asarray(self.student, precision),
                teacher=np.asarray(self.teacher, precision),
                targets=self.kind.pack(self.targets),
                about=np.array(json.dumps(about)),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Outcomes:
        """Read a table that `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is truncated, corrupt, or something else than outcomes.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "outcomes.npz"
        >>> Outcomes(np.eye(4), np.eye(4), np.arange(4)).save(file)
        >>> len(Outcomes.load(file))
        4
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"there is no outcomes file {path}; `ebjr record` makes one")
        try:
            with Path(path).open("rb") as file:
                start = file.read(2)
            if start not in (b"", b"PK"):
                raise ValueError("it is not an outcomes file")
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if "about" not in archive:
                    raise ValueError("it is not one that `ebjr record` wrote")
                about = json.loads(str(archive["about"]))
                if about.get("format") != FORMAT:
                    raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
                arrays = {name: archive[name] for name in ("student", "teacher", "targets")}
            return cls(
                **arrays,
                task=about["task"],
                student_cost=Cost(**about["student_cost"]),
                teacher_cost=Cost(**about["teacher_cost"]),
                labels=None if about["labels"] is None else tuple(about["labels"]),
                models=about["models"],
                labeled=about.get("labeled", True),
                metric=about.get("metric"),
            )
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"cannot read outcomes from {path}: {_reason(error)}") from error
        except Exception as error:  # zlib.error and what else a damaged archive may raise
            raise ValueError(f"cannot read outcomes from {path}: it is damaged") from error


def record(
    student: Callable[[Batch], Array],
    teacher: Callable[[Batch], Array],
    inputs: Batch,
    targets: Any = None,
    *,
    task: str = "classification",
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    **about: Any,
) -> Outcomes:
    """Run both models once on labeled examples and keep what they said.

    Parameters
    ----------
    student, teacher
        Models: a batch in, raw output out.
    inputs
        Array (n, ...) or a list of n inputs; both models are given the same.
    targets
        (n,) integer labels, or numbers; None where nobody knows: the teacher's own answers are
        then the targets, and every accuracy is agreement with it.
    task
        ``"classification"`` or ``"regression"``.
    batch_size
        How many inputs a model gets at once.
    progress
        Called with the number of examples that a batch has added.
    **about
        `student_cost`, `teacher_cost`, `labels`, `models`, `metric` of `Outcomes`. The seconds per
        example are measured here and join the costs unless given.

    Returns
    -------
    Outcomes
        With raw outputs on the CPU.

    Raises
    ------
    ValueError
        Inputs and targets of different lengths, none at all, targets that are no labels (as soon
        as the first batch has told how many classes there are), or outputs that do not fit the
        task.
    ModelError
        A model did not return one row for each input, or not the same classes in each batch, or
        returned NaN or infinity.

    Examples
    --------
    >>> x = np.eye(3)
    >>> record(lambda b: b, lambda b: 2 * b, x, [0, 1, 2], batch_size=2).teacher[0]
    array([2., 0., 0.])
    """
    n, kind = row_count(inputs), as_task(task)
    labels = None if targets is None else kind.check_targets(targets)
    if labels is not None and n != len(labels):
        raise ValueError(f"there are {n} inputs but {len(labels)} targets")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")

    def batches() -> Iterator[tuple[Batch, np.ndarray | None]]:
        for start in range(0, n, batch_size):
            rows = np.arange(start, min(start + batch_size, n))
            yield take_rows(inputs, rows), None if labels is None else labels[rows]

    def check_all(classes: int | None) -> None:
        if labels is not None:
            kind.check_range(labels, classes)

    return _record(student, teacher, batches(), task, progress, about, check_all)


def record_batches(
    student: Callable[[Batch], Array],
    teacher: Callable[[Batch], Array],
    batches: Iterable[tuple[Batch, Any]],
    *,
    task: str = "classification",
    progress: Callable[[int], None] | None = None,
    **about: Any,
) -> Outcomes:
    """`record` for inputs that arrive in batches of ``(inputs, targets)``, never all in memory.

    Examples
    --------
    >>> stream = ((np.eye(2), [0, 1]) for _ in range(3))
    >>> len(record_batches(lambda b: b, lambda b: b, stream))
    6
    """
    return _record(student, teacher, batches, task, progress, about)


def _record(
    student: Callable[[Batch], Array],
    teacher: Callable[[Batch], Array],
    batches: Iterable[tuple[Batch, Any]],
    task: str,
    progress: Callable[[int], None] | None,
    about: dict[str, Any],
    check_all: Callable[[int | None], None] | None = None,
) -> Outcomes:
    """Run both models on each batch; `check_all` is told the number of classes after the first."""
    kind = as_task(task)
    outputs: dict[str, list[np.ndarray]] = {"student": [], "teacher": []}
    seconds = {"student": 0.0, "teacher": 0.0}
    targets: list[np.ndarray] = []
    classes: int | None = None
    labeled = True
    for number, (inputs, given) in enumerate(batches, start=1):
        if number > 1 and labeled is (given is None):
            raise ValueError(
                f"some batches have labels and batch {number} is not alike: label all or none"
            )
        labeled = given is not None
        labels = (
            _batch_targets(kind, given, row_count(inputs), classes, number) if labeled else None
        )
        for role, model in (("student", student), ("teacher", teacher)):
            began = time.perf_counter()
            rows = to_numpy(_raw_output(role, model(inputs)))
            seconds[role] += time.perf_counter() - began
            _check_rows(role, rows, row_count(inputs))
            outputs[role].append(rows)
            _check_alike(kind, role, outputs[role][0], rows, number)
        if number == 1:
            student_rows, teacher_rows = (
                kind.check_output(role, rows[0]) for role, rows in outputs.items()
            )
            classes = kind.common_classes(student_rows, teacher_rows)
            if check_all is not None:
                check_all(classes)
            if labels is not None:
                kind.check_range(labels, classes, f" in batch {number}")
        targets.append(kind.predict(outputs["teacher"][-1]) if labels is None else labels)
        if progress is not None:
            progress(row_count(inputs))
    if not targets:
        raise ValueError("there are no examples to record")
    more = {**about, **_with_seconds(about, seconds, sum(map(len, targets))), "labeled": labeled}
    student_rows, teacher_rows = (np.concatenate(outputs[role]) for role in outputs)
    return Outcomes(student_rows, teacher_rows, np.concatenate(targets), task, **more)


def _with_seconds(about: dict[str, Any], seconds: dict[str, float], n: int) -> dict[str, Cost]:
    """The costs that were given, with the measured seconds where they have none."""
    costs = {}
    for role, spent in seconds.items():
        known = about.get(f"{role}_cost", Cost())
        given = known.seconds is not None
        costs[f"{role}_cost"] = known if given else replace(known, seconds=spent / n)
    return costs


def _batch_targets(
    kind: Task, given: Any, rows: int, classes: int | None, number: int
) -> np.ndarray:
    """The targets of a batch, checked before a model runs on it as far as they can be."""
    labels = kind.check_targets(given)
    if len(labels) != rows:
        raise ValueError(f"a batch has {rows} inputs but {len(labels)} targets")
    if classes is not None:
        kind.check_range(labels, classes, f" in batch {number}")
    return labels


def _check_alike(kind: Task, role: str, first: np.ndarray, rows: np.ndarray, number: int) -> None:
    """A model must answer the same classes in each batch."""

    def said(array: np.ndarray) -> str:
        return f"{array.shape[1]} {kind.columns}" if array.ndim == 2 else f"shape {array.shape}"

    if first.shape[1:] != rows.shape[1:]:
        raise ModelError(
            f"the {role} must answer the same {kind.columns} in every batch, but returned "
            f"{said(first)} in batch 1 and {said(rows)} in batch {number}"
        )


def _raw_output(role: str, answer: Any) -> Array:
    """A model's answer as raw output; a joint model's answer carries it, and must be whole."""
    degraded = getattr(answer, "degraded", None)
    if degraded is not None and to_numpy(degraded).any():
        raise TeacherUnavailable(
            f"the {role} is a joint model whose own teacher could not be reached; record again "
            "when it can"
        )
    return getattr(answer, "output", answer)


def _check_rows(role: str, rows: np.ndarray, expected: int) -> None:
    """A model's answer must have a row for each input, and numbers in it."""
    if rows.ndim == 0 or len(rows) != expected:
        raise ModelError(
            f"the {role} was given {expected} inputs and must return {expected} rows, "
            f"but returned shape {rows.shape}"
        )
    if rows.dtype.kind not in "fiub":
        raise ModelError(f"the {role} returned {rows.dtype} instead of numbers")
    if not np.isfinite(rows).all():
        raise ModelError(f"the {role} returned NaN or infinite outputs; check its preprocessing")


def _check_lengths(student: np.ndarray, teacher: np.ndarray, targets: np.ndarray) -> None:
    if not len(student) == len(teacher) == len(targets):
        raise ValueError(
            "student, teacher and targets must have the same length, not "
            f"{len(student)}, {len(teacher)} and {len(targets)}"
        )
    if not len(targets):
        raise ValueError("there are no examples")


def _reason(error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile | EOFError | OSError):
        return "the file is truncated or damaged"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    text = str(error)
    return "it is not an outcomes file" if "allow_pickle" in text else text

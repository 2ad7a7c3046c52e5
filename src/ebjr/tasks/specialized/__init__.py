"""Specialized students: they know the popular classes, and "other" for the rest (section 2.4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.arrays import Array
from ebjr.blend import Blend, blend_logits
from ebjr.errors import ModelError
from ebjr.joint import JointModel
from ebjr.labels import check_same_names
from ebjr.model import Model
from ebjr.router import Router
from ebjr.scores import LOGITS
from ebjr.task import Task
from ebjr.tasks.classification import Classification
from ebjr.tasks.specialized.known_classes import check_known_classes, refine, to_teacher
from ebjr.tasks.specialized.scores import LOGITS_AND_OTHER


class Specialized(Classification):
    """A student of some classes and "other", (n, C + 1), with a teacher of all (section 2.4)."""

    name = "specialized"
    raw = LOGITS_AND_OTHER
    reads = (LOGITS,)
    auto = ()

    def __init__(self, known_classes: tuple[int, ...] | None = None) -> None:
        self.known_classes = known_classes

    def knowing(self, known_classes: Any) -> Task:
        return self if known_classes is None else Specialized(check_known_classes(known_classes))

    @property
    def _known(self) -> tuple[int, ...]:
        if self.known_classes is None:
            raise ValueError(
                "task 'specialized' needs known_classes (--known-classes): the teacher's label of "
                "each class that the student knows, in the student's order"
            )
        return self.known_classes

    def check_classes(self, classes: int | None) -> None:
        if not isinstance(classes, int):
            raise ValueError("task 'specialized' needs known_classes, and classes, their total")
        check_known_classes(self._known, classes)

    def common_classes(self, student: np.ndarray, teacher: np.ndarray) -> int:
        known, classes = self._known, int(teacher.shape[1])
        check_known_classes(known, classes)
        self.check_width(student, ValueError)
        return classes

    def check_names(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        """Check the known classes' names against the teacher's; "other" may have any name."""
        if len(student) == len(self._known) + 1 and max(self._known) < len(teacher):
            check_same_names(student[:-1], [teacher[label] for label in self._known])

    def check_width(self, student: Array, error: type[Exception]) -> Array:
        """Return the student's raw output; raise `error` unless it is (n, C + 1)."""
        known = len(self._known)
        if student.ndim != 2 or student.shape[1] != known + 1:
            raise error(
                f"a student of {known} known classes must return (n, {known + 1}) with 'other' in "
                f"the last column, not {tuple(student.shape)}"
            )
        return student

    def translate(self, student: Array, classes: int | None = None) -> Array:
        assert classes is not None
        return to_teacher(self.check_width(student, ModelError), self._known, classes)

    def mix(self, student: Array, teacher: Array, blend: float | Blend) -> Array:
        if blend == 0:
            return teacher
        return blend_logits(refine(student, teacher, self._known), teacher, blend)

    def scores(self, student: np.ndarray) -> list[str]:
        """Return the scores for specialized students, which may mark "other", and plain ones."""
        few = student.shape[1] < 3
        own = ("known_softmax", "specialized_energy") if few else super().scores(student)
        return [*own, "softmax", "margin", "entropy", "energy"]  # "other" counts as a class


TASK = Specialized()


class SpecializedJointClassifier(JointModel):
    """A student of the popular classes and a teacher of all classes as one (eq. 18).

    It answers in the teacher's labels. The score decides what happens if the student answers
    "other": `specialized_energy` and its variants defer such rows at every threshold (eq. 16).

    Parameters
    ----------
    student
        A model whose raw output is (n, C + 1): logits of the known classes, then of "other".
    teacher
        A model whose raw output is logits of all classes, (n, classes).
    router
        As in `JointClassifier`.
    known_classes
        The teacher's label of each class that the student knows, in the student's order.
    classes
        The number of the teacher's classes.
    **policy
        ``blend``, ``when_unavailable`` and ``late``, as in `JointClassifier`. In a blend the
        student's "other" is spread over the classes that it does not know in the teacher's
        proportions.

    Raises
    ------
    ValueError
        `known_classes` are not labels of the teacher.

    Examples
    --------
    >>> import numpy as np
    >>> student = lambda x: np.stack([x, 0 * x], axis=1)  # class 7, or other
    >>> teacher = lambda x: np.tile(np.eye(10)[4], (len(x), 1))
    >>> router = Router("specialized_energy", threshold=2.0)
    >>> joint = SpecializedJointClassifier(student, teacher, router, known_classes=[7], classes=10)
    >>> answer = joint(np.array([3.0, 1.0, -1.0]))
    >>> answer.prediction, answer.score
    (array([7, 4, 4]), array([  3.,   1., -inf]))
    """

    kind: Task = TASK

    def __init__(
        self,
        student: Model,
        teacher: Model,
        router: Router,
        *,
        known_classes: Any,
        classes: int,
        **policy: Any,
    ) -> None:
        self.kind: Task = TASK.knowing(known_classes)
        self.kind.check_classes(classes)
        self.classes = int(classes)
        super().__init__(student, teacher, router, **policy)


Specialized.final = SpecializedJointClassifier

"""The joint loop (eq. 7): the student answers every input, the teacher only deferred ones.

It names no task: finals such as `JointClassifier` are in their tasks' folders.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ebjr.arrays import Array, Batch, convert_like, put_rows, row_count, take_rows, to_numpy
from ebjr.blend import Blend, as_blend, blend_text
from ebjr.errors import (
    EbjrError,
    ModelError,
    OutputWarning,
    TeacherUnavailable,
    check_choice,
    one_line,
)
from ebjr.model import Answer, Model, TeacherFailed, answer, check_pair, facts, model_name, trunk_of
from ebjr.router import Router
from ebjr.task import OUTPUT_SEEN, Task
from ebjr.threads import in_order

POLICIES = ("student", "error", "queue")  # for a teacher that cannot be reached


@dataclass(frozen=True, eq=False)
class JointAnswer:
    """A joint model's answer to n inputs.

    Attributes
    ----------
    prediction
        (n,) labels for classification, numbers for regression; (n, labels) bool for multilabel;
        a list of n `Detections` for detection.
    output
        Classification: (n, classes), raw output of the model that answered the row, or
        log-probabilities with a blend; its softmax is the answer's distribution either way.
        Multilabel: a logit per label. Regression: (n, 1), the predictions. Detection: the list.
    score
        (n,): the student's score of each row.
    deferred
        (n,) bool: the teacher was asked.
    degraded
        (n,) bool: the row should have been deferred, but the teacher could not be reached, so the
        student answered. Rows that an inner joint model marks are marked too.
    late
        The id under which the teacher's answers to degraded rows will appear, if they are kept for
        later (`ebjr.link.late`); else None.
    stage
        (n,) int: the model that answered, from 0, the first student, to the last teacher; with a
        blend, the later one.
    spent
        (n, 3): tokens in, tokens out and dollars per row, summed over the models that were asked;
        None if no model reports them.
    away
        Whether the teacher was asked and nothing came back.

    Examples
    --------
    >>> from ebjr import JointClassifier
    >>> student, teacher = lambda x: np.stack([x, -x], axis=1), lambda x: np.stack([-x, x], axis=1)
    >>> joint = JointClassifier(student, teacher, Router("max_logit", threshold=2.0))
    >>> answer = joint(np.array([3.0, 1.0]))
    >>> answer.prediction, answer.score, answer.deferred
    (array([0, 1]), array([3., 1.]), array([False,  True]))
    """

    prediction: Batch
    output: Batch
    score: Array
    deferred: Array
    degraded: Array
    late: str | None = None
    stage: Array = None  # None: 1 where deferred, else 0
    spent: Array = None
    away: bool = False

    def __post_init__(self) -> None:
        if self.stage is None:
            object.__setattr__(self, "stage", to_numpy(self.deferred).astype(np.int64))


@dataclass(frozen=True, eq=False)
class LateRows:
    """Rows (k,) of the answer `id` that wait for the teacher: their inputs and outputs."""

    id: str
    rows: np.ndarray
    inputs: Batch
    output: Batch


def check_policy(when_unavailable: str) -> str:
    """Return a policy for an unreachable teacher; ValueError if it is not in `POLICIES`."""
    check_choice("when_unavailable", when_unavailable, POLICIES)
    return when_unavailable


class JointModel:
    """Student, router and teacher as one model (eq. 7). Each task's folder has its final.

    The teacher runs only on the deferred rows, gathered into one dense batch and scattered back; if
    no row is deferred, it is not called. Both models get the same inputs and may prepare them in
    their own way; a teacher that continues from the student's features gets these. For more stages,
    use a joint model as the student of another: the outer score reads the inner answer.
    """

    kind: Task
    classes: int | None = None  # the teacher's, if the student's differ
    dollars: tuple[float | None, float | None] = None, None  # per row, if a model reports none
    features = ()  # no model continues from a joint model

    def __init__(
        self,
        student: Model,
        teacher: Model,
        router: Router,
        *,
        blend: float | Blend | None = None,
        rescale: Any = None,
        when_unavailable: str = "student",
        late: Any = None,
    ) -> None:
        if not isinstance(router, Router):
            raise TypeError(f"router must be an ebjr.Router, not {type(router).__name__}")
        for role, model in (("student", student), ("teacher", teacher)):
            if not callable(model):
                raise TypeError(
                    f"the {role} must be a callable, batch in and raw output out, "
                    f"not {type(model).__name__}: load a file with ebjr.load_model"
                )
        self.student = student
        self.teacher = teacher
        self._looked_at = False
        self._warned: set[tuple[type, str]] = set()  # causes and kinds of failures
        self.router = router
        chosen = router.chosen_with  # without these a point's figures and promise are void
        self.blend = as_blend(chosen.get("blend", 0.0) if blend is None else blend)
        self.rescale = chosen.get("rescale") if rescale is None else rescale
        if not hasattr(self, "kind"):
            raise NotImplementedError("use a task's final, such as JointClassifier")
        check_pair(student, teacher, self.kind)
        self._taught = facts(teacher)
        self._may_be_silent = any(facts(one).url is not None for one in models_of(student))
        self._before = len(models_of(student))  # stages before the teacher
        if self._before + 1 < (models := chosen.get("models", 0)):
            raise ValueError(
                f"the router was chosen for a chain of {models} models, and its score reads the "
                f"answer of the first {models - 1}: make the chain with point.joint(models)"
            )
        self.kind.check_score(router.score)
        self.kind.check_scale(self.rescale)
        self.kind.check_blend(self.blend)
        self.when_unavailable = check_policy(when_unavailable)
        if (late is None) == (when_unavailable == "queue"):
            raise ValueError(
                "when_unavailable='queue' and late go together: give "
                "late=ebjr.LateAnswers('late.sqlite'), which keeps the rows"
            )
        if late is not None and self._taught.continues:
            raise ValueError(
                "rows for a teacher that continues from features cannot wait: remove late"
            )
        self.late = late

    def __call__(self, inputs: Batch) -> JointAnswer:
        """Answer a batch: array (n, ...) or a list of n inputs.

        Raises
        ------
        ModelError
            The student did not return one row per input.
        TeacherUnavailable
            The teacher gave no valid answer, and the policy is ``"error"`` or the student gave none
            either. Under other policies an `OutputWarning` reports a teacher that was reached but
            failed.
        """
        found = self.unchecked(inputs)
        if (lost := self.unanswered(found)) is not None:
            raise TeacherUnavailable(
                f"{np.count_nonzero(lost)} of {len(lost)} rows have no answer from "
                f"{model_name(self.student)} or {model_name(self.teacher)}"
            )
        return found

    def unanswered(self, found: JointAnswer) -> np.ndarray | None:
        """Return the rows, (n,) bool, that an `unchecked` answer leaves open; None if none."""
        # a local student's rows of NaN are deferred, so that only degraded ones can be left
        looked = self._may_be_silent or bool(found.degraded.any())
        return silent_rows(found.output) if looked else None

    def unchecked(self, inputs: Batch) -> JointAnswer:
        """Like a call, but rows that no model answered are NaN, for a later teacher to answer."""
        n = row_count(inputs)
        found = self.ask_student(inputs)
        score, deferred = self.router(found.output)
        output, late = self.of_student(found.output), None
        stage = found.stages(n)
        # a deferred row is the teacher's, and so is its mark
        marked = found.degraded
        own_marks = False if marked is None else convert_like(marked, deferred)
        degraded, spent = ~deferred & own_marks, found.spent
        away, asked_rows = False, to_numpy(deferred).nonzero()[0]
        if len(rows := asked_rows):
            # if every row is deferred, nothing is gathered or scattered
            everything = len(rows) == n
            asked = self.for_teacher(inputs, found)
            hard = asked if everything else take_rows(asked, rows)
            own = output if everything else take_rows(output, rows)
            taught, missed = self.defer(hard, own)
            away = taught is None or taught.away
            if len(missed):
                late = self._keep(rows[missed], take_rows(hard, missed), take_rows(own, missed))
                yes = np.ones(len(missed), bool)
                degraded = put_rows(degraded, rows[missed], yes)
                deferred = put_rows(deferred, rows[missed], ~yes)
                rows = np.delete(rows, missed)
            if taught is not None:
                output = taught.output if len(rows) == n else put_rows(output, rows, taught.output)
                if taught.degraded is not None:
                    degraded = put_rows(degraded, rows, taught.degraded)
                stage = put_rows(stage, rows, self.stage_of(taught, len(rows)))
                spent = with_spent(spent, asked_rows, taught.spent, n)
        said = self.predict(output), output, score, deferred, degraded
        return JointAnswer(*said, late, stage, spent, away)

    def stream(self, batches: Iterable[Batch], *, overlap: int = 2) -> Iterator[JointAnswer]:
        """Answer batches in order, with several in flight.

        While the teacher answers one batch's deferred rows, the student answers the next batch: two
        models on one thread each use the processor better than one model on two threads, and the
        round trip to a remote teacher is hidden.

        A batch is taken from `batches` when there is room for it. `overlap` batches are in flight,
        each in its own thread, so both models are called from that many threads; EBJR's own
        backends are safe for that. A batch's error is raised at its turn.

        Raises
        ------
        ValueError
            `overlap` is not positive.

        Examples
        --------
        >>> import numpy as np
        >>> from ebjr import JointClassifier
        >>> double = lambda x: np.stack([x, -x], axis=1)
        >>> joint = JointClassifier(double, double, Router("max_logit", threshold=2.0))
        >>> [answer.deferred.tolist() for answer in joint.stream([np.ones(2), np.array([3.0])])]
        [[True, True], [False]]
        """
        if overlap < 1:
            raise ValueError(f"overlap must be at least 1, but is {overlap}")
        if overlap == 1:
            return map(self, batches)
        # one batch is read ahead, so that no worker waits for data
        return in_order(self, batches, workers=overlap, ahead=overlap + 1, name="ebjr-joint")

    def defer(self, inputs: Batch, output: Batch) -> tuple[Answer | None, np.ndarray]:
        """Ask the teacher, and apply the policy if it cannot be reached.

        Returns the answer, or None, and the places of the inputs that keep the student's answer.
        Raises what `ask_teacher` raises; `TeacherUnavailable` only if the policy is ``"error"``.
        """
        try:
            taught = self.ask_teacher(inputs, output)
        except TeacherUnavailable as error:
            if self.when_unavailable == "error":
                raise
            if isinstance(error, TeacherFailed):
                self._warn(type(error.__cause__), f"the student answers instead: {error}")
            every = np.arange(row_count(inputs))
            if error.spent is None:
                return None, every
            none = take_rows(output, every[:0])
            unheard = np.zeros(len(every), bool)
            return Answer(none, answered=unheard, spent=error.spent, away=True), every
        if taught.answered is None:
            return taught, np.arange(0)
        missed = np.flatnonzero(~to_numpy(taught.answered))
        if len(missed) and self.when_unavailable == "error":
            raise TeacherUnavailable(
                f"{model_name(self.teacher)} answered {row_count(inputs) - len(missed)} of "
                f"{row_count(inputs)} inputs" + (f": {taught.why}" if taught.why else "")
            )
        if taught.why:
            self._warn(type(None), f"the student answers instead: {taught.why}")
        return taught, missed

    def _warn(self, cause: type, what: str) -> None:
        """Warn of a failed model, once per kind of failure: it may be a mistake in the model."""
        kind = cause, what.partition(":")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(what, OutputWarning, stacklevel=5)

    def _keep(self, rows: np.ndarray, inputs: Batch, output: Batch) -> str | None:
        """Keep rows for later if the policy says so, and return their id."""
        if self.late is None:
            return None
        entry = LateRows(self.late.new_id(), rows, inputs, output)
        return entry.id if self.late.keep([entry], self.kind) else None

    def ask_student(self, inputs: Batch) -> Answer:
        """Return the student's raw output, for the router, with the rows it marks as degraded.

        Rows that a remote student did not answer are NaN, so that they are deferred.
        """
        rows, student = row_count(inputs), self.student
        student = student.unchecked if isinstance(student, JointModel) else student
        try:
            found = answer(student, inputs, rows, self.kind, self.dollars[0])
        except TeacherUnavailable as error:
            if not self._may_be_silent or not (labels := facts(self.student).labels):
                raise
            none = np.zeros((0, len(labels)))
            unheard = np.zeros(rows, bool)
            found = Answer(none, answered=unheard, why=str(error), spent=error.spent)
        if found.answered is not None:
            self._warn(type(None), f"the teacher answers instead: {found.why}")
            found = _with_silence(found)
        if self._taught.continues:
            trunk_of(found, row_count(inputs), model_name(self.student), self._taught)
        if not self._looked_at and row_count(inputs):
            self._looked_at = True
            self._look_at(found.output)
        return found

    def _look_at(self, output: Batch) -> None:
        several = len(self.kind.form(output)) == 1 and self.kind.form(output)[0] > 1
        seen = self.kind.output_kind_of(output, hard=False) if several else None
        if seen is not None and facts(self.student).probabilities is not False:
            warnings.warn(
                f"{OUTPUT_SEEN[seen].format('student')}: load it with "
                f"output_kind={seen!r}, or 'logits' if they are logits",
                OutputWarning,
                stacklevel=5,
            )

    def for_teacher(self, inputs: Batch, found: Answer) -> Batch:
        """Return the teacher's batch: the inputs, or the features of the student's answer."""
        return found.features if self._taught.continues else inputs

    def stage_of(self, taught: Answer, rows: int) -> np.ndarray:
        """Return the stage, (rows,), of each of the teacher's answers."""
        return taught.stages(rows) + self._before

    def of_student(self, raw: Batch) -> Batch:
        """Return the joint model's output for rows that the student answers."""
        kind = self.kind
        return kind.shared(
            kind.translate(raw, self.classes),
            None if self.rescale is None else self.rescale.student,
        )

    def ask_teacher(self, inputs: Batch, output: Batch) -> Answer:
        """Return the answer to deferred inputs, one dense batch, with the rows it marks.

        `output` is `of_student` of the same inputs, which is blended in.

        Raises
        ------
        TeacherUnavailable
            The teacher could not be reached; as `TeacherFailed`, it gave no valid answer.
        """
        found = self.ask_teacher_alone(inputs, output)
        if not self.blend:
            return found
        if found.answered is not None:
            output = take_rows(output, np.flatnonzero(to_numpy(found.answered)))
        return replace(found, output=self.mix(output, found.output))

    def ask_teacher_alone(self, inputs: Batch, output: Batch) -> Answer:
        """`ask_teacher` without the blend: every answer of a teacher passes this check.

        Numbers in the student's form pass; rows that are not finite count as not answered.
        """
        name = model_name(self.teacher)
        try:
            found = answer(self.teacher, inputs, row_count(inputs), self.kind, self.dollars[1])
            sound = self.kind.sound(name, found.output)
            taught = self.of_teacher(found.output, output)
            taught = replace(found, output=taught)
        except TeacherUnavailable:
            raise
        except Exception as error:  # a teacher may raise anything, and the student has an answer
            words = f"{name} failed with {type(error).__name__}: {one_line(error)}"
            raise TeacherFailed(str(error) if isinstance(error, EbjrError) else words) from error
        return taught if sound is None else _sound_rows(taught, sound, name)

    def of_teacher(self, raw: Batch, output: Batch) -> Batch:
        """Return the joint model's output for rows that the teacher answers, like the student's."""
        kind = self.kind
        change = None if self.rescale is None else self.rescale.teacher
        # to the student's library and device: models may differ in both
        taught = kind.shared(convert_like(raw, output), change)
        if kind.form(taught) != kind.form(output):
            raise ModelError(
                f"student and teacher must answer alike, but {model_name(self.student)} returned "
                f"rows of {kind.form(output)} and {model_name(self.teacher)} of {kind.form(taught)}"
            )
        return taught

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.kind.name

    @property
    def known_classes(self) -> tuple[int, ...] | None:
        """The teacher's labels that a specialized student knows; None if it knows all."""
        return self.kind.known_classes

    def predict(self, output: Batch) -> Batch:
        """Return the answers, (n,), of raw output."""
        return self.kind.predict(output)

    def mix(self, student: Batch, teacher: Batch) -> Batch:
        """Return the raw output of deferred rows with the student's answer blended in."""
        return self.kind.mix(student, teacher, self.blend)


def _sound_rows(found: Answer, sound: np.ndarray, name: str) -> Answer:
    """Remove rows that are not finite from an answer; raise `TeacherFailed` if none is left."""
    rows, count = np.flatnonzero(sound), len(sound)
    why = f"{name} returned NaN or infinity in {count - len(rows)} of {count} rows"
    if not len(rows):
        failed = TeacherFailed(why)
        failed.spent = found.spent
        raise failed
    answered = np.ones(count, bool) if found.answered is None else to_numpy(found.answered).copy()
    # `sound` is about the answered rows only
    answered[np.flatnonzero(answered)[~sound]] = False
    marks: dict[str, Any] = {
        name: None if (own := getattr(found, name)) is None else take_rows(own, rows)
        for name in ("degraded", "stage")
    }
    marks["spent"] = found.spent
    return Answer(take_rows(found.output, rows), answered=answered, why=why, **marks)


def silent_rows(output: Batch) -> np.ndarray | None:
    """Return the rows, (n,) bool, whose raw output is NaN because no model answered; None if none.

    Minus infinity is an answer: it makes a class impossible.
    """
    if isinstance(output, list | tuple):
        return None
    nan = np.isnan(to_numpy(output))
    return nan.reshape(len(nan), -1).any(axis=1) if nan.any() else None


def _with_silence(found: Answer) -> Answer:
    """Fill in a row of NaN for each input that was not answered."""
    rows = np.flatnonzero(to_numpy(found.answered))
    marks: dict[str, Any] = {"degraded": found.degraded, "stage": found.stage}
    for name, own in marks.items():
        if own is not None:
            marks[name] = put_rows(np.zeros(len(found.answered), to_numpy(own).dtype), rows, own)
    form = (len(found.answered), *found.output.shape[1:])
    output = put_rows(np.full(form, np.nan), rows, found.output)
    return Answer(output, features=found.features, spent=found.spent, **marks)


def with_spent(before: Any, rows: np.ndarray | slice, more: Any, n: int) -> Any:
    """Add what was spent on some rows to (n, 3) of all; None means that nothing is known."""
    if more is None:
        return before
    spent = np.zeros((n, 3)) if before is None else np.array(before)
    spent[rows] += to_numpy(more)
    return spent


def router_table(router: Router, blend: float | Blend) -> dict[str, Any]:
    """Return a router with its blend for TOML and JSON."""
    own = {"score": str(router.score), "threshold": router.threshold, "blend": blend_text(blend)}
    return own if router.skip is None else {**own, "skip": router.skip}


def models_of(model: Model) -> list[Model]:
    """Return the models of all stages, the first student first; [model] if it is not joint."""
    if not isinstance(model, JointModel):
        return [model]
    return [*models_of(model.student), *models_of(model.teacher)]

"""Recording: run the models once on labeled data, and keep their answers and what is known of them.

Python and the command line share this code. It infers preprocessing, counts and measures costs, and
compares what the models and the data say about themselves before the expensive work.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from ebjr.arrays import (
    Array,
    Batch,
    fingerprint,
    join_rows,
    put_rows,
    row_count,
    take_rows,
    to_numpy,
)
from ebjr.backends.entry import Entry, entry_of, picked
from ebjr.backends.output_kind import KINDS, with_output_kind
from ebjr.costs import MOST_DEARER, Cost, common_unit
from ebjr.data.columns import check_columns
from ebjr.data.examples import ArrayData, Data
from ebjr.data.looks import Look, prepare_for
from ebjr.data.preprocess import Preprocess
from ebjr.errors import ModelError, TeacherUnavailable, check_at_least, note
from ebjr.evaluation.example_costs import costs_of
from ebjr.files import json_number
from ebjr.journal import CONTENTS, Journal
from ebjr.labels import (
    Places,
    are_names,
    as_names,
    places,
    some,
    spelled_places,
    unnamed,
    whole_numbers,
)
from ebjr.link.far import FarTeacher
from ebjr.model import Model, as_answer, check_pair, facts, trunk_of
from ebjr.outcomes import Outcomes, roles_of
from ebjr.task import OUTPUT_SEEN, Task
from ebjr.tasks import as_task

Batches = Iterable[tuple[Batch, Any]]

MOST_SILENT = 0.05
"""The largest share of examples that models may leave unanswered."""

MANY = 200
"""The number of examples after which that share is checked before the end."""

LEAST_SECONDS = 1.0
"""How long each model must have run before their times are compared."""


class About(TypedDict, total=False):
    """The other keyword arguments of `record`, which documents them."""

    student_preprocess: Preprocess | str | None
    teacher_preprocess: Preprocess | str | None
    student_cost: Cost
    teacher_cost: Cost
    preprocess: Preprocess | str | Sequence[Preprocess | str | None] | None
    costs: Sequence[Cost]
    flops: bool
    joules: bool
    output_kind: str | None
    labels: tuple[str, ...] | None
    models: Mapping[str, Any]
    folder: str | os.PathLike[str] | None
    metric: str | None
    known_classes: Any
    rescale: Any
    keep: Journal


def record(
    student: Model,
    teacher: Model,
    inputs: Batch | Data,
    targets: Any = None,
    *,
    task: str = "classification",
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    **about: Unpack[About],
) -> Outcomes:
    """Run both models once on labeled examples and keep their answers.

    Parameters
    ----------
    student, teacher
        Models: a batch in, raw output out.
    inputs
        An array (n, ...) or a list of n inputs for both models, or what `ebjr.data.open.open_data`
        returned, which has its own targets and class names.
    targets
        (n,) integer labels, names of labels, or numbers; (n, labels) of 0 and 1; or a list of n
        `GroundTruth`. Labels are matched by name if data and models name them. With None the
        teacher's own answers are the targets, and every accuracy is agreement with the teacher.
    task
        ``"classification"``, ``"multilabel"``, ``"specialized"``, ``"regression"`` or
        ``"detection"``. A model known to answer label sets needs ``"multilabel"``.
    batch_size
        Inputs per model call.
    progress
        Called with the number of examples of each recorded batch.
    **about
        Further arguments:

        - `student_preprocess`, `teacher_preprocess`: How decoded images become a model's input: a
          `Preprocess`, its text like ``"size=160,resize=crop"``, or a ``.toml`` file. ``"auto"``,
          the default, takes size and layout from the model's input if it cannot take the images as
          they are, and says so; ``"infer"`` always does; None never does.
        - `output_kind`: What the models return: ``"logits"``, ``"probabilities"``, whose logarithm
          is taken, or ``"auto"``, which decides by the first batch and says so. None, the default,
          raises if answers do not look like logits. `load_model` has an option of the same name.
        - `student_cost`, `teacher_cost`: Known costs of an example. Unknown ones are filled in:
          FLOPs are counted; seconds, and bytes of a remote model, are measured in this run.
        - `preprocess`, `costs`: As in `record_all`.
        - `flops`: Count the FLOPs of model files and torch modules.
        - `joules`: Measure or estimate the joules of both models before the run, which takes
          seconds.
        - `labels`, `metric`, `known_classes`, `rescale`, `models`: As in `Outcomes`. By default
          `labels` are the data's, and `models` names both models' files and addresses.
        - `folder`: The folder of the outcomes file: paths in `models` are relative to it. None:
          absolute.
        - `keep`: A `Journal` beside the outcomes file that keeps each recorded batch: after an
          error or a kill the same call resumes there. Call its `remove` once the outcomes are
          saved. It knows a model that came from no file only by name.

    Raises
    ------
    ValueError
        `inputs` and `targets` differ in length or are empty; `targets` do not fit the task; a model
        is for another task; or `keep` belongs to other models or data.
    ModelError
        A model returned another number of rows than inputs, other classes than in the first batch,
        NaN or infinity.

    Warns
    -----
    RecordingNote
        Preprocessing was inferred, FLOPs could not be counted, or the data have no labels.

    Examples
    --------
    >>> x = np.eye(3)
    >>> record(lambda b: b, lambda b: 2 * b, x, [0, 1, 2], batch_size=2).teacher[0]
    array([2., 0., 0.])
    """
    how: dict[str, Any] = {"task": task, "batch_size": batch_size, "progress": progress, **about}
    return record_all([student, teacher], inputs, targets, **how)


def record_all(
    models: Sequence[Model],
    /,
    inputs: Batch | Data,
    targets: Any = None,
    *,
    task: str = "classification",
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
    **about: Unpack[About],
) -> Outcomes:
    """`record` for any number of models, the cheapest first; `roles_of` names them.

    Parameters
    ----------
    models
        At least two; a second look of one of them (`ebjr.look`) is a model too. More than two work
        for classification, multilabel and regression.
    inputs, targets, task, batch_size, progress
        As in `record`.
    **about
        As in `record`. `preprocess` is for all models, or a sequence with one per model, and
        `costs` a sequence with one per model; arguments of a role, like `teacher_cost`, win.

    Raises
    ------
    ValueError
        As in `record`; a look needs images; or one of more than two models costs over a tenth more
        than the next.

    Examples
    --------
    >>> x = np.eye(3)
    >>> found = record_all([lambda b: b, lambda b: 2 * b, lambda b: 3 * b], x, [0, 1, 2])
    >>> found.roles, found.said_by("model-2")[0]
    (('student', 'model-2', 'teacher'), array([2., 0., 0.]))
    """
    check_at_least(1, batch_size=batch_size)
    recording = _Recording(models, task, about)
    if not isinstance(inputs, Data):
        return recording.run(recording.of_arrays(inputs, targets, batch_size), progress)
    if targets is not None:
        raise ValueError("the data have their own targets: remove `targets`")
    return recording.run(recording.of_data(inputs, batch_size), progress)


def record_batches(
    student: Model,
    teacher: Model,
    batches: Batches,
    *,
    task: str = "classification",
    progress: Callable[[int], None] | None = None,
    **about: Unpack[About],
) -> Outcomes:
    """`record` for inputs that arrive in batches of ``(inputs, targets)``, never all in memory.

    Examples
    --------
    >>> stream = ((np.eye(2), [0, 1]) for _ in range(3))
    >>> len(record_batches(lambda b: b, lambda b: b, stream))
    6
    """
    return _Recording([student, teacher], task, about).run(lambda start: batches, progress)


class _Recording:
    """The models by role, what is known of them, and their answers so far."""

    def __init__(self, models: Sequence[Model], task: str, about: About) -> None:
        unknown = about.keys() - About.__annotations__.keys()
        if unknown:
            known = ", ".join(About.__annotations__)
            raise TypeError(f"unknown argument {min(unknown)!r}; known are {known}")
        if len(models) < 2:
            raise ValueError(f"give at least 2 models, the cheapest first, not {len(models)}")
        self.roles = roles = roles_of(len(models))
        self.given: dict[str, Model] = dict(zip(roles, models, strict=True))
        self.about: dict[str, Any] = {**about}
        self.preprocess = self._of_each("preprocess", "preprocess", "auto")
        self.known_costs: dict[str, Cost] = self._of_each("costs", "cost", Cost())
        self.kind = as_task(task, about.get("known_classes"))
        if len(models) > 2 and (self.kind.known_classes or self.kind.targets_are == "boxes"):
            raise ValueError(
                "more than two models work for classification, multilabel and regression, "
                f"not for {task}: give a student and a teacher"
            )
        self._check_pairs(self.given, lambda one, other: check_pair(one, other, self.kind))
        self.check_all: Callable[[], None] = lambda: None
        self.data: Data | None = None
        self.contents: Callable[[], dict[str, Any]] | None = None
        self.read = self.told = 0  # examples read, and unreadable ones already in the journal
        self.before: Mapping[str, int] = {}  # bytes that models moved before this recording
        self.journal: Journal | None = about.get("keep")
        self.models: dict[str, Model] = {}
        self.entries: dict[str, Entry] = {}  # models that joint.toml can name
        self.features: Any = None  # the latest batch's, for a teacher that continues the student
        self.outputs: dict[str, list[Any]] = {role: [] for role in roles}
        self.seconds = dict.fromkeys(roles, 0.0)
        self.dollars = dict.fromkeys(roles, 0.0)  # NaN if a model reports none
        self.targets: list[Any] = []
        self.classes: int | None = None
        self.places: Places | None = None
        self.undecided = dict.fromkeys(roles, False)  # answers of only 0 and 1 may be either kind
        self.labeled = True
        self.asked = self.fresh = 0  # examples asked so far; and in the latest batch
        self.silent: list[str] = []  # one text per missing answer: example, role, reason

    def _of_each(self, what: str, one: str, usual: Any) -> dict[str, Any]:
        """Return a value per role, from one for all, one per model, or a role's own argument."""
        said = self.about.get(what, usual)
        each = said if isinstance(said, list | tuple) else [said] * len(self.roles)
        if len(each) != len(self.roles):
            raise ValueError(
                f"{what} must have one value for each of {len(self.roles)} models, not {len(each)}"
            )
        pairs = zip(self.roles, each, strict=True)
        return {role: self.about.get(f"{role}_{one}", value) for role, value in pairs}

    def _check_pairs(self, of: Mapping[str, Any], check: Callable[[Any, Any], Any]) -> None:
        """Check every two models like a student and its teacher."""
        pairs = combinations(self.roles, 2)
        # pairs with the teacher first, like a recording of two models
        for one, other in sorted(pairs, key=lambda pair: pair[1] != self.roles[-1]):
            try:
                check(of[one], of[other])
            except ValueError as error:
                if {one, other} == {"student", "teacher"}:
                    raise
                raise ValueError(
                    f"{self._named(one)} as student and {self._named(other)} as teacher: {error}"
                ) from error

    def _named(self, role: str) -> str:
        return f"{role} ({facts(self.given[role]).name})"

    def of_data(self, data: Data, size: int) -> Callable[[int], Batches]:
        """Return the batches of some data, after checking that their targets fit the task."""
        self.data, wanted = data, self.kind.targets_are
        if wanted == "numbers" and data.has_targets and not isinstance(data, ArrayData):
            raise ValueError(
                f"{self.kind.name} reads {wanted} from the targets of an .npz, not from {data.path}"
            )
        if not data.has_targets:
            title = self.kind.metric(self.about.get("metric")).title
            note(
                f"{data.path} has no labels: the teacher's own answers are taken for right, and "
                f"every {title} is agreement with it"
            )
        if data.omissions is not None:
            note(data.omissions)
        if wanted != "numbers" and data.classes is not None:
            self.about.setdefault("labels", data.classes)
        self.about.setdefault("columns", data.columns)
        if isinstance(data, ArrayData) and data.targets is not None:  # all labels are known already
            labels = self._read(data.targets)
            self.check_all = lambda: self._in_range(labels)
        place = str(data.path.resolve())
        self.contents = lambda: {"data": place, CONTENTS: data.fingerprint()}
        return lambda start: ((batch.inputs, batch.targets) for batch in data.batches(size, start))

    def of_arrays(self, inputs: Batch, targets: Any, size: int) -> Callable[[int], Batches]:
        """Return the batches of inputs in memory, whose targets can all be checked at once."""
        n = row_count(inputs)

        def batches(start: int) -> Batches:
            for first in range(start, n, size):
                rows = np.arange(first, min(first + size, n))
                yield take_rows(inputs, rows), None if targets is None else take_rows(labels, rows)

        self.contents = lambda: {CONTENTS: fingerprint(inputs, targets)}
        labels = None if targets is None else self._read(targets)
        if labels is not None:
            if n != len(labels):
                raise ValueError(f"there are {n} inputs but {len(labels)} targets")
            self.check_all = lambda: self._in_range(labels)
        return batches

    def run(
        self, batches: Callable[[int], Batches], progress: Callable[[int], None] | None
    ) -> Outcomes:
        """Run the models on every batch, or on those that the journal does not have."""
        stream = iter(batches(0))
        first = next(stream, None)
        if first is None:
            raise ValueError("there are no examples to record")
        self._prepare(*first)
        self._name_models()
        self._resume()
        self.before = self._moved()
        self._add(*first)
        costs = self._costs(first[0])
        exact = {role: self.known_costs[role].filled(flops=costs[role].flops) for role in costs}
        if misordered := self._misordered(exact):
            raise ValueError(misordered)
        models = self._provenance(costs)
        unreadable = self._take_up()
        if self.read:  # the first batch ran only to be compared
            stream = iter(batches(self.read))
        else:
            self._keep()
        tell = progress or (lambda added: None)
        tell(sum(map(row_count, self.targets)))
        for inputs, targets in stream:
            self._add(inputs, targets)
            self._keep()
            tell(row_count(inputs))
        # the journal's unreadable examples come first, in the order of the data
        if self.data is not None:
            self.data.unreadable[:0] = unreadable
        self._check_silent(least=0)
        costs = self._measured(costs)
        if (misordered := self._misordered(costs)) and min(self.seconds.values()) > LEAST_SECONDS:
            note(misordered)
        return self._outcomes(models, costs)

    def _outcomes(self, models: Mapping[str, Any], costs: Mapping[str, Cost]) -> Outcomes:
        student, *between, teacher = (join_rows(self.outputs[role]) for role in self.roles)
        names = ("labels", "models", "metric", "known_classes", "rescale", "columns")
        outcomes = Outcomes(
            student,
            teacher,
            join_rows(self.targets),
            labeled=self.labeled,
            student_cost=costs["student"],
            teacher_cost=costs["teacher"],
            between=tuple(between),
            between_costs=tuple(costs[role] for role in self.roles[1:-1]),
            **{"models": models, **picked(self.about, names), "task": self.kind.name},
        )
        for role in self.roles:
            _note_chance(outcomes, role)
        return outcomes

    def _misordered(self, costs: Mapping[str, Cost]) -> str | None:
        """Return the complaint if one of more than two models costs more than the next."""
        for one, other in pairwise(self.roles if len(self.roles) > 2 else ()):
            if (unit := common_unit(costs[one], costs[other])) is None:
                continue
            dear, cheap = getattr(costs[one], unit), getattr(costs[other], unit)
            if dear > MOST_DEARER * cheap:
                return (
                    f"give the cheapest model first: {self._named(one)} costs {dear:.4g} {unit} an "
                    f"example, but {self._named(other)} after it costs {cheap:.4g}"
                )
        return None

    def _resume(self) -> None:
        """Open the journal, after checking that it belongs to this recording."""
        if self.journal is None:
            return
        if self.contents is None:
            raise ValueError("keep= is for data and arrays: a stream cannot be resumed")
        known = self._provenance(dict.fromkeys(self.roles, Cost()))
        whose = {**self.contents(), "task": self.kind.name, "knows": self.kind.known_classes}
        whose |= {name: self.about.get(name) for name in ("labels", "output_kind")}
        for role in self.roles:
            about = known.get(role, {"name": facts(self.given[role]).name})
            whose |= {f"{role} {key}": about[key] for key in sorted(about.keys() - {"path"})}
        self.journal.resume(whose)

    def _take_up(self) -> list[tuple[str, str]]:
        """Replace the first batch by an earlier run's rows; return what that run could not read."""
        records = [] if self.journal is None else list(self.journal.records())
        if not records:
            return []
        self.outputs, self.targets = {role: [] for role in self.roles}, []
        for _, content in records:
            with np.load(BytesIO(content)) as file:
                arrays = dict(file)
            for role in self.roles:
                self.outputs[role].append(self.kind.unpack(role, arrays))
            self.targets.append(self.kind.unpack_targets(arrays))
        last, moved = records[-1][0], self._moved()
        self.seconds, self.read, self.told = last["seconds"], last["read"], 0
        self.dollars = {role: float(each) for role, each in last["dollars"].items()}
        self.asked, self.silent = last["asked"], last["silent"]
        self.before = {r: self.before[r] + moved[r] - last["moved"][r] for r in self.roles}
        note(f"resuming after {self.read:,} examples that an earlier run recorded")
        return [(name, reason) for told, _ in records for name, reason in told["unreadable"]]

    def _keep(self) -> None:
        """Add the latest batch, and the totals so far, to the journal."""
        if self.journal is None:
            return
        content = BytesIO()
        arrays = self.kind.pack_targets(self.targets[-1])
        for role in self.roles:
            arrays |= self.kind.pack(role, self.outputs[role][-1], half=False)
        np.savez(content, **arrays)  # type: ignore[arg-type]
        unreadable = [] if self.data is None else self.data.unreadable[self.told :]
        self.told += len(unreadable)
        self.read += self.fresh + len(unreadable)
        about = {"read": self.read, "seconds": self.seconds, "moved": self._moved()}
        about |= {"dollars": json_number(self.dollars), "asked": self.asked, "silent": self.silent}
        self.journal.add({**about, "unreadable": unreadable}, content.getvalue())

    def _prepare(self, inputs: Batch, targets: Any) -> None:
        """Check that the first batch fits the task, then give each model its preprocessing."""
        check_columns(inputs if self.data is None else self.data, *self.given.values())
        if self.data is not None:
            _check_labels(targets, self.kind, self.data.path)
        if targets is not None:
            self._checked(targets, row_count(inputs), 1)
        for role, model in self.given.items():
            wanted = self.preprocess[role]
            argument = f"{role}_preprocess" if len(self.roles) == 2 else "preprocess"
            if isinstance(model, FarTeacher):  # recording asks about all rows, without its limit
                inside = prepare_for(model.teacher, inputs, wanted, argument)
                self.models[role] = FarTeacher(inside, replace(model.link, rows_per_second=None))
            else:
                self.models[role] = prepare_for(model, inputs, wanted, argument)
            if self.data is not None:
                said = self.kind.numbered(role, self.models[role], inputs, targets, self.data)
                self.models[role] = said
            if isinstance(one := self.models[role], Look):
                one.seen(inputs)  # raises before any model runs
        mine, theirs = (facts(self.models[role]).labels for role in ("student", "teacher"))
        if self.kind.targets_are == "boxes" and mine and theirs:  # in the data's numbers by now
            self.kind.check_names(mine, theirs)

    def _costs(self, inputs: Batch) -> dict[str, Cost]:
        """Return the given costs, with those that can be found before the run."""
        few = inputs[:4] if self.kind.takes_images else inputs  # a detector's images are large
        flops, joules = self.about.get("flops", True), self.about.get("joules", False)
        how = {"flops": flops, "joules": joules, "features": self.features}
        return costs_of(self.models, few, self.known_costs, **how)

    def _name_models(self) -> None:
        """Find ``joint.toml``'s entries of the models that have a file or an address."""
        for role, model in self.given.items():
            link = model.link if isinstance(model, FarTeacher) else None
            with suppress(TypeError, FileNotFoundError):  # a file cannot name this model
                entry = entry_of(self.models[role], link=link)
                kept = {key: value for key, value in entry.options.items() if key != "threads"}
                self.entries[role] = replace(entry, options=kept)  # threads belong to this run

    def _provenance(self, costs: Mapping[str, Cost]) -> dict[str, Any]:
        folder = None if self.about.get("folder") is None else Path(self.about["folder"])
        entries = {role: replace(one, cost=costs[role]) for role, one in self.entries.items()}
        return {role: entry.as_table(folder) for role, entry in entries.items()}

    def _add(self, inputs: Batch, given: Any) -> None:
        """Check the labels of a batch as far as possible, then ask all models about it."""
        number = len(self.targets) + 1
        if number > 1 and self.labeled is (given is None):
            raise ValueError(
                f"only some batches up to batch {number} have labels: label all batches or none"
            )
        self.labeled = given is not None
        rows = row_count(inputs)
        labels = self._checked(given, rows, number) if self.labeled else None
        heard = np.ones(rows, bool)
        for role in self.roles:
            heard &= self._ask(role, inputs, number)
        self.asked, self.fresh = self.asked + rows, rows
        if not heard.all():
            self._check_silent(least=MANY)
            if not len(kept := np.flatnonzero(heard)):
                raise TeacherUnavailable(f"a whole batch has no answers: {self.silent[-1]}")
            labels = None if labels is None else take_rows(labels, kept)
            for said in self.outputs.values():
                said[-1] = take_rows(said[-1], kept)
        if number == 1:
            labels = self._compare(labels)
        self.targets.append(
            self.kind.as_targets(self.outputs["teacher"][-1]) if labels is None else labels
        )

    def _check_silent(self, least: int) -> None:
        """Note which examples have no answer; raise ModelError if they are too many."""
        if not self.silent or self.asked < least:
            return
        count = len({one.partition(":")[0] for one in self.silent})
        words = f"{count} of {self.asked} examples have no answer, {self.silent[0]}"
        if count > MOST_SILENT * self.asked:
            raise ModelError(
                f"{words}: tell the model in the prompt how to answer, show it examples, or use "
                "another model"
            )
        if not least:
            note(f"{words}: these are left out")

    def _ask(self, role: str, inputs: Batch, number: int) -> np.ndarray:
        """Ask a model about a batch of n inputs; return which rows it answered, (n,) bool."""
        began = time.perf_counter()
        model, teacher = self.models[role], facts(self.models["teacher"])
        said = model(self.features if facts(model).continues else inputs)
        output, heard, why = _raw_output(role, said, row_count(inputs))
        rows = self.kind.collect(role, output, row_count(inputs))
        missed = np.flatnonzero(~heard) + self.asked
        self.silent += [f"example {row}: {role}, {why}" for row in missed.tolist()]
        self.seconds[role] += time.perf_counter() - began
        spent = as_answer(said).spent
        self.dollars[role] += math.nan if spent is None else float(spent[:, 2].sum())
        if role == "student" and teacher.continues:
            self.features = trunk_of(as_answer(said), len(rows), facts(model).name, teacher)
        if number == 1 and (kind := self._output_kind(role, rows)) is not None:
            self.models[role] = with_output_kind(self.models[role], kind)
            if (entry := self.entries.get(role)) is not None:
                self.entries[role] = replace(entry, options={**entry.options, "output_kind": kind})
            rows = KINDS[kind](rows)
        elif number > 1 and self.undecided[role]:
            self._output_kind(role, rows)
        self.outputs[role].append(rows)
        _check_alike(self.kind, role, self.outputs[role][0], rows, number)
        return heard

    def _output_kind(self, role: str, rows: Any) -> str | None:
        """Return what a model's first answers are, if they must be turned into logits."""
        wanted, known = self.about.get("output_kind"), facts(self.models[role])
        if wanted not in (None, "auto", "logits", "probabilities"):
            raise ValueError(f"output_kind must be auto, logits or probabilities, not {wanted!r}")
        seen = self.kind.output_kind_of(rows, hard=wanted is not None)
        self.undecided[role] = wanted is None and bool(np.isin(rows, (0, 1)).all())
        if known.probabilities is False or (seen is None and wanted != "probabilities"):
            return None
        if wanted in ("logits", "probabilities"):
            return next((kind for kind in self.kind.output_kinds if kind.endswith(wanted)), None)
        assert seen is not None
        words = OUTPUT_SEEN[seen].format(role)
        if wanted is None:
            raise ValueError(f"{words}: load it with ebjr.load_model(..., output_kind={seen!r})")
        note(f"{words} (--output-kind logits takes them as logits)")
        return seen

    def _compare(self, labels: Any) -> Any:
        """Compare the answers to the first batch with each other and with its labels."""
        first = {role: self.kind.check_output(role, self.outputs[role][0]) for role in self.roles}
        self._check_pairs(first, self.kind.common_classes)
        self.classes = self.kind.common_classes(first["student"], first["teacher"])
        if self.kind.targets_are in ("labels", "label sets"):
            self._match_names()
        for role, output in first.items():
            self.kind.check_first(role, output)
        self.check_all()
        if labels is None:
            return None
        targets = self._in_range(labels, " in batch 1")
        for role, output in first.items():
            self.kind.check_meant(role, output, targets)
        return targets

    def _match_names(self) -> None:
        """Find the data's labels among the models' classes."""
        if self.classes is None:
            raise TypeError(
                f"the task {self.kind.name!r} has labels, so its common_classes must return the "
                "number of classes"
            )
        said = {role: facts(model).labels for role, model in self.given.items()}
        named = [role for role in reversed(self.roles) if are_names(said[role])]
        numbered = [role for role in self.roles if said[role] and role not in named]
        names, models = self.about.get("labels"), said["teacher"]
        if named and self.kind.known_classes is None:
            models = said[named[0]]
        named_by = "given" if self.data is None else self.data.named_by
        self.places = places(names, models, self.classes, named_by)
        if named and numbered and (names is None or self.places.place is not None):
            raise ValueError(
                f"the {named[0]} calls its classes {some(said[named[0]] or ())}, and the "
                f"{numbered[0]} only numbers them from 0: name the classes in the order of these "
                "numbers with --classes (labels=)"
            )
        self.about["labels"] = self.places.labels
        if self.places.said is not None:
            note(self.places.said)

    def _read(self, given: Any) -> Any:
        """Read targets; names stay names until both models have answered."""
        if self.kind.has_labels:
            array = as_names(to_numpy(given))
            named = [self.about.get("labels"), *(facts(m).labels for m in self.given.values())]
            if array.dtype.kind == "b":
                array = _spelled(array, named)
            if array.dtype.kind == "U" and array.ndim == 1:
                if any(map(are_names, named)):
                    return array
                if whole_numbers(array.tolist()) is None:
                    raise ValueError(unnamed(array))
                return array.astype(np.int64)
            whole = array.dtype.kind == "f" and bool((array % 1 == 0).all())
            if array.dtype.kind == "b" or (whole and any(map(whole_numbers, filter(None, named)))):
                given = array.astype(np.int64)  # the model's own classes are whole numbers
        return self.kind.check_targets(given)

    def _in_range(self, labels: Any, where: str = "") -> Any:
        """Return targets in the models' numbering; ValueError if they are not classes."""
        placed = labels
        if self.places is not None and self.classes is not None:
            placed = self.places.of(labels, self.classes)
        self.kind.check_range(placed, self.classes, where)
        return placed

    def _checked(self, given: Any, rows: int, number: int) -> Any:
        """Return a batch's targets, checked as far as possible before a model runs on it."""
        labels = self._read(given)
        if len(labels) != rows:
            raise ValueError(f"a batch has {rows} inputs but {len(labels)} targets")
        return labels if number == 1 else self._in_range(labels, f" in batch {number}")

    def _measured(self, costs: Mapping[str, Cost]) -> dict[str, Cost]:
        n, moved = sum(map(row_count, self.targets)), self._moved()
        found = {}
        for role, cost in costs.items():
            bytes_each = moved[role] / n if any(moved.values()) else None
            paid = self.dollars[role] / n
            dollars = None if math.isnan(paid) else paid
            found[role] = cost.filled(
                seconds=self.seconds[role] / n, bytes=bytes_each, dollars=dollars
            )
        return found

    def _moved(self) -> dict[str, int]:
        """Return the bytes that each model sent and received; a local model moves none."""
        now = {role: facts(model).bytes_moved or 0 for role, model in self.models.items()}
        return {role: count - self.before.get(role, 0) for role, count in now.items()}


def counter(
    what: str, total: int, tell: Callable[[str, int, int | None], None]
) -> Callable[[int], None]:
    """Make `record`'s `progress`: it adds up the recorded examples and tells the total."""
    done = 0
    tell(what, done, total)

    def count(added: int) -> None:
        nonlocal done
        done += added
        tell(what, done, total)

    return count


# Checks


def _spelled(targets: np.ndarray, named: Iterable[Sequence[str] | None]) -> np.ndarray:
    """Return bools as the names of the classes true and false, if there are such classes."""
    for names in filter(None, named):
        if (places := spelled_places(names, "b")) is not None:
            return np.where(targets, names[places[1]], names[places[0]])
    return targets


def _check_labels(targets: Any, kind: Task, path: Path) -> None:
    boxes, wanted = isinstance(targets, list), kind.targets_are == "boxes"
    if boxes and not wanted:
        raise ValueError(f"{path} has labeled boxes: give --task detection (task='detection')")
    if targets is not None and wanted and not boxes:
        raise ValueError(f"detection reads labeled boxes from COCO's .json, not from {path}")
    if targets is not None and kind.targets_are == "label sets" and np.ndim(targets) != 2:
        raise ValueError(
            f"{kind.name} reads label sets from the targets of an .npz or from a table's lists, "
            f"not from {path}"
        )


def _check_alike(kind: Task, role: str, first: Any, rows: Any, number: int) -> None:
    """Raise ModelError if a model's classes differ from those of its first batch."""

    def said(rows: Any) -> str:
        form = kind.form(rows)
        return f"{form[0]} {kind.columns}" if len(form) == 1 else f"shape {np.shape(rows)}"

    if kind.form(first) != kind.form(rows):
        raise ModelError(
            f"the {role} must answer the same {kind.columns} in every batch, but returned "
            f"{said(first)} in batch 1 and {said(rows)} in batch {number}"
        )


def _note_chance(outcomes: Outcomes, role: str) -> None:
    """Note if a model is no better than guessing, and the likely reasons."""
    kind, n, quality = outcomes.kind, len(outcomes), outcomes.quality(role)
    if kind.targets_are == "boxes":
        guess = 0.0 if outcomes.labeled and any(map(len, outcomes.targets)) else -1.0
    elif kind.has_labels and outcomes.measure.binary and outcomes.labeled and n >= 30:
        # 30: fewer examples cannot tell an accuracy from guessing
        share = 1 / np.asarray(outcomes.teacher).shape[1]
        guess = share + 2 * np.sqrt(share * (1 - share) / n)
    else:
        return
    if quality > guess:
        return
    own = f"{role}-" if len(outcomes.roles) == 2 else ""
    read = f"--{own}output, --{own}layout" if own else "--output-kind"
    note(
        f"the {role}'s {outcomes.measure.title} is {quality:.1%}, no better than guessing: "
        f"its input may need other preprocessing (--{own}preprocess), its classes may be in "
        f"another order (--classes), or its answers may be read wrongly ({read})"
    )


def _raw_output(role: str, said: Any, rows: int) -> tuple[Array, np.ndarray, str | None]:
    """Return raw output with zeros for missing rows, which rows are there, and why others are not.

    The answer of a joint model must be complete.
    """
    answer = as_answer(said)
    if answer.degraded is not None and to_numpy(answer.degraded).any():
        raise TeacherUnavailable(
            f"the {role} is a joint model whose own teacher could not be reached: record again "
            "when it can"
        )
    if answer.answered is None:
        return answer.output, np.ones(rows, bool), None
    heard = to_numpy(answer.answered)
    output = np.zeros((rows, *answer.output.shape[1:]))
    return put_rows(output, np.flatnonzero(heard), answer.output), heard, answer.why

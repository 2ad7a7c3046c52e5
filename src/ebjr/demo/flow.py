"""The steps of every demo: record, calibrate, evaluate, report.

A `Demo` holds what differs between tasks. The shipped models and their recorded answers are files
of the package, in a folder named after the task; a demo without models writes no ``joint.toml``. If
there are several students, the best is taken.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.arrays import Batch, row_count, take_rows
from ebjr.backends.entry import ModelEntry, entries_of
from ebjr.costs import Cost
from ebjr.data.preprocess import Preprocess
from ebjr.demo.fetch import DataUnavailable, Progress
from ebjr.evaluation.example_costs import costs_of
from ebjr.joint_file import JointConfig
from ebjr.model import Model
from ebjr.outcomes import Outcomes
from ebjr.recording import counter, record_all
from ebjr.study import Study
from ebjr.sweep import Sweep, run_sweep
from ebjr.tasks.specialized.known_classes import Traffic


@dataclass(frozen=True, eq=False)
class DemoResult:
    """The demo's result, and the files it wrote."""

    sweep: Sweep  # the study of each student, usually one
    recorded: bool  # the shipped answers were used
    reason: str  # why they were used
    joint_seconds: float | None  # the joint model's, per held-out example; None if recorded
    files: dict[str, Path]

    @property
    def study(self) -> Study:
        """The best student's study."""
        return self.sweep.study


@dataclass(frozen=True)
class Demo:
    """One task's part of the demo; `load` and `models` may raise `DataUnavailable`."""

    task: str  # also the name of the folder in `shipped`
    title: str  # of the report
    data: str  # the data's description in the report
    load: Callable[[Progress], tuple[Batch, Any]]  # inputs and targets
    batch_size: int = 64
    goal: Mapping[str, Any] = field(default_factory=lambda: {"goal": "match-teacher"})
    preprocess: Preprocess | None = None  # None: the inputs are arrays already
    # labels, metric and more arguments of the outcomes, or a function called after `load`
    about: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    # by the name of a student's shipped file: more arguments of its outcomes
    students: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"student": {}})
    # models between, by name, the cheapest first: their shipped files and preprocessing
    between: Mapping[str, tuple[str, Preprocess]] = field(default_factory=dict)
    teacher_of: str | None = None  # the other demo that ships the teacher
    traffic: Traffic | None = None  # the mix to draw, if it differs from the data's
    models: Callable[[], Mapping[str, ModelEntry]] | None = None  # by role, if none are shipped
    shows: bool = False  # the report shows images with boxes

    def run(
        self,
        folder: str | os.PathLike[str],
        *,
        recorded: bool = False,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> DemoResult:
        """Record, calibrate, evaluate, report; see `ebjr.demo.run_demo`."""
        tell = progress or (lambda what, done, total: None)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        reason, inputs, targets = "asked for with --recorded", None, None
        entries: dict[str, ModelEntry] = {}
        if not recorded:
            try:
                inputs, targets = self.load(tell)
                entries = {} if self.models is None else dict(self.models())
            except DataUnavailable as error:
                reason, inputs = str(error), None
        with ExitStack() as stack:
            if self.models is None:
                entries = self._shipped_entries(stack)
            if inputs is None:
                names = [self._outcomes_file(name) for name in self.students]
                paths = [stack.enter_context(shipped(name, self.task)) for name in names]
                tables = dict(zip(self.students, map(Outcomes.load, paths), strict=True))
            else:
                tables = self._record(entries, inputs, targets, threads, tell)
        tables = {name: self._named(name, table, entries, target) for name, table in tables.items()}
        sweep = run_sweep(tables, traffic=self.traffic, **self.goal)
        written, study = self._save(target, sweep, tables, entries), sweep.study
        seconds = None
        if inputs is not None:
            joint = JointConfig.read(written["joint.toml"]).load(threads=threads)
            seconds = self._time(joint, inputs, study, tell)
        shows = self.shows and inputs is not None
        written["report.html"] = target / "report.html"
        study.write_report(
            written["report.html"],
            title=self.title,
            notes=self._notes(study.outcomes, inputs is None, reason, seconds),
            images=take_rows(inputs, study.sample_rows) if shows else (),
            extras=sweep.extras if len(tables) > 1 else (),
        )
        return DemoResult(sweep, inputs is None, reason, seconds, written)

    def _named(
        self, student: str, table: Outcomes, entries: Mapping[str, ModelEntry], folder: Path
    ) -> Outcomes:
        """Add the models' entries to outcomes."""
        names = dict(zip(table.roles, (student, *self.between, "teacher"), strict=True))
        models = {
            role: replace(entries[name], cost=table.cost_of(role)).as_table(folder.resolve())
            for role, name in names.items()
            if name in entries
        }
        return replace(table, models=models)

    def _save(
        self,
        folder: Path,
        sweep: Sweep,
        tables: Mapping[str, Outcomes],
        entries: Mapping[str, ModelEntry],
    ) -> dict[str, Path]:
        """Write each student's outcomes and the best one's ``joint.toml``; return files by name."""
        written = {name: folder / self._outcomes_file(name) for name in tables}
        for name, table in tables.items():
            table.save(written[name])
        files = {path.name: path for path in written.values()}
        if entries:
            files["joint.toml"] = folder / "joint.toml"
            none = dict.fromkeys(("student", "teacher"))
            both = entries_of(sweep.study.outcomes, written[sweep.best], none)
            config = JointConfig.of_study(both["student"], both["teacher"], sweep.study)
            config.save(files["joint.toml"])
        return files

    def _outcomes_file(self, student: str) -> str:
        return f"{student}.npz" if len(self.students) > 1 else "outcomes.npz"

    def _shipped_entries(self, stack: ExitStack) -> dict[str, ModelEntry]:
        own = {name: (name, self.preprocess) for name in (*self.students, "teacher")}
        return {
            name: ModelEntry.of_file(
                stack.enter_context(shipped(f"{file}.onnx", self._folder(name))),
                preprocess=preprocess,
            )
            for name, (file, preprocess) in {**own, **self.between}.items()
        }

    def _folder(self, name: str) -> str:
        return (self.teacher_of or self.task) if name == "teacher" else self.task

    def _record(
        self,
        entries: Mapping[str, ModelEntry],
        inputs: Batch,
        targets: Any,
        threads: int | None,
        tell: Progress,
    ) -> dict[str, Outcomes]:
        models = {name: entry.load(threads=threads) for name, entry in entries.items()}
        n, first = row_count(inputs), take_rows(inputs, slice(self.batch_size))
        for model in models.values():
            model(first)  # warm up: a session's first call is slow
        costs = costs_of(models, first, dict.fromkeys(models, Cost()), joules=True)
        about = self.about() if callable(self.about) else self.about
        teacher, teacher_cost = models["teacher"], costs["teacher"]
        tables: dict[str, Outcomes] = {}
        for name, own in self.students.items():
            what = "recording all models" if not tables else f"recording {name}"
            tables[name] = record_all(
                [models[name], *(models[each] for each in self.between), teacher],
                inputs,
                targets,
                batch_size=self.batch_size,
                progress=counter(what, n, tell),
                costs=[costs[name], *(costs[each] for each in self.between), teacher_cost],
                flops=False,
                **{"task": self.task, **about, **own},
            )
            teacher, teacher_cost = _again(tables[name].teacher), tables[name].teacher_cost
        return tables

    def _time(
        self, joint: Callable[[Batch], Any], inputs: Batch, study: Study, tell: Progress
    ) -> float:
        held_out = take_rows(inputs, study.held_out_rows)
        n = row_count(held_out)
        joint(take_rows(held_out, slice(self.batch_size)))
        began = time.perf_counter()
        for start in range(0, n, self.batch_size):
            end = min(start + self.batch_size, n)
            joint(take_rows(held_out, slice(start, end)))
            tell("running the joint model", end, n)
        return (time.perf_counter() - began) / n

    def _notes(
        self, outcomes: Outcomes, recorded: bool, reason: str, seconds: float | None
    ) -> dict[str, str]:
        if recorded:
            timed = outcomes.student_cost.seconds is not None
            kept = "measured when the answers were recorded"
            return {
                "Data": f"recorded answers on {self.data} ({reason})",
                "Times": kept if timed else "not recorded with the answers",
            }
        return {
            "Data": f"{self.data}, all models run on all of them",
            "Times": f"measured in this run at batch size {self.batch_size}; "
            f"the joint model itself took {1e3 * (seconds or 0):.4g} ms per example",
        }


def shipped(name: str, task: str = "classification") -> AbstractContextManager[Path]:
    """Return the path of a shipped file: ``student.onnx``, ``teacher.onnx``, ``outcomes.npz``."""
    return as_file(files("ebjr.demo") / "shipped" / task / name)


def _again(answers: Any) -> Model:
    """Return a model that replays recorded answers in order, so that the teacher runs once."""
    place = 0

    def model(batch: Batch) -> Any:
        nonlocal place
        place += row_count(batch)
        return take_rows(answers, np.arange(place - row_count(batch), place))

    return model

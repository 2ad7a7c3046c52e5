"""What the demos of all tasks have in common: record, calibrate, evaluate, report.

A `Demo` says what a task brings: where its data come from, and how its outcomes are described. The
shipped pair and its recorded answers are files of the package, in a folder named as the task. Where
the pair may not be shipped, the demo says where else it is, and has no ``joint.toml`` without it.
"""

from __future__ import annotations

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
from ebjr.config import JointConfig, ModelEntry
from ebjr.costs import Cost
from ebjr.demo.fetch import DataUnavailable
from ebjr.demo.fetch import Progress as FetchProgress
from ebjr.evaluation.flops import count_flops
from ebjr.evaluation.power import Load, with_joules
from ebjr.model import Model
from ebjr.outcomes import Outcomes, record
from ebjr.preprocess import Preprocess, unprepared
from ebjr.study import Study, run_study

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much has been, and out of how much if that is known."""

ROLES = ("student", "teacher")


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo found, and the files it left.

    Attributes
    ----------
    study
        The calibration and its figures on the held-out half.
    recorded
        Whether the answers are the shipped ones; `reason` says why.
    joint_seconds
        Per example, measured by running the joint model on the held-out half; None if recorded.
    files
        The outcomes, the report, and ``joint.toml`` where the models are at hand.
    """

    study: Study
    recorded: bool
    reason: str
    joint_seconds: float | None
    files: dict[str, Path]


@dataclass(frozen=True)
class Demo:
    """What one task brings to the demo.

    Parameters
    ----------
    task
        Of the outcomes; and the folder of `shipped` with the task's files.
    title
        Of the report.
    data
        What the models are run on, for people.
    load
        Inputs and targets; raises `DataUnavailable` where they cannot be had.
    batch_size
        Inputs given to a model at once.
    goal
        The goal of `run_study` and its arguments.
    preprocess
        How an input becomes that of both models; None where it is one already.
    about
        `labels`, `metric` and the like of the outcomes, or what gives them once data are loaded.
    models
        Both models by role, where they are not shipped; raises `DataUnavailable` where they are
        not at hand.
    shows
        Whether the report shows inputs, which are images with boxes.
    """

    task: str
    title: str
    data: str
    load: Callable[[FetchProgress], tuple[Batch, Any]]
    batch_size: int = 64
    goal: Mapping[str, Any] = field(default_factory=lambda: {"goal": "match-teacher"})
    preprocess: Preprocess | None = None
    about: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    models: Callable[[], Mapping[str, ModelEntry]] | None = None
    shows: bool = False

    def run(
        self,
        folder: str | os.PathLike[str],
        *,
        recorded: bool = False,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> DemoResult:
        """Record, calibrate, evaluate, report; as `ebjr.demo.run_demo`."""
        tell = progress or (lambda what, done, total: None)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        reason, inputs, targets = "asked for with --recorded", None, None
        entries: dict[str, ModelEntry] = {}
        if not recorded:
            try:
                inputs, targets = self.load(lambda done, total, what: tell(what, done, total))
                entries = {} if self.models is None else dict(self.models())
            except DataUnavailable as error:
                reason, inputs = str(error), None
        with ExitStack() as stack:
            if self.models is None:
                paths = {
                    role: stack.enter_context(shipped(f"{role}.onnx", self.task)) for role in ROLES
                }
                entries = {
                    role: ModelEntry.of_file(path, preprocess=self.preprocess)
                    for role, path in paths.items()
                }
            if inputs is None:
                outcomes = Outcomes.load(stack.enter_context(shipped("outcomes.npz", self.task)))
            else:
                outcomes = self._record(entries, inputs, targets, threads, tell)
            costs = {"student": outcomes.student_cost, "teacher": outcomes.teacher_cost}
            entries = {role: replace(entry, cost=costs[role]) for role, entry in entries.items()}
        study = run_study(outcomes, **self.goal)
        names = ("outcomes.npz", *(["joint.toml"] if entries else []), "report.html")
        result_files = {name: target / name for name in names}
        models = {role: entry.as_table(target.resolve()) for role, entry in entries.items()}
        replace(outcomes, models=models).save(result_files["outcomes.npz"])
        if entries:
            config = JointConfig.of_study(entries["student"], entries["teacher"], study)
            config.save(result_files["joint.toml"])
        seconds = None
        if inputs is not None:
            joint = JointConfig.read(result_files["joint.toml"]).load(threads=threads)
            seconds = self._time(joint, inputs, study, tell)
        shows = self.shows and inputs is not None
        study.write_report(
            result_files["report.html"],
            title=self.title,
            notes=self._notes(inputs is None, reason, seconds),
            images=take_rows(inputs, study.sample_rows) if shows else (),
        )
        return DemoResult(study, inputs is None, reason, seconds, result_files)

    def _record(
        self,
        entries: Mapping[str, ModelEntry],
        inputs: Batch,
        targets: Any,
        threads: int | None,
        tell: Progress,
    ) -> Outcomes:
        """Run both models on everything."""
        models = {role: entry.load(threads=threads) for role, entry in entries.items()}
        n, done = row_count(inputs), 0
        first = take_rows(inputs, np.arange(min(self.batch_size, n)))
        for model in models.values():
            model(first)  # the first call of a session is slow

        def count(added: int) -> None:
            nonlocal done
            done += added
            tell("recording both models", done, n)

        costs = _costs(models, first)
        return record(
            models["student"],
            models["teacher"],
            inputs,
            targets,
            task=self.task,
            batch_size=self.batch_size,
            progress=count,
            student_cost=costs["student"],
            teacher_cost=costs["teacher"],
            **(self.about() if callable(self.about) else self.about),
        )

    def _time(
        self, joint: Callable[[Batch], Any], inputs: Batch, study: Study, tell: Progress
    ) -> float:
        """Seconds per example of the joint model on the held-out half."""
        _, rows = study.outcomes.split_rows(*study.split)
        held_out, n = take_rows(inputs, rows), len(rows)
        joint(take_rows(held_out, np.arange(min(self.batch_size, n))))
        began = time.perf_counter()
        for start in range(0, n, self.batch_size):
            end = min(start + self.batch_size, n)
            joint(take_rows(held_out, np.arange(start, end)))
            tell("running the joint model", end, n)
        return (time.perf_counter() - began) / n

    def _notes(self, recorded: bool, reason: str, seconds: float | None) -> dict[str, str]:
        """How the demo's report was made."""
        if recorded:
            return {
                "Data": f"recorded answers on {self.data} ({reason})",
                "Times": "as measured when the answers were recorded",
            }
        return {
            "Data": f"{self.data}, both models run on all of them",
            "Times": f"measured in this run at batch size {self.batch_size}; "
            f"the joint model itself took {1e3 * (seconds or 0):.4g} ms per example",
        }


def shipped(name: str, task: str = "classification") -> AbstractContextManager[Path]:
    """A file of the package as a path: ``student.onnx``, ``teacher.onnx`` or ``outcomes.npz``.

    Examples
    --------
    >>> with shipped("student.onnx") as path:
    ...     path.name
    'student.onnx'
    """
    return as_file(files("ebjr.demo") / "shipped" / task / name)


def _costs(models: Mapping[str, Model], first: Batch) -> dict[str, Cost]:
    """FLOPs and joules of both models; the joules measured if the machine can, else estimated."""
    loads, costs = {}, {}
    for role, model in models.items():
        inputs = first
        model, preprocess = unprepared(model)
        if preprocess is not None:
            inputs = preprocess(inputs)
        inputs = inputs[: getattr(model, "fixed_batch", None) or len(inputs)]
        counted = count_flops(model, np.shape(inputs))
        loads[role] = Load(model, inputs, counted.known, counted.parameter_bytes)
        costs[role] = Cost(flops=counted.known)
    return with_joules(costs, loads)

"""The demo: two shipped models become one, on real CIFAR-10."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from ebjr.backends import load_model
from ebjr.config import JointConfig, ModelEntry
from ebjr.costs import Cost
from ebjr.demo.cifar10 import CLASSES, DataUnavailable
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.evaluation.flops import count_flops
from ebjr.evaluation.power import Load, with_joules
from ebjr.outcomes import Outcomes, record_batches
from ebjr.preprocess import Preprocess, Preprocessed
from ebjr.study import Study, run_study

BATCH_SIZE = 64
PREPROCESS = Preprocess(size=32)
"""Both shipped models take 32 x 32 RGB in 0..1; the rest is inside the graphs."""

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much has been, and out of how much if that is known."""


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
        Per image, measured by running the joint model on the held-out half; None if recorded.
    files
        The outcomes, ``joint.toml`` and the report.
    """

    study: Study
    recorded: bool
    reason: str
    joint_seconds: float | None
    files: dict[str, Path]


def shipped(name: str) -> AbstractContextManager[Path]:
    """A file of the package as a path: ``student.onnx``, ``teacher.onnx`` or ``outcomes.npz``.

    Examples
    --------
    >>> with shipped("student.onnx") as path:
    ...     path.name
    'student.onnx'
    """
    return as_file(files("ebjr.demo") / name)


def run_demo(
    folder: str | os.PathLike[str] = "ebjr-demo",
    *,
    recorded: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Record the shipped pair on the CIFAR-10 test set, calibrate, evaluate, and write a report.

    Parameters
    ----------
    folder
        Where ``outcomes.npz``, ``joint.toml`` and ``report.html`` go.
    recorded
        Use the answers that are shipped: no images, no download.
    threads
        For each model; None leaves it to ONNX Runtime.
    progress
        Told about every step.

    Raises
    ------
    MissingExtra
        ONNX Runtime or plotly is not installed.
    OSError
        The folder cannot be written.
    """
    tell = progress or (lambda what, done, total: None)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    reason, images, labels = "asked for with --recorded", None, None
    if not recorded:
        try:
            images, labels = load_cifar10("test", progress=lambda d, t, what: tell(what, d, t))
        except DataUnavailable as error:
            reason = str(error)
    with shipped("student.onnx") as student_path, shipped("teacher.onnx") as teacher_path:
        paths = {"student": student_path, "teacher": teacher_path}
        if images is None or labels is None:
            with shipped("outcomes.npz") as path:
                outcomes = Outcomes.load(path)
        else:
            outcomes = _record(paths, images, labels, threads, tell)
        entries = _entries(paths, outcomes)
    study = run_study(outcomes)
    result_files = {name: target / name for name in ("outcomes.npz", "joint.toml", "report.html")}
    models = {role: entry.as_table(target.resolve()) for role, entry in entries.items()}
    replace(outcomes, models=models).save(result_files["outcomes.npz"])
    config = JointConfig.of_study(entries["student"], entries["teacher"], study)
    config.save(result_files["joint.toml"])
    seconds = None
    if images is not None:
        seconds = _time_joint(result_files["joint.toml"], images, study, threads, tell)
    study.write_report(
        result_files["report.html"],
        title="EBJR on CIFAR-10: the shipped pair",
        notes=_notes(images is None, reason, seconds),
    )
    return DemoResult(study, images is None, reason, seconds, result_files)


def _record(
    paths: dict[str, Path],
    images: np.ndarray,
    labels: np.ndarray,
    threads: int | None,
    tell: Progress,
) -> Outcomes:
    """Run both models on all images."""
    models = {
        role: Preprocessed(load_model(path, threads=threads), PREPROCESS)
        for role, path in paths.items()
    }
    for model in models.values():
        model(images[:BATCH_SIZE])  # the first call of a session is slow
    done = 0

    def count(added: int) -> None:
        nonlocal done
        done += added
        tell("recording both models", done, len(images))

    batches = ((images[rows], labels[rows]) for rows in _slices(len(images)))
    costs = _costs(paths, models, images[:BATCH_SIZE])
    return record_batches(
        models["student"],
        models["teacher"],
        batches,
        progress=count,
        student_cost=costs["student"],
        teacher_cost=costs["teacher"],
        labels=tuple(CLASSES),
    )


def _costs(
    paths: dict[str, Path], models: dict[str, Preprocessed], images: np.ndarray
) -> dict[str, Cost]:
    """FLOPs and joules of both models; the joules measured if the machine can, else estimated."""
    inputs = PREPROCESS(images)
    counted = {role: count_flops(path) for role, path in paths.items()}
    loads = {
        role: Load(model.model, inputs, counted[role].flops, counted[role].parameter_bytes)
        for role, model in models.items()
    }
    return with_joules({role: Cost(flops=found.flops) for role, found in counted.items()}, loads)


def _entries(paths: dict[str, Path], outcomes: Outcomes) -> dict[str, ModelEntry]:
    """Both models for ``joint.toml``."""
    costs = {"student": outcomes.student_cost, "teacher": outcomes.teacher_cost}
    return {
        role: ModelEntry.of_file(path, preprocess=PREPROCESS, cost=costs[role])
        for role, path in paths.items()
    }


def _time_joint(
    path: Path, images: np.ndarray, study: Study, threads: int | None, tell: Progress
) -> float:
    """Seconds per image of the joint model that ``joint.toml`` describes, on the held-out half."""
    joint = JointConfig.read(path).load(threads=threads)
    _, rows = study.outcomes.split_rows(*study.split)
    held_out = images[rows]
    joint(held_out[:BATCH_SIZE])
    began = time.perf_counter()
    for part in _slices(len(held_out)):
        joint(held_out[part])
        tell("running the joint model", part.stop, len(held_out))
    return (time.perf_counter() - began) / len(held_out)


def _slices(n: int) -> Iterator[slice]:
    for start in range(0, n, BATCH_SIZE):
        yield slice(start, min(start + BATCH_SIZE, n))


def _notes(recorded: bool, reason: str, seconds: float | None) -> dict[str, str]:
    """How the demo's report was made."""
    if recorded:
        return {
            "Data": f"recorded answers on the CIFAR-10 test set ({reason})",
            "Times": "as measured when the answers were recorded",
        }
    return {
        "Data": "the 10,000 images of the CIFAR-10 test set, both models run on all of them",
        "Times": f"measured in this run at batch size {BATCH_SIZE}; "
        f"the joint model itself took {1e3 * (seconds or 0):.3f} ms per image",
    }

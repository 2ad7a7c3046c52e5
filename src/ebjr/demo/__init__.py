"""The demo: shipped models become one, on real data. A module and an entry for each task."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ebjr.demo import classification, detection, regression, specialized
from ebjr.demo.flow import Demo, DemoResult, Progress, shipped

DEMOS: Mapping[str, Demo] = {
    demo.task: demo
    for demo in (classification.DEMO, specialized.DEMO, regression.DEMO, detection.DEMO)
}
"""By task: what its demo brings."""

__all__ = ["DEMOS", "Demo", "DemoResult", "as_demo", "run_demo", "shipped"]


def as_demo(task: str) -> Demo:
    """The demo of a task.

    Raises
    ------
    ValueError
        There is none.

    Examples
    --------
    >>> as_demo("classification").title
    'EBJR on CIFAR-10: the shipped pair'
    """
    if task not in DEMOS:
        raise ValueError(f"there is a demo of {', '.join(DEMOS)}, not of {task!r}")
    return DEMOS[task]


def run_demo(
    folder: str | os.PathLike[str] = "ebjr-demo",
    *,
    task: str = "classification",
    recorded: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Record the shipped models of a task on real data, calibrate, evaluate, and write a report.

    Parameters
    ----------
    folder
        Where ``outcomes.npz``, ``joint.toml`` and ``report.html`` go; of several students the
        outcomes are named as these are.
    task
        One of `DEMOS`.
    recorded
        Use the answers that are shipped: no data, no download.
    threads
        For each model; None leaves it to ONNX Runtime.
    progress
        Told about every step.

    Raises
    ------
    ValueError
        There is no demo of that task.
    MissingExtra
        ONNX Runtime or plotly is not installed.
    OSError
        The folder cannot be written.
    """
    return as_demo(task).run(folder, recorded=recorded, threads=threads, progress=progress)

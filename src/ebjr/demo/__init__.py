"""The demo: shipped models become one, on real data; one demo for each task."""

import os
from collections.abc import Mapping

from ebjr.demo import cifar10, detection, diamonds, specialized
from ebjr.demo.flow import Demo, DemoResult, Progress, shipped

DEMOS: Mapping[str, Demo] = {
    demo.task: demo for demo in (cifar10.DEMO, specialized.DEMO, diamonds.DEMO, detection.DEMO)
}
"""The demos by task."""

__all__ = ["DEMOS", "Demo", "DemoResult", "as_demo", "run_demo", "shipped"]


def as_demo(task: str) -> Demo:
    """Return the demo of a task.

    Raises
    ------
    ValueError
        `task` is not in `DEMOS`.

    Examples
    --------
    >>> as_demo("classification").title
    'EBJR on CIFAR-10: the shipped pair'
    """
    if task not in DEMOS:
        raise ValueError(f"task must be one of {', '.join(DEMOS)}, not {task!r}")
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

    ``outcomes.npz`` (with several students one file named after each), ``joint.toml`` and
    ``report.html`` go to `folder`. With `recorded` the shipped answers are used, and nothing is
    downloaded.

    Raises
    ------
    MissingExtra
        ONNX Runtime is not installed.
    """
    return as_demo(task).run(folder, recorded=recorded, threads=threads, progress=progress)

"""The demo: shipped models become one, on real data. An entry for each task."""

import os
from collections.abc import Mapping

from ebjr.demo import cifar10, detection, diamonds, specialized
from ebjr.demo.flow import Demo, DemoResult, Progress, shipped

DEMOS: Mapping[str, Demo] = {
    demo.task: demo for demo in (cifar10.DEMO, specialized.DEMO, diamonds.DEMO, detection.DEMO)
}
"""By task: what its demo brings."""

__all__ = ["DEMOS", "Demo", "DemoResult", "as_demo", "run_demo", "shipped"]


def as_demo(task: str) -> Demo:
    """The demo of a task.

    ValueError: `task` is none of `DEMOS`.

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

    ``outcomes.npz``, ``joint.toml`` and ``report.html`` go to `folder`; of several students the
    outcomes are named as these are. With `recorded` the answers that are shipped are used: no data,
    no download. MissingExtra: ONNX Runtime is not installed.
    """
    return as_demo(task).run(folder, recorded=recorded, threads=threads, progress=progress)

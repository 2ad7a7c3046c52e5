"""Tasks: each folder here declares the facts of one task, as a `Task` named `TASK`.

A folder is imported when its task is used. A new folder is a new task: nothing else names it.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import ebjr
from ebjr import metric, scores
from ebjr.task import Task


@cache
def task_names() -> tuple[str, ...]:
    """The names of all tasks, from their folders, without importing one."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if module.ispkg))


def as_task(name: str, known_classes: Any = None) -> Task:
    """Return the task of that name, for a student of these classes."""
    if name not in task_names():
        known = f"{', '.join(task_names())} in EBJR {ebjr.__version__}"
        raise ValueError(f"task must be one of {known}, not {name!r}")
    return _declared(name).knowing(known_classes)


def load_all() -> list[Task]:
    """Import every task, so that all scores and metrics are known by name."""
    return [_declared(name) for name in task_names()]


def __getattr__(name: str) -> Any:
    """Return `METRICS` or `SCORES`, after every task has declared its own."""
    home = {"METRICS": metric, "SCORES": scores}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    scores.load_declared()
    metric.own_metrics()
    return getattr(home, name)


@cache
def _declared(name: str) -> Task:
    """Return the task that a folder declares; ValueError if it is incomplete."""
    task = getattr(import_module(f"{__name__}.{name}"), "TASK", None)
    if not isinstance(task, Task):
        raise ValueError(f"the folder of task {name!r} must declare a Task named TASK")
    facts = ("name", "raw", "metrics", "final")
    missing = [fact for fact in facts if not getattr(task, fact, None)]
    if missing or task.name != name:
        said = f"misses {', '.join(missing)}" if missing else f"calls itself {task.name!r}"
        raise ValueError(f"task {name!r} {said}: TASK must have name, raw, metrics and final")
    return task

"""The models of one ``joint.toml``, each in a process of its own."""

import os
from typing import Any

from ebjr.backends.entry import Entry, ModelEntry
from ebjr.backends.python import import_path, is_pickle
from ebjr.errors import ModelError, needs
from ebjr.joint_file import JointConfig
from ebjr.model import Model, facts, model_name

with needs("scale", "running on Ray"):
    import ray


def checked_config(joint: str | os.PathLike[str]) -> JointConfig:
    """A ``joint.toml`` whose models are there and unchanged since they were calibrated."""
    config = JointConfig.read(joint)
    config.check()
    for entry in (config.student, config.teacher):
        entry.check()
    for one in config.parts:
        if isinstance(one, ModelEntry) and (import_path(one.path) or is_pickle(one.path)):
            raise ModelError(f"{one.path} is Python code or a pickle, which is not run on Ray")
    return config


def check_teacher(teacher: Model) -> None:
    """Check that a teacher can be asked about inputs, which are what travels; ModelError."""
    if facts(teacher).continues:
        words = "continues from the student's features, which do not travel on Ray; use ebjr serve"
        raise ModelError(f"{model_name(teacher)} {words}")


def check_policy(when_unavailable: str) -> str:
    """`when_unavailable`, if many processes can keep to it; else ValueError."""
    if when_unavailable not in ("student", "error"):
        raise ValueError(
            f"on Ray, when_unavailable must be student or error, not {when_unavailable!r}"
        )
    return when_unavailable


def thread_option(entry: Entry, threads: int | None) -> dict[str, Any]:
    """What keeps a model to its process's CPUs: Ray tells every library but ONNX Runtime."""
    for one in entry.parts:
        here = isinstance(one, ModelEntry) and one.path.endswith(".onnx")
        if not here or "threads" in one.options:
            return {}
    return {"threads": max(1, int(_assigned_cpus())) if threads is None else threads}


def _assigned_cpus() -> float:
    """The CPUs that Ray has given this process; all of the machine's outside of a worker."""
    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return os.cpu_count() or 1
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))

"""The models of one ``joint.toml``, each in its own process."""

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
    """Read a ``joint.toml``, and check that its models are unchanged since calibration."""
    config = JointConfig.read(joint)
    config.check()
    for entry in (config.student, config.teacher):
        entry.check()
    for one in config.parts:
        if isinstance(one, ModelEntry) and (import_path(one.path) or is_pickle(one.path)):
            raise ModelError(f"{one.path} is Python code or a pickle, which does not run on Ray")
    return config


def check_teacher(teacher: Model) -> None:
    """Raise ModelError if a teacher needs the student's features: only inputs travel."""
    if facts(teacher).continues:
        words = "continues from the student's features, which are not sent on Ray; use ebjr serve"
        raise ModelError(f"{model_name(teacher)} {words}")


def check_policy(when_unavailable: str) -> str:
    """Return `when_unavailable`; ValueError unless many processes can follow it."""
    if when_unavailable not in ("student", "error"):
        raise ValueError(
            f"on Ray, when_unavailable must be student or error, not {when_unavailable!r}"
        )
    return when_unavailable


def thread_option(entry: Entry, threads: int | None) -> dict[str, Any]:
    """Return the option that limits an ONNX model to its CPUs; Ray limits other libraries."""
    for one in entry.parts:
        here = isinstance(one, ModelEntry) and one.path.endswith(".onnx")
        if not here or "threads" in one.options:
            return {}
    return {"threads": max(1, int(_assigned_cpus())) if threads is None else threads}


def _assigned_cpus() -> float:
    """Return the CPUs that Ray gave this process; outside a worker, all of the machine's."""
    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return os.cpu_count() or 1
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))

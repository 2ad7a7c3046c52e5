"""Public packages that route between a cheap and an expensive model, around the same two sessions.

They are in no environment of ours: `install` puts them into a folder of their own. Where one is
absent the benchmark says so and goes on. Each takes one input at a time: that is how they are made.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.loops import Loop
from ebjr import Model
from ebjr.scores import softmax


class Absent(Exception):
    """A package is not installed, or cannot be run; the message says which and why."""


def install(folder: Path) -> None:
    """Put the packages alone into a folder, if it is empty, and look for them there last."""
    if not folder.is_dir() or not any(folder.iterdir()):
        words = ["install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    sys.path.append(str(folder))


def _require(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise Absent(f"{name} is not installed: give --packages FOLDER") from None


def ucci(student: Model, teacher: Model, threshold: float) -> tuple[str, Loop]:
    """`ucci.integrations.cascade.Cascade`, with our comparison as its router: the same rows."""
    name = f"ucci-router {_require('ucci-router')}: Cascade"
    try:
        from ucci.integrations.cascade import Cascade
    except ImportError as error:
        raise Absent(f"ucci-router cannot be imported here: {error}") from error

    class Comparison:
        def error_probability(self, u: Any) -> np.ndarray:
            return np.asarray(u)

        def escalate(self, u: Any) -> np.ndarray:
            return np.asarray(u) > 1 - threshold

    def small(query: np.ndarray) -> tuple[int, np.ndarray]:
        output = student(query)
        return int(output.argmax()), output

    cascade = Cascade(
        Comparison(),
        small,
        lambda query: int(teacher(query).argmax()),
        lambda output: float(1 - softmax(output)[0]),
    )
    return name, lambda batch: np.array([cascade(row[None]).answer for row in batch])


def earlyon(student: Model, teacher: Model, threshold: float) -> tuple[str, Loop]:
    """`earlyon.staged.StagedModel`, its first stage the student, its last one the teacher."""
    name = f"earlyon {_require('earlyon')}: StagedModel"
    try:
        import torch
        from earlyon.core.types import EarlyExitConfig, ExitPoint
        from earlyon.staged import Stage, StagedModel, StageSpec
    except ImportError as error:
        raise Absent(f"earlyon cannot be imported here: {error}") from error

    class Session(torch.nn.Module):
        def __init__(self, model: Model) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.model(batch.numpy()))

    config = EarlyExitConfig(
        backbone="pair",
        num_classes=10,
        exit_points=[ExitPoint("student", "student", 3)],
        confidence_thresholds=[threshold],
    )
    nothing = torch.nn.Identity()
    staged = StagedModel(
        [Stage(nothing, Session(student)), Stage(Session(teacher), nothing)],  # type: ignore[arg-type]
        [StageSpec(0, "student", ("student",)), StageSpec(1, "final", ("teacher",))],
        config,
        {"student": 0.1},
    )

    def loop(batch: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(batch)
        return np.array([int(staged.infer(row[None]).prediction.argmax()) for row in rows])

    return name, loop


PACKAGES = {"ucci-router": ucci, "earlyon": earlyon}

"""Outcomes of made-up models that more than one test file draws."""

from __future__ import annotations

import numpy as np

from ebjr.costs import Cost
from ebjr.outcomes import Outcomes

COSTS = {"student_cost": Cost(flops=1.0), "teacher_cost": Cost(flops=9.0)}


def pair_of_models(n: int, seed: int = 0, classes: int = 5) -> Outcomes:
    """A noisy student and a less noisy teacher."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    truth = 3 * np.eye(classes)[targets]
    student = truth + 2.0 * rng.normal(size=(n, classes))
    teacher = truth + 1.2 * rng.normal(size=(n, classes))
    return Outcomes(student, teacher, targets, **COSTS)

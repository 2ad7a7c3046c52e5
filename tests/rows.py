"""The small table of outcomes that the tests of tables and of recording share."""

from __future__ import annotations

import numpy as np

from ebjr import Cost

_RNG = np.random.default_rng(5)
INPUTS, TARGETS = _RNG.normal(0, 2, (23, 4)), _RNG.integers(0, 4, 23)
ABOUT = {
    "student_cost": Cost(flops=1e6, seconds=0.1),
    "teacher_cost": Cost(flops=9e6, joules=3.0, joules_are="estimated"),
    "labels": ("zero", "één", "два", "three"),
    "models": {"student": {"path": "s.onnx", "sha256": "ab", "preprocess": {"size": [32, 32]}}},
}

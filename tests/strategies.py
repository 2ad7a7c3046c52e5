"""Hypothesis strategies that more than one test file draws from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from ebjr import Outcomes

ROWS, CLASSES, COARSE = st.integers(1, 12), st.integers(2, 6), st.booleans()
ROWS, CLASSES = st.integers(1, 12), st.integers(2, 6)
THRESHOLDS = st.floats(min_value=-1e3, max_value=1e3) | st.just(np.inf)

REQUESTS = st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=9), min_size=1, max_size=9)
"""The rows of some requests to one engine, a number each."""


@st.composite
def logits(draw, rows=ROWS, classes=CLASSES, coarse=COARSE):
    """Logits (n, classes); the coarse ones are small integers, so that many scores tie."""
    shape = draw(rows), draw(classes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (
        rng.integers(-2, 3, shape).astype(float) if draw(st.booleans()) else rng.normal(0, 4, shape)
    )


@st.composite
def tables(draw, rows=ROWS, dtype=np.float64, **about):
    """Outcomes of a pair whose models are right, wrong and tied in every combination."""
    student = draw(logits(rows=rows)).astype(dtype)
    classes = st.integers(0, student.shape[1] - 1)
    n = len(student)
    teacher = draw(logits(rows=st.just(n), classes=st.just(student.shape[1]))).astype(dtype)
    targets = draw(st.lists(classes, min_size=n, max_size=n))
    return Outcomes(student, teacher, np.array(targets, int), **about)


@st.composite
def cuts(draw, n):
    """The slices of a random split of n rows into batches."""
    inner = draw(st.sets(st.integers(1, n - 1))) if n > 1 else set()
    edges = [0, *sorted(inner), n]
    return [slice(a, b) for a, b in pairwise(edges)]

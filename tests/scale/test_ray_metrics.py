from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="the extra `scale` is not installed")

from ebjr.scale.ray_metrics import spread

EDGES = np.array([0.5, 1.0, 2.0, 4.0])


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30))
def test_a_refilled_histogram_has_the_same_counts_and_the_same_sum(values):
    counts = np.bincount(np.searchsorted(EDGES, values), minlength=len(EDGES) + 1)
    refilled = np.repeat(spread(EDGES, counts, sum(values)), counts)
    found = np.bincount(np.searchsorted(EDGES, refilled), minlength=len(EDGES) + 1)
    np.testing.assert_array_equal(found, counts)
    # what lies under the middle of a bucket may be off by the little that keeps it in there
    assert refilled.sum() == pytest.approx(sum(values), rel=2e-3, abs=1e-2)

"""Every statistic against SciPy's, which is slow to import."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, rankdata

from ebjr.stats import average_ranks, binomial_cdf, clopper_pearson, critical_count, share_interval

SHARES = st.floats(0.0, 1.0)


@given(hits=st.integers(0, 300), misses=st.integers(0, 300), alpha=st.floats(1e-6, 0.99))
@settings(max_examples=100, deadline=None)
def test_an_exact_interval_is_scipys(hits, misses, alpha):
    low, high = clopper_pearson(hits, hits + misses, alpha)
    assert low == (beta.ppf(alpha / 2, hits, misses + 1) if hits else 0.0)
    assert high == (beta.ppf(1 - alpha / 2, hits + 1, misses) if misses else 1.0)


@given(count=st.integers(-2, 400), n=st.integers(1, 300), share=SHARES)
@settings(max_examples=100, deadline=None)
def test_a_binomial_tail_is_scipys(count, n, share):
    expected = binom.cdf(count, n, share)
    assert binomial_cdf(count, n, share) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(n=st.integers(1, 3_000), share=SHARES, delta=st.floats(1e-6, 0.99))
@settings(max_examples=100, deadline=None)
def test_the_critical_count_is_the_last_within_delta(n, share, delta):
    count = critical_count(n, share, delta)
    assert -1 <= count < n
    rounding = 1e-12  # at most 7 of 15 is seen with probability 0.5: SciPy's tail is a bit above
    assert count == -1 or binom.cdf(count, n, share) <= delta * (1 + rounding)
    assert binom.cdf(count + 1, n, share) > delta * (1 - rounding)


@given(st.lists(st.integers(-3, 3) | st.just(-np.inf), min_size=1, max_size=40))
def test_ranks_are_scipys_ties_included(values):
    assert np.array_equal(average_ranks(np.array(values, float)), rankdata(values))


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (3, 10), (480, 500)])
def test_the_interval_of_a_share_agrees_with_statsmodels(hits, n):
    proportion = pytest.importorskip(
        "statsmodels.stats.proportion", reason="statsmodels is not installed"
    )
    found = share_interval(hits, n)
    low, high = proportion.proportion_confint(hits, n, method="beta")
    assert (found.estimate, found.low, found.high) == pytest.approx((hits / n, low, high))


def test_a_share_of_no_examples_is_unknown():
    assert str(share_interval(0, 0)) == "nan (0 to 1)"

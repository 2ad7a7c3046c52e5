"""The last minute of a pipeline: what is older is forgotten, percentiles are nearly exact."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebjr.serving.events import Answered, Batched, Degraded, Scored
from ebjr.serving.recent import Recent


class Clock:
    """Seconds that grow when they are told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def rows(recent: Recent, deferred: int, kept: int) -> None:
    flags = np.arange(deferred + kept) < deferred
    recent.observe(Scored(np.zeros(len(flags)), flags, np.ones(len(flags))))


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30
    )
)
def test_only_the_last_seconds_count(steps):
    clock = Clock()
    recent, told = Recent(seconds=20, clock=clock), []
    for pause, deferred, kept in steps:
        clock.seconds += pause
        rows(recent, deferred, kept)
        told.append((int(clock.seconds - 100), deferred, kept))
    now = told[-1][0]
    for seconds in (1, 7, 20):
        own = [(d, k) for second, d, k in told if second > now - seconds]
        found = recent.counts(seconds)
        assert found["deferred"] == sum(d for d, _ in own)
        assert found["rows"] == sum(d + k for d, k in own)
    over = range(max(now - 19, 0), now)
    assert recent.per_second("rows") == [sum(d + k for s, d, k in told if s == own) for own in over]


@given(st.lists(st.floats(2e-5, 100), min_size=1, max_size=200), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_within_five_percent_of_the_exact_one(times, percent):
    recent = Recent()
    for seconds in times:
        recent.observe(Answered([None], np.array([seconds])))
    exact = np.percentile(times, percent, method="inverted_cdf")
    assert recent.percentile("request", percent) == pytest.approx(exact, rel=0.05)


def test_a_stage_that_did_nothing_has_no_percentile():
    recent = Recent()
    recent.observe(Batched("student", 4, [], np.array([0.002, 0.004]), 0.0, 0.01))
    assert recent.percentile("student", 50) == pytest.approx(0.01, rel=0.05)
    assert recent.percentile("student_wait", 99) == pytest.approx(0.004, rel=0.05)
    assert recent.percentile("teacher", 50) is None
    assert recent.as_dict()["deferral_rate"] is None


def test_scores_beyond_the_bins_lie_in_the_outer_ones_and_those_that_always_defer_lowest():
    recent = Recent([0.0, 1.0, 2.0, 3.0])
    score = np.array([-np.inf, np.nan, -5.0, 0.5, 1.0, 3.0, 9.0])
    recent.observe(Scored(score, np.zeros(7, bool), np.ones(7)))
    assert recent.scores().tolist() == [4, 1, 2]


def test_rates_are_of_the_time_that_has_been():
    clock = Clock()
    recent = Recent(clock=clock)
    clock.seconds += 0.5
    rows(recent, 10, 10)
    assert recent.as_dict()["rows_per_second"] == pytest.approx(40)
    clock.seconds += 30
    rows(recent, 19, 0)
    assert recent.as_dict(seconds=10)["rows_per_second"] == pytest.approx(2)


def test_many_threads_are_counted_whole():
    recent = Recent([0.0, 1.0], seconds=600)

    def tell() -> None:
        for _ in range(500):
            rows(recent, 1, 2)
            recent.observe(Answered([None], np.array([0.001])))
            recent.observe(Degraded(1))

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = recent.counts()
    assert [found[name] for name in ("rows", "deferred", "degraded", "requests")] == [
        6000,
        2000,
        2000,
        2000,
    ]
    assert recent.scores().sum() == 6000

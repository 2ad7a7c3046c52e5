"""The simulator of benchmarks/simulator.py, held against what queueing theory knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.simulator import Plan, Times, cheapest, poisson, simulate


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_one_replica_without_batches_waits_as_lindley_says(load):
    seconds = 0.01
    plan = Plan(Times(0.0, seconds), Times(0.0, 1.0), 0.0, rows=1, student_batch=1)
    arrivals = poisson(load / seconds, 60.0, seed=3)
    expected = [0.0]
    for gap in np.diff(arrivals):
        expected.append(max(0.0, expected[-1] + seconds - gap))
    waited = simulate(plan, arrivals).latencies - seconds
    np.testing.assert_allclose(waited, expected, atol=1e-9)


def test_at_a_moderate_load_the_mean_wait_is_that_of_pollaczek_and_khinchine():
    seconds, load = 0.01, 0.6
    plan = Plan(Times(0.0, seconds), Times(0.0, 1.0), 0.0, rows=1, student_batch=1)
    waited = simulate(plan, poisson(load / seconds, 600.0, seed=1)).latencies - seconds
    assert waited.mean() == pytest.approx(load * seconds / (2 * (1 - load)), rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_threads_that_share_a_core_wait_as_processor_sharing_says_whatever_the_spread(load):
    seconds = 0.01
    times = Times(0.0, seconds, spread=(0.1, 0.5, 2.4))
    plan = Plan(times, Times(0.0, 1.0), 0.0, rows=1, student_batch=1, students=60, cores=1)
    found = simulate(plan, poisson(load / seconds, 600.0, seed=2)).latencies
    assert found.mean() == pytest.approx(seconds / (1 - load), rel=0.1)


def test_a_request_takes_what_clients_loop_and_models_take_one_after_another():
    times = Times(0.5, 0.25), Times(1.0, 0.5)
    plan = Plan(*times, 0.0, rows=2, http=0.2, client=0.1, idle=((0.5,), (0.75,)), cores=1)
    for deferred, teacher in [((False, False), 0.0), ((True, False), 1.75), ((True, True), 2.25)]:
        found = simulate(plan, np.zeros(1), hard=np.array([deferred])).latencies
        assert found == pytest.approx([1.8 + teacher])


def test_every_row_is_answered_once_whatever_the_replicas_are():
    plan = Plan(Times(0.002, 0.001), Times(0.004, 0.002), 0.25, rows=8)
    arrivals = poisson(60.0, 50.0)
    for students, teachers in [(1, 1), (3, 1), (2, 4)]:
        found = simulate(replace(plan, students=students, teachers=teachers), arrivals)
        assert (found.latencies > 0).all()
        assert sum(found.batches["student"]) == 8 * len(arrivals)
        share = sum(found.batches["teacher"]) / sum(found.batches["student"])
        assert share == pytest.approx(0.25, abs=0.01)


def test_the_cheapest_plan_keeps_the_p99_and_one_replica_less_does_not():
    plan = Plan(Times(0.002, 0.001), Times(0.004, 0.003), 0.2, rows=8)
    found = cheapest(plan, rate=300.0, p99=0.08, prices=(1.0, 3.0))
    assert found is not None
    best, simulated = found
    assert np.quantile(simulated.latencies, 0.99) <= 0.08
    arrivals = poisson(300.0, 30.0)
    for fewer in (
        replace(best, students=best.students - 1),
        replace(best, teachers=best.teachers - 1),
    ):
        if fewer.students and fewer.teachers:
            assert np.quantile(simulate(fewer, arrivals).latencies, 0.99) > 0.08


def test_a_p99_below_what_a_batch_takes_has_no_plan():
    plan = Plan(Times(0.1, 0.001), Times(0.1, 0.001), 0.2)
    assert cheapest(plan, rate=10.0, p99=0.05, most=3) is None


def test_times_are_the_line_through_what_was_measured():
    sizes = (1, 2, 8, 64)
    fitted = Times.fit(sizes, [Times(0.003, 0.002).of(size) for size in sizes])
    assert (fitted.fixed, fitted.each) == pytest.approx((0.003, 0.002))
    assert set(fitted.spread) == {1.0}


def test_what_batches_take_over_the_line_is_their_spread():
    random = np.random.default_rng(0)
    over = random.choice([0.8, 1.2], 2_000)
    sizes = random.integers(1, 65, 2_000)
    fitted = Times.fit(sizes, Times(0.003, 0.002).of(sizes) * over)
    for size in (1, 8, 64):
        mean = fitted.of(size) * np.mean(fitted.spread)
        assert mean == pytest.approx(Times(0.003, 0.002).of(size), rel=0.03)
    assert np.quantile(fitted.spread, 0.9) / np.quantile(fitted.spread, 0.1) == pytest.approx(
        1.5, rel=0.02
    )

from __future__ import annotations

import numpy as np
import pytest

from ebjr import Cost, Outcomes, calibrate, evaluate
from experiments import intervals
from experiments.intervals import Half
from experiments.pairs import shipped_pair

ROUTES = [("softmax", 0.0), ("energy", 0.0), ("margin", 0.5)]


@pytest.fixture(scope="module")
def parts() -> tuple[Outcomes, Outcomes]:
    """Both halves of a part of the shipped pair's answers."""
    return shipped_pair().split(0.2, seed=0)[0].split(0.5, seed=1)


@pytest.mark.parametrize(("score", "blend"), ROUTES)
@pytest.mark.parametrize(
    ("over", "margin"), [(0.0, 0.0), (-0.01, 0.0), (0.0, 0.75), (-0.005, 0.75)]
)
def test_a_resample_of_each_example_once_is_what_the_library_chooses(
    parts, score, blend, over, margin
):
    calibration, held_out = parts
    once = np.ones((1, len(calibration)), int)
    first, second = (Half.of(part, score, blend) for part in parts)
    rate, gain = second.judged(once, first.chosen(once, over, margin=margin))

    how = {"score": score, "blend": blend, "tolerance": -over, "margin": margin}
    point = evaluate(held_out, calibrate(calibration, **how))
    assert rate[0] == pytest.approx(point.deferral_rate)
    assert gain[0] == pytest.approx(point.quality - point.teacher_quality)


@pytest.mark.parametrize(("score", "blend"), ROUTES)
def test_a_resample_is_what_the_library_makes_of_rows_that_are_drawn_again(parts, score, blend):
    rng = np.random.default_rng(0)
    first, second = (Half.of(part, score, blend) for part in parts)
    for _ in range(5):
        rows = [rng.integers(0, len(part), len(part)) for part in parts]
        drawn = [part.take(each) for part, each in zip(parts, rows, strict=True)]
        point = evaluate(
            drawn[1], calibrate(drawn[0], score=score, blend=blend, margin=0.0, tolerance=0.01)
        )
        times = [
            np.bincount(each, minlength=len(each))[half.curve.order][None]
            for half, each in zip((first, second), rows, strict=True)
        ]
        rate, gain = second.judged(times[1], first.chosen(times[0], -0.01))
        # a score that lies within a rounding of the threshold may fall on either side: one row
        assert rate[0] == pytest.approx(point.deferral_rate, abs=1.5 / len(parts[1]))
        assert gain[0] == pytest.approx(point.quality - point.teacher_quality, abs=1.5e-3)


def test_within_a_rate_a_resample_has_the_best_quality_there_as_the_library(parts):
    calibration, held_out = parts
    first, second = (Half.of(part, "softmax") for part in parts)
    once = np.ones((1, len(calibration)), int)
    rate, _ = second.judged(once, first.within(once, 0.2))
    point = calibrate(calibration, "budget", deferral_rate=0.2, score="softmax", blend=0.0)
    assert rate[0] == pytest.approx(evaluate(held_out, point).deferral_rate)


def test_a_resample_draws_as_many_examples_as_there_are():
    times = intervals.times_drawn(50, 200, np.random.default_rng(0))
    assert times.shape == (200, 50)
    assert (times.sum(axis=1) == 50).all()
    assert 0.9 < times.var() < 1.1  # of draws with replacement, (n - 1) / n


def population(n: int, seed: int) -> Outcomes:
    """Two classifiers of ten classes: the second is right more often, the first knows when."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 10, n)
    hard = rng.random(n)
    logits = []
    for power in (1.5, 4.0):
        noise = rng.normal(size=(n, 10)) * (0.3 + 2.5 * hard[:, None])
        logits.append(noise + power * np.eye(10)[targets])
    student, teacher = (each.astype(np.float32) for each in logits)
    costs = {"student_cost": Cost(flops=1.0), "teacher_cost": Cost(flops=10.0)}
    return Outcomes(student, teacher, targets, **costs)


def test_an_interval_holds_what_another_test_set_and_split_find():
    """Nineteen times of twenty by its name; at least three of four by this small a study."""
    held = 0
    for seed in range(24):
        here, there = population(1000, seed), population(1000, 1000 + seed)
        halves = intervals.halves_of(here, 2, 2 * ["softmax"], 2 * [0.0])
        low, high = intervals.interval(
            intervals.draws(halves, 2, over=-0.02, resamples=400).rate, 6
        )
        parts = there.split(0.5, seed=seed)
        point = calibrate(parts[0], score="softmax", blend=0.0, margin=0.0, tolerance=0.02)
        held += low <= evaluate(parts[1], point).deferral_rate <= high
    assert held >= 18


def test_thresholds_that_stay_vary_less_than_those_that_are_chosen_anew(parts):
    calibration, held_out = parts
    how = {"score": "softmax", "blend": 0.0, "margin": 0.0, "tolerance": 0.01}
    point = evaluate(held_out, calibrate(calibration, **how))
    anew = intervals.of_points([(calibration, held_out, point)], -0.01)
    stays = intervals.fixed([(held_out, point)])
    assert stays.rate.std() < anew.rate.std()
    assert stays.rate.mean() == pytest.approx(point.deferral_rate, abs=0.01)

"""The verdict is what a person decides by: it has to be true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ebjr import Cost, Outcomes, run_study
from ebjr.calibration.goal import Goal
from ebjr.curve import OperatingPoint
from ebjr.stats import Interval
from ebjr.tasks import as_task
from ebjr.verdict import MET, MISSED, UNDECIDED, Verdict

POINT = OperatingPoint(
    threshold=0.8,
    score="softmax",
    blend=0.0,
    deferral_rate=0.2,
    quality=0.93,
    student_quality=0.9,
    teacher_quality=0.94,
    student_cost=Cost(flops=1e6),
    teacher_cost=Cost(flops=1e7),
    n=1_000,
)


def intervals(gain: tuple[float, float, float], rate=(0.2, 0.18, 0.22)) -> dict[str, Interval]:
    """What a bootstrap would find."""
    joint = Interval(*(0.94 + each for each in gain))
    found = {"gain_over_teacher": Interval(*gain), "deferral_rate": Interval(*rate)}
    return {**found, "accuracy": joint}


@pytest.mark.parametrize(
    ("gain", "standing", "words"),
    [
        (
            (-0.001, -0.004, 0.002),
            MET,
            "Goal met on 1,000 held-out examples: at most 0.5 points under the teacher. Accuracy ",
        ),
        (
            (-0.022, -0.03, -0.01),
            MISSED,
            "Goal missed by 1.7 points on 1,000 held-out examples: at most 0.5",
        ),
        (
            (-0.01, -0.02, 0.001),
            UNDECIDED,
            "Goal not decided by 1,000 held-out examples: at most 0.5",
        ),
    ],
)
def test_the_interval_says_whether_the_goal_is_met(gain, standing, words):
    verdict = Verdict.of(Goal.of(tolerance=0.005), POINT, intervals(gain))
    assert verdict.standing == standing
    assert verdict.goal.startswith(words)
    assert f"{-100 * gain[0]:.2f} points under the teacher (" in verdict.goal
    side = "over" if gain[2] > 0 else "under"
    shown = f"(95 % interval {-100 * gain[1]:.2f} under to {100 * abs(gain[2]):.2f} {side})"
    assert shown in verdict.goal


def test_an_interval_that_ends_at_the_tolerance_meets_it():
    same = Verdict.of(Goal.of(tolerance=0.0), POINT, intervals((0.0, 0.0, 0.0)))
    assert same.standing == MET


@pytest.mark.parametrize(
    ("goal", "standing", "words"),
    [
        (Goal.of("accuracy", target=0.9), MET, "accuracy of at least 90.00 %"),
        (
            Goal.of("accuracy", target=0.99),
            MISSED,
            "missed by 5.1 points on 1,000 held-out examples: accuracy of at least",
        ),
        (Goal.of("budget", deferral_rate=0.3), MET, "at most 30 % deferred."),
        (
            Goal.of("budget", deferral_rate=0.1),
            MISSED,
            "missed by 10 % deferred on 1,000 held-out examples: at most 10 %",
        ),
        (Goal.of("budget", flops=3e6), UNDECIDED, "at most 3.0 MFLOPs an example"),
        (
            Goal.of("budget", flops=2e6),
            MISSED,
            "missed by 1.0 MFLOPs on 1,000 held-out examples: at most 2.0 MFLOPs",
        ),
        (Goal.of("crossing"), None, "Goal crossing sets no limit"),
    ],
)
def test_every_goal_is_judged_in_its_own_unit(goal, standing, words):
    verdict = Verdict.of(goal, POINT, intervals((-0.001, -0.004, 0.002)))
    assert verdict.standing == standing
    assert words in verdict.goal


def test_a_loss_to_reach_is_a_quality_the_other_way_round():
    assert as_task("regression").metric(None).name == "rmse"
    point = replace(
        POINT, metric="rmse", quality=-0.1, student_quality=-0.12, teacher_quality=-0.09
    )
    found = intervals((-0.01, -0.02, -0.005)) | {"rmse": Interval(0.1, 0.09, 0.11)}
    met = Verdict.of(Goal.of("accuracy", target=0.12), point, found)
    missed = Verdict.of(Goal.of("accuracy", target=0.05), point, found)
    assert (met.standing, missed.standing) == (MET, MISSED)
    assert missed.goal.startswith(
        "Goal missed by 0.05 of RMSE on 1,000 held-out examples: RMSE of at most 0.05."
    )
    assert "RMSE 0.1, 0.01 worse than the teacher (95 % interval 0.02 worse to" in met.goal


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ((Cost(flops=1.0), Cost(flops=10.0)), "3.33 times fewer FLOPs than the teacher alone"),
        ((Cost(seconds=1.0), Cost(seconds=10.0)), "3.33 times less time than"),
        (
            (Cost(flops=5.0, seconds=1.0), Cost(seconds=10.0)),
            "3.33 times less time than the teacher alone (the teacher alone is cheaper above a "
            "deferral rate of 90.0%; the teacher's flops are not known).",
        ),
        (
            (Cost(flops=5.0), Cost()),
            "because the models' costs are not known: the teacher's flops are not known.",
        ),
    ],
)
def test_a_price_names_its_unit_and_what_is_not_known(costs, words):
    assert words in replace(POINT, student_cost=costs[0], teacher_cost=costs[1]).verdict


def pair(n: int, seed: int = 0, student_cost: float = 1.0) -> Outcomes:
    """A student that is a bit worse than its teacher where it is unsure."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, n)
    clear = 4 * np.eye(4)[targets] + rng.normal(0, 1.3, (n, 4))
    student = clear + rng.normal(0, 0.9, clear.shape)
    costs = {"student_cost": Cost(flops=student_cost), "teacher_cost": Cost(flops=10.0)}
    return Outcomes(student, clear, targets, **costs)


def test_a_brittle_goal_is_told_from_a_pair_that_does_not_pay():
    brittle = run_study(pair(200, student_cost=7.0), tolerance=0.0, score="margin", blend=0.0)
    assert not brittle.result.pays
    assert "A tolerance of 0 hangs on a few examples" in brittle.verdict.price
    assert "--tolerance" in brittle.verdict.price
    moved = replace(brittle, point=replace(brittle.point, margin=None))  # by hand, not by the goal
    assert "--tolerance" not in moved.verdict.price
    dear = run_study(pair(200, student_cost=9.9), tolerance=0.0, score="margin", blend=0.0)
    assert dear.verdict.price.startswith("This pair does not pay here")


def test_a_promise_above_figures_that_look_worse_says_why_that_can_be():
    certified = run_study(pair(4_000), tolerance=0.05, delta=0.1, score="margin", blend=0.0)
    assert certified.verdict.promise == ""
    point = replace(POINT, certified=certified.point.certified)
    worse = Verdict.of(Goal.of(tolerance=0.005), point, intervals((-0.01, -0.02, 0.001)))
    assert "It fails with probability 0.1 at most" in worse.promise
    assert worse.text.endswith(worse.promise)


def test_the_price_of_the_margin_is_a_pick_without_it():
    study = run_study(pair(600), tolerance=0.01)
    assert study.point.margin is not None
    assert study.plain_point.deferral_rate <= study.point.deferral_rate
    assert run_study(pair(600), "budget", deferral_rate=0.1).plain_point is None

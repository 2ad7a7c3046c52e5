"""More than two stages: which chain is taken, and what it does on unseen examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ebjr import (
    CalibrationError,
    Cost,
    JointClassifier,
    Outcomes,
    Router,
    calibrate,
    calibrate_stages,
    evaluate,
    run_study,
)
from ebjr.calibration import stage_search
from ebjr.calibration.stage_search import Stage
from ebjr.calibration.stages import nested, reduced
from ebjr.demo import shipped

CHAIN = ("student", "model-2", "teacher")


def zoo(n: int = 1200, costs=(1.0, 1.5, 30.0), skill=(1.5, 2.5, 5.0), seed: int = 0) -> Outcomes:
    """Classifiers of four classes, each as much surer of the right one as it is skilled."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, n)
    said = [each * np.eye(4)[targets] + rng.normal(0, 1, (n, 4)) for each in skill]
    return Outcomes(
        said[0],
        said[-1],
        targets,
        student_cost=Cost(costs[0]),
        teacher_cost=Cost(costs[-1]),
        between=tuple(said[1:-1]),
        between_costs=tuple(map(Cost, costs[1:-1])),
    )


@pytest.fixture(scope="module")
def recorded() -> Outcomes:
    with shipped("outcomes.npz") as path:
        return Outcomes.load(path)


def flops(point) -> float:
    return point.cost.flops


def test_a_middle_model_that_pays_is_taken_and_saves_on_unseen_examples():
    seen, unseen = zoo(4000).split(0.5)
    chain = calibrate_stages(seen, tolerance=0.01)
    pair = calibrate(seen, tolerance=0.01)
    assert [stage.role for stage in chain.stages] == [*CHAIN]
    there = evaluate(reduced(unseen, chain.stages), chain)
    assert flops(there) < 0.9 * flops(evaluate(unseen, pair))
    assert there.quality > unseen.quality("teacher") - 0.03


def test_a_middle_model_that_says_nothing_new_is_left_out():
    table = zoo(2000)
    table = replace(table, between=(table.student + 0.001,))
    found = calibrate_stages(table, tolerance=0.01)
    assert len(found.stages) == 2


def test_a_single_model_that_beats_the_chain_is_named():
    table = zoo(2000, skill=(1.0, 6.0, 2.0), costs=(1.0, 1.2, 30.0))
    found = calibrate_stages(table, stages=("student", "teacher"))
    assert found.alone is not None
    assert found.alone.roles == ("model-2",)


def test_the_reduced_outcomes_are_what_the_joint_model_says_row_by_row():
    table = zoo(500)
    point = calibrate_stages(table, stages=CHAIN, tolerance=0.01)
    short = reduced(table, point.stages)
    models = [table.said_by(role).__getitem__ for role in table.roles]
    answer = point.joint(models)(np.arange(len(table)))
    curve = point.curve(short)
    assert curve.at(threshold=point.threshold).deferral_rate == answer.deferred.mean()
    right = (answer.prediction == table.targets).mean()
    assert curve.at(threshold=point.threshold).quality == pytest.approx(right)
    paid = 1.0 + 1.5 * short.asked[:, 1].mean() + 30.0 * answer.deferred.mean()
    assert flops(evaluate(short, point)) == pytest.approx(paid)


def test_the_router_of_a_chain_is_refused_without_the_chain():
    table = zoo(500)
    point = calibrate_stages(table, stages=CHAIN, tolerance=0.01)
    first, middle, last = (table.said_by(role).__getitem__ for role in table.roles)
    with pytest.raises(ValueError, match=r"a chain of 3 models.*make the chain with point\.joint"):
        JointClassifier(first, last, point.router)
    chain = point.joint([first, middle, last])
    own = JointClassifier(chain.student, last, point.router)(np.arange(500))
    assert np.array_equal(own.output, chain(np.arange(500)).output)


def test_costs_are_those_of_the_rows_that_are_looked_at():
    table = zoo(600)
    stages = [Stage("student"), Stage("model-2", "softmax", 0.8), Stage("teacher")]
    short = reduced(table, stages)
    for rows in (np.arange(100), np.flatnonzero(short.asked[:, 1])):
        part = short.take(rows)
        assert part.student_cost.flops == pytest.approx(1 + 1.5 * short.asked[rows, 1].mean())


def test_hopeless_rows_skip_the_middle_and_reach_the_teacher_all_the_same():
    table = zoo(800)
    score = Router("softmax", 0.9).score(table.student)
    inner = Stage("model-2", "softmax", 0.9, skip=float(np.quantile(score, 0.2)))
    stages = [Stage("student"), inner, Stage("teacher", "softmax", 0.95)]
    asked = [0, 0, 0]

    def counted(place: int, role: str):
        def model(rows):
            asked[place] += len(rows)
            return table.said_by(role)[rows]

        return model

    joint = nested([counted(i, role) for i, role in enumerate(CHAIN)], stages, table.kind)
    answer = joint(np.arange(len(table)))
    hopeless = score < inner.skip
    assert asked[1] == (~hopeless & (score < 0.9)).sum()
    assert (answer.stage[hopeless] == 2).all()


def test_the_search_skips_where_that_pays_and_nowhere_else():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 4, 4000)
    hard = rng.random(4000) < 0.3  # only the teacher knows these, and the student sees that
    gain = np.where(hard, 0.0, 1.0)[:, None]
    said = [k * gain * np.eye(4)[targets] + rng.normal(0, 0.4, (4000, 4)) for k in (1.2, 2.0)]
    teacher = 6 * np.eye(4)[targets] + rng.normal(0, 1, (4000, 4))
    table = Outcomes(
        said[0],
        teacher,
        targets,
        student_cost=Cost(1.0),
        teacher_cost=Cost(30.0),
        between=(said[1],),
        between_costs=(Cost(12.0),),
    )
    found = calibrate_stages(table, stages=CHAIN, tolerance=0.01)
    assert found.stages[1].skip is not None
    easy = calibrate_stages(zoo(3000), stages=CHAIN, tolerance=0.01)
    assert easy.stages[1].skip is None


def test_every_chain_ends_with_the_teacher_which_an_easier_goal_may_never_ask():
    table = zoo(3000, costs=(1.0, 10.0, 300.0), skill=(2.5, 3.0, 5.0))
    target = table.quality("model-2") - 0.01
    found = calibrate_stages(table, "accuracy", target=target)
    assert all(one.roles[-1] == "teacher" for one in found.candidates if len(one.roles) > 1)
    assert found.teacher_quality == table.quality("teacher")
    assert flops(found) < 15


def test_a_budget_goes_to_the_most_accurate_chain_within_it():
    table = zoo(4000, costs=(1.0, 1.5, 30.0))
    for budget in (4.0, 8.0):
        found = calibrate_stages(table, "budget", flops=budget)
        chains = [("student", "teacher"), CHAIN]
        each = [calibrate_stages(table, "budget", stages=c, flops=budget) for c in chains]
        assert found.quality >= max(point.quality for point in each) - 0.01


def test_too_few_examples_are_one_sentence():
    with pytest.raises(CalibrationError, match="6 examples are too few to choose stages"):
        calibrate_stages(zoo(6))
    with pytest.raises(ValueError, match="every model costs 0 flops"):
        calibrate_stages(zoo(100, costs=(0.0, 0.0, 0.0)))


def test_regressors_are_chained_by_their_squared_errors():
    rng = np.random.default_rng(2)
    targets = rng.normal(0, 3, 3000)
    spread = rng.gamma(1.0, 1.0, 3000)
    said = [
        np.stack([targets + rng.normal(0, 1, 3000) * s * spread, np.log(s * spread) * 2], axis=1)
        for s in (1.0, 0.4, 0.1)
    ]
    table = Outcomes(
        said[0],
        said[2],
        targets,
        task="regression",
        student_cost=Cost(1.0),
        teacher_cost=Cost(40.0),
        between=(said[1],),
        between_costs=(Cost(4.0),),
    )
    names = table.kind.scores(table.student)
    found = calibrate_stages(table, tolerance=0.1)
    assert {stage.score.partition("(")[0] for stage in found.stages[1:]} <= {*names, "learned"}
    assert flops(found) <= flops(calibrate(table, tolerance=0.1)) * 1.02


def test_a_teacher_that_is_the_cheapest_saves_nothing():
    with pytest.raises(CalibrationError, match="the teacher is the cheapest model in flops"):
        calibrate_stages(zoo(200, costs=(3.0, 2.0, 1.0)))


def test_a_budget_is_kept_and_spent_better_than_by_the_pair():
    table = zoo(4000)
    found = calibrate_stages(table, "budget", flops=6.0)
    assert flops(found) <= 6.0
    assert found.quality >= calibrate(table, "budget", flops=6.0).quality


def test_chains_are_compared_in_the_unit_that_is_asked_for(recorded):
    table = recorded.take(np.arange(2000))
    dear = tuple(replace(cost, seconds=1.0) for cost in table.between_costs)
    table = replace(table, between_costs=dear)
    assert len(calibrate_stages(table, unit="seconds").stages) == 2
    assert calibrate_stages(table, unit="flops").compared_in == "flops"


def test_a_guarantee_of_three_stages_holds_over_redrawn_sets(monkeypatch):
    # the proof takes any inner thresholds, so a coarser search for them tests it as well
    monkeypatch.setattr(stage_search, "RATES", (0.05, 0.2, 0.5, 1.0))
    monkeypatch.setattr(stage_search, "SKIPS", (0.0, 0.1))
    truth, rng, delta, tolerance = zoo(20_000, seed=5), np.random.default_rng(0), 0.1, 0.02
    broken = kept = 0
    for _ in range(60):
        drawn = truth.take(rng.integers(0, len(truth), 1000))
        try:
            point = calibrate_stages(drawn, stages=CHAIN, tolerance=tolerance, delta=delta)
        except CalibrationError:
            continue
        kept += 1
        there = evaluate(reduced(truth, point.stages), point)
        broken += there.teacher_quality - there.quality > tolerance
    assert kept > 50
    assert broken <= 12  # of 60 at delta 0.1: more has a chance of 1 in 100


def test_the_proof_rests_on_examples_that_nothing_was_chosen_on():
    table = zoo(2000)
    found = calibrate_stages(table, stages=CHAIN, tolerance=0.05, delta=0.1)
    assert found.certified is not None
    assert found.certified.n == len(table) - round(0.3 * len(table))


def test_a_study_reports_the_chain_on_the_other_half(recorded):
    study = run_study(recorded.take(np.arange(4000)), stages=CHAIN)
    assert [stage[0] for stage in study.stages] == [*CHAIN]
    shares = [share for _, share, _, _ in study.stages]
    assert shares[0] == 1.0
    assert shares[2] == study.result.deferral_rate
    assert len(study.held_out) == 2000


def test_more_than_two_recorded_models_are_searched_by_default(recorded):
    assert run_study(recorded.take(np.arange(1000))).staged is not None
    assert run_study(recorded.take(np.arange(1000)).pair("student", "teacher")).staged is None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"stages": ("student", "model-9", "teacher")}, "stages must be auto, or two or more of"),
        ({"stages": ("teacher", "student")}, "the teacher last"),
        (
            {"stages": ("model-2", "student", "teacher")},
            "in the order of their costs, but model-2",
        ),
        ({"goal": "budget", "flops": 5.0, "unit": "seconds"}, "remove unit"),
        ({"stages": ("student",)}, "two or more"),
        ({"most": 1}, "most must be at least 2"),
        ({"unit": "joules"}, "unit"),
        ({"goal": "crossing"}, "goal 'crossing' is for one router"),
    ],
)
def test_what_is_no_chain_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        calibrate_stages(zoo(200), **how)


def test_models_without_costs_in_common_are_refused():
    table = replace(zoo(200), between_costs=(Cost(seconds=1.0),))
    with pytest.raises(
        ValueError, match="none of flops, dollars, seconds, joules, bytes is known for every"
    ):
        calibrate_stages(table)


def test_a_goal_out_of_reach_says_what_is_within_it():
    with pytest.raises(CalibrationError, match="no threshold reaches accuracy 1; the best is"):
        calibrate_stages(zoo(500, skill=(0.5, 0.6, 0.7)), "accuracy", target=1.0)


def test_the_joint_model_of_a_chain_is_nested_and_wants_all_models():
    table = zoo(400)
    point = calibrate_stages(table, stages=CHAIN, tolerance=0.02)
    joint = point.joint([lambda x: x, lambda x: x, lambda x: x])
    assert isinstance(joint.student, JointClassifier)
    assert joint.router.threshold == point.threshold
    with pytest.raises(ValueError, match="give the 3 recorded models, not 2"):
        point.joint([lambda x: x, lambda x: x])

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import (
    CalibrationError,
    Cost,
    JointClassifier,
    Outcomes,
    TradeOffCurve,
    calibrate,
    evaluate,
)
from ebjr.blend import Blend, as_blend
from ebjr.calibration import (
    CHOICE_SEED,
    CHOICE_SHARE,
    Goal,
    choose_blend,
    choose_score,
    rank_scores,
)
from ebjr.calibration.choice import NOISE, area_influence
from ebjr.calibration.guarantee import certify
from ebjr.scores import SCORES, Score, as_score, register_score
from ebjr.tasks import as_task

STUDENT = Cost(flops=1.0, seconds=0.1, joules=0.2, joules_are="measured")
TEACHER = Cost(flops=10.0, seconds=0.5, joules=2.0, joules_are="measured")


def pair(n: int = 400, seed: int = 0, classes: int = 5, **about) -> Outcomes:
    """A weak and a strong classifier whose noise is partly the same."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    clear = 4 * np.eye(classes)[targets]
    shared = rng.normal(0, 1.2, clear.shape)
    return Outcomes(
        student=clear + shared + rng.normal(0, 2, clear.shape),
        teacher=clear + shared,
        targets=targets,
        **{"student_cost": STUDENT, "teacher_cost": TEACHER, **about},
    )


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
@pytest.mark.parametrize("tolerance", [None, 0.0, 0.01, 0.05])
def test_match_teacher_is_the_least_deferral_that_is_good_enough(score, tolerance):
    outcomes = pair()
    how = {"tolerance": tolerance, "score": score, "blend": 0.0, "margin": 0.0}
    point = calibrate(outcomes, "match-teacher", **how)
    curve = TradeOffCurve.of(outcomes, score)
    enough = curve.quality >= outcomes.teacher_quality.mean() - (tolerance or 0) - 1e-9
    assert point.quality >= outcomes.teacher_quality.mean() - (tolerance or 0) - 1e-9
    assert point.deferral_rate == curve.deferral_rate[enough].min()


@given(
    seed=st.integers(0, 10_000),
    goal=st.sampled_from([{"goal": "accuracy", "target": 0.8}, {"tolerance": 0.05}, {}]),
    margins=st.lists(st.floats(0.0, 3.0), min_size=2, max_size=2),
)
def test_a_larger_margin_defers_no_less_and_the_goal_is_reached_with_any(seed, goal, margins):
    outcomes = pair(150, seed)
    needed = goal.get("target", outcomes.teacher_quality.mean() - goal.get("tolerance", 0.0))
    if TradeOffCurve.of(outcomes, "margin").quality.max() < needed:
        return
    small, large = (
        calibrate(outcomes, **goal, score="margin", blend=0.0, margin=margin)
        for margin in sorted(margins)
    )
    assert min(small.quality, large.quality) >= needed - 1e-9
    if "target" not in goal:  # which may be out of reach with a margin; the teacher never is
        assert small.deferral_rate <= large.deferral_rate


def test_the_margin_is_in_standard_errors_of_the_difference_to_the_teacher():
    outcomes = pair(2_000)
    point = calibrate(outcomes, tolerance=0.05, score="margin", blend=0.0, margin=2.0)
    curve = TradeOffCurve.of(outcomes, "margin")
    joint = np.where(
        as_score("margin")(outcomes.student) >= point.threshold,
        outcomes.student_quality,
        outcomes.teacher_quality,
    )
    change = joint - outcomes.teacher_quality
    assert change.mean() - 2 * change.std() / 2_000**0.5 >= -0.05
    before = np.flatnonzero(curve.deferral_rate < point.deferral_rate)
    for rate in curve.deferral_rate[before][::20]:  # none of those that defer less
        deferred = np.isin(np.arange(2_000), curve.order[: round(rate * 2_000)])
        change = np.where(deferred, 0, outcomes.student_quality - outcomes.teacher_quality)
        assert change.mean() - 2 * change.std() / 2_000**0.5 < -0.05


def test_a_student_that_never_differs_from_the_teacher_keeps_everything():
    outcomes = pair()
    same = Outcomes(outcomes.teacher, outcomes.teacher, outcomes.targets)
    assert calibrate(same, tolerance=0.0, score="margin", blend=0.0).deferral_rate == 0


@pytest.mark.parametrize("wrong", [{"goal": "budget", "flops": 3.0}, {"delta": 0.1}])
def test_a_margin_where_none_is_taken_is_refused(wrong):
    with pytest.raises(ValueError, match="margin is for match-teacher and accuracy without delta"):
        calibrate(pair(), **{"tolerance": None if "goal" in wrong else 0.1, **wrong}, margin=1.0)


def test_the_pick_without_a_margin_falls_short_where_the_one_with_it_does_not():
    short = {0.0: [], None: []}
    for seed in range(60):
        seen, others = pair(4_000, seed).split(0.1, seed=0)
        score = choose_score(seen)
        chosen = {"score": score, "blend": choose_blend(seen, score)}  # whatever the margin
        for margin, found in short.items():
            point = calibrate(seen, tolerance=0.02, margin=margin, **chosen)
            there = evaluate(others, point)
            found.append(there.teacher_quality - 0.02 - there.quality)
    assert np.mean(short[0.0]) > 0.003
    assert np.mean(short[None]) < 0.001


@given(seed=st.integers(0, 10_000), target=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_an_accuracy_is_reached_or_the_best_one_is_named(seed, target):
    outcomes = pair(60, seed)
    curve = TradeOffCurve.of(outcomes, "margin")
    if curve.quality.max() < target - 1e-9:
        best = f"the best is {curve.quality.max():.4g}, at deferral rate"
        with pytest.raises(CalibrationError, match=best):
            calibrate(outcomes, "accuracy", target=target, score="margin", blend=0.0)
        return
    point = calibrate(outcomes, "accuracy", target=target, score="margin", blend=0.0)
    assert point.quality >= target - 1e-9


def test_the_message_of_a_target_out_of_reach_says_what_is_feasible():
    outcomes = Outcomes(np.eye(4)[[0, 1, 2, 0]], np.eye(4)[[0, 1, 2, 2]], np.arange(4))
    with pytest.raises(CalibrationError) as caught:
        calibrate(outcomes, "accuracy", target=0.99, score="energy", blend=0.0)
    assert str(caught.value) == (
        "no threshold reaches accuracy 0.99; the best is 0.75, at deferral rate 0"
    )


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ({"flops": 4.0}, 0.3),
        ({"seconds": 0.2}, 0.2),
        ({"joules": 1.0}, 0.4),
        ({"deferral_rate": 0.15}, 0.15),
    ],
)
def test_a_budget_is_kept_and_used_as_well_as_it_can_be(budget, limit):
    outcomes = pair()
    point = calibrate(outcomes, "budget", **budget, score="softmax", blend=0.0)
    curve = TradeOffCurve.of(outcomes, "softmax")
    within = curve.deferral_rate <= limit + 1e-9
    assert point.deferral_rate <= limit + 1e-9
    assert point.quality == curve.quality[within].max()


def test_a_budget_under_the_students_cost_names_the_least():
    with pytest.raises(CalibrationError, match=r"cost in flops of 0.5; the least is 1, at"):
        calibrate(pair(), "budget", flops=0.5, score="softmax")


def test_a_budget_in_a_unit_that_nobody_measured_says_how_to_give_it():
    outcomes = pair(student_cost=Cost(seconds=0.1), teacher_cost=Cost(seconds=0.5))
    with pytest.raises(ValueError, match="do not say what both models cost in flops"):
        calibrate(outcomes, "budget", flops=3.0, score="softmax")


def test_crossing_puts_the_threshold_between_right_and_wrong():
    outcomes = pair(2_000)
    point = calibrate(outcomes, "crossing", score="energy", blend=0.0)
    values = as_score("energy")(outcomes.student)
    right = outcomes.student_quality == 1
    assert np.median(values[~right]) < point.threshold < np.median(values[right])


def test_the_joint_model_at_the_point_does_what_the_point_says():
    outcomes = pair()
    point = calibrate(outcomes)
    joint = JointClassifier(
        lambda rows: outcomes.student[rows],
        lambda rows: outcomes.teacher[rows],
        point.router,
        blend=point.blend,
    )
    answer = joint(np.arange(len(outcomes)))
    assert answer.deferred.mean() == point.deferral_rate
    assert (answer.prediction == outcomes.targets).mean() == pytest.approx(point.quality)


def test_the_break_even_is_named_and_a_pair_that_does_not_pay_is_told_so():
    point = calibrate(pair(), "budget", deferral_rate=0.5, score="softmax", blend=0.0)
    assert point.break_even == pytest.approx(0.9)
    assert point.pays
    assert "above a deferral rate of 90.0%" in point.verdict
    dear = pair(student_cost=Cost(flops=9.0), teacher_cost=Cost(flops=10.0))
    point = calibrate(dear, "match-teacher", score="random", blend=0.0)
    assert point.deferral_rate > 0.1
    assert not point.pays
    assert point.verdict.startswith("This pair does not pay here: the teacher alone is cheaper")


@pytest.mark.parametrize("score", [*as_task("classification").auto, "random"])
def test_the_mean_influence_is_the_area_under_the_curve(score):
    outcomes = pair(300, seed=2)
    values = np.round(as_score(score)(outcomes.student), 1)  # ties
    values[:3] = np.nan, -np.inf, np.nan
    influence = area_influence(values, outcomes.student_quality, outcomes.teacher_quality)
    assert influence.mean() == pytest.approx(TradeOffCurve.of(outcomes, values).area)


def test_the_standard_error_of_a_gain_is_what_redrawn_tables_show():
    entries = [rank_scores(pair(500, seed), ["energy"])[0] for seed in range(300)]
    spread = np.std([entry.gain for entry in entries])
    assert np.mean([entry.gain_error for entry in entries]) == pytest.approx(spread, rel=0.15)


def test_auto_takes_the_simplest_score_that_is_as_good_as_the_best():
    outcomes = pair(2_000, seed=3)
    ranked = rank_scores(outcomes)
    assert [entry.gain for entry in ranked] == sorted((e.gain for e in ranked), reverse=True)
    assert ranked[0].behind == 0
    chosen = next(e for e in ranked if str(e.score) == str(choose_score(outcomes)))
    assert chosen.behind <= NOISE * chosen.behind_error
    assert calibrate(outcomes, score="auto").score == str(chosen.score)


def test_auto_passes_over_no_simpler_score_with_a_larger_gain():
    rng = np.random.default_rng(3)
    right = rng.random(200) < 0.7
    outcomes = Outcomes(np.eye(2)[(~right).astype(int)], np.eye(2)[np.zeros(200, int)], [0] * 200)
    best = right + rng.normal(0, 1, 200)
    nearly = np.where(np.arange(200) < 40, best - 0.5 * right, best)
    other = right + rng.normal(0, 1.3, 200)
    candidates = [
        Score(n, lambda _, v=v: v) for n, v in zip("nob", (nearly, other, best), strict=True)
    ]
    ranked = {entry.score.name: entry for entry in rank_scores(outcomes, candidates)}
    assert list(ranked) == ["b", "n", "o"]
    stands_out = {name: e.behind > NOISE * e.behind_error for name, e in ranked.items()}
    assert stands_out == {"b": False, "n": True, "o": False}
    assert choose_score(outcomes, candidates).name == "n"
    assert choose_score(outcomes, candidates[1:]).name == "o"  # of noise alone, the simplest


def test_auto_is_not_fooled_by_the_order_of_the_candidates():
    outcomes = pair(4_000, seed=1)
    assert str(choose_score(outcomes, ["random", "softmax"])) == "softmax"
    twice = ["softmax", "softmax(temperature=1.0)"]
    assert str(choose_score(outcomes, twice)) == "softmax"
    assert str(choose_score(outcomes, twice[::-1])) == "softmax(temperature=1.0)"


def test_auto_blend_is_zero_where_the_student_adds_nothing():
    chosen = []
    for seed in range(20):
        outcomes = pair(1_000, seed)
        noise = np.random.default_rng(seed).normal(0, 5, outcomes.student.shape)
        table = Outcomes(noise, outcomes.teacher, outcomes.targets)
        chosen.append(choose_blend(table, as_score("softmax")))
    assert np.mean(np.equal(chosen, 0)) >= 0.9


def test_auto_blend_is_more_where_two_weak_models_err_apart():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 4_000)
    both = 4 * np.eye(5)[targets] + rng.normal(0, 2.5, (2, 4_000, 5))
    outcomes = Outcomes(both[0], both[1], targets)
    weight = choose_blend(outcomes, as_score("softmax"))
    areas = [TradeOffCurve.of(outcomes, "softmax", w).area for w in (weight, 0.0)]
    assert float(weight) > 0
    assert areas[0] > areas[1]


def test_any_callable_is_a_score():
    point = calibrate(pair(), score=lambda logits: logits.max(axis=1), blend=0.0)
    assert point.quality >= point.teacher_quality
    assert point.router.threshold == point.threshold


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"goal": "best"}, "goal must be one of match-teacher, accuracy, budget, crossing"),
        ({"goal": "accuracy"}, r"goal 'accuracy' needs target \(--target\)"),
        (
            {"goal": "budget"},
            "needs exactly one of flops, dollars, seconds, joules, bytes, deferral_rate",
        ),
        ({"goal": "budget", "flops": 1, "seconds": 1}, "needs exactly one of"),
        ({"goal": "crossing", "target": 0.9}, "target goes with goal 'accuracy', not"),
        ({"goal": "accuracy", "target": 94}, "target must lie between 0 and 1, not 94"),
        ({"tolerance": -0.1}, "tolerance must lie between 0 and 1"),
        ({"tolerance": float("nan")}, "tolerance must lie between 0 and 1"),
        ({"goal": "budget", "flops": float("inf")}, "flops must be a finite number"),
        ({"score": "magic"}, "there is no score named 'magic'"),
        ({"blend": "some"}, "blend must be a weight or 'auto'"),
        ({"blend": -1.0}, "blend must be a finite weight of at least 0"),
    ],
)
def test_a_bad_argument_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        calibrate(pair(40), **arguments)


# with a guarantee


PROMISED = [
    ("match-teacher", {"tolerance": 0.05}, None, "excess", 0.05),
    ("match-teacher", {"tolerance": 0.05}, "harm", "harm", 0.05),
    ("accuracy", {"target": 0.7}, None, "risk", 0.3),
    ("budget", {"deferral_rate": 0.4}, None, "rate", 0.4),
    ("budget", {"flops": 6.0}, None, "rate", 0.5),
    ("budget", {"seconds": 0.35}, "rate", "rate", 0.5),
]


@pytest.mark.parametrize(("goal", "asked", "promise", "found", "tolerance"), PROMISED)
def test_a_goal_with_delta_is_a_promise_that_is_certified(goal, asked, promise, found, tolerance):
    outcomes = pair(3000)
    point = calibrate(
        outcomes, goal, **asked, score="margin", blend=0.2, delta=0.1, promise=promise
    )
    expected = certify(
        TradeOffCurve.of(outcomes, "margin", 0.2), found, tolerance=tolerance, delta=0.1
    )
    assert point.certified.tolerance == pytest.approx(tolerance)
    assert (point.certified.promise, point.certified.n, point.certified.row) == (
        *(found, 3000),
        expected.row,
    )
    assert (point.threshold, point.deferral_rate) == (expected.threshold, expected.deferral_rate)


@pytest.mark.parametrize(
    ("choice", "n"), [({}, 700), ({"score": "margin"}, 700), ({"blend": 0.0}, 700)]
)
def test_what_is_chosen_by_the_data_is_chosen_on_other_examples_than_the_threshold(choice, n):
    outcomes = pair(1000)
    point = calibrate(outcomes, tolerance=0.05, delta=0.1, **choice)
    assert point.n == point.certified.n == n
    _, certified_on = outcomes.split(CHOICE_SHARE, CHOICE_SEED)
    curve = TradeOffCurve.of(certified_on, point.score, point.blend)
    assert point.threshold in map(curve.threshold_of, range(len(curve)))


def test_a_certified_point_says_so_in_its_figures():
    point = calibrate(pair(1000), tolerance=0.05, delta=0.1, score="margin", blend=0.0)
    assert point.as_dict()["certified"] == point.certified.as_dict()
    assert "certified" not in calibrate(pair(1000)).as_dict()


def test_a_promise_that_cannot_be_certified_names_the_smallest_that_can():
    with pytest.raises(CalibrationError, match=r"the smallest tolerance that can be certified is"):
        calibrate(pair(300), tolerance=0.001, delta=0.05, score="margin", blend=0.0)
    with pytest.raises(CalibrationError, match=r"on 210 examples; .* give both to certify on all"):
        calibrate(pair(300), tolerance=0.001, delta=0.05, score="margin")


@pytest.mark.parametrize(
    ("goal", "arguments", "message"),
    [
        ("match-teacher", {"tolerance": 0.01, "promise": "harm"}, "needs delta, like 0.1"),
        ("match-teacher", {"delta": 0.1}, "needs a tolerance, like 0.01"),
        ("match-teacher", {"delta": 0.1, "tolerance": 0.1, "promise": "rate"}, "excess or harm"),
        ("match-teacher", {"delta": 0.1, "tolerance": 0.1, "promise": "x"}, "one of harm, excess"),
        ("match-teacher", {"delta": 0.0, "tolerance": 0.1}, "delta must lie between 0 and 1"),
        ("match-teacher", {"delta": 1.0, "tolerance": 0.1}, "delta must lie between 0 and 1"),
        ("match-teacher", {"delta": 0.1, "tolerance": 1.0}, "below 1"),
        ("crossing", {"delta": 0.1}, "'crossing' cannot be guaranteed"),
        ("budget", {"deferral_rate": 1.0, "delta": 0.1}, "remove delta"),
        ("budget", {"flops": 11.0, "delta": 0.1}, "remove delta"),
        ("accuracy", {"target": 0.0, "delta": 0.1}, "below 1"),
    ],
)
def test_a_guarantee_that_makes_no_sense_is_refused_in_one_sentence(goal, arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(pair(), goal, **arguments, score="margin", blend=0.0)


def test_a_teacher_that_costs_nothing_may_always_be_asked():
    free = Cost(dollars=0.0)
    table = replace(pair(), student_cost=free, teacher_cost=free)
    with pytest.raises(ValueError, match="needs no guarantee: remove delta"):
        calibrate(table, "budget", dollars=1.0, delta=0.1, score="margin", blend=0.0)


def test_temperatures_are_chosen_where_they_win_by_more_than_noise():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 6000)
    clear = 3 * np.eye(4)[targets]
    student = clear + rng.normal(0, 2, clear.shape)
    teacher = clear + rng.normal(0, 2, clear.shape)
    loud = Outcomes(student, 8 * teacher, targets)  # equally good, but far too sure of itself
    chosen = choose_blend(loud, as_score("softmax"))
    assert isinstance(chosen, Blend)
    assert chosen.teacher_temperature == 2.0
    weights = [weight for weight in loud.kind.blends if not isinstance(weight, Blend)]
    plain = max(loud.deferred_quality(weight).mean() for weight in weights)
    assert loud.deferred_quality(chosen).mean() > plain


def test_where_temperatures_win_nothing_the_blend_is_a_plain_weight():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 2000)
    clear = 9 * np.eye(4)[targets]
    far_apart = Outcomes(rng.normal(0, 1, clear.shape), clear, targets)
    assert type(choose_blend(far_apart, as_score("softmax"))) is float


def test_a_blend_with_temperatures_is_what_the_joint_model_does():
    outcomes = pair(500)
    blend = Blend(0.5, student_temperature=2.0, teacher_temperature=0.5)
    point = calibrate(outcomes, tolerance=0.01, score="margin", blend=blend)
    joint = JointClassifier(
        lambda rows: outcomes.student[rows],
        lambda rows: outcomes.teacher[rows],
        point.router,
        blend=point.blend,
    )
    right = joint(np.arange(500)).prediction == outcomes.targets
    assert right.mean() == pytest.approx(point.quality)
    assert as_blend(point.as_dict()["blend"]) == blend


def test_a_learned_score_is_fitted_when_it_is_named():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    outcomes = pair(2000)
    point = calibrate(outcomes, score="learned", blend=0.0)
    assert point.router.score.name == "learned"
    assert point.quality >= outcomes.quality("teacher")
    certified = calibrate(outcomes, score="learned", blend=0.0, tolerance=0.1, delta=0.1).certified
    assert certified.n == len(outcomes) - round(
        CHOICE_SHARE * len(outcomes)
    )  # fitted on the others


def test_a_learned_score_that_cannot_be_fitted_is_refused_in_one_sentence():
    with pytest.raises(CalibrationError, match="learned can be fitted to these 60 examples: use"):
        calibrate(pair(60), score="learned")


@pytest.mark.parametrize("blend", ["auto", 0.0])
def test_a_score_of_another_task_is_refused_in_one_sentence(blend):
    with pytest.raises(
        ValueError, match=r"box_count is not for classification: .* there are: energy"
    ):
        calibrate(pair(60), score="box_count", blend=blend)


REGRESSORS = Outcomes([[1.0, 0.1], [2.0, 0.9]], [1.0, 2.5], [1.0, 2.6], task="regression")


@pytest.mark.parametrize("score", ["softmax", "energy(temperature=2.0)", "specialized_energy"])
def test_a_regressor_has_no_score_of_classifiers_nor_a_classifier_one_of_regressors(score):
    name = score.partition("(")[0]
    with pytest.raises(
        ValueError, match=rf"{name}.* regression: it reads logits.*, .* predicted_std"
    ):
        calibrate(REGRESSORS, score=score)
    with pytest.raises(ValueError, match="predicted_std is not for classification: it reads pred"):
        calibrate(pair(60), score="predicted_std", blend=0.0)


def test_random_and_scores_of_your_own_are_for_every_task():
    @register_score
    def small_numbers(output):
        return -np.abs(output[:, 0])

    try:
        for score in ("random", "small_numbers"):
            for outcomes in (pair(60), REGRESSORS):
                assert calibrate(outcomes, "budget", deferral_rate=1.0, score=score).score == score
    finally:
        del SCORES["small_numbers"]


def test_a_learned_score_of_predictions_alone_is_refused_in_one_sentence():
    outcomes = Outcomes([1.0, 2.0], [1.0, 2.5], [1.0, 2.6], task="regression")
    with pytest.raises(CalibrationError, match="use a score that is not fitted, like random"):
        calibrate(outcomes, score="learned")


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (("nope",), "goal must be one of match-teacher"),
        (("budget", 5e6), "goal 'budget' needs exactly one of flops"),
        (("budget", None, "flops"), "goal 'budget' needs exactly one of flops"),
        (("accuracy",), r"goal 'accuracy' needs target \(--target\)"),
        (("match-teacher", 0.1, "flops"), r"goal 'match-teacher' needs tolerance \("),
        (("budget", -1.0, "flops"), "flops must be a finite number of at least 0"),
    ],
)
def test_a_goal_that_is_built_by_hand_is_checked_too(goal, message):
    with pytest.raises(ValueError, match=message):
        Goal(*goal)

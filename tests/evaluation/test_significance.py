"""McNemar against statsmodels, the bootstrap against resampled rows, scores against their sums."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from ebjr.costs import Cost
from ebjr.curve import TradeOffCurve, oracle
from ebjr.evaluation.significance import (
    FEW,
    augrc,
    aurc,
    auroc,
    bootstrap,
    compare,
    joint_prediction,
    mcnemar,
    oracle_share,
    reliability,
    score_table,
    share_interval,
)
from ebjr.outcomes import Outcomes
from ebjr.scores import SCORES

COSTS = {"student_cost": Cost(flops=1.0), "teacher_cost": Cost(flops=9.0)}


def pairs(b: int, c: int, both: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Two models of which only the first is right b times, and only the second c times."""
    first = np.repeat([True, False, True], [b, c, both])
    return first, np.repeat([False, True, True], [b, c, both])


def pair_of_models(n: int, seed: int = 0, classes: int = 5) -> Outcomes:
    """A noisy student and a less noisy teacher."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    truth = 3 * np.eye(classes)[targets]
    student = truth + 2.0 * rng.normal(size=(n, classes))
    teacher = truth + 1.2 * rng.normal(size=(n, classes))
    return Outcomes(student, teacher, targets, **COSTS)


# McNemar


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 0), (3, 9), (12, 12), (30, 10), (400, 470)])
def test_mcnemar_agrees_with_statsmodels(b, c):
    tables = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="statsmodels is not installed"
    )
    test = mcnemar(*pairs(b, c))
    table = [[30, b], [c, 0]]
    assert test.p_exact == pytest.approx(tables.mcnemar(table, exact=True).pvalue)
    if b != c:  # there the correction would overshoot, and statsmodels lets it
        theirs = tables.mcnemar(table, exact=False, correction=True)
        assert test.statistic == pytest.approx(theirs.statistic)
        assert test.p_chi_square == pytest.approx(theirs.pvalue)


def test_mcnemar_is_exact_below_25_discordant_pairs_and_says_which():
    few, many = mcnemar(*pairs(FEW - 1, 0)), mcnemar(*pairs(FEW, 0))
    assert few.exact
    assert few.p_value == few.p_exact
    assert few.verdict.endswith("exact).")
    assert not many.exact
    assert many.p_value == many.p_chi_square
    assert many.verdict.endswith("chi-square).")
    assert mcnemar(*pairs(FEW, 0), exact=True).p_value == many.p_exact


def test_two_models_that_never_differ_are_not_told_apart():
    test = mcnemar(*pairs(0, 0))
    assert (test.p_exact, test.p_chi_square, test.statistic) == (1.0, 1.0, 0.0)
    assert math.isnan(test.odds_ratio)
    assert test.odds_interval == (0.0, math.inf)
    assert "chance alone" in test.verdict


def test_the_odds_interval_covers_the_odds_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    counts = rng.binomial(40, 2 / 3, 2_000)
    found = {count: mcnemar(*pairs(count, 40 - count)).odds_interval for count in set(counts)}
    covered = np.mean([found[count][0] <= 2.0 <= found[count][1] for count in counts])
    assert covered > 0.94


@given(b=st.integers(0, 60), c=st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_swapping_the_models_inverts_the_odds_and_keeps_the_p_value(b, c):
    one, other = mcnemar(*pairs(b, c)), mcnemar(*pairs(c, b))
    assert one.p_value == pytest.approx(other.p_value)
    low, high = one.odds_interval
    assert other.odds_interval[0] == pytest.approx(0.0 if math.isinf(high) else 1 / high)
    assert other.odds_interval[1] == pytest.approx(1 / low if low else math.inf)


def test_equally_good_models_differ_significantly_in_at_most_5_of_100_samples():
    rng = np.random.default_rng(1)
    p = [mcnemar(*pairs(b, 20 - b)).p_value for b in rng.binomial(20, 0.5, 1_000)]
    assert np.mean(np.array(p) < 0.05) <= 0.05


def test_compare_names_the_winner_in_one_sentence():
    targets = np.zeros(200, int)
    joint, other = np.repeat([0, 1], [190, 10]), np.repeat([0, 1], [150, 50])
    test = compare(joint, other, targets, names=("the joint model", "model B"))
    assert test.first_only == 40
    assert "the joint model is better, by more than chance explains" in test.verdict


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mcnemar([1, 0], [1]), "one has 2 and the other 1"),
        (lambda: mcnemar([], []), "no examples"),
        (lambda: mcnemar([0.5], [1]), "0"),
        (lambda: mcnemar([np.nan], [1]), "first_correct must be"),
        (lambda: compare([0, 1], [0], [0, 1]), "alike"),
        (lambda: auroc([1.0], [1, 0]), "must both be"),
        (lambda: aurc([], []), "no rows"),
        (lambda: augrc([1.0, 2.0], [1, 2]), "correct must be"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# Bootstrap


def test_resampled_kinds_are_resampled_rows():
    outcomes = pair_of_models(400)
    point = TradeOffCurve.of(outcomes, "softmax", 0.5).at(deferral_rate=0.4)
    found = bootstrap(outcomes, point, n_resamples=4_000, seed=1)
    deferred = point.router(outcomes.student)[1]
    joint = np.where(deferred, outcomes.deferred_quality(0.5), outcomes.student_quality)
    rows = np.random.default_rng(2).integers(0, 400, (4_000, 400))
    slow = {
        "accuracy": joint[rows].mean(axis=1),
        "deferral_rate": deferred[rows].mean(axis=1),
        "gain_over_teacher": (joint - outcomes.teacher_quality)[rows].mean(axis=1),
        "gain_over_student": (joint - outcomes.student_quality)[rows].mean(axis=1),
        "cost": (1 + 9 * deferred)[rows].mean(axis=1),
    }
    slow["saving"] = 9 / slow["cost"]
    assert set(found) == set(slow)
    for name, values in slow.items():
        spread = values.std()
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name].low == pytest.approx(low, abs=0.15 * spread)
        assert found[name].high == pytest.approx(high, abs=0.15 * spread)


def test_the_estimates_are_the_point_s_own_figures():
    outcomes = pair_of_models(500)
    point = TradeOffCurve.of(outcomes, "margin", 0.3).at(deferral_rate=0.25)
    found = bootstrap(outcomes, point)
    assert found["accuracy"].estimate == pytest.approx(point.quality)
    assert found["deferral_rate"].estimate == pytest.approx(point.deferral_rate)
    assert found["cost"].estimate == pytest.approx(point.cost.flops)
    assert found["saving"].estimate == pytest.approx(point.saving)
    gain = point.quality - point.teacher_quality
    assert found["gain_over_teacher"].estimate == pytest.approx(gain)
    assert all(entry.low <= entry.estimate <= entry.high for entry in found.values())


def test_95_percent_intervals_cover_the_truth_in_95_of_100_samples():
    population = pair_of_models(200_000, seed=3)
    point = TradeOffCurve.of(population, "softmax").at(deferral_rate=0.3)
    rng = np.random.default_rng(4)
    covered = []
    for seed in range(300):
        sample = population.take(rng.choice(len(population), 500, replace=False))
        found = bootstrap(sample, point, n_resamples=500, seed=seed)
        gain = point.quality - point.teacher_quality
        covered.append(
            [
                found["accuracy"].low <= point.quality <= found["accuracy"].high,
                found["gain_over_teacher"].low <= gain <= found["gain_over_teacher"].high,
            ]
        )
    assert (np.mean(covered, axis=0) > 0.92).all()


def test_ten_thousand_examples_are_resampled_2000_times_within_a_second():
    outcomes = pair_of_models(10_000)
    point = TradeOffCurve.of(outcomes, "softmax").at(deferral_rate=0.3)
    began = time.perf_counter()
    bootstrap(outcomes, point, n_resamples=2_000)
    assert time.perf_counter() - began < 1.0


def test_the_same_seed_gives_the_same_intervals():
    outcomes = pair_of_models(300)
    point = TradeOffCurve.of(outcomes, "energy").at(deferral_rate=0.5)
    assert bootstrap(outcomes, point, seed=7) == bootstrap(outcomes, point, seed=7)
    assert bootstrap(outcomes, point, seed=7) != bootstrap(outcomes, point, seed=8)


def test_costs_that_are_not_known_are_left_out():
    outcomes = pair_of_models(100)
    bare = Outcomes(outcomes.student, outcomes.teacher, outcomes.targets)
    point = TradeOffCurve.of(bare, "energy").at(deferral_rate=0.5)
    assert not {"cost", "saving"} & set(bootstrap(bare, point))


def test_the_joules_that_are_saved_are_those_of_the_point_and_vary_with_the_rate_alone():
    outcomes = replace(
        pair_of_models(300),
        student_cost=Cost(flops=1, joules=0.2),
        teacher_cost=Cost(flops=9, joules=1.0),
    )
    point = TradeOffCurve.of(outcomes, "energy").at(deferral_rate=0.5)
    found = bootstrap(outcomes, point)
    saved, rate = found["joules_saved"], found["deferral_rate"]
    assert saved.estimate == pytest.approx(point.joules_saved) == pytest.approx(0.3)
    assert (saved.low, saved.high) == pytest.approx((0.8 - rate.high, 0.8 - rate.low))
    assert TradeOffCurve.of(pair_of_models(9), "energy").at(index=1).joules_saved is None


@pytest.mark.parametrize(
    ("options", "words"), [({"n_resamples": 1}, "at least 100"), ({"level": 1.0}, "level must")]
)
def test_a_bootstrap_that_makes_no_sense_says_so(options, words):
    outcomes = pair_of_models(50)
    point = TradeOffCurve.of(outcomes, "energy").at(deferral_rate=0.5)
    with pytest.raises(ValueError, match=words):
        bootstrap(outcomes, point, **options)


# Scores


rows_with_ties = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30).map(
    lambda rows: (np.array([r[0] for r in rows], float), np.array([r[1] for r in rows]))
)


@given(rows_with_ties)
@settings(max_examples=100, deadline=None)
def test_auroc_agrees_with_scikit_learn_ties_included(rows):
    score, correct = rows
    if correct.all() or not correct.any():
        assert math.isnan(auroc(score, correct))
    else:
        assert auroc(score, correct) == pytest.approx(roc_auc_score(correct, score))


@given(rows_with_ties)
@settings(max_examples=100, deadline=None)
def test_augrc_is_the_formula_of_its_paper(rows):
    score, correct = rows
    accuracy = correct.mean()
    ranked = 0.0 if accuracy in (0.0, 1.0) else 1 - auroc(score, correct)
    formula = ranked * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert augrc(score, correct) == pytest.approx(formula)


def test_ties_count_as_the_mean_over_all_their_orders():
    rng = np.random.default_rng(5)
    score, correct = rng.integers(0, 4, 40).astype(float), rng.random(40) < 0.7
    orders = [score + 1e-6 * rng.random(40) for _ in range(4_000)]
    for figure in (auroc, aurc, augrc):
        values = np.array([figure(order, correct) for order in orders])
        error = values.std() / math.sqrt(len(values))
        assert figure(score, correct) == pytest.approx(values.mean(), abs=4 * error)


def test_aurc_is_the_mean_error_of_the_best_scored_rows():
    rng = np.random.default_rng(6)
    score, correct = rng.normal(size=200), rng.random(200) < 0.8
    best = np.argsort(-score)
    slow = np.mean([(~correct[best[:k]]).mean() for k in range(1, 201)])
    assert aurc(score, correct) == pytest.approx(slow)


def test_a_nan_score_ranks_lowest_since_it_is_deferred():
    score, correct = np.array([np.nan, 1.0, 2.0]), np.array([0, 1, 1])
    assert auroc(score, correct) == 1.0
    assert augrc(score, correct) == augrc([0.0, 1.0, 2.0], correct)


def test_the_oracle_has_share_1_and_a_score_that_knows_nothing_about_0():
    outcomes = pair_of_models(20_000, seed=8)
    assert oracle_share(TradeOffCurve.of(outcomes, oracle(outcomes))) == pytest.approx(1.0)
    assert abs(oracle_share(TradeOffCurve.of(outcomes, "random"))) < 0.02
    assert oracle_share(TradeOffCurve.of(outcomes, -oracle(outcomes))) < -0.9


def test_the_oracle_share_of_a_blend_is_measured_against_the_same_blend():
    outcomes = pair_of_models(2_000, seed=9)
    curve = TradeOffCurve.of(outcomes, oracle(outcomes, 0.5), 0.5)
    assert oracle_share(curve) == pytest.approx(1.0)


def test_models_that_are_right_on_the_same_rows_leave_nothing_to_share():
    logits = softmax(np.random.default_rng(0).normal(size=(50, 3)), axis=1)
    outcomes = Outcomes(logits, logits, np.zeros(50, int))
    assert math.isnan(oracle_share(TradeOffCurve.of(outcomes, "energy")))
    assert math.isnan(score_table(outcomes, ["energy"])[0].oracle_share)


def test_the_table_has_every_named_score_with_the_figures_of_its_curve():
    outcomes = pair_of_models(1_000, seed=10)
    table = score_table(outcomes, blend=0.5)
    assert [row.score for row in table] == list(SCORES)
    for row in table:
        curve = TradeOffCurve.of(outcomes, row.score, 0.5)
        assert row.oracle_share == pytest.approx(oracle_share(curve))
        values = np.asarray(SCORES[row.score](outcomes.student))
        assert row.aurc == pytest.approx(aurc(values, outcomes.student_quality))
    best = max(table, key=lambda row: row.gain)
    assert best.oracle_share == max(row.oracle_share for row in table)
    assert best.auroc > 0.7


# The joint model's answers, and the picture of both models along the score


def test_the_better_one_is_named_only_beyond_chance():
    assert mcnemar(*pairs(30, 10), names=("a", "b")).better == "a"
    assert mcnemar(*pairs(10, 30), names=("a", "b")).better == "b"
    assert mcnemar(*pairs(12, 10), names=("a", "b")).better is None


def test_a_comparison_as_a_dictionary_has_its_p_value_and_verdict():
    test = mcnemar(*pairs(30, 10))
    figures = test.as_dict()
    assert figures["p_value"] == test.p_chi_square
    assert figures["odds_ratio"] == 3.0
    assert figures["verdict"] == test.verdict
    assert (test.odds.estimate, test.odds.low) == (3.0, test.odds_interval[0])


@pytest.mark.parametrize("blend", [0.0, 0.4])
def test_joint_predictions_are_those_of_the_joint_model(blend):
    from ebjr.tasks.classification import JointClassifier

    outcomes = pair_of_models(300)
    point = TradeOffCurve.of(outcomes, "margin", blend).at(deferral_rate=0.4)
    joint = JointClassifier(
        lambda rows: outcomes.student[rows],
        lambda rows: outcomes.teacher[rows],
        point.router,
        blend=blend,
    )
    answer = joint(np.arange(300))
    assert np.array_equal(joint_prediction(outcomes, point), answer.prediction)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (3, 10), (480, 500)])
def test_the_interval_of_a_share_agrees_with_statsmodels(hits, n):
    proportion = pytest.importorskip(
        "statsmodels.stats.proportion", reason="statsmodels is not installed"
    )
    found = share_interval(hits, n)
    low, high = proportion.proportion_confint(hits, n, method="beta")
    assert (found.estimate, found.low, found.high) == pytest.approx((hits / n, low, high))


def test_ten_bins_hold_the_examples_in_the_order_of_their_score():
    outcomes = pair_of_models(1_000)
    point = TradeOffCurve.of(outcomes, "margin").at(index=5)
    bins = reliability(outcomes, point)
    order = np.argsort(point.score_function(outcomes.student)).reshape(10, 100)
    for rows, found in zip(order, bins, strict=True):
        assert found.n == 100
        assert found.student.estimate == outcomes.student_quality[rows].mean()
        assert found.teacher.estimate == outcomes.teacher_quality[rows].mean()
    assert [found.start for found in bins] == pytest.approx(np.arange(10) / 10)
    assert [found.end for found in bins] == pytest.approx(np.arange(1, 11) / 10)
    assert bins[0].student.estimate < bins[0].teacher.estimate


def test_what_ties_stays_in_one_bin_and_nan_is_the_lowest():
    values = np.array([5.0, 5.0, 5.0, 5.0, 5.0, 5.0, np.nan, 1.0, 9.0, 9.0])
    outcomes = pair_of_models(10)
    from ebjr.scores import Score

    point = TradeOffCurve.of(outcomes, Score("given", lambda logits: values)).at(index=0)
    bins = reliability(outcomes, point)
    assert [found.n for found in bins] == [1, 1, 6, 2]
    assert [found.low for found in bins] == [-math.inf, 1.0, 5.0, 9.0]
    assert bins[2].student.estimate == outcomes.student_quality[:6].mean()
    assert (bins[2].start, bins[2].end) == (0.2, 0.8)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        reliability(outcomes, point, bins=0)
